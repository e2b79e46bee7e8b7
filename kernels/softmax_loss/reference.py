"""The definition: keeps all [N, V] logits, and leaves the derivative to jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def losses(hidden: Array, table: Array, target: Array, valid: tuple[int, int]) -> Array:
    """-log softmax(hidden @ table.T)[target] of every token, [N] float32."""
    logits = jnp.einsum("nd,vd->nv", hidden, table, precision="highest", preferred_element_type=jnp.float32)
    row = jnp.arange(table.shape[0])[None, :]
    logits = jnp.where((row >= valid[0]) & (row < valid[1]), logits, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]


def losses_and_gradients(hidden: Array, table: Array, target: Array, weight: Array, valid: tuple[int, int]) -> tuple[Array, Array, Array]:
    """The losses [N], and the gradients of sum(weight * losses) to hidden [N, D] and to table [V, D]."""
    value, pullback = jax.vjp(lambda hidden, table: losses(hidden, table, target, valid), hidden, table)
    return value, *pullback(weight)
