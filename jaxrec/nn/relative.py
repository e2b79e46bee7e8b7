"""Relative positions: a learned bias of the distance between query and key."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.param import Param, normal


@struct.dataclass
class RelativeBias:
    """T5's bias per head and bucket of distance (Raffel et al. 2020, arXiv 1910.10683): half of the buckets exact, half logarithmic up to `furthest`."""

    table: jax.Array  # [buckets, H]
    furthest: int = struct.field(pytree_node=False)
    causal: bool = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, heads: int, *, buckets: int = 32, furthest: int = 128, causal: bool) -> RelativeBias:
        """Declares `buckets` of distance; if causal all are for the past, else half of them for each side."""
        if buckets < 4 or buckets % 4:
            raise ValueError(f"buckets={buckets} must be a multiple of 4: exact and logarithmic ones, on both sides")
        return cls(Param((buckets, heads), (None, "heads"), normal(0.02)), furthest, causal)  # type: ignore[arg-type]

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Positions [T] and [S] -> [1, H, T, S]."""
        return jnp.moveaxis(self.table[self.bucket(key[None, :] - query[:, None])], -1, 0)[None].astype(jnp.float32)

    def bucket(self, distance: jax.Array) -> jax.Array:
        """The bucket of each distance, key position - query position."""
        side, offset = self.table.shape[0], jnp.zeros_like(distance)
        if not self.causal:
            side //= 2
            offset = jnp.where(distance > 0, side, 0)
            distance = -jnp.abs(distance)
        past = jnp.maximum(-distance, 0)
        exact = side // 2
        ratio = jnp.log(jnp.maximum(past, 1) / exact) / math.log(self.furthest / exact)
        coarse = jnp.minimum(exact + (ratio * (side - exact)).astype(jnp.int32), side - 1)
        return offset + jnp.where(past < exact, past, coarse)
