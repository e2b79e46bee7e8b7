"""The baselines against plain Python that follows their definitions."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxrec.methods.sequential.item_knn import ItemKNN
from jaxrec.methods.sequential.last_item import LastItem
from jaxrec.methods.sequential.markov import Markov
from jaxrec.methods.sequential.popularity import Popularity, popularity

ITEMS = 12
BASELINES = [Popularity(), LastItem(), Markov(), ItemKNN(neighbours=4, rows=5)]


def histories(seed: int = 0, users: int = 40) -> list[np.ndarray]:
    """Histories with repeats, of 0 to 9 items, in which items 11 and 12 never occur."""
    random = np.random.default_rng(seed)
    return [random.choice(10, size=random.integers(0, 10), p=np.arange(1, 11) / 55).astype(np.int32) + 1 for _ in range(users)]


def fit(baseline, training):
    return baseline.fit(np.concatenate(training), np.cumsum([0] + [len(h) for h in training]), ITEMS)


def best_first(scores: np.ndarray) -> list[int]:
    return (1 + np.argsort(-scores[1:], kind="stable")).tolist()


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: type(b).__name__)
def test_scores_are_finite_have_no_ties_and_do_not_depend_on_the_batch(baseline):
    training = histories()
    counts = fit(baseline, training)
    asked = [*histories(1), np.array([11], np.int32), np.array([], np.int32)]
    scores = baseline.scores(counts, asked)
    assert scores.shape == (len(asked), ITEMS + 1)
    assert np.isfinite(scores).all()
    for row, history in enumerate(asked):
        assert len(np.unique(scores[row, 1:])) == ITEMS
        np.testing.assert_array_equal(baseline.scores(counts, [history])[0], scores[row])
    np.testing.assert_array_equal(best_first(scores[-1]), best_first(popularity(np.concatenate(training), ITEMS)))  # without history


def test_popularity_orders_by_count_and_stays_inside_zero_and_one():
    score = popularity(np.array([3, 3, 3, 1, 1, 4]), 5)
    assert best_first(score)[:3] == [3, 1, 4]
    assert score[0] == 0
    assert 0 < score[1:].min() <= score.max() < 1


def test_popularity_does_not_order_equal_counts_by_id():
    order = best_first(popularity(np.arange(1, 101), 100))
    assert order not in (sorted(order), sorted(order, reverse=True))


def test_last_item_by_hand():
    baseline = LastItem()
    counts = fit(baseline, [np.array([5, 5, 5, 6, 6, 7])])
    assert best_first(baseline.scores(counts, [np.array([2, 9, 2, 6, 9])])[0])[:5] == [9, 6, 2, 5, 7]  # 9 and 2 where they occurred last


def test_markov_against_counting():
    training, asked = histories(2), [h for h in histories(3) if len(h)]
    follows = defaultdict(Counter)
    for history in training:
        for i, j in zip(history[:-1].tolist(), history[1:].tolist(), strict=True):
            follows[i][j] += 1
    order = popularity(np.concatenate(training), ITEMS)
    scores = Markov().scores(fit(Markov(), training), asked)
    for row, history in enumerate(asked):
        expected = sorted(range(1, ITEMS + 1), key=lambda j, i=int(history[-1]): (follows[i][j], order[j]), reverse=True)
        assert best_first(scores[row]) == expected


def test_markov_does_not_count_across_users():
    counts = fit(Markov(), [np.array([1, 2]), np.array([], np.int64), np.array([3]), np.array([4, 5])])
    assert sorted(zip(*counts.counts.nonzero(), strict=True)) == [(1, 2), (4, 5)]


@pytest.mark.parametrize(("neighbours", "decay"), [(2, 0.7), (100, 1.0)])
def test_item_knn_against_the_formula(neighbours, decay):
    baseline = ItemKNN(neighbours=neighbours, shrinkage=3.0, decay=decay, rows=5)
    training, asked = histories(4), [h for h in histories(5) if len(h)]
    order = popularity(np.concatenate(training), ITEMS)
    users = {i: {u for u, history in enumerate(training) if i in history} for i in range(1, ITEMS + 1)}

    def similarity(i, j):
        return len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + 3.0) if i != j else 0.0

    nearest = {i: sorted(users, key=lambda j, i=i: (similarity(i, j), order[j]), reverse=True)[:neighbours] for i in users}
    scores = baseline.scores(fit(baseline, training), asked)
    for row, history in enumerate(asked):
        for j in users:
            expected = sum(decay**age * similarity(i, j) for age, i in enumerate(history[::-1].tolist()) if j in nearest[i])
            assert scores[row, j] == pytest.approx(expected, abs=2e-9)  # popularity adds less than 1e-9


@pytest.mark.parametrize("fields", [{"neighbours": 0}, {"shrinkage": -1.0}, {"decay": 0.0}, {"decay": 1.5}, {"rows": 0}])
def test_item_knn_refuses_fields_without_sense(fields):
    with pytest.raises(ValueError, match=rf"ItemKNN wants .* got .*{next(iter(fields.values()))}"):
        ItemKNN(**fields)
