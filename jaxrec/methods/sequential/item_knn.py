"""ItemKNN: items that the same users have, as in Sarwar et al., "Item-Based Collaborative Filtering Recommendation Algorithms" (WWW 2001).

Shrinkage in the denominator as in Ferrari Dacrema, Cremonesi and Jannach (RecSys 2019, arXiv:1907.06902); the weights by recency are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

from jaxrec.method import Baseline
from jaxrec.methods.sequential.popularity import popularity

TIE_BREAK = 1e-9  # times popularity: below any sum of similarities that matters, above the rounding of float64


class Neighbours(NamedTuple):
    """Similarity [items + 1, items + 1] of each item (row) to its nearest (columns), and the popularity [items + 1] in (0, 1)."""

    similarity: sparse.csr_array
    popularity: np.ndarray


@dataclass(frozen=True)
class ItemKNN(Baseline):
    """score(j | history) = sum over items i of the history of decay^(age of i) * similarity(i, j), the last item being of age 0.

    similarity(i, j) = |users of i and j| / (sqrt(|users of i| |users of j|) + shrinkage) for the `neighbours` nearest j of i, j != i.

    Attributes:
      neighbours: how many nearest items of each item count.
      shrinkage: pulls the similarity of items that few users have towards 0.
      decay: weight of an item relative to that of the next one; 1 forgets the order.
      rows: items whose co-occurrences are counted at once; bounds the memory of `fit`.
    """

    neighbours: int = 100
    shrinkage: float = 20.0
    decay: float = 0.5
    rows: int = 4096

    def __post_init__(self):
        if self.neighbours < 1 or self.shrinkage < 0 or not 0 < self.decay <= 1 or self.rows < 1:
            raise ValueError(f"ItemKNN wants neighbours >= 1, shrinkage >= 0, 0 < decay <= 1 and rows >= 1, got {self}")

    def fit(self, sequence: np.ndarray, offsets: np.ndarray, items: int) -> Neighbours:
        user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        has = sparse.csr_array((np.ones(len(sequence)), (user, sequence)), shape=(len(offsets) - 1, items + 1))
        has.data[:] = 1.0  # a user has an item or has it not, however often
        norm = np.sqrt(has.sum(axis=0))
        order = popularity(sequence, items)
        owners = sparse.csr_array(has.T)
        blocks = [self._nearest(sparse.coo_array(owners[begin : begin + self.rows] @ has), begin, norm, order) for begin in range(0, items + 1, self.rows)]
        return Neighbours(sparse.csr_array(sparse.vstack(blocks)), order)

    def _nearest(self, counts: sparse.coo_array, begin: int, norm: np.ndarray, order: np.ndarray) -> sparse.csr_array:
        """The similarities of the rows `begin`... of co-occurrence `counts`, all but the largest of each row dropped."""
        other = counts.row + begin != counts.col
        row, column = counts.row[other], counts.col[other]
        value = counts.data[other] / (norm[row + begin] * norm[column] + self.shrinkage)
        best_first = np.lexsort((-order[column], -value, row))
        row, column, value = row[best_first], column[best_first], value[best_first]
        near = np.arange(len(row)) - np.searchsorted(row, row) < self.neighbours  # place within its row
        return sparse.csr_array((value[near], (row[near], column[near])), shape=counts.shape)

    def scores(self, counts: Neighbours, histories: list[np.ndarray]) -> np.ndarray:
        weight = np.concatenate([self.decay ** np.arange(len(history))[::-1] for history in histories])
        begin = np.cumsum([0] + [len(history) for history in histories])
        recent = sparse.csr_array((weight, np.concatenate(histories), begin), shape=(len(histories), len(counts.popularity)))
        return sparse.csr_array(recent @ counts.similarity).toarray() + TIE_BREAK * counts.popularity
