"""Synthetic: deterministic, well-formed, and its order can be learned."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic


def test_same_seed_same_data_other_seed_other_data():
    one, two, other = Synthetic(users=50).read(), Synthetic(users=50).read(), Synthetic(users=50, seed=1).read()
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(two, field.name))
    assert not np.array_equal(one.sequence[:100], other.sequence[:100])


def test_shapes_and_ranges():
    got = Synthetic(users=300, items=45, clusters=7, length=12).read()
    assert (len(got.users), len(got.items)) == (300, 45)
    assert set(got.item_fields) == {"title", "category", "price"} and set(got.user_fields) == {"segment"}
    assert got.lengths().min() >= 5
    assert got.lengths().mean() == pytest.approx(12, abs=4 * np.sqrt(7 / 300))  # four standard errors of Poisson(7)
    assert got.times is not None and got.ratings is not None
    assert (got.sequence.dtype, got.times.dtype, got.ratings.dtype) == (np.int32, np.int64, np.float32)
    for start, stop in zip(got.offsets[:-1], got.offsets[1:]):
        assert (np.diff(got.times[start:stop]) >= 0).all()
    starts = got.times[got.offsets[:-1]] - 1_600_000_000
    assert starts.max() < 20 * 86_400  # every user's clock begins anew
    assert set(np.unique(got.ratings)) <= {1, 2, 3, 4, 5}
    assert min(got.item_fields["price"]) > 0
    assert len(set(got.item_fields["category"])) == 7


def test_the_habitual_transition_has_the_stated_probability():
    source = Synthetic(users=2000, clusters=10, habit=0.8)
    got = source.read()
    cluster = (got.sequence - 1) % source.clusters
    within = np.ones(len(cluster) - 1, bool)
    within[got.offsets[1:-1] - 1] = False  # from one user to the next
    habitual = ((cluster[1:] - cluster[:-1]) % source.clusters == 1)[within]
    expected = 0.8 + 0.2 / 10  # a jump, too, may land there
    assert habitual.mean() == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / len(habitual)))


def test_items_of_a_cluster_follow_zipf():
    source = Synthetic(users=3000, items=20, clusters=4)
    counts = np.bincount(source.read().sequence, minlength=21)[1:].reshape(5, 4).sum(1)  # rank r of every cluster
    expected = 1 / np.arange(1, 6) / (1 / np.arange(1, 6)).sum()
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.01)


def test_items_that_do_not_divide_into_clusters():
    counts = np.bincount(Synthetic(users=2000, items=7, clusters=3, habit=0.0).read().sequence, minlength=8)[1:]
    shares = counts.reshape(-1)[:7]
    clusters = [shares[c::3] / shares[c::3].sum() for c in range(3)]
    for share in clusters:
        weights = 1 / np.arange(1, len(share) + 1)
        np.testing.assert_allclose(share, weights / weights.sum(), atol=0.02)


def test_builds_and_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path))
    source = Synthetic(users=40, items=20)
    expected = source.read()
    for _ in range(2):
        got = source.get()
        for field in dataclasses.fields(expected):
            np.testing.assert_equal(getattr(got, field.name), getattr(expected, field.name))


def test_ten_thousand_users_are_quick():
    began = time.process_time()
    Synthetic(users=10_000).read()
    assert time.process_time() - began < 2


@pytest.mark.parametrize("wrong", [{"users": 0}, {"clusters": 0}, {"clusters": 300}, {"length": 4.0}, {"habit": 1.5}])
def test_wrong_settings_are_refused(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}.*need "):
        Synthetic(**wrong)
