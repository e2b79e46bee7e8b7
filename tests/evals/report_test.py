from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrec.evals.report import measure, summarise, table, to_json
from jaxrec.evals.retrieval import Ranks


def ranks_of(kept: np.ndarray, removed: np.ndarray | None = None, *, cold: np.ndarray | None = None, baseline: bool = False) -> Ranks:
    kept = np.asarray(kept, np.int32)
    user = np.arange(len(kept), dtype=np.int32)
    return Ranks(kept, kept if removed is None else removed, np.zeros(len(kept), bool) if cold is None else cold, user, user + 1, baseline)


def random_ranks(seed: int, n: int, worst: int = 40, **fields) -> Ranks:
    return ranks_of(np.random.default_rng(seed).integers(1, worst, n), **fields)


def test_means_by_hand():
    ranks = ranks_of(np.array([1, 3, 8, 50]), np.array([1, 0, 6, 50]), cold=np.array([False, False, True, True]))
    rows = {(row.seen, row.targets): row for row in summarise(ranks)}
    everyone = rows["seen kept", "all targets"]
    assert {name: interval.mean for name, interval in everyone.metrics.items()} == pytest.approx(
        {
            "Recall@5": 2 / 4,
            "Recall@10": 3 / 4,
            "NDCG@5": (1 + 1 / 2) / 4,
            "NDCG@10": (1 + 1 / 2 + 1 / np.log2(9)) / 4,
            "MRR@5": (1 + 1 / 3) / 4,
            "MRR@10": (1 + 1 / 3 + 1 / 8) / 4,
        }
    )
    assert [(row.n, row.not_asked) for row in rows.values()] == [(4, 0), (2, 0), (2, 0), (3, 1), (1, 1), (2, 0)]
    assert rows["seen removed", "warm targets"].metrics["Recall@5"].mean == 1
    assert rows["seen removed", "cold targets"].metrics["Recall@10"].mean == 0.5


def test_intervals_are_those_of_resampled_users():
    ranks, random = random_ranks(0, 300), np.random.default_rng(5)
    per_user = measure(ranks.kept)
    drawn = random.integers(0, 300, (4000, 300))
    for metric, interval in summarise(ranks, resamples=4000)[0].metrics.items():
        low, high = np.quantile(per_user[metric][drawn].mean(axis=1), (0.025, 0.975))
        width = high - low
        assert abs(interval.low - low) < 0.1 * width
        assert abs(interval.high - high) < 0.1 * width


def test_intervals_cover_the_truth_about_95_times_in_100():
    truth, trials, covered = 10 / 39, 300, 0
    for seed in range(trials):
        interval = summarise(random_ranks(seed, 200), resamples=300, seed=seed)[0].metrics["Recall@10"]
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / trials <= 0.98


def test_the_same_seed_gives_the_same_report():
    assert summarise(random_ranks(0, 50)) == summarise(random_ranks(0, 50))
    assert summarise(random_ranks(0, 50)) != summarise(random_ranks(0, 50), seed=1)


def test_json_round_trips_and_has_no_numbers_for_nobody():
    document = to_json({"A": random_ranks(0, 20)})
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    nobody = document["A"][2]
    assert (nobody["targets"], nobody["n"], nobody["metrics"]) == ("cold targets", 0, {})


def test_table_marks_the_best_and_shows_who_loses():
    systems = {
        "Markov": ranks_of([1, 1, 9, 50], baseline=True),
        "ItemKNN": ranks_of([1, 9, 9, 9], baseline=True),
        "Good": ranks_of([1, 1, 1, 1]),
        "Poor": ranks_of([2, 2, 9, 50]),
    }
    text = table(systems)
    first = text.split("\n\n")[0].splitlines()
    assert first[0] == "seen kept, all targets: 4 users"
    lines = {line.split()[0]: line.split()[1:] for line in first[2:6]}
    assert all(cell.endswith("*") for cell in lines["Good"])
    assert not any("<" in cell for name in ("Markov", "ItemKNN", "Good") for cell in lines[name])
    assert [cell[-1] == "<" for cell in lines["Poor"]] == [False, True, False, True, False, False]  # on Recall@10 and NDCG@10
    assert first[6:] == ["Poor < ItemKNN on Recall@10", "Poor < Markov, ItemKNN on NDCG@10"]
    assert "seen kept, cold targets: 0 users\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_table_says_how_many_were_not_asked_and_crowns_nobody_at_zero():
    text = table({"A": ranks_of(np.array([50, 60, 70]), np.array([50, 0, 70]))})
    assert "seen removed, all targets: 2 users (1 not asked: they had seen the target)" in text
    assert "*" not in text


def test_table_refuses_systems_with_different_questions():
    with pytest.raises(ValueError, match=r"A and C rank for different users: only one of them has 1 user \(3\)"):
        table({"A": random_ranks(0, 4), "B": random_ranks(1, 4), "C": random_ranks(0, 3)})
