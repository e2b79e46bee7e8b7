"""Positions that only tell distances: a learned bias, a fixed one, and rotations of queries and keys.

Distances are between places in a row, so histories packed into one row, or padded on the left, need no position numbers of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
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
        if furthest <= (exact := buckets // (2 if causal else 4)):
            raise ValueError(f"furthest={furthest} must be above {exact}, the distances with one of buckets={buckets} each; take fewer, or look further")
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


@struct.dataclass
class Alibi:
    """A fixed penalty of distance, -slope_h * |i - j|, slopes geometric over the heads (Press et al. 2022, arXiv 2108.12409)."""

    heads: int = struct.field(pytree_node=False)
    views: int = struct.field(pytree_node=False, default=1)  # sets of scores of each head, which share its slope

    def __call__(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Positions [T] and [S] -> [1, V H, T, S]."""
        distance = jnp.abs(key[None, :] - query[:, None]).astype(jnp.float32)
        return -jnp.asarray(self.slopes() * self.views, jnp.float32)[None, :, None, None] * distance[None, None]

    def slopes(self) -> list[float]:
        """2^(-8/n), 2^(-16/n), ... for n heads, a power of two; another number also takes every second slope of twice that power."""
        power = 2 ** int(math.log2(self.heads))
        first = [2 ** (-8 * (head + 1) / power) for head in range(power)]
        return first + [2 ** (-4 * (2 * head + 1) / power) for head in range(self.heads - power)]


@dataclass(frozen=True)
class Rotary:
    """RoPE: pairs of features turn by an angle proportional to the place, so that products depend on distances (Su et al. 2021, arXiv 2104.09864).

    Feature k turns with feature k + K/2 at frequency theta^(-2k/K).

    Attributes:
      theta: base of the frequencies.
      share: of the features that turn, from the first on.
      scaling: for texts longer than those of training: "linear" divides every frequency by `factor`; "ntk" raises theta so that only the lowest is;
        "llama3" divides those whose wavelength is beyond `original / low` positions, keeps those below `original / high`, and blends between.
      factor: how much longer.
      original: positions in training; only for "llama3".
      low, high: its bounds, in turns over the original length.
    """

    theta: float = 10_000.0
    share: float = 1.0
    scaling: str = "none"
    factor: float = 1.0
    original: int = 8192
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self):
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling={self.scaling!r} is none of {', '.join(SCALINGS)}")
        if not (0 < self.factor < math.inf and 0 < self.theta < math.inf and 0 < self.share <= 1):
            raise ValueError(f"factor={self.factor} and theta={self.theta} must be above 0, and share={self.share} above 0 and at most 1")
        if not (self.original > 0 and 0 < self.low < self.high < math.inf):
            raise ValueError(f"original={self.original} must be above 0, and low={self.low} above 0 and below high={self.high}: between them frequencies blend")

    def frequencies(self, width: int) -> np.ndarray:
        """[width * share / 2] radians per position."""
        turning = int(width * self.share)
        if turning % 2:
            raise ValueError(f"{turning} features of a head are to turn in pairs; choose heads of even width, or another share")
        if self.scaling == "ntk" and turning < 4:
            raise ValueError(f"scaling='ntk' keeps the highest frequency and lowers the others, and {turning} turning features have one; choose wider heads")
        theta = self.theta * self.factor ** (turning / (turning - 2)) if self.scaling == "ntk" else self.theta
        found = theta ** (-np.arange(0, turning, 2, dtype=np.float64) / turning)
        if self.scaling == "linear":
            found = found / self.factor
        if self.scaling == "llama3":
            turns = self.original * found / (2 * np.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            found = kept * found + (1 - kept) * found / self.factor
        return found

    def __call__(self, x: jax.Array, place: jax.Array) -> jax.Array:
        """Queries or keys [B, T, H, K] at places [T] or [B, T], turned."""
        frequencies = jnp.asarray(self.frequencies(x.shape[-1]), jnp.float32)
        angle = place.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * place.ndim + (-1,))  # [T, K / 2] or [B, T, K / 2]
        angle = angle[..., None, :] if place.ndim == 2 else angle[None, :, None, :]
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        half = frequencies.shape[0]
        left, right, rest = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32), x[..., 2 * half :]
        turned = [(left * cosine - right * sine).astype(x.dtype), (right * cosine + left * sine).astype(x.dtype)]
        return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1)


SCALINGS = ("none", "linear", "ntk", "llama3")
