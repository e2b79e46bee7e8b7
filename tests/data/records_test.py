"""Records: what is written comes back exactly, through TFDS, without TensorFlow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxrec.data import records
from jaxrec.data.interactions import Interactions


def _example(*, times: bool = True, ratings: bool = True) -> Interactions:
    return Interactions(
        users=["ayşe", "7", "a b"],
        items=["x-1", "μ", "木"],
        offsets=np.array([0, 2, 2, 5], np.int64),  # the second user has no events
        sequence=np.array([3, 1, 2, 2, 3], np.int32),
        times=np.array([0, 2**40, 5, 5, 6], np.int64) if times else None,
        ratings=np.array([0.1, 4.5, 1, 2, 3], np.float32) if ratings else None,
        item_fields={"title": ['Köln \u2028 "q"', "", "🎬"], "price": [0.1, None, 3e300], "tags": [["a", "b"], [], ["ç"]], "year": [1995, 2**60, None]},
        user_fields={"segment": ["new", "", "yeni"]},
    )


def _assert_equal(got: Interactions, expected: Interactions) -> None:
    assert (got.users, got.items) == (expected.users, expected.items)
    for name in ("offsets", "sequence", "times", "ratings"):
        one, other = getattr(got, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if other is not None:
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other)
    assert dict(got.item_fields) == dict(expected.item_fields)
    assert list(got.item_fields) == list(expected.item_fields)
    assert dict(got.user_fields) == dict(expected.user_fields)


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("ratings", [True, False])
def test_round_trip_is_exact(tmp_path: Path, times: bool, ratings: bool):
    expected = _example(times=times, ratings=ratings)
    records.write(expected, tmp_path, name="MyShop")
    _assert_equal(records.read(tmp_path, name="MyShop"), expected)


def test_order_survives_many_examples(tmp_path: Path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 3000)
    expected = Interactions(
        users=[f"u{number}" for number in rng.permutation(3000)],
        items=[f"i{number}" for number in rng.permutation(500)],
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        sequence=rng.integers(1, 501, lengths.sum()).astype(np.int32),
    )
    records.write(expected, tmp_path, name="Many")
    _assert_equal(records.read(tmp_path, name="Many"), expected)


def test_opens_with_tfds_alone_and_without_tensorflow(tmp_path: Path):
    records.write(_example(), tmp_path, name="MyShop")
    source = tfds.data_source("my_shop/interactions", split="train", data_dir=tmp_path)
    assert len(source) == 3
    assert source[0]["user"].decode() == "ayşe"
    np.testing.assert_array_equal(source[0]["items"], [3, 1])
    items = tfds.data_source("my_shop/items", split="train", data_dir=tmp_path)
    assert json.loads(items[2]["columns"])["title"] == "🎬"
    assert "tensorflow" not in sys.modules


def test_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    records.write(_example(), tmp_path, name="MyShop")
    records.read(tmp_path, name="MyShop")
    assert capfd.readouterr() == ("", "")


def test_nothing_to_record_is_refused(tmp_path: Path):
    empty = Interactions(users=[], items=["a"], offsets=np.zeros(1, np.int64), sequence=np.zeros(0, np.int32))
    with pytest.raises(ValueError, match=r"MyShop: nothing to record, 0 users and 1 items are left; check that"):
        records.write(empty, tmp_path, name="MyShop")
