"""LastItem: whatever was used last will be used again. Hard to beat where people repeat themselves, useless where they never do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxrec.method import Baseline
from jaxrec.methods.sequential.popularity import popularity


@dataclass(frozen=True)
class LastItem(Baseline):
    """Ranks the last item first, then the earlier items of the history by recency, then all others by popularity."""

    def fit(self, sequence: np.ndarray, offsets: np.ndarray, items: int) -> np.ndarray:
        return popularity(sequence, items)

    def scores(self, counts: np.ndarray, histories: list[np.ndarray]) -> np.ndarray:
        scores = np.tile(counts, (len(histories), 1))  # below 1
        for row, history in enumerate(histories):
            scores[row, history] = np.arange(1, len(history) + 1)  # of an item that repeats, the last assignment stays
        return scores
