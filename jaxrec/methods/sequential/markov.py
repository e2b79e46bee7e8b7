"""Markov: a first-order Markov chain over items, with nothing learned.

The unfactorised chain of Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing Personalized Markov Chains" (WWW 2010), pooled
over users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxrec.method import Baseline
from jaxrec.methods.sequential.popularity import popularity


class Transitions(NamedTuple):
    """Counts [items + 1, items + 1] of item (column) directly after item (row), and the popularity [items + 1] in (0, 1)."""

    counts: sparse.csr_array
    popularity: np.ndarray


@dataclass(frozen=True)
class Markov(Baseline):
    """score(j | history) = #(last item -> j in training) + popularity(j), the latter below 1.

    So popularity orders only equal counts and the items that never followed.
    """

    def fit(self, sequence: np.ndarray, offsets: np.ndarray, items: int) -> Transitions:
        user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        same = user[1:] == user[:-1]
        pairs = (sequence[:-1][same], sequence[1:][same])
        counts = sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=(items + 1, items + 1))
        return Transitions(counts, popularity(sequence, items))

    def scores(self, counts: Transitions, histories: list[np.ndarray]) -> np.ndarray:
        last = np.array([history[-1] if len(history) else 0 for history in histories])  # nothing follows padding
        return counts.counts[last].toarray() + counts.popularity
