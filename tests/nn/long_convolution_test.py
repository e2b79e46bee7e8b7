"""Long convolutions: the fast transform against the sum that it stands for, the shape of the filters, and that padding reaches nobody."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from jaxrec.nn.long_convolution import BlockDiagonal, LongConvolution, MonarchGLU, MonarchMixer, ShortConvolution, fast_length, long_convolution
from jaxrec.param import count, create

B, D = 2, 3
convolve = jax.jit(long_convolution)


@jax.jit
def run(part, *inputs):
    return part(*inputs)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def given(length):
    """v, past, future and skip."""
    return normal(0, B, length, D), normal(1, length, D), normal(2, length, D), normal(3, D)


@jax.jit
def differentiated(inputs, cotangent):
    """y, and the gradient of <cotangent, y> by each of the inputs."""
    y, pull = jax.vjp(long_convolution, *inputs)
    return y, pull(cotangent)


def matrix(past, future, skip):
    """[T, T, D]: the weight of token s for token t, from the definition."""
    length = len(past)
    weight = np.zeros((length, length, D), np.float32)
    for t in range(length):
        for s in range(length):
            weight[t, s] = past[t - s] if s <= t else future[s - t - 1]
        weight[t, t] += skip
    return weight


@pytest.fixture(scope="module")
def convolution():
    return jax.jit(lambda key: create(LongConvolution.spec(D, 40, width=8), key))(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=1)
def filters(convolution, tokens):
    return convolution.filters(tokens)


@pytest.mark.parametrize("length", [1, 7, 12])  # 2 * 7 = 14 is filled up to 15
def test_long_convolution_is_the_sum(length):
    v, past, future, skip = given(length)
    weight = matrix(past, future, skip)
    wanted = np.einsum("tsd,bsd->btd", weight, v)
    cotangent = normal(4, B, length, D)
    got, gradient = differentiated((v, past, future, skip), cotangent)
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    by_v, by_past, by_future, by_skip = gradient
    by_weight = np.einsum("btd,bsd->tsd", cotangent, v)
    np.testing.assert_allclose(by_v, np.einsum("tsd,btd->bsd", weight, cotangent), atol=1e-4)
    np.testing.assert_allclose(by_skip, np.einsum("ttd->d", by_weight), atol=1e-4)
    for lag in range(length):
        np.testing.assert_allclose(by_past[lag], sum(by_weight[s + lag, s] for s in range(length - lag)), atol=1e-4)
        np.testing.assert_allclose(by_future[lag], sum((by_weight[t, t + lag + 1] for t in range(length - lag - 1)), np.zeros(D)), atol=1e-4)


def test_a_filter_of_lag_zero_alone_scales_the_input():
    v, past, future, skip = given(9)
    delta = np.zeros_like(past)
    delta[0] = 1
    np.testing.assert_allclose(convolve(v, delta, np.zeros_like(future), skip), (1 + skip) * v, atol=1e-5)


def test_reversing_time_swaps_the_filters():
    v, past, future, skip = given(9)
    swapped = np.concatenate([past[:1], future[:-1]]), np.concatenate([past[1:], normal(5, 1, D)])  # lag 0 stays with `past`; the last lag reaches nobody
    np.testing.assert_allclose(convolve(v[:, ::-1], *swapped, skip)[:, ::-1], convolve(v, past, future, skip), atol=1e-4)


def test_transforms_are_in_float32_and_the_type_stays():
    v, past, future, skip = given(9)
    half = jnp.asarray(v, jnp.bfloat16)
    got = convolve(half, past, future, skip)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, convolve(half.astype(jnp.float32), past, future, skip).astype(jnp.bfloat16))


def test_fast_lengths_by_brute_force():
    smooth = sorted(2**a * 3**b * 5**c for a in range(9) for b in range(6) for c in range(4))
    assert [fast_length(n) for n in range(1, 200)] == [next(size for size in smooth if size >= n) for n in range(1, 200)]


def test_filters_are_the_formula(convolution):
    for network, got in zip((convolution.past, convolution.future), filters(convolution, 40), strict=True):
        for step in (0, 1, 17, 39):
            time, angle = step / 39, 2 * np.pi * step / 40
            x = np.array([time, *(np.cos(angle * f) for f in (1e-4, 1)), *(-np.sin(angle * f) for f in (1e-4, 1))])
            for layer in (network.first, *network.inner):
                x = np.sin(10 * (x @ np.asarray(layer.kernel) + np.asarray(layer.bias)))
            rate = np.log(100) * np.linspace(1 / 1.5, 1 / 0.3, D)
            np.testing.assert_allclose(got[step], x @ np.asarray(network.last.kernel) * np.exp(-time * rate), rtol=1e-3, atol=1e-5)


def test_filters_of_a_shorter_text_are_the_first_part(convolution):
    for short, long in zip(filters(convolution, 11), filters(convolution, 40), strict=True):
        np.testing.assert_allclose(short, long[:11], atol=1e-5)
    with pytest.raises(ValueError, match="texts of 41 tokens are longer than the filters of 40; truncate them to 40"):
        convolution.filters(41)


def test_filters_start_smaller_than_the_token_itself():
    """All they bring to a token, were the text noise: sqrt(sum of squares), against a `skip` of standard deviation 1."""
    part = jax.jit(lambda key: create(LongConvolution.spec(64, 512, width=32), key))(jax.random.key(0))
    reach = np.concatenate(filters(part, 512))
    assert 0.01 < np.sqrt(np.square(reach).sum(axis=0)).mean() < 0.5
    assert 0.7 < np.std(part.skip) < 1.3


def test_both_directions_are_declared_apart(convolution):
    assert np.abs(np.subtract(*filters(convolution, 40))).max() > 0.01
    network = 5 * 8 + 8 + 2 * (8 * 8 + 8) + 8 * D
    assert count(LongConvolution.spec(D, 40, width=8)) == 2 * network + 8 + D


def test_short_convolution_sees_the_token_and_two_before_it():
    short = dataclasses.replace(create(ShortConvolution.spec(D), jax.random.key(0)), bias=jnp.arange(float(D)))
    x, kernel = normal(0, B, 6, D), np.asarray(short.kernel)
    wanted = np.arange(D) + sum(kernel[2 - lag] * np.pad(x, ((0, 0), (lag, 0), (0, 0)))[:, :6] for lag in range(3))
    np.testing.assert_allclose(run(short, x), wanted, atol=1e-5)


def test_mixer_hides_what_is_masked():
    mixer = create(MonarchMixer.spec(4, 16, filter_width=8), jax.random.key(0))
    mixer = dataclasses.replace(mixer, input=dataclasses.replace(mixer.input, bias=jnp.ones(12)))  # a bias would carry padding into the convolutions
    u, mask = normal(0, 1, 10, 4), np.arange(10)[None] < 7
    other = np.where(mask[..., None], u, normal(1, 1, 10, 4))
    seen = run(mixer, u, mask)[:, :7]
    np.testing.assert_array_equal(run(mixer, other, mask)[:, :7], seen)
    np.testing.assert_allclose(run(mixer, u[:, :7], mask[:, :7]), seen, atol=1e-5)
    everything = np.ones_like(mask)
    assert np.abs(run(mixer, other, everything)[:, :7] - run(mixer, u, everything)[:, :7]).max() > 1e-3
    assert MonarchMixer.spec(4, 16, direct=False).direct is None


def test_block_diagonal_is_a_matrix_with_blocks():
    for blocks in (1, 2):
        part = dataclasses.replace(create(BlockDiagonal.spec(4, 6, blocks), jax.random.key(0)), bias=jnp.arange(6.0))
        dense, x = scipy.linalg.block_diag(*np.asarray(part.kernel)), normal(0, B, 5, 4)
        assert dense.shape == (4, 6)
        np.testing.assert_allclose(run(part, x), x @ dense + np.arange(6), atol=1e-5)
    assert count(BlockDiagonal.spec(64, 32, 4, bias=False)) == 64 * 32 // 4
    wide = create(BlockDiagonal.spec(256, 256, 4), jax.random.key(0)).kernel
    np.testing.assert_allclose(np.std(wide, axis=(1, 2)), 64**-0.5, rtol=0.05)  # the inputs of a block are its fan-in


def test_gated_layer_is_the_formula():
    layer = create(MonarchGLU.spec(4, 8, 2, 0.0), jax.random.key(0))
    x = normal(0, B, 5, 4)
    gate, value = np.split(x @ scipy.linalg.block_diag(*np.asarray(layer.inner.kernel)), 2, axis=-1)
    y = x + gate * scipy.stats.norm.cdf(gate) * value @ scipy.linalg.block_diag(*np.asarray(layer.outer.kernel))
    wanted = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(run(layer, x, None), wanted, atol=1e-4)


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match="features=4 of a position must be odd and 3 or more"):
        LongConvolution.spec(D, 40, features=4)
    with pytest.raises(ValueError, match="length=1 must be 2 or more, and width=128 1 or more"):
        LongConvolution.spec(D, 1)
    with pytest.raises(ValueError, match="blocks=3 does not divide the 4 inputs and 6 outputs of a block-diagonal map; choose a common divisor"):
        BlockDiagonal.spec(4, 6, 3)
