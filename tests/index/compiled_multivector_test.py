"""The indexes' compiled path, which starts where there are many tokens, gives the scores of the decoding one."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.index.compress import unit
from jaxrec.index.multivector import ExactMultiVector, Plaid, Warp, packed

PRODUCT = {"bits": 2, "residuals": "product"}
CASES = [(ExactMultiVector, {"storage": "int8"}), (Plaid, {"bits": 2}), (Plaid, PRODUCT), (Warp, {"bits": 1}), (Warp, PRODUCT)]


@pytest.mark.parametrize(("engine", "options"), CASES)
def test_compiled_scores_are_those_of_decoding(monkeypatch, engine, options):
    rng = np.random.default_rng(0)
    documents = [unit(rng.normal(size=(n, 16))).astype(np.float32) for n in (3, 0, 40, 1, 9, 20)]
    queries = [unit(rng.normal(size=(n, 16))).astype(np.float32) for n in (1, 5, 3)]
    index = engine(np.arange(6) * 2, documents, **options, **({} if engine is ExactMultiVector else {"centroids": 4}))
    candidates = np.array([[0, 4, 2, 10], [10, 8, 6, -1], [4, 4, 0, 8]])
    expected = index.score(queries, candidates), *index.search(queries, 5)
    compiled = []
    monkeypatch.setattr(packed, "COMPILED", 0)
    monkeypatch.setattr(packed, "_padded", lambda *arguments, pad=packed._padded: compiled.append(1) or pad(*arguments))
    actual = index.score(queries, candidates), *index.search(queries, 5)
    assert compiled
    np.testing.assert_allclose(actual[0], expected[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_allclose(actual[2], expected[2], rtol=0, atol=1e-5)
