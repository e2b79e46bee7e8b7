"""Sequence mixing without attention: gated long convolutions with implicit filters, and channel mixing with block-diagonal matrices.

The long convolution and its filters are Hyena's (Poli et al. 2023, arXiv 2302.10866), made bidirectional; the layer is that of Monarch Mixer (Fu
et al. 2023, arXiv 2310.12109). Time is O(T log T) and memory O(T). What we changed: padding is hidden from the convolutions, so a text's states
do not depend on how far its row is padded (a mask of ones gives the reference's behaviour); filters start small, so that a layer starts as nearly
the same map for a short query and a long document, without which training from scratch stays at chance; features of positions are not trained.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.nn.bert import erf_gelu
from jaxrec.nn.context import Context
from jaxrec.nn.linear import Linear, along_last, dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.transformer import split_key
from jaxrec.param import Initializer, Param, Stacked, exact, lecun, normal, zeros

FREQUENCY = 10.0  # at which the sines of a filter start
INNER = 2  # hidden maps of a filter's network
TARGET, SLOWEST, FASTEST = 0.01, 1.5, 0.3  # a channel's filter has decayed to TARGET after between FASTEST and SLOWEST times the longest text
SHORT = 3  # taps of the short convolution


def fast_length(least: int) -> int:
    """The next number without prime factors above 5, whose Fourier transform is fast."""
    size = max(least, 1)
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def long_convolution(v: jax.Array, past: jax.Array, future: jax.Array, skip: jax.Array) -> jax.Array:
    """y_t = sum over s <= t of past_(t-s) v_s + sum over s > t of future_(s-t-1) v_s + skip v_t, channel by channel, in float32.

    Args:
      v: [B, T, D].
      past, future: [T, D] filters.
      skip: [D].

    Returns:
      [B, T, D] in the type of v.
    """
    length = v.shape[1]
    size = fast_length(2 * length)  # so long that nothing wraps around
    wide, past, future = (array.astype(jnp.float32) for array in (v, past, future))
    gap = jnp.zeros((size - 2 * length, past.shape[1]), jnp.float32)
    kernel = jnp.concatenate([past, gap, future[::-1]])  # [size, D]; the last row is lag -1
    spectrum = jnp.fft.rfft(wide, size, axis=1) * jnp.fft.rfft(kernel, size, axis=0)[None]
    mixed = jnp.fft.irfft(spectrum, size, axis=1)[:, :length]
    return (mixed + along_last(skip, wide) * wide).astype(v.dtype)


@struct.dataclass
class SineNetwork:
    """W2 sin(w * (W1 ... sin(w * (W0 z + b0)) ... + b1)): the shape of a filter over time, as in SIREN (Sitzmann et al. 2020, arXiv 2006.09661)."""

    first: Linear  # features -> W
    inner: tuple[Linear, ...]  # W -> W
    last: Linear  # W -> D

    @classmethod
    def spec(cls, features: int, width: int, channels: int, *, scale: float = 1.0) -> SineNetwork:
        """Declares the network; its outputs start `scale` times as large as uniform weights make them."""
        inner = tuple(_uniform_linear(width, width) for _ in range(INNER))
        last = Linear.spec(width, channels, axes=("hidden", "embed"), bias=False, init=_uniform(width, scale))
        return cls(_uniform_linear(features, width), inner, last)

    def __call__(self, features: jax.Array, frequency: jax.Array) -> jax.Array:
        """[T, features], [W] -> [T, D]."""
        x = features
        for layer in (self.first, *self.inner):
            x = layer(x)
            x = jnp.sin(along_last(frequency, x) * x)
        return self.last(x)


@struct.dataclass
class LongConvolution:
    """`long_convolution` with implicit filters: past_s = network(z_s) exp(-s / (length - 1) * decay), and `future` alike from a network of its own.

    z_s holds s / (length - 1), and cosine and sine of so many frequencies. Time is measured by the longest text, so the filters of a shorter one are
    the first part of the same filters. The decay is fixed, by channel from slow to fast.
    """

    past: SineNetwork
    future: SineNetwork
    frequency: jax.Array  # [W] of the sines, shared by both networks
    skip: jax.Array  # [D]
    length: int = struct.field(pytree_node=False)
    features: int = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, channels: int, length: int, *, width: int = 128, features: int = 5) -> LongConvolution:
        """Declares filters for `channels` and texts of at most `length` tokens, by networks of `width` over so many `features` of a position."""
        if features < 3 or features % 2 == 0:
            raise ValueError(f"features={features} of a position must be odd and 3 or more: the time, and as many cosines as sines")
        if length < 2 or width < 1:
            raise ValueError(f"length={length} must be 2 or more, and width={width} 1 or more")
        network = SineNetwork.spec(features, width, channels, scale=length**-0.5)  # so that the sum over a text starts no larger than `skip`
        network = exact(network)  # sines of sines would multiply what rounding changes
        frequency = Param((width,), ("hidden",), jax.nn.initializers.constant(FREQUENCY), exact=True)
        return cls(network, network, frequency, Param((channels,), ("embed",), normal(1.0)), length, features)  # type: ignore[arg-type]

    def filters(self, tokens: int) -> tuple[jax.Array, jax.Array]:
        """`past` and `future` of a text of so many tokens, [T, D] float32 each."""
        if tokens > self.length:
            raise ValueError(f"texts of {tokens} tokens are longer than the filters of {self.length}; truncate them to {self.length}")
        time = jnp.arange(tokens, dtype=jnp.float32)[:, None] / (self.length - 1)  # [T, 1]
        bands = (self.features - 1) // 2
        angle = jnp.asarray(np.linspace(1e-4, bands - 1, bands), jnp.float32) * (2 * math.pi * (self.length - 1) / self.length)
        turned = time * angle[None, :]  # [T, bands]
        features = jnp.concatenate([time, jnp.cos(turned), -jnp.sin(turned)], axis=1)
        rate = jnp.linspace(-math.log(TARGET) / SLOWEST, -math.log(TARGET) / FASTEST, self.skip.shape[0])
        decay = jnp.exp(-time * rate[None, :])  # [T, D]
        frequency = self.frequency.astype(jnp.float32)
        past, future = (network(features, frequency) * decay for network in (self.past, self.future))
        return past, future

    def __call__(self, v: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return long_convolution(v, *self.filters(v.shape[1]), self.skip)


@struct.dataclass
class ShortConvolution:
    """y_t = sum over i of kernel_i x_(t - taps + 1 + i) + bias, channel by channel: each token and the few before it."""

    kernel: jax.Array  # [taps, D]
    bias: jax.Array  # [D]

    @classmethod
    def spec(cls, channels: int, taps: int = SHORT) -> ShortConvolution:
        return cls(Param((taps, channels), (None, "embed"), _uniform(taps)), Param((channels,), ("embed",), zeros))  # type: ignore[arg-type]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        taps, length = self.kernel.shape[0], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
        return sum((along_last(self.kernel[tap], x) * padded[:, tap : tap + length] for tap in range(taps)), along_last(self.bias, x))


@struct.dataclass
class MonarchMixer:
    """Gates around a long convolution: with a, c, v = split(short(u W)), y = (long(v * a) * c + direct(u)) W_out.

    `direct` is a second long convolution, of the input itself: the layer's residual path.
    """

    input: Linear  # D -> 3 D
    short: ShortConvolution
    long: LongConvolution
    direct: LongConvolution | None
    output: Linear  # D -> D

    @classmethod
    def spec(cls, width: int, length: int, *, filter_width: int = 128, features: int = 5, direct: bool = True) -> MonarchMixer:
        convolution = LongConvolution.spec(width, length, width=filter_width, features=features)
        return cls(
            input=Linear.spec(width, 3 * width),
            short=ShortConvolution.spec(3 * width),
            long=convolution,
            direct=convolution if direct else None,
            output=Linear.spec(width, width, axes=("hidden", "embed")),
        )

    def __call__(self, u: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]; nothing of the tokens where mask [B, T] is False reaches the others."""
        kept = mask[..., None].astype(u.dtype)
        before, after, v = jnp.split(self.short(self.input(u) * kept), 3, axis=-1)
        y = self.long(v * before * kept) * after
        if self.direct is not None:
            y = y + self.direct(u * kept)
        return self.output(y)


