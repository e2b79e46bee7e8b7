"""Exact multi-vector search among a million vectors: still exact, still changed in place, and never a matrix of all similarities in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from jaxrec.index.multivector import ExactMultiVector
from jaxrec.index.multivector.packed import VECTORS
from tests.index.multivector_documents import identical

TOKENS, DIM, ASKED, K = 1_000_000, 16, 32, 20


@pytest.fixture(scope="module")
def data():
    """ids [N] out of order, lengths [N] from 0 to 40, vectors [TOKENS, DIM] of whole numbers, so that sums are exact and scores often equal; queries."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 41, TOKENS // 20)
    lengths[-1] += TOKENS - lengths.sum()
    vectors = rng.integers(-9, 10, (TOKENS, DIM)).astype(np.float32)
    queries = [rng.integers(-9, 10, (ASKED, DIM)).astype(np.float32) for _ in range(3)]
    return rng.permutation(3 * len(lengths))[: len(lengths)], lengths, vectors, queries


def all_scores(data) -> np.ndarray:
    """[3, N] MaxSim of every document, a token of the query at a time; -inf without tokens."""
    _, lengths, vectors, queries = data
    real = np.flatnonzero(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])[real]
    scores = np.full((len(queries), len(lengths)), -np.inf, np.float32)
    for row, query in enumerate(queries):
        scores[row, real] = sum(np.maximum.reduceat(vectors @ token, starts) for token in query)
    return scores


def best(ids, scores) -> tuple[np.ndarray, np.ndarray]:
    order = np.stack([np.lexsort((ids, -row))[:K] for row in scores])
    return ids[order], np.take_along_axis(scores, order, axis=1)


def peak(call) -> int:
    """Bytes of arrays that a call holds at most, beyond those there were; a memory map is none of them."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_million_vectors(tmp_path, data, storage):
    ids, lengths, vectors, queries = data
    scores, index, stored = all_scores(data), ExactMultiVector(storage=storage), TOKENS * DIM * (4 if storage == "float32" else 2)
    half = len(ids) // 2
    cut = int(lengths[:half].sum())
    index.add(ids[:half], vectors[:cut], lengths[:half])
    assert peak(lambda: index.add(ids[half:], vectors[cut:], lengths[half:])) < 3 * stored + 2**24  # the new ones as stored, then all of them, then in order
    assert len(index) == len(ids) and index.lengths.sum() == TOKENS and index.nbytes < stored + 20 * len(ids)

    expected = best(ids, scores)
    assert len(np.unique(expected[1])) < expected[1].size  # there are ties
    identical(index.search(queries, K), expected)
    assert peak(lambda: index.search(queries, K)) < 2**24 < 4 * 3 * ASKED * TOKENS / 20  # a twentieth of all similarities

    gone = np.union1d(expected[0], ids[::7])
    index.delete(gone)
    identical(index.search(queries, K), best(ids, np.where(np.isin(ids, gone), -np.inf, scores)))

    index.save(tmp_path / "index")
    loaded: list[ExactMultiVector] = []
    assert peak(lambda: loaded.append(ExactMultiVector.load(tmp_path / "index"))) < 2**22
    assert isinstance(loaded[0]._held.columns[VECTORS], np.memmap)
    identical(loaded[0].search(queries, K), index.search(queries, K))
    assert peak(lambda: loaded[0].search(queries, K)) < 2**24

    back = np.isin(ids, gone)
    loaded[0].add(ids[back], vectors[np.repeat(back, lengths)], lengths[back])
    identical(loaded[0].search(queries, K), expected)
