"""The definition: keeps all weights, and leaves the derivative to jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def attend(q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None, *, power: int, causal: bool) -> Array:
    """o [B, T, H, V] in v's type; keeps [B, H, T, S] scores."""
    kind = v.dtype
    q, k, v = (array.astype(jnp.float32) for array in (q, k, v))  # so that gradients of shared heads are summed before they are rounded
    k, v = (jnp.repeat(array, q.shape[2] // array.shape[2], axis=2) for array in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k, precision="highest")
    visible = jnp.tri(*scores.shape[2:], dtype=bool)[None, None] if causal else jnp.ones((1, 1, 1, 1), bool)
    if query_segment is not None and key_segment is not None:
        visible &= (query_segment[:, :, None] == key_segment[:, None, :])[:, None]
    weight = jnp.where(visible, jax.nn.relu(scores - gate.swapaxes(1, 2)[..., None]) ** power, 0)
    return jnp.einsum("bhts,bshv->bthv", weight, v, precision="highest").astype(kind)
