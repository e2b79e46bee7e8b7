from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from jaxrec.evals.compare import compare, text, to_json
from jaxrec.evals.report import measure
from jaxrec.evals.retrieval import Ranks


def ranks_of(kept, user=None, target=None) -> Ranks:
    kept = np.asarray(kept, np.int32)
    user = np.arange(len(kept)) if user is None else user
    return Ranks(kept, kept, np.zeros(len(kept), bool), user, user + 1 if target is None else target)


def random_pair(n: int, seed: int = 0, shift: int = 2) -> tuple[Ranks, Ranks]:
    random = np.random.default_rng(seed)
    kept = random.integers(1, 25, n)
    return ranks_of(kept), ranks_of(np.maximum(1, kept + random.integers(-3, 4 + shift, n)))


def first(differences) -> dict:
    """The differences of the first protocol by metric."""
    return {d.metric: d for d in differences[:6]}


def test_differences_and_wins_against_counting():
    a, b = random_pair(200)
    in_a, in_b = measure(a.kept), measure(b.kept)
    for metric, d in first(compare(a, b)).items():
        gain = in_a[metric] - in_b[metric]
        assert d.mean == pytest.approx(gain.mean(), abs=1e-12)
        assert (d.n, d.wins, d.losses) == (200, (gain > 0).sum(), (gain < 0).sum())


def test_intervals_are_those_of_resampled_pairs():
    a, b = random_pair(200)
    drawn = np.random.default_rng(1).integers(0, 200, (4000, 200))
    for metric, d in first(compare(a, b, resamples=4000)).items():
        gain = measure(a.kept)[metric] - measure(b.kept)[metric]
        low, high = np.quantile(gain[drawn].mean(axis=1), (0.025, 0.975))
        assert max(abs(d.low - low), abs(d.high - high)) < 0.1 * (high - low)


def test_p_is_that_of_all_sign_flips():
    a, b = random_pair(10, seed=1)
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    for metric, d in first(compare(a, b, flips=50_000)).items():
        gain = measure(a.kept)[metric] - measure(b.kept)[metric]
        exact = (np.abs((signs * gain).mean(axis=1)) >= abs(gain.mean()) - 1e-12).mean()
        assert d.p == pytest.approx(exact, abs=0.01)  # four standard errors


def test_identical_systems_are_even():
    a, _ = random_pair(100)
    for d in compare(a, a):
        assert (d.mean, d.low, d.high, d.p, d.wins, d.losses) == (0, 0, 0, 1, 0, 0)


def test_clearly_different_systems():
    a, b = ranks_of(np.full(300, 1)), ranks_of(np.full(300, 40))
    for metric, d in first(compare(a, b)).items():
        assert d.mean == 1, metric
        assert d.p == pytest.approx(1 / 10_001)
        assert (d.wins, d.losses) == (300, 0)
    assert first(compare(b, a))["Recall@10"].mean == -1


def test_chance_is_significant_about_5_times_in_100():
    p = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        p.append(first(compare(*(ranks_of(random.integers(1, 30, 100)) for _ in "ab"), resamples=2, flips=400))["NDCG@10"].p)
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.095


def test_pairs_are_users_not_rows():
    a, b = random_pair(50)
    shuffle = np.random.default_rng(0).permutation(50)
    assert compare(a, ranks_of(b.kept[shuffle], b.user[shuffle], b.target[shuffle])) == compare(a, b)


def test_each_protocol_has_its_own_users():
    a, b = random_pair(30)
    removed, cold = np.where(np.arange(30) < 10, 0, a.kept), np.arange(30) % 2 == 0
    differences = compare(*(dataclasses.replace(r, removed=np.where(removed > 0, r.kept, 0), cold=cold) for r in (a, b)))
    assert [d.n for d in differences[::6]] == [30, 15, 15, 20, 10, 10]


def test_different_questions_are_refused():
    a, b = random_pair(5)
    with pytest.raises(ValueError, match=r"SASRec and Markov have different targets for 5 users \(0, 1, 2, 3, 4\)"):
        compare(a, dataclasses.replace(b, target=b.target + 1), names=("SASRec", "Markov"))


def test_text_and_json():
    differences = compare(*random_pair(50))
    document = to_json(differences)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    lines = text(differences, ("SASRec", "Markov")).splitlines()
    d = differences[1]
    assert lines[0].startswith("SASRec minus Markov: ")
    assert lines[2] == "seen kept, all targets: 50 users"
    expected = f"Recall@10  {d.mean:+.4f}  [{d.low:+.4f}, {d.high:+.4f}]  p = {d.p:.4f}  SASRec {d.wins}, Markov {d.losses}"
    assert lines[4] == expected
    assert not any("cold" in line for line in lines)  # nobody was asked
