"""Documents of many vectors for the tests of multi-vector search, and search by sorting."""

from __future__ import annotations

import numpy as np

from jaxrec.index.compress import unit

D = 16


def clustered(rng, tokens, centres, noise=0.15):
    return unit(centres[rng.integers(len(centres), size=tokens)] + noise * rng.normal(size=(tokens, centres.shape[1]))).astype(np.float32)


def collection():
    """ids [200] out of order, documents of 0 to 30 tokens, queries of 1 to 12."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(40, D)))
    lengths = rng.integers(1, 31, 200)
    lengths[[3, 77]] = 0
    documents = [clustered(rng, n, centres[rng.integers(40, size=4)]) for n in lengths]  # a document is about four things
    queries = [clustered(rng, n, centres[rng.integers(40, size=3)]) for n in (8, 1, 12, 5, 8)]
    return rng.permutation(2000)[:200], documents, queries


def exact_maxsim(query, document):
    return np.float32((query @ document.T).max(axis=1).sum()) if len(document) else np.float32(-np.inf)


def naive(ids, documents, queries, k, allowed=None):
    """Sorts every document by (score, -id), one query at a time."""
    found_ids, found_scores = [], []
    for query in queries:
        pairs = sorted((-float(exact_maxsim(query, d)), int(i)) for i, d in zip(ids, documents, strict=True) if allowed is None or i in allowed)
        pairs = (pairs + [(np.inf, -1)] * k)[:k]
        found_ids.append([i for _, i in pairs])
        found_scores.append([-s for s, _ in pairs])
    return np.array(found_ids), np.array(found_scores, np.float32)


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), expected.tolist(), strict=True)])


def identical(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=tolerance, atol=tolerance)
