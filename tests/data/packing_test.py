"""Windows and packing, against brute force: every pair of neighbours in its place, once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxrec.data.packing import lay_out, pack, windows

RANDOM = np.random.default_rng(0)
LENGTHS = np.r_[0, 1, 2, 3, RANDOM.integers(0, 40, 60), 8, 9, 10]  # events per user, some too short to train on
OFFSETS = np.r_[0, np.cumsum(LENGTHS)]


def targets(user, first, predictions):
    """Counter of (user, event that is a target) over the windows."""
    return Counter((u, f + k) for u, f, p in zip(user.tolist(), first.tolist(), predictions.tolist(), strict=True) for k in range(1, p + 1))


def wanted(last=None):
    """Every event but each user's first, or the last `last` of those."""
    pairs = [[(u, event) for event in range(a + 1, b)] for u, (a, b) in enumerate(zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True))]
    return Counter(pair for user in pairs for pair in (user if last is None else user[-last:]))


def test_stride_zero_keeps_the_last_window():
    user, first, predictions = windows(OFFSETS[:-1], OFFSETS[1:], 8, 0)
    assert targets(user, first, predictions) == wanted(last=8)
    assert len(np.unique(user)) == len(user) and predictions.max() == 8 and predictions.min() >= 1


def test_stride_of_length_makes_each_event_a_target_once():
    assert targets(*windows(OFFSETS[:-1], OFFSETS[1:], 8, 8)) == wanted()


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_smaller_strides_overlap_and_miss_nothing(stride):
    user, first, predictions = windows(OFFSETS[:-1], OFFSETS[1:], 8, stride)
    got = targets(user, first, predictions)
    assert got.keys() == wanted().keys()
    assert (first >= OFFSETS[user]).all() and (first + predictions < OFFSETS[user + 1]).all()  # inside its own user
    ends = (first + predictions)[user == user[-1]]
    assert (np.diff(ends) == -stride).all()


@pytest.mark.parametrize("stride", [9, 10, 25])
def test_larger_strides_leave_gaps_but_no_empty_window(stride):
    user, first, predictions = windows(OFFSETS[:-1], OFFSETS[1:], 8, stride)
    assert predictions.min() >= 1
    assert (first >= OFFSETS[user]).all() and max(targets(user, first, predictions).values()) == 1


def packed(capacity=32, times=True):
    sequence = RANDOM.integers(1, 100, OFFSETS[-1]).astype(np.int32)
    clock = np.arange(OFFSETS[-1], dtype=np.int32) if times else None
    user, first, predictions = windows(OFFSETS[:-1], OFFSETS[1:], 8, 8)
    row, start, rows = pack(predictions, capacity)
    return sequence, user, first, predictions, row, lay_out(row, start, rows, capacity, user, first, predictions, sequence, clock)


def test_each_pair_lies_in_its_place_once():
    sequence, user, first, predictions, row, arrays = packed()
    expected = Counter(
        (r, u, step, int(sequence[f + step]), int(sequence[f + step + 1]), f + step)
        for r, u, f, p in zip(row.tolist(), user.tolist(), first.tolist(), predictions.tolist(), strict=True)
        for step in range(p)
    )
    inside = arrays["segment"] > 0
    rows = np.broadcast_to(np.arange(len(inside))[:, None], inside.shape)
    names = ("user", "position", "history", "target", "time")
    assert Counter(zip(rows[inside].tolist(), *(arrays[name][inside].tolist() for name in names), strict=True)) == expected
    assert all((array[~inside] == 0).all() for array in arrays.values())
    assert all(array.dtype == np.int32 and array.shape == inside.shape for array in arrays.values())


def test_segments_are_contiguous_and_numbered_from_the_left():
    *_, arrays = packed()
    for segment, position, user in zip(arrays["segment"], arrays["position"], arrays["user"], strict=True):
        used = np.count_nonzero(segment)
        assert (segment[:used] > 0).all() and segment[0] == 1  # rows are filled from the left
        begins = np.flatnonzero(np.r_[True, np.diff(segment[:used]) != 0])
        np.testing.assert_array_equal(segment[begins], np.arange(1, len(begins) + 1))
        for a, b in zip(begins, np.r_[begins[1:], used], strict=True):
            np.testing.assert_array_equal(position[a:b], np.arange(b - a))
            assert len(set(user[a:b].tolist())) == 1


def test_without_times_there_is_no_time():
    assert "time" not in packed(times=False)[-1]


def test_rows_are_full_and_never_over():
    # Beauty has 22,363 users with 8.9 events each, most of them the minimum of five.
    lengths = np.minimum(2 + RANDOM.geometric(1 / 5, 20_000), 50)
    row, start, rows = pack(lengths, 64)
    load = np.bincount(row, lengths, minlength=rows)
    assert load.max() <= 64 and load.sum() == lengths.sum() and load.min() > 0
    assert (start + lengths <= 64).all()
    order = np.lexsort((start, row))
    same = row[order][1:] == row[order][:-1]
    assert ((start[order][1:] >= (start + lengths)[order][:-1]) | ~same).all()  # no overlap
    assert lengths.sum() / (rows * 64) > 0.99


def test_packing_depends_on_nothing_but_its_seed():
    lengths = RANDOM.integers(1, 10, 200)
    for a, b in zip(pack(lengths, 16), pack(lengths, 16), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(pack(lengths, 16)[0], pack(lengths, 16, seed=1)[0])
    assert pack(np.zeros(0, np.int64), 16)[2] == 0


def test_errors():
    with pytest.raises(ValueError, match=r"segments of 3..9 tokens do not fit rows of 8; make row at least as long"):
        pack(np.array([3, 9]), 8)
    with pytest.raises(ValueError, match="got length=0, stride=0"):
        windows(OFFSETS[:-1], OFFSETS[1:], 0, 0)
    with pytest.raises(ValueError, match="got length=4, stride=-1"):
        windows(OFFSETS[:-1], OFFSETS[1:], 4, -1)
