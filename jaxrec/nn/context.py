"""Context: what every layer of a stack receives beside its input: who may see whom, when things happened, the key of dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Context:
    """What every layer of a stack receives beside its input.

    Attributes:
      segment: [B, T] int32, which history a token belongs to; 0 = padding.
      mask: [B, 1, T or 1, T] bool, True where a query (third axis) may see a key (last axis).
      key: random key for dropout; None when evaluating.
      time: [B, T] int32 seconds, or None.
      bias: [1 or B, H, T, T] float32 added to the scores (relative positions), or None.
      causal: whether the mask hides every later key, so that those products may be left out.
      packed: whether the mask says no more than `segment` and `causal` do, so that a kernel may read those instead.
    """

    segment: jax.Array
    mask: jax.Array
    key: jax.Array | None = None
    time: jax.Array | None = None
    bias: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)
    packed: bool = struct.field(pytree_node=False, default=False)


def packed(segment: jax.Array, *, causal: bool, key: jax.Array | None = None, time: jax.Array | None = None, bias: jax.Array | None = None) -> Context:
    """The context of rows [B, T] in which every history sees itself."""
    return Context(segment, visible(segment, causal=causal), key, time, bias, causal, packed=True)


def visible(segment: jax.Array, *, causal: bool) -> jax.Array:
    """[B, 1, T, T] which key each query may see: those of its own segment; only earlier ones (and itself) if causal.

    Padding is a segment of its own, so no row is without a visible key and no softmax divides by zero.
    """
    same = segment[:, None, :, None] == segment[:, None, None, :]
    if not causal:
        return same
    length = segment.shape[1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None, None]
