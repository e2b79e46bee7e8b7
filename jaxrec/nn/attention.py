"""Attention over packed rows: several histories share a row and see only themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.linear import Linear

QUERY_BLOCK = 64
HIDDEN = -1e30
"""The score of a key that may not be seen; finite, so that a fully hidden block has no NaN."""


@struct.dataclass
class Context:
    """What every layer of a stack receives beside its input.

    Attributes:
      segment: [B, T] int32, which history a token belongs to; 0 = padding.
      mask: [B, 1, T, T] bool, True where a query (third axis) may see a key (last axis).
      key: random key for dropout; None when evaluating.
      time: [B, T] int32 seconds, or None.
      causal: whether the mask hides every later key, so that those products may be left out.
    """

    segment: jax.Array
    mask: jax.Array
    key: jax.Array | None = None
    time: jax.Array | None = None
    causal: bool = struct.field(pytree_node=False, default=False)


def visible(segment: jax.Array, *, causal: bool) -> jax.Array:
    """[B, 1, T, T] which key each query may see: those of its own segment; only earlier ones (and itself) if causal.

    Padding is a segment of its own, so no row is without a visible key and no softmax divides by zero.
    """
    same = segment[:, None, :, None] == segment[:, None, None, :]
    if not causal:
        return same
    length = segment.shape[1]
    return same & jnp.tril(jnp.ones((length, length), bool))[None, None]


@struct.dataclass
class Attention:
    """Multi-head scaled dot-product self-attention (Vaswani et al. 2017, arXiv 1706.03762), without biases in q, k, v.

    softmax(q k^T / sqrt(K) + mask) v, heads concatenated, then one linear map. A key bias has no gradient (softmax is blind to it).
    """

    qkv: Linear  # D -> 3 * H * K
    output: Linear  # H * K -> D
    heads: int = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, heads: int) -> Attention:
        check_heads(width, heads)
        return cls(
            qkv=Linear.spec(width, 3 * width, axes=("embed", "heads"), bias=False), output=Linear.spec(width, width, axes=("heads", "embed")), heads=heads
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        B, T, _ = x.shape
        q, k, v = (part.reshape(B, T, self.heads, -1) for part in jnp.split(self.qkv(x), 3, axis=-1))  # [B, T, H, K]
        return self.output(attend(q, k, v, context).reshape(B, T, -1))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v over the keys that each query may see, [B, T, H, K]; the softmax in float32.

    Causal queries go in blocks, and a block is multiplied only with the keys up to its end: nearly half of the products of a long row
    would be masked.
    """
    T = q.shape[1]
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    bias = jnp.where(context.mask, 0.0, HIDDEN)  # [B, 1, T, T]
    mixed = []
    for low in range(0, T, QUERY_BLOCK if context.causal else T):
        high = min(low + QUERY_BLOCK, T) if context.causal else T
        seen = slice(0, high)
        scores = jnp.einsum("bthk,bshk->bhts", q[:, low:high], k[:, seen], preferred_element_type=jnp.float32) + bias[:, :, low:high, seen]
        mixed.append(jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v[:, seen]))
    return jnp.concatenate(mixed, axis=1)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide dim={width}; choose a divisor")
