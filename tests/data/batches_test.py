"""Batches: every row once per epoch, shares that make up the whole, and iterators that resume exactly."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxrec.data.batches import Batches, BatchIterator

ARRAYS = {"a": np.arange(10, dtype=np.int32), "b": np.arange(20, dtype=np.float32).reshape(10, 2)}


def test_every_row_once_per_epoch_though_batches_span_epochs():
    batches = Batches(ARRAYS, 4, seed=3)
    order = np.concatenate([batches.indices(number) for number in range(10)])  # 40 rows: four epochs of ten
    for epoch in order.reshape(4, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in order.reshape(4, 10).tolist()}) > 1  # shuffled anew
    np.testing.assert_array_equal(batches[2]["a"], order[8:12])  # batch 2 is the end of one epoch and the start of the next
    np.testing.assert_array_equal(batches[2]["b"], ARRAYS["b"][order[8:12]])


def test_a_batch_larger_than_the_data_spans_several_epochs():
    counts = np.bincount(Batches(ARRAYS, 25).indices(1), minlength=10)
    assert counts.sum() == 25 and counts.min() >= 2 and counts.max() <= 3


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    np.testing.assert_array_equal(Batches(ARRAYS, 4).indices(7), Batches(ARRAYS, 4).indices(7))
    assert not np.array_equal(Batches(ARRAYS, 8).indices(0), Batches(ARRAYS, 8, seed=1).indices(0))


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_shares_of_processes_concatenate_to_the_global_batch(processes):
    whole = Batches(ARRAYS, 6)
    shares = [Batches(ARRAYS, 6, process=process, processes=processes) for process in range(processes)]
    for number in range(5):
        for name in ARRAYS:
            np.testing.assert_array_equal(np.concatenate([share[number][name] for share in shares]), whole[number][name])


def test_grain_and_the_plain_iterator_agree_and_exchange_their_state(monkeypatch):
    batches = Batches(ARRAYS, 4)
    fast = batches.iterate()
    monkeypatch.setitem(sys.modules, "grain", None)  # as on a bare accelerator image
    plain = batches.iterate()
    assert type(plain) is BatchIterator and type(fast) is not BatchIterator
    for _ in range(5):
        np.testing.assert_equal(dict(next(fast)), next(plain))
    state = fast.get_state()
    assert state == plain.get_state() == {"next_index": 5}
    ahead = [next(plain) for _ in range(3)]
    for iterator in (fast, plain, BatchIterator(batches)):
        iterator.set_state(state)
        for batch in ahead:
            np.testing.assert_equal(dict(next(iterator)), batch)


def test_errors():
    with pytest.raises(ValueError, match="a batch of 5 rows does not divide over 2 processes"):
        Batches(ARRAYS, 5, processes=2)
    with pytest.raises(ValueError, match="nothing to train on"):
        Batches({"a": np.zeros((0, 3))}, 5)
