"""Normalisation over the last axis, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.linear import along_last
from jaxrec.param import Param, ones, zeros


@struct.dataclass
class LayerNorm:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias (Ba et al. 2016, arXiv 1607.06450)."""

    scale: jax.Array  # [D]
    bias: jax.Array | None  # [D]
    epsilon: float = struct.field(pytree_node=False, default=1e-6)

    @classmethod
    def spec(cls, width: int, *, epsilon: float = 1e-6, bias: bool = True) -> LayerNorm:
        return cls(Param((width,), ("embed",), ones), Param((width,), ("embed",), zeros) if bias else None, epsilon)  # type: ignore[arg-type]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        y = standardise(x, self.epsilon)
        y = y * along_last(self.scale, y)
        return (y if self.bias is None else y + along_last(self.bias, y)).astype(x.dtype)


@struct.dataclass
class RMSNorm:
    """y = x / sqrt(mean(x^2) + epsilon) * (scale + offset) (Zhang and Sennrich 2019, arXiv 1910.07467); Gemma's offset is 1."""

    scale: jax.Array  # [D]
    epsilon: float = struct.field(pytree_node=False, default=1e-6)
    offset: float = struct.field(pytree_node=False, default=0.0)

    @classmethod
    def spec(cls, width: int, *, epsilon: float = 1e-6, offset: float = 0.0, axis: str | None = "embed") -> RMSNorm:
        return cls(Param((width,), (axis,), zeros if offset else ones), epsilon, offset)  # type: ignore[arg-type]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * (along_last(self.scale, wide) + self.offset)).astype(x.dtype)


def standardise(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Mean 0 and variance 1 over the last axis, float32, without parameters."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


def unit(vectors: jax.Array) -> jax.Array:
    """v / |v| over the last axis, computed in float32; a zero vector stays one. [..., D] -> [..., D]."""
    wide = vectors.astype(jnp.float32)
    length = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(length, 1e-12))).astype(vectors.dtype)
