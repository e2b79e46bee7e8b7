from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from kernels import dispatch
from kernels.maxsim import blocked as whole_blocks
from kernels.maxsim import tpu as whole_tpu
from kernels.maxsim_compressed import IMPLEMENTATIONS, Int8Tokens, ResidualTokens, blocked, maxsim_int8, maxsim_residual, tpu
from kernels.maxsim_topk import maxsim_topk

F32, BF16 = jnp.float32, jnp.bfloat16
WORK = [(3, 5, 24, [4, 0, 1, 7, 0, 30, 2, 0], 4), (2, 9, 96, [0, 130, 1, 300, 5, 6, 7, 8, 9, 10], 2)]  # B, N, D, tokens of documents, bits


def draw(work, seed: int = 0):
    """queries [B, N, D], query_mask, offsets [C + 1], and both forms of the tokens, of which the last three are no document's and would win."""
    batch, length, dim, lengths, bits = work
    rng = np.random.default_rng(seed)
    count, mask = sum(lengths) + 3, rng.random((batch, length)) < 0.8
    mask[:, 0] = True
    codes, scales = rng.integers(-127, 128, (count, dim)), rng.uniform(0.1, 2, count)
    scales[-3:] = 100
    residual = ResidualTokens(
        jnp.asarray(rng.normal(size=(5, dim)), F32),
        jnp.asarray(rng.integers(0, 5, count), jnp.uint16),
        jnp.asarray(rng.integers(0, 256, (count, dim * bits // 8)), jnp.uint8),
        jnp.asarray(np.sort(rng.normal(size=2**bits)), F32),
    )
    queries = jnp.asarray(rng.normal(size=(batch, length, dim)), F32)
    return (
        queries,
        jnp.asarray(mask),
        jnp.asarray(np.r_[0, np.cumsum(lengths)], jnp.int32),
        Int8Tokens(jnp.asarray(codes, jnp.int8), jnp.asarray(scales, F32)),
        residual,
    )


def decoded(tokens, normalize: bool = True) -> np.ndarray:
    """[T, D] float64, bit by bit."""
    if isinstance(tokens, Int8Tokens):
        return np.asarray(tokens.codes, np.float64) * np.asarray(tokens.scales, np.float64)[:, None]
    if not isinstance(tokens, ResidualTokens):
        return np.asarray(tokens, np.float64)
    if tokens.weights.ndim == 3:
        left = np.concatenate([book[byte] for book, byte in zip(np.asarray(tokens.weights), np.asarray(tokens.residuals).T, strict=True)], axis=1)
    else:
        each = np.unpackbits(np.asarray(tokens.residuals), axis=1).reshape(len(tokens), tokens.dim, tokens.bits)
        left = np.asarray(tokens.weights, np.float64)[(each * 2 ** np.arange(tokens.bits)[::-1]).sum(axis=-1)]
    vectors = np.asarray(tokens.centroids, np.float64)[np.asarray(tokens.codes)] + left
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if normalize else vectors


def oracle(queries, query_mask, offsets, vectors) -> np.ndarray:
    """[B, C] float64."""
    scores = np.full((len(queries), len(offsets) - 1), -np.inf)
    for c, (begin, end) in enumerate(itertools.pairwise(np.asarray(offsets))):
        if end > begin:
            best = (np.asarray(queries, np.float64) @ vectors[begin:end].T).max(axis=-1)
            scores[:, c] = np.where(query_mask, best, 0).sum(axis=1)
    return scores


def assert_near(actual, expected):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.asarray(actual)[~finite], expected[~finite])
    np.testing.assert_allclose(np.asarray(actual)[finite], expected[finite], rtol=0, atol=1e-5 * max(1, np.abs(expected[finite]).max(initial=0)))


def ranked(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of `scores` [B, C] and their rows, by sorting them all; rows of -1 where there are no more."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    spare = ((0, 0), (0, k - order.shape[1]))
    return np.pad(np.take_along_axis(scores, order, axis=1), spare, constant_values=-np.inf), np.pad(order, spare, constant_values=-1)


@pytest.fixture(params=[*IMPLEMENTATIONS, "many blocks"])
def backend(request, monkeypatch):
    """Every implementation, and the blocked one in tiles and blocks that divide nothing."""
    if request.param != "many blocks":
        return request.param
    monkeypatch.setattr(blocked, "LEAST", 7)
    monkeypatch.setattr(blocked, "TILES", 2)
    monkeypatch.setattr(whole_blocks, "BLOCK_BYTES", 100)
    jax.clear_caches()  # a trace does not know that a constant has changed
    return "blocked"


class TestEveryBackend:
    @pytest.mark.parametrize("work", WORK, ids=str)
    def test_scores_and_the_best_are_those_of_the_decoded_vectors(self, backend, work):
        queries, mask, offsets, int8, residual = draw(work)
        plain = jnp.asarray(decoded(residual), F32)
        streams = (plain,) if backend == "tpu" else (plain, int8, residual)  # there the kernel of a block is that of all scores

        @jax.jit
        def everything(queries, mask, offsets, int8, residual, streams):
            scores = (
                maxsim_int8(queries, int8.codes, int8.scales, offsets, mask, backend=backend),
                maxsim_residual(queries, residual.centroids, residual.codes, residual.residuals, residual.weights, offsets, mask, backend=backend),
            )
            return scores, [maxsim_topk(queries, tokens, offsets, 4, mask, backend=backend) for tokens in streams]

        scores, found = everything(queries, mask, offsets, int8, residual, streams)
        for actual, tokens in zip(scores, (int8, residual), strict=True):
            assert_near(actual, oracle(queries, mask, offsets, decoded(tokens)))
        for (actual, actual_rows), tokens in zip(found, streams, strict=True):
            best, rows = ranked(oracle(queries, mask, offsets, decoded(tokens)), 4)
            assert_near(actual, best)
            np.testing.assert_array_equal(actual_rows, rows)

    @pytest.mark.parametrize(("bits", "normalize"), [(1, False), (2, True), (4, True)])
    def test_product_codes(self, backend, bits, normalize):
        queries, mask, offsets, _, residual = draw((2, 9, 96, [0, 130, 1, 30, 5], bits))
        books = np.random.default_rng(2).normal(size=(96 * bits // 8, 256, 8 // bits))
        tokens = dataclasses.replace(residual, weights=jnp.asarray(books, F32), normalize=normalize)
        assert tokens.bits == bits

        @jax.jit
        def both(queries, tokens):
            fields = tokens.centroids, tokens.codes, tokens.residuals, tokens.weights
            return maxsim_residual(queries, *fields, offsets, mask, normalize=normalize, backend=backend), maxsim_topk(queries, tokens, offsets, 4, mask)

        if backend == "tpu":
            with pytest.raises(ValueError, match="no look-up for product codes; use backend='blocked'"):
                both(queries, tokens)
            return
        expected = oracle(queries, mask, offsets, decoded(tokens, normalize))
        scores, (best, rows) = both(queries, tokens)
        assert_near(scores, expected)
        assert_near(best, ranked(expected, 4)[0])
        np.testing.assert_array_equal(rows, ranked(expected, 4)[1])

    def test_one_token_of_one_bit_not_normalised_and_a_query_in_bfloat16(self, backend):
        queries, mask, offsets, int8, residual = draw((1, 1, 8, [1], 1))
        queries = queries.astype(BF16)  # the scores are those of the rounded query

        @jax.jit
        def both(queries, int8, residual):
            fields = residual.centroids, residual.codes, residual.residuals, residual.weights
            return (
                maxsim_int8(queries, int8.codes, int8.scales, offsets, mask, backend=backend),
                maxsim_residual(queries, *fields, offsets, mask, normalize=False, backend=backend),
            )

        scores = both(queries, int8, residual)
        assert {one.dtype for one in scores} == {jnp.dtype(F32)}
        assert_near(scores[0], oracle(queries, mask, offsets, decoded(int8)))
        assert_near(scores[1], oracle(queries, mask, offsets, decoded(residual, normalize=False)))

    def test_ties_go_to_the_lower_row_and_what_is_missing_comes_last(self, backend):
        rng = np.random.default_rng(1)
        tokens = Int8Tokens(jnp.asarray(rng.integers(-1, 2, (60, 2)), jnp.int8), jnp.ones(60))  # whole numbers: scores are exact and often equal
        queries = jnp.asarray(rng.integers(-1, 2, (3, 2, 2)), F32)
        offsets = jnp.asarray(np.r_[0, 0, np.sort(rng.integers(0, 60, 28)), 60, 60])  # 31 documents, some of them empty
        expected = oracle(queries, np.ones((3, 2), bool), offsets, decoded(tokens))
        assert any(len(set(row)) < 20 for row in expected) and np.isinf(expected[:, 0]).all()
        scores, rows = jax.jit(functools.partial(maxsim_topk, k=35, backend=backend))(queries, tokens, offsets)  # 35 are more than there are
        best, order = ranked(expected, 35)
        np.testing.assert_array_equal(scores, best)
        np.testing.assert_array_equal(rows, order)

    def test_no_documents_and_no_tokens(self, backend):
        queries, _, _, int8, _ = draw(WORK[0])
        find = jax.jit(functools.partial(maxsim_topk, k=2, backend=backend))
        none = jax.tree.map(lambda leaf: leaf[:0], int8)
        for tokens, documents, expected in ((int8, 0, [-1, -1]), (none, 1, [0, -1])):
            scores, rows = find(queries, tokens, jnp.zeros(documents + 1, jnp.int32))
            assert (np.asarray(scores) == -np.inf).all() and np.asarray(rows).tolist() == [expected] * 3

    def test_no_queries(self, backend):
        if backend == "tpu":
            pytest.skip("a grid of the kernel has no size 0")
        queries, _, offsets, int8, _ = draw(WORK[0])
        assert maxsim_int8(queries[:0], int8.codes, int8.scales, offsets, backend=backend).shape == (0, len(offsets) - 1)
        assert maxsim_topk(queries[:0], int8, offsets, k=2, backend=backend)[0].shape == (0, 2)


def test_the_decoded_tokens_are_never_in_memory_and_the_stream_may_be_long():
    count, dim, documents = 2**18, 128, 2**11
    shape = jax.ShapeDtypeStruct
    int8 = Int8Tokens(shape((count, dim), jnp.int8), shape((count,), F32))
    residual = ResidualTokens(shape((1024, dim), F32), shape((count,), jnp.uint16), shape((count, dim // 4), jnp.uint8), shape((4,), F32))

    def temporaries(tokens, times: int) -> int:
        many = jax.tree.map(lambda leaf: shape((leaf.shape[0] * times, *leaf.shape[1:]) if leaf.shape[0] == count else leaf.shape, leaf.dtype), tokens)
        arguments = shape((1, 32, dim), F32), many, shape((documents * times + 1,), jnp.int32)
        program = jax.jit(functools.partial(maxsim_topk, k=10, backend="blocked")).lower(*arguments)
        return program.compile().memory_analysis().temp_size_in_bytes

    for tokens in (int8, residual):
        once = temporaries(tokens, 1)
        assert once < count * dim * 4 / 8
        assert temporaries(tokens, 16) <= once + 2**16


def test_queries_spread_over_devices_are_answered_as_by_one():
    queries, mask, offsets, int8, residual = draw((8, 2, 8, [3, 0, 5, 1], 2))
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def find(queries, tokens, offsets, mask):
        fields = tokens[1].centroids, tokens[1].codes, tokens[1].residuals, tokens[1].weights
        return maxsim_residual(queries, *fields, offsets, mask), maxsim_topk(queries, tokens[0], offsets, 2, mask)

    def spread(*arguments):
        with dispatch.spread_over(mesh, ("data",)):
            return find(*arguments)

    arguments = queries, (int8, residual), offsets, mask
    program = jax.jit(spread).lower(*arguments)
    assert "shard_map" in program.as_text() or "manual_computation" in program.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), program.compile()(*arguments), jax.jit(find)(*arguments))


def test_bfloat16_parts_are_the_whole():
    values = jnp.asarray(np.random.default_rng(0).normal(size=1000), F32)
    parts = tpu.bfloat16_parts(values)
    assert len(parts) == 3 and {part.dtype for part in parts} == {jnp.dtype(BF16)}
    np.testing.assert_array_equal(sum(np.asarray(part, np.float64) for part in parts), np.asarray(values, np.float64))
    assert len(tpu.bfloat16_parts(values.astype(BF16))) == 1
    half = values.astype(jnp.float16)
    np.testing.assert_array_equal(sum(np.asarray(part, np.float64) for part in tpu.bfloat16_parts(half)), np.asarray(half, np.float64))


def test_too_many_centroids_for_the_tpu_s_memory_go_to_the_blocks(monkeypatch):
    queries, mask, offsets, _, residual = draw(WORK[0])
    monkeypatch.setattr(tpu, "TABLE_BYTES", 100)
    with pytest.raises(ValueError, match="5 centroids do not fit the 0 MiB .* use backend='blocked'"):
        maxsim_topk(queries, residual, offsets, 1, mask, backend="tpu")
    with dispatch.compiling_for("tpu"):
        text = jax.jit(functools.partial(maxsim_topk, k=1)).lower(queries, residual, offsets).as_text()
    assert "tpu_custom_call" not in text and "dynamic_slice" in text


def test_a_gradient_is_an_error():
    queries, mask, offsets, int8, _ = draw(WORK[0])
    score = functools.partial(maxsim_int8, codes=int8.codes, scales=int8.scales, offsets=offsets)
    with pytest.raises(TypeError, match="MaxSim with compressed documents has no gradient; put its arguments in jax.lax.stop_gradient, or train with"):
        jax.grad(lambda queries: score(queries).sum())(queries)
    with pytest.raises(TypeError, match="maxsim_topk has no gradient"):
        jax.grad(lambda queries: maxsim_topk(queries, int8, offsets, 1)[0].sum())(queries)
    assert not jax.grad(lambda queries: score(jax.lax.stop_gradient(queries)).sum())(queries).any()


def test_errors_say_what_is_wrong():
    queries, mask, offsets, int8, residual = draw(WORK[0])
    fields = residual.centroids, residual.codes, residual.residuals, residual.weights
    with pytest.raises(ValueError, match=r"queries must be floats \[B, N, D\], got float32 of shape \(5, 24\)"):
        maxsim_int8(queries[0], int8.codes, int8.scales, offsets)
    with pytest.raises(ValueError, match=r"codes must be int8 \[T, D\], got float32"):
        maxsim_int8(queries, int8.codes.astype(F32), int8.scales, offsets)
    with pytest.raises(ValueError, match=r"scales must be float32 \(47,\), one for each token, got float32 of shape \(46,\)"):
        maxsim_int8(queries, int8.codes, int8.scales[1:], offsets)
    with pytest.raises(ValueError, match="queries have 24 dimensions and tokens 23; both must come from one encoder"):
        maxsim_int8(queries, int8.codes[:, 1:], int8.scales, offsets)
    with pytest.raises(ValueError, match=r"offsets must be C \+ 1 integers"):
        maxsim_int8(queries, int8.codes, int8.scales, offsets.astype(F32))
    with pytest.raises(ValueError, match=r"query_mask \(2, 5\) must have one entry"):
        maxsim_int8(queries, int8.codes, int8.scales, offsets, mask[1:])
    with pytest.raises(ValueError, match=r"centroids must be float32 \[K, D\], got bfloat16"):
        maxsim_residual(queries, fields[0].astype(BF16), *fields[1:], offsets)
    with pytest.raises(ValueError, match=r"codes must be \[T\] integers, got float32"):
        maxsim_residual(queries, fields[0], fields[1].astype(F32), *fields[2:], offsets)
    with pytest.raises(ValueError, match=r"one for each number of 1, 2 or 4 bits, or \(3, 256, 8\) or .* got float32 of shape \(3,\)"):
        maxsim_residual(queries, *fields[:3], fields[3][:3], offsets)
    with pytest.raises(ValueError, match=r"residuals must be uint8 \(47, 6\) for 24 dimensions of 2 bits, got uint8 of shape \(47, 12\)"):
        maxsim_residual(queries, *fields[:3], fields[3][:4], offsets)
    with pytest.raises(ValueError, match="23 numbers of 4 bits fill no whole bytes; use a multiple of 2 dimensions"):
        maxsim_residual(queries[..., 1:], fields[0][:, 1:], *fields[1:], offsets)
    with pytest.raises(ValueError, match="tokens must be .* of the queries' type float32, got bfloat16 .* cast"):
        maxsim_topk(queries, jnp.ones((47, 24), BF16), offsets, 1)
    for k in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"k={k} is no number of documents"):
            maxsim_topk(queries, int8, offsets, k)


def test_the_tpu_kernel_has_no_races(monkeypatch, capfd):
    from jax.experimental.pallas import tpu as pltpu

    monkeypatch.setattr(dispatch, "interpret", lambda: pltpu.InterpretParams(detect_races=True))  # simulates memories and copies between them
    monkeypatch.setattr(whole_tpu, "TOKEN_TILE", 128)
    monkeypatch.setattr(tpu, "TOKEN_TILE", 128)
    queries, mask, offsets, _, residual = draw((1, 3, 8, [3, 130, 0, 20], 2))
    arguments = queries, residual.centroids, residual.codes, residual.residuals, residual.weights, offsets, mask
    scores = jax.jit(functools.partial(maxsim_residual, backend="tpu"))(*arguments)
    assert_near(scores, oracle(queries, mask, offsets, decoded(residual)))
    assert "race" not in "".join(capfd.readouterr()).lower()
