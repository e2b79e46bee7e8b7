"""Complementarity: against sets of users, by hand, and on published numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from jaxrec.evals.complementarity import Complementarity, complementarity, text
from jaxrec.evals.retrieval import Ranks


def ranks_of(kept, removed=None, cold=None, user=None) -> Ranks:
    kept = np.asarray(kept, np.int32)
    user = np.arange(len(kept)) if user is None else np.asarray(user)
    removed = kept if removed is None else np.asarray(removed, np.int32)
    return Ranks(kept, removed, np.zeros(len(kept), bool) if cold is None else cold, user, user + 1)


@pytest.fixture
def pair() -> tuple[Ranks, Ranks]:
    random = np.random.default_rng(0)
    kept, cold, asked = random.integers(1, 25, (2, 500)), random.random(500) < 0.2, random.random(500) < 0.9
    return tuple(ranks_of(each, np.where(asked, np.maximum(each - random.integers(0, 4, 500), 1), 0), cold) for each in kept)  # type: ignore[return-value]


@pytest.mark.parametrize("k", [1, 10, 20])
def test_is_that_of_the_sets_of_users_in_every_protocol(pair, k):
    a, b = pair
    rows = complementarity(a, b, k=k)
    assert [(row.seen, row.targets) for row in rows] == [(seen, targets) for seen, targets, *_ in a.protocols()]
    for row, (_, _, rank_a, _), (_, _, rank_b, _) in zip(rows, a.protocols(), b.protocols(), strict=True):
        users = range(len(rank_a))
        served_a, served_b = {u for u in users if rank_a[u] <= k}, {u for u in users if rank_b[u] <= k}
        assert row.jaccard == pytest.approx(len(served_a & served_b) / len(served_a | served_b))
        assert row.genie == pytest.approx(len(served_a | served_b) / len(users))
        assert (row.recall_a, row.recall_b) == pytest.approx((len(served_a) / len(users), len(served_b) / len(users)))
        assert max(row.recall_a, row.recall_b) <= row.genie <= row.recall_a + row.recall_b


def test_is_symmetric_and_blind_to_the_order_of_users(pair):
    a, b = pair
    shuffle = np.random.default_rng(1).permutation(len(b))
    other = Ranks(*(getattr(b, name)[shuffle] for name in ("kept", "removed", "cold", "user", "target")))
    assert complementarity(a, other) == complementarity(a, b)
    for row, turned in zip(complementarity(a, b), complementarity(b, a), strict=True):
        assert dataclasses.replace(turned, recall_a=row.recall_a, recall_b=row.recall_b) == row and row.jaccard == pytest.approx(turned.jaccard)


def test_a_system_and_itself_are_one_and_disjoint_systems_nothing(pair):
    for row in complementarity(pair[0], pair[0]):
        assert row.jaccard == 1 and row.genie == row.recall_a
    row = complementarity(ranks_of([1, 99, 99, 2]), ranks_of([99, 1, 99, 99]))[0]
    assert (row.recall_a, row.recall_b, row.genie, row.jaccard) == (0.5, 0.25, 0.75, 0)


def test_nobody_served_has_no_jaccard():
    row = complementarity(ranks_of([50, 60]), ranks_of([50, 60]))[0]
    assert row.genie == 0 and math.isnan(row.jaccard)


@pytest.mark.parametrize(("recall_a", "recall_b", "genie", "jaccard"), [
    (0.08211, 0.09373, 0.1220, 0.441),  # Beauty; the paper prints .47, so its three recalls and its overlap are not of one run
    (0.1979, 0.2007, 0.2273, 0.754),  # Steam; the paper prints .75
])  # fmt: skip
def test_inclusion_and_exclusion_on_published_numbers(recall_a, recall_b, genie, jaccard):
    assert Complementarity("seen kept", "all targets", 10, 1, recall_a, recall_b, genie).jaccard == pytest.approx(jaccard, abs=5e-4)


def test_protocols_without_users_are_left_out():
    assert [(row.seen, row.targets, row.n) for row in complementarity(ranks_of([1, 9], [0, 0]), ranks_of([3, 9], [0, 0]))] == [
        ("seen kept", "all targets", 2),
        ("seen kept", "warm targets", 2),
    ]


def test_other_questions_are_refused(pair):
    with pytest.raises(ValueError, match="id and text rank for different users"):
        complementarity(ranks_of([1, 2]), ranks_of([1, 2], user=[0, 5]), names=("id", "text"))
    with pytest.raises(ValueError, match="k=0 leaves nobody served; ask for k >= 1"):
        complementarity(*pair, k=0)


def test_text_has_a_line_per_protocol():
    rows = complementarity(ranks_of([1, 99, 99, 2]), ranks_of([1, 1, 99, 99]))
    lines = text(rows, ("id", "text")).splitlines()
    assert lines[0].strip() == "id Recall@10  text Recall@10  Genie@10  Jaccard@10"
    assert len(lines) == 5 and lines[1].startswith("seen kept, all targets: 4 users") and lines[1].split()[-4:] == ["0.5000", "0.5000", "0.7500", "0.3333"]
    assert text([]).split() == ["A", "Recall@10", "B", "Recall@10", "Genie@10", "Jaccard@10"]
