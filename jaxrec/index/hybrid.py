"""Hybrid search: the answers of several engines made one list.

An answer is (ids [B, K], scores [B, K]), best first, as every index gives it; id -1 stands for nothing. Engines may give lists of different lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxrec.index.exact import NOTHING, best

Answer = tuple[np.ndarray, np.ndarray]  # ids [B, K], scores [B, K]


def reciprocal_rank_fusion(answers: Sequence[Answer], k: int, *, constant: float = 60.0) -> Answer:
    """Fuses by places: score(d) = sum over the lists that hold d of 1 / (constant + place of d), places from 1.

    Cormack, Clarke and Büttcher, SIGIR 2009. It needs no scores that compare, and ignores how far apart they are.

    Args:
      answers: of the same queries, one per engine.
      k: how many to give.
      constant: the larger, the less the first places stand out.

    Returns:
      ids [B, k] int64 and scores [B, k] float32, best first, equal scores by the lower id. Where the lists hold fewer than k
      together, the row ends in id -1 with score -inf.

    Raises:
      ValueError: no answers, shapes that do not fit, a constant below 0, or a list that holds an id twice.
    """
    if not 0 <= constant < np.inf:
        raise ValueError(f"constant={constant} must be 0 or more, and finite; 60 is usual")
    return _sum([(ids, np.broadcast_to(1.0 / (constant + 1 + np.arange(np.shape(ids)[-1])), np.shape(ids))) for ids, _ in answers], k)


def weighted_sum(answers: Sequence[Answer], k: int, *, weights: Sequence[float]) -> Answer:
    """Fuses by scores: score(d) = sum over the lists of weight * (score - lowest) / (highest - lowest), 0 where a list lacks d.

    Lowest and highest are those of the list, query by query. A list whose scores are all equal tells nothing apart, so it adds 0.

    Args:
      answers: of the same queries, one per engine.
      k: how many to give.
      weights: one per engine.

    Returns and raises as `reciprocal_rank_fusion`; ValueError also unless there is one finite weight per list.
    """
    if len(weights) != len(answers) or not np.isfinite(weights).all():
        raise ValueError(f"weights={tuple(weights)} must be finite numbers, one for each of the {len(answers)} lists")
    return _sum([(ids, weight * _unit(np.asarray(ids), np.asarray(scores, np.float64))) for (ids, scores), weight in zip(answers, weights, strict=True)], k)


def _unit(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[B, K] scores stretched to 0..1 over what was found."""
    if ids.shape != scores.shape:
        raise ValueError(f"ids {list(ids.shape)} and scores {list(scores.shape)} of a list must have one shape")
    found = ids != NOTHING
    if not np.isfinite(scores[found]).all():
        raise ValueError("a list holds scores that are NaN or infinite; only what was found can be fused: use id -1 for nothing")
    some = found.any(axis=1, keepdims=True)  # [B, 1]
    low = np.where(some, np.where(found, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf), 0)
    high = np.where(some, np.where(found, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf), 0)
    return np.divide(np.where(found, scores, 0) - low, high - low, out=np.zeros_like(scores), where=found & (high > low))


def _sum(answers: Sequence[Answer], k: int) -> Answer:
    """Adds up the scores of equal ids and keeps the k largest of each row."""
    if k < 1:
        raise ValueError(f"k={k} asks for nothing; ask for k >= 1")
    if not answers or len({len(ids) for ids, _ in answers}) > 1 or any(np.ndim(ids) != 2 for ids, _ in answers):
        raise ValueError(f"lists must be ids [B, K] of the same B queries, got shapes {[list(np.shape(ids)) for ids, _ in answers]}")
    for number, (ids, _) in enumerate(answers):
        ordered = np.sort(ids, axis=1)
        if (twice := (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOTHING)).any():
            query, place = np.argwhere(twice)[0]
            raise ValueError(f"list {number} holds id {ordered[query, place]} twice for query {query}; an id may stand in a list once")
    ids = np.concatenate([np.asarray(ids, np.int64) for ids, _ in answers], axis=1)  # [B, sum of K]
    scores = np.concatenate([scores for _, scores in answers], axis=1)
    order = np.argsort(ids, axis=1, kind="stable")  # equal ids side by side, and lower ids to the left, where ties are won
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    first = np.ones(ids.shape, bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    group = np.cumsum(first, axis=1) - 1  # [B, sum of K] which of the row's different ids
    total = np.zeros(ids.shape)
    np.add.at(total, (np.arange(len(ids))[:, None], group), scores)
    fused = np.where(first & (ids != NOTHING), np.take_along_axis(total, group, axis=1), -np.inf)
    wide = max(0, k - ids.shape[1])
    ids, fused = np.pad(ids, ((0, 0), (0, wide)), constant_values=NOTHING), np.pad(fused, ((0, 0), (0, wide)), constant_values=-np.inf)
    ids, fused = best(ids, fused.astype(np.float32), k)
    return np.where(fused == -np.inf, NOTHING, ids), fused
