"""HSTU: hierarchical sequential transduction units (Zhai et al. 2024, arXiv 2402.17152).

One layer, with x' = norm(x):

  U, V, Q, K = split(silu(x' W1))
  A          = silu(Q K^T + r) / L          pointwise, no softmax: the size of a history's interest survives
  y          = x + (norm(A V) * U) W2 + b2

r is a learned bias of the distance in positions and, where the data has times, of the logarithm of the distance in seconds, shared
by the heads. L is `length`, a constant, so padding changes nothing. What we changed: histories are packed; sampled softmax is an option
beside the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.method import Batch
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.attention import SOFTMAX, check_heads
from jaxrec.nn.context import Context
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm, standardise
from jaxrec.param import Param, zeros

TIME_BUCKETS = 64


@struct.dataclass
class HSTUBlock:
    """One HSTU layer."""

    norm: LayerNorm
    inner: Linear  # D -> 4 D: U, V, Q, K
    outer: Linear  # D -> D
    position_bias: jax.Array  # [length], by distance
    time_bias: jax.Array | None  # [TIME_BUCKETS]
    heads: int = struct.field(pytree_node=False)
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, heads: int, length: int, rate: float, timed: bool) -> HSTUBlock:
        check_heads(width, heads)
        time_bias = Param((TIME_BUCKETS,), (None,), zeros) if timed else None
        return cls(
            LayerNorm.spec(width),
            Linear.spec(width, 4 * width, bias=False),
            Linear.spec(width, width, axes=("hidden", "embed")),
            Param((length,), (None,), zeros),  # type: ignore[arg-type]
            time_bias,  # type: ignore[arg-type]
            heads,
            rate,
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x.shape
        gate, v, q, k = jnp.split(jax.nn.silu(self.inner(self.norm(x))), 4, axis=-1)
        v, q, k = (part.reshape(B, T, self.heads, D // self.heads) for part in (v, q, k))  # [B, T, H, K]
        scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32) + self.bias(context, T)  # [B, H, T, T]
        weights = jnp.where(context.mask, jax.nn.silu(scores), 0) / self.position_bias.shape[0]
        mixed = jnp.einsum("bhts,bshk->bthk", weights.astype(x.dtype), v).reshape(B, T, D)
        y = dropout(standardise(mixed).astype(x.dtype) * gate, self.rate, context.key)
        return x + self.outer(y)

    def bias(self, context: Context, length: int) -> jax.Array:
        """[B or 1, 1, T, T] the learned bias of the distance between query and key."""
        steps = jnp.arange(length)
        distance = jnp.clip(steps[:, None] - steps[None], 0, self.position_bias.shape[0] - 1)
        bias = self.position_bias[distance][None, None]
        if self.time_bias is None:
            return bias
        if context.time is None:
            raise ValueError("HSTU(timed=True) needs `time` in the batch, but the data has no times; set timed=False")
        seconds = jnp.abs(context.time[:, :, None] - context.time[:, None]).astype(jnp.float32)
        bucket = jnp.clip(jnp.log1p(seconds) / 0.301, 0, TIME_BUCKETS - 1).astype(jnp.int32)
        return bias + self.time_bias[bucket][:, None]


@dataclass(frozen=True)
class HSTU(NextItem):
    """A causal stack of HSTU layers.

    Attributes:
      timed: use the distance in seconds; needs data with times.
    """

    timed: bool = False

    positions: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.attention != SOFTMAX:
            raise ValueError(f"HSTU is a kind of attention itself, and attention={self.attention} would change nothing; leave it out, or choose SASRec")

    def block(self) -> HSTUBlock:
        return HSTUBlock.spec(self.dim, self.heads, self.length, self.dropout, self.timed)


def tiny() -> tuple[HSTU, Batch]:
    """A model and a batch small enough for a test."""
    return HSTU(items=30, length=8, dim=16, heads=2, dropout=0.0, negatives=16, timed=True), tiny_batch()
