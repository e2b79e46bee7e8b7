"""Ranking metrics, per example and without sampling. All map [B] (or [B, K]) to [B] float64; average them over the users yourself.

From ranks, where each example has one relevant item: `recall`, `ndcg`, `mrr`. From judged lists, where it may have many of several
grades: `graded_recall`, `graded_precision`, `graded_success`, `graded_ndcg`, `graded_mrr`, `graded_average_precision`, all as trec_eval
defines them. With one relevant item the two agree.
"""

from __future__ import annotations

import numpy as np


def recall(rank: np.ndarray, k: int) -> np.ndarray:
    """Recall@k = [rank <= k] of the one relevant item at `rank` [B] (1 = best); the same as Hit@k."""
    return (_checked(rank, k) <= k).astype(np.float64)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k = [rank <= k] / log2(rank + 1) of the one relevant item at `rank` [B] (1 = best)."""
    return recall(rank, k) / np.log2(1.0 + rank)


def mrr(rank: np.ndarray, k: int) -> np.ndarray:
    """MRR@k = [rank <= k] / rank of the one relevant item at `rank` [B] (1 = best)."""
    return recall(rank, k) / rank


def graded_recall(grades: np.ndarray, judged: np.ndarray, k: int) -> np.ndarray:
    """Recall@k = relevant items among the first k / all relevant items; relevant is a grade above 0.

    Args:
      grades: [B, K] the grade of what was retrieved, best first; 0 = irrelevant or not judged.
      judged: [B, R] the grades of all judged items of the example in any order, 0-padded.
      k: the cut-off; of a list shorter than k the rest counts as irrelevant.

    Returns:
      [B]; 0 for an example without relevant items, as trec_eval.
    """
    _check_cutoff(k)
    return _ratio((grades[:, :k] > 0).sum(axis=1), (judged > 0).sum(axis=1))


def graded_ndcg(grades: np.ndarray, judged: np.ndarray, k: int) -> np.ndarray:
    """NDCG@k = DCG@k / ideal DCG@k, DCG@k = sum over places p <= k of grade / log2(p + 1): linear gain, as trec_eval.

    Arguments and result as of `graded_recall`. Grades below 0 gain nothing.
    """
    _check_cutoff(k)
    return _ratio(_dcg(grades[:, :k]), _dcg(-np.sort(-judged, axis=1)[:, :k]))


def graded_mrr(grades: np.ndarray, k: int) -> np.ndarray:
    """MRR@k = 1 / place of the first relevant item among the first k of `grades` [B, K], 0 if there is none."""
    _check_cutoff(k)
    relevant = grades[:, :k] > 0
    return relevant.any(axis=1) / (1.0 + relevant.argmax(axis=1))


def graded_success(grades: np.ndarray, k: int) -> np.ndarray:
    """Success@k = whether any of the first k of `grades` [B, K] is relevant (a grade above 0); LoTTE's Success@5, and Hit@k."""
    _check_cutoff(k)
    return np.asarray((grades[:, :k] > 0).any(axis=1), np.float64)


def graded_precision(grades: np.ndarray, k: int) -> np.ndarray:
    """Precision@k = relevant items among the first k of `grades` [B, K] / k; of a list shorter than k the rest counts as irrelevant."""
    _check_cutoff(k)
    return (grades[:, :k] > 0).sum(axis=1) / k


def graded_average_precision(grades: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """AP = sum over the places p of relevant items of Precision@p / all relevant items; those not retrieved count 0. Its mean is mAP.

    Arguments and result as of `graded_recall`, without a cut-off: the list is as long as it was retrieved.
    """
    relevant = grades > 0
    precision = np.cumsum(relevant, axis=1) / (1.0 + np.arange(grades.shape[1]))  # [B, K]
    return _ratio((precision * relevant).sum(axis=1), (judged > 0).sum(axis=1))


def _dcg(grades: np.ndarray) -> np.ndarray:
    return (np.maximum(grades, 0) / np.log2(2.0 + np.arange(grades.shape[1]))).sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _checked(rank: np.ndarray, k: int) -> np.ndarray:
    _check_cutoff(k)
    if np.size(rank) and np.min(rank) < 1:
        raise ValueError(f"ranks start at 1, got {np.min(rank)}; leave examples that were not asked (rank 0) out first")
    return rank


def _check_cutoff(k: int) -> None:
    if k < 1:
        raise ValueError(f"the cut-off k={k} leaves nothing to measure; use k >= 1")
