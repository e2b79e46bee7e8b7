"""Batches of one cluster: uniform over clusters, complete within each, and as exact to resume as any."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.data.batches import BatchIterator
from jaxrec.data.cluster_batches import ClusterBatches

CLUSTER = np.array([3, 7, 3, 7, 3, 7, 3, 7, 3, 3, 3, 5, 5, 5, 3], np.int32)  # 8 rows of cluster 3, 4 of 7, 3 of 5
ARRAYS = {"a": np.arange(15, dtype=np.int32), "b": np.arange(30, dtype=np.float32).reshape(15, 2)}


def batches(size=3, **options):
    return ClusterBatches(ARRAYS, size, cluster=CLUSTER, **options)


def test_a_batch_is_of_one_cluster_and_rounds_take_every_cluster():
    some = batches(seed=2)
    drawn = [np.unique(CLUSTER[some.indices(number)]) for number in range(60)]
    assert all(len(names) == 1 for names in drawn)
    rounds = np.array(drawn).reshape(20, 3)
    assert (np.sort(rounds, axis=1) == [3, 5, 7]).all()
    assert len(set(map(tuple, rounds.tolist()))) > 1  # each round in an order of its own
    np.testing.assert_array_equal(some[4]["b"], ARRAYS["b"][some.indices(4)])


def test_within_a_cluster_no_row_is_dropped():
    some = batches(seed=2)
    for name, count in ((3, 8), (7, 4), (5, 3)):
        drawn = np.concatenate([rows for number in range(3 * count) if CLUSTER[(rows := some.indices(number))[0]] == name])  # 3 epochs
        assert (np.bincount(drawn, minlength=15)[name == CLUSTER] == 3).all()
        epochs = drawn.reshape(3, count)
        assert all(len(set(epoch)) == count for epoch in epochs.tolist()) and len(set(map(tuple, epochs.tolist()))) > 1


def test_a_batch_depends_on_its_number_and_the_seed_alone():
    np.testing.assert_array_equal(batches().indices(7), batches().indices(7))
    assert any(not np.array_equal(batches(seed=1).indices(n), batches(seed=0).indices(n)) for n in range(3))


def test_shares_of_processes_concatenate_to_the_global_batch():
    whole, shares = batches(2), [batches(2, process=process, processes=2) for process in range(2)]
    for number in range(6):
        np.testing.assert_array_equal(np.concatenate([share[number]["a"] for share in shares]), whole[number]["a"])


def test_iterators_resume_exactly():
    iterator = batches().iterate()
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    ahead = [next(iterator) for _ in range(5)]
    plain = BatchIterator(batches())
    for again in (iterator, plain):
        again.set_state(state)
        for batch in ahead:
            np.testing.assert_equal(dict(next(again)), dict(batch))


def test_errors():
    with pytest.raises(ValueError, match="cluster 5 has 3 rows, fewer than the 4 of a batch; make fewer clusters, or smaller batches"):
        batches(4)
    for wrong in (CLUSTER[:-1], CLUSTER.astype(np.float32), CLUSTER[None]):
        with pytest.raises(ValueError, match=r"cluster must be 15 integers, one for each row, got (int32|float32) \[.*\]"):
            ClusterBatches(ARRAYS, 3, cluster=wrong)
    with pytest.raises(ValueError, match="does not divide over 2 processes"):
        batches(3, processes=2)
