"""Fusion of lists, by hand and against a dictionary."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from jaxrec.index.hybrid import reciprocal_rank_fusion, weighted_sum

DENSE = (np.array([[4, 2, 7], [1, 3, -1]]), np.array([[0.9, 0.5, 0.1], [2.0, 1.0, -np.inf]]))
SPARSE = (np.array([[7, 4], [-1, -1]]), np.array([[30.0, 10.0], [-np.inf, -np.inf]]))


def test_reciprocal_ranks_by_hand():
    ids, scores = reciprocal_rank_fusion([DENSE, SPARSE], 4)
    np.testing.assert_array_equal(ids, [[4, 7, 2, -1], [1, 3, -1, -1]])
    expected = [[1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, -np.inf], [1 / 61, 1 / 62, -np.inf, -np.inf]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_weighted_sums_by_hand():
    ids, scores = weighted_sum([DENSE, SPARSE], 3, weights=(0.75, 0.25))
    np.testing.assert_array_equal(ids, [[4, 2, 7], [1, 3, -1]])
    np.testing.assert_allclose(scores, [[0.75, 0.375, 0.25], [0.75, 0.0, -np.inf]], rtol=1e-6)


def test_ties_go_to_the_lower_id():
    ids, _ = reciprocal_rank_fusion([(np.array([[9, 5]]), np.zeros((1, 2))), (np.array([[5, 9]]), np.zeros((1, 2)))], 2)
    np.testing.assert_array_equal(ids, [[5, 9]])


def test_a_list_of_equal_scores_says_nothing():
    flat = (np.array([[8, 9]]), np.array([[3.0, 3.0]]))
    ids, scores = weighted_sum([flat, (np.array([[1, 2]]), np.array([[1.0, 0.0]]))], 4, weights=(1, 1))
    np.testing.assert_array_equal(ids, [[1, 2, 8, 9]])
    np.testing.assert_array_equal(scores, [[1, 0, 0, 0]])


@pytest.mark.parametrize("method", ["ranks", "scores"])
def test_random_lists_are_as_a_dictionary_says(method: str):
    random = np.random.default_rng(0)
    lists = []
    for k in (8, 5, 12):
        ids = np.stack([random.permutation(30)[:k] for _ in range(6)])
        lists.append((ids, -np.sort(-random.integers(0, 9, size=(6, k)).astype(float), axis=1)))
    weights = (0.5, 1.0, 0.2)
    fused = reciprocal_rank_fusion(lists, 10, constant=3) if method == "ranks" else weighted_sum(lists, 10, weights=weights)
    for query in range(6):
        total = defaultdict(float)
        for (ids, scores), weight in zip(lists, weights, strict=True):
            low, high = scores[query].min(), scores[query].max()
            for place, (document, score) in enumerate(zip(ids[query], scores[query], strict=True), start=1):
                total[document] += 1 / (3 + place) if method == "ranks" else weight * (score - low) / (high - low)
        expected = sorted(total.items(), key=lambda pair: (-np.float32(pair[1]), pair[0]))[:10]
        np.testing.assert_allclose(fused[1][query], [score for _, score in expected], rtol=1e-6)
        np.testing.assert_array_equal(fused[0][query], [document for document, _ in expected])


def test_errors_name_the_value_and_the_fix():
    for constant in (-1, np.nan):
        with pytest.raises(ValueError, match=f"constant={constant} must be 0 or more"):
            reciprocal_rank_fusion([DENSE], 2, constant=constant)
    with pytest.raises(ValueError, match="k=0 asks for nothing"):
        reciprocal_rank_fusion([DENSE], 0)
    with pytest.raises(ValueError, match=r"lists must be ids \[B, K\] of the same B queries, got shapes \[\]"):
        reciprocal_rank_fusion([], 2)
    with pytest.raises(ValueError, match=r"same B queries, got shapes \[\[2, 3\], \[1, 2\]\]"):
        reciprocal_rank_fusion([DENSE, (SPARSE[0][:1], SPARSE[1][:1])], 2)
    with pytest.raises(ValueError, match="list 1 holds id 7 twice for query 0"):
        reciprocal_rank_fusion([DENSE, (np.array([[7, 7], [1, 2]]), np.zeros((2, 2)))], 2)
    with pytest.raises(ValueError, match=r"weights=\(1,\) must be finite numbers, one for each of the 2 lists"):
        weighted_sum([DENSE, SPARSE], 2, weights=(1,))
    with pytest.raises(ValueError, match=r"ids \[2, 2\] and scores \[2, 3\] of a list must have one shape"):
        weighted_sum([(SPARSE[0], DENSE[1])], 2, weights=(1,))
    with pytest.raises(ValueError, match="scores that are NaN or infinite"):
        weighted_sum([(np.array([[1, 2]]), np.array([[1.0, np.nan]]))], 2, weights=(1,))