@struct.dataclass
class BlockDiagonal:
    """y = x W + b, where W has `blocks` dense blocks on its diagonal and zeros elsewhere; one block is a dense map."""

    kernel: jax.Array  # [blocks, inputs / blocks, outputs / blocks]
    bias: jax.Array | None  # [outputs]

    @classmethod
    def spec(cls, inputs: int, outputs: int, blocks: int, *, bias: bool = True) -> BlockDiagonal:
        """Declares the map; its start has the variance of a dense one, 1 / the inputs of a block."""
        if blocks < 1 or inputs % blocks or outputs % blocks:
            raise ValueError(f"blocks={blocks} does not divide the {inputs} inputs and {outputs} outputs of a block-diagonal map; choose a common divisor")
        kernel = Param((blocks, inputs // blocks, outputs // blocks), (None, "embed", "hidden"), Stacked(lecun(), blocks))
        return cls(kernel, Param((outputs,), ("hidden",), zeros) if bias else None)  # type: ignore[arg-type]

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., outputs]."""
        parts = x.reshape(-1, self.kernel.shape[0], self.kernel.shape[1])  # [..., blocks, inputs / blocks] in three dimensions
        flat = jnp.einsum("nbi,bio->nbo", parts, self.kernel.astype(x.dtype)).reshape(parts.shape[0], self.kernel.shape[0] * self.kernel.shape[2])
        if self.bias is not None:
            flat = flat + along_last(self.bias, flat)
        return flat.reshape(*x.shape[:-1], -1)


@struct.dataclass
class MonarchGLU:
    """norm(x + (gelu(g) * v) W2) with g, v = split(x W1), both matrices block diagonal.

    With an even number of blocks, gates come from the first half of the channels and values from the second, so that this too mixes blocks.
    """

    inner: BlockDiagonal  # D -> 2 hidden
    outer: BlockDiagonal  # hidden -> D
    norm: LayerNorm
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, hidden: int, blocks: int, rate: float) -> MonarchGLU:
        inner, outer = BlockDiagonal.spec(width, 2 * hidden, blocks, bias=False), BlockDiagonal.spec(hidden, width, blocks)
        return cls(inner, outer, LayerNorm.spec(width), rate)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D], dropout on the inner activations."""
        gate, value = jnp.split(self.inner(x), 2, axis=-1)
        return self.norm(x + self.outer(dropout(erf_gelu(gate) * value, self.rate, key)))


@struct.dataclass
class MonarchLayer:
    """feed(mixer(x)), or feed(x + mixer(x)) with a `residual`: the published layer has none around its mixer but the mixer's own `direct`."""

    mixer: MonarchMixer
    feed: MonarchGLU
    residual: bool = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]; a row is one text, and its tokens are those whose segment is above 0."""
        mixed = self.mixer(x, context.segment > 0)
        return self.feed(x + mixed if self.residual else mixed, split_key(context.key, 1)[0])


def _uniform(inputs: int, scale: float = 1.0) -> Initializer:
    """Uniform between -scale / sqrt(inputs) and scale / sqrt(inputs), weights and biases alike."""
    bound = scale * inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def _uniform_linear(inputs: int, outputs: int) -> Linear:
    bias = Param((outputs,), ("hidden",), _uniform(inputs))
    return Linear.spec(inputs, outputs, axes=(None, "hidden"), init=_uniform(inputs)).replace(bias=bias)  # type: ignore[attr-defined]
