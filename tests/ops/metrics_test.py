from __future__ import annotations

import math

import numpy as np
import pytest

from jaxrec.ops import metrics


def test_one_relevant_item_by_hand():
    rank = np.array([1, 2, 3, 10, 11])
    np.testing.assert_array_equal(metrics.recall(rank, 3), [1, 1, 1, 0, 0])
    np.testing.assert_allclose(metrics.ndcg(rank, 10), [1, 1 / math.log2(3), 0.5, 1 / math.log2(11), 0], rtol=1e-12)
    np.testing.assert_allclose(metrics.mrr(rank, 10), [1, 1 / 2, 1 / 3, 1 / 10, 0], rtol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_mrr_is_at_most_ndcg_is_at_most_recall(k):
    rank = np.arange(1, 30)
    assert (metrics.mrr(rank, k) <= metrics.ndcg(rank, k)).all()
    assert (metrics.ndcg(rank, k) <= metrics.recall(rank, k)).all()


@pytest.mark.parametrize("k", [1, 3, 20])
def test_graded_metrics_with_one_relevant_item_are_the_others(k):
    rank = np.arange(1, 9)
    grades = np.eye(8)  # example b's item stands at place b + 1
    judged = np.ones((8, 1))
    np.testing.assert_allclose(metrics.graded_recall(grades, judged, k), metrics.recall(rank, k), rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_ndcg(grades, judged, k), metrics.ndcg(rank, k), rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_mrr(grades, k), metrics.mrr(rank, k), rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_success(grades, k), metrics.recall(rank, k), rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_precision(grades, k), metrics.recall(rank, k) / k, rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_average_precision(grades, judged), 1 / rank, rtol=1e-12)


def test_graded_metrics_by_hand():
    grades = np.array([[0, 2, 1, 0], [0, 0, 0, 3], [0, 0, 0, 0], [-1, 1, 0, 0]])
    judged = np.array([[1, 2, 3, 0], [3, 0, 0, 0], [0, 0, 0, 0], [1, -1, 0, 0]])
    np.testing.assert_allclose(metrics.graded_recall(grades, judged, 3), [2 / 3, 0, 0, 1], rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_mrr(grades, 3), [1 / 2, 0, 0, 1 / 2], rtol=1e-12)
    log3 = math.log2(3)
    ideal = 3 + 2 / log3 + 1 / 2
    np.testing.assert_allclose(metrics.graded_ndcg(grades, judged, 3), [(2 / log3 + 1 / 2) / ideal, 0, 0, 1 / log3], rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_ndcg(grades, judged, 4)[1], 1 / math.log2(5), rtol=1e-12)


def test_success_precision_and_average_precision_by_hand():
    grades = np.array([[0, 2, 1, 0], [0, 0, 0, 3], [0, 0, 0, 0], [-1, 1, 0, 0]])
    judged = np.array([[1, 2, 3, 0], [3, 0, 0, 0], [0, 0, 0, 0], [1, -1, 0, 0]])
    np.testing.assert_array_equal(metrics.graded_success(grades, 3), [1, 0, 0, 1])
    np.testing.assert_allclose(metrics.graded_precision(grades, 3), [2 / 3, 0, 0, 1 / 3], rtol=1e-12)
    np.testing.assert_allclose(metrics.graded_precision(grades, 8), [2 / 8, 1 / 8, 0, 1 / 8], rtol=1e-12)
    # First query: relevant at places 2 and 3 with precisions 1/2 and 2/3, and a third relevant item that was not found.
    np.testing.assert_allclose(metrics.graded_average_precision(grades, judged), [(1 / 2 + 2 / 3) / 3, 1 / 4, 0, 1 / 2], rtol=1e-12)


def test_the_ideal_list_stops_at_the_cutoff():
    assert metrics.graded_ndcg(np.array([[1, 0]]), np.array([[1, 1, 1]]), 1) == 1


@pytest.mark.parametrize("metric", [metrics.recall, metrics.ndcg, metrics.mrr])
def test_ranks_and_cutoffs_below_one_are_refused(metric):
    with pytest.raises(ValueError, match=r"ranks start at 1, got 0; leave examples that were not asked"):
        metric(np.array([3, 0]), 10)
    with pytest.raises(ValueError, match=r"k=0 leaves nothing to measure; use k >= 1"):
        metric(np.array([3]), 0)


def test_graded_cutoffs_below_one_are_refused():
    for metric in (metrics.graded_recall, metrics.graded_ndcg):
        with pytest.raises(ValueError, match="k=0 leaves nothing"):
            metric(np.ones((1, 1)), np.ones((1, 1)), 0)
    for metric in (metrics.graded_mrr, metrics.graded_success, metrics.graded_precision):
        with pytest.raises(ValueError, match="k=0 leaves nothing"):
            metric(np.ones((1, 1)), 0)
