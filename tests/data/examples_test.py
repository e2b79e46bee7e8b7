"""Examples: batches of one shape, `seen` whole, padding rows without weight."""

from __future__ import annotations

import numpy as np

from jaxrec.data.examples import Examples, pad_histories

HISTORIES = [np.array([3]), np.array([5, 5, 2, 7, 1, 5]), np.array([4, 6, 4])]
EXAMPLES = Examples(
    sequence=np.concatenate(HISTORIES).astype(np.int32),
    offsets=np.array([0, 1, 7, 10]),
    target=np.array([9, 8, 7], np.int32),
    user=np.array([10, 11, 12], np.int32),
    cold=np.zeros(3, bool),
    time=np.arange(100, 110, dtype=np.int32),
)


def test_batches_by_hand():
    first, second = EXAMPLES.batches(2, length=4)
    np.testing.assert_array_equal(first["history"], [[3, 0, 0, 0], [2, 7, 1, 5]])
    np.testing.assert_array_equal(first["segment"], [[1, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(first["position"], [[0, 0, 0, 0], [0, 1, 2, 3]])
    np.testing.assert_array_equal(first["time"], [[100, 0, 0, 0], [103, 104, 105, 106]])
    np.testing.assert_array_equal(first["user"], [[10] * 4, [11] * 4])
    np.testing.assert_array_equal(first["seen"], [[3, 0, 0, 0], [1, 2, 5, 7]])  # of the whole history, also what was cut off
    np.testing.assert_array_equal(first["target"], [9, 8])
    np.testing.assert_array_equal(first["weight"], [1, 1])

    np.testing.assert_array_equal(second["history"], [[4, 6, 4, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(second["seen"], [[4, 6, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(second["weight"], [1, 0])
    assert {name: array.shape for name, array in first.items()} == {name: array.shape for name, array in second.items()}


def test_without_times_there_is_no_time():
    plain = Examples(EXAMPLES.sequence, EXAMPLES.offsets, EXAMPLES.target, EXAMPLES.user, EXAMPLES.cold)
    assert all("time" not in batch for batch in plain.batches(2, 4)) and len(plain) == 3


def test_no_examples_make_no_batches():
    empty = Examples(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))
    assert list(empty.batches(2, 4)) == []


def test_padding_adds_empty_rows():
    padded = pad_histories([np.array([1, 2, 3])], 2, rows=3)
    np.testing.assert_array_equal(padded["history"], [[2, 3], [0, 0], [0, 0]])
    np.testing.assert_array_equal(padded["segment"], [[1, 1], [0, 0], [0, 0]])
