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
      mask: [B, 1, T or 1, T] bool, True where a query (third axis) may see a key (last axis).
      key: random key for dropout; None when evaluating.
      time: [B, T] int32 seconds, or None.
      bias: [1 or B, H, T, T] float32 added to the scores (relative positions), or None.
      causal: whether the mask hides every later key, so that those products may be left out.
    """

    segment: jax.Array
    mask: jax.Array
    key: jax.Array | None = None
    time: jax.Array | None = None
    bias: jax.Array | None = None
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
    def spec(cls, width: int, heads: int, head: int = 0) -> Attention:
        """Declares `heads` heads of width `head`; 0 = width / heads."""
        inner = heads * head or width
        check_heads(inner, heads)
        return cls(
            qkv=Linear.spec(width, 3 * inner, axes=("embed", "heads"), bias=False), output=Linear.spec(inner, width, axes=("heads", "embed")), heads=heads
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        q, k, v = self.project(x)
        return self.output(merge_heads(attend(q, k, v, context)))

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] -> queries, keys and values [B, T, H, K]."""
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return q, k, v


@struct.dataclass
class CrossAttention:
    """Multi-head attention from one sequence to another, the memory."""

    query: Linear  # D -> H * K
    memory: Linear  # D -> 2 * H * K
    output: Linear  # H * K -> D
    heads: int = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, heads: int, head: int = 0) -> CrossAttention:
        """Declares `heads` heads of width `head`; 0 = width / heads."""
        inner = heads * head or width
        check_heads(inner, heads)
        return cls(
            query=Linear.spec(width, inner, axes=("embed", "heads"), bias=False),
            memory=Linear.spec(width, 2 * inner, axes=("embed", "heads"), bias=False),
            output=Linear.spec(inner, width, axes=("heads", "embed")),
            heads=heads,
        )

    def remember(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Memory [B, S, D] -> its keys and values [B, S, H, K], to be made once for all queries."""
        k, v = (split_heads(part, self.heads) for part in jnp.split(self.memory(memory), 2, axis=-1))
        return k, v

    def __call__(self, x: jax.Array, remembered: tuple[jax.Array, jax.Array], bias: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]; bias [B, 1, T, S] hides what a query may not see."""
        k, v = remembered
        return self.output(merge_heads(weigh(split_heads(self.query(x), self.heads), k, v, bias)))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., H * K] -> [..., H, K]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def merge_heads(x: jax.Array) -> jax.Array:
    """[..., H, K] -> [..., H * K]."""
    return x.reshape(*x.shape[:-2], -1)


def hide(mask: jax.Array) -> jax.Array:
    """A mask as a bias: 0 where it is True, so low elsewhere that nothing is left after the softmax."""
    return jnp.where(mask, 0.0, HIDDEN)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array:
    """Self-attention over the keys that each query may see, [B, T, H, K]."""
    bias = hide(context.mask)  # [B, 1, T, T]
    return weigh(q, k, v, bias if context.bias is None else bias + context.bias, causal=context.causal)


def weigh(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *, causal: bool = False) -> jax.Array:
    """softmax(q k^T / sqrt(K) + bias) v, [B, T, H, K] against [B, S, H, K]; the softmax in float32.

    Causal queries go in blocks, and a block is multiplied only with the keys up to its end: nearly half of the products of a long row
    would be masked.
    """
    T = q.shape[1]
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    mixed = []
    for low in range(0, T, QUERY_BLOCK if causal else T):
        high = min(low + QUERY_BLOCK, T) if causal else T
        seen = slice(0, high) if causal else slice(None)
        scores = jnp.einsum("bthk,bshk->bhts", q[:, low:high], k[:, seen], preferred_element_type=jnp.float32) + bias[:, :, low:high, seen]
        mixed.append(jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v[:, seen]))
    return jnp.concatenate(mixed, axis=1)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide dim={width}; choose a divisor")
