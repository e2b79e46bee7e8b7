"""Splits: brute force over every user; nothing that is asked, or that happened after a question's moment, is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.interactions import Interactions
from jaxrec.data.splits import LeaveOneOut, Split, TimeSplit


def history_of(lengths, times=None):
    """Interactions of users with the given numbers of events."""
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    sequence = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Interactions(
        [str(u) for u in range(len(lengths))], [str(i) for i in sequence], offsets, sequence, None if times is None else np.asarray(times, np.int64)
    )


def test_leave_one_out_by_hand():
    cuts = LeaveOneOut().cuts(history_of([0, 1, 2, 3, 7]))
    np.testing.assert_array_equal(cuts.train, [0, 0, 0, 1, 5])
    np.testing.assert_array_equal(cuts.refit, [0, 0, 1, 2, 6])
    np.testing.assert_array_equal(cuts.validation, [-1, -1, -1, 1, 5])
    np.testing.assert_array_equal(cuts.test, [-1, -1, 1, 2, 6])


@pytest.mark.parametrize("split", [LeaveOneOut(), TimeSplit(), TimeSplit(validation=0.3, test=0.05)])
def test_questions_are_never_trained_on(split):
    interactions = Synthetic(users=200, items=40).read()
    cuts = split.cuts(interactions)
    assert (cuts.validation >= 0).any() and (cuts.test >= 0).any()
    for train, refit, validation, test, n in zip(cuts.train, cuts.refit, cuts.validation, cuts.test, interactions.lengths(), strict=True):
        assert 0 <= train <= refit <= n
        if validation >= 0:
            assert train <= validation < refit  # events 0..train-1 train; the question is the first event after the cut
            assert validation == train > 0
        if test >= 0:
            assert 0 < refit == test < n


def test_time_split_has_one_moment_for_everybody():
    interactions = Synthetic(users=200, items=40).read()
    cuts = TimeSplit(validation=0.2, test=0.1).cuts(interactions)
    assert interactions.times is not None
    trained, between, after = [], [], []
    for user, (begin, end) in enumerate(zip(interactions.offsets[:-1], interactions.offsets[1:], strict=True)):
        times = interactions.times[begin:end]
        trained.extend(times[: cuts.train[user]])
        between.extend(times[cuts.train[user] : cuts.refit[user]])
        after.extend(times[cuts.refit[user] :])
    assert max(trained) < min(between) <= max(between) < min(after)
    total = len(interactions.sequence)
    assert len(between) / total == pytest.approx(0.2, abs=1.5 / total) and len(after) / total == pytest.approx(0.1, abs=1.5 / total)


def test_time_split_by_hand():
    # Ten events; the moments are those of the seventh (time 7) and the ninth (time 8). The first user has no event after, the last none before.
    cuts = TimeSplit(validation=0.2, test=0.2).cuts(history_of([3, 4, 2, 1], [0, 1, 2, 3, 6, 7, 8, 4, 9, 8]))
    np.testing.assert_array_equal(cuts.train, [3, 2, 1, 0])
    np.testing.assert_array_equal(cuts.refit, [3, 3, 1, 0])
    np.testing.assert_array_equal(cuts.validation, [-1, 2, -1, -1])
    np.testing.assert_array_equal(cuts.test, [-1, 3, 1, -1])


def test_errors():
    with pytest.raises(ValueError, match="needs the time of each event .* use LeaveOneOut"):
        TimeSplit().cuts(history_of([3]))
    with pytest.raises(ValueError, match=r"sum below 1, got validation=0.6, test=0.5"):
        TimeSplit(0.6, 0.5).cuts(history_of([2], [0, 1]))
    with pytest.raises(TypeError, match="Split does not cut"):
        Split().cuts(history_of([2]))
