"""Linear maps and dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.param import Initializer, Param, lecun, zeros


def along_last(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector [D] reshaped to [1, ..., 1, D], to broadcast against `like` [..., D] without rank promotion."""
    return vector.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)


@struct.dataclass
class Linear:
    """y = x W + b over the last axis."""

    kernel: jax.Array  # [inputs, outputs]
    bias: jax.Array | None  # [outputs]

    @classmethod
    def spec(
        cls, inputs: int, outputs: int, *, axes: tuple[str | None, str | None] = ("embed", "hidden"), bias: bool = True, init: Initializer | None = None
    ) -> Linear:
        """Declares the map from `inputs` to `outputs` features; `axes` name them."""
        kernel = Param((inputs, outputs), axes, init or lecun())
        return cls(kernel=kernel, bias=Param((outputs,), axes[1:], zeros) if bias else None)  # type: ignore[arg-type]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., outputs]."""
        flat = x.reshape(-1, x.shape[-1]) @ self.kernel.astype(x.dtype)  # XLA's CPU matmul is fastest in two dimensions
        if self.bias is not None:
            flat = flat + along_last(self.bias, flat)
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of the entries and scales the others so that the mean stays; without a key, x itself.

    The share is rounded to 1/256: eight random bits decide an entry, and one 32-bit word four of them.
    """
    kept = 256 - round(rate * 256)
    if not 0 < kept <= 256:
        raise ValueError(f"dropout={rate} must be at least 0 and below 1")
    if key is None or kept == 256:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)  # asked for uint8, jax would hash a word for each
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return jnp.where(octets < kept, x * (256 / kept), jnp.zeros_like(x))
