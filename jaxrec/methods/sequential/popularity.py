"""Popularity: the same list for everybody. The floor under every method, and the back-off of the other baselines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxrec.method import Baseline


@dataclass(frozen=True)
class Popularity(Baseline):
    """Ranks items by how often they occur in the training histories."""

    def fit(self, sequence: np.ndarray, offsets: np.ndarray, items: int) -> np.ndarray:
        return popularity(sequence, items)

    def scores(self, counts: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(counts, (len(histories), 1))


def popularity(sequence: np.ndarray, items: int) -> np.ndarray:
    """[items + 1] float64 in (0, 1), larger for items that occur more often in `sequence` [E], no two alike; 0 for padding.

    Below 1, it may be added to whole numbers to break their ties and to order what they leave out. Items that occur equally often
    are ordered by a fixed shuffle, not by id: ids are often given out in order of first appearance, which would be a hint.
    """
    counts = np.bincount(sequence, minlength=items + 1)[1:]
    rarest_first = np.lexsort((np.random.default_rng(0).permutation(items), counts))
    scores = np.zeros(items + 1)
    scores[1 + rarest_first] = np.arange(1, items + 1) / (items + 1)
    return scores
