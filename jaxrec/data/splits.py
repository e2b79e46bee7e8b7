"""Splits: which events train, which one is the question of validation, which one that of the test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxrec.data.interactions import Interactions


@dataclass(frozen=True)
class Cuts:
    """Per user, how many events come before each cut.

    Attributes:
      train: [U] the first `train` events are trained on.
      refit: [U] likewise when validation is trained on as well (a refit with everything but the test fixed).
      validation: [U] the question is event number `validation` (from 0) given all before it; -1: the user is not asked.
      test: [U] likewise.
    """

    train: np.ndarray
    refit: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Split:
    """Base of the splits: `cuts(interactions) -> Cuts`."""

    def cuts(self, interactions: Interactions) -> Cuts:
        raise TypeError(f"{type(self).__name__} does not cut")


@dataclass(frozen=True)
class LeaveOneOut(Split):
    """Each user's last event is the test, the one before it validation, the rest trains. The protocol of most published tables.

    It lets the model train on events that happened after some users' tests; `TimeSplit` does not.
    """

    def cuts(self, interactions: Interactions) -> Cuts:
        n = interactions.lengths()
        train = np.maximum(n - 2, 0)
        return Cuts(train=train, refit=np.maximum(n - 1, 0), validation=np.where(n >= 3, n - 2, -1), test=np.where(n >= 2, n - 1, -1))


@dataclass(frozen=True)
class TimeSplit(Split):
    """One moment for everybody: what came before it trains; the question is each user's first event after it.

    Attributes:
      validation: share of all events that lie between the validation cut and the test cut.
      test: share of all events after the test cut.
    """

    validation: float = 0.1
    test: float = 0.1

    def cuts(self, interactions: Interactions) -> Cuts:
        if interactions.times is None:
            raise ValueError("TimeSplit needs the time of each event and this source has none; use LeaveOneOut")
        if not (0 < self.validation < 1 and 0 < self.test < 1 and self.validation + self.test < 1):
            raise ValueError(f"TimeSplit needs shares above 0 with a sum below 1, got validation={self.validation}, test={self.test}")
        ordered = np.sort(interactions.times)
        moments = [ordered[int(len(ordered) * share)] for share in (1 - self.validation - self.test, 1 - self.test)]
        user = np.repeat(np.arange(len(interactions.users)), interactions.lengths())
        before = [np.bincount(user[interactions.times < moment], minlength=len(interactions.users)) for moment in moments]
        n = interactions.lengths()
        asked = [np.where((count > 0) & (count < limit), count, -1) for count, limit in zip(before, (before[1], n), strict=True)]
        return Cuts(train=before[0], refit=before[1], validation=asked[0], test=asked[1])
