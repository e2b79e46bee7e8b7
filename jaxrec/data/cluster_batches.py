"""Batches of one cluster each: rows that are alike stand beside each other, so that the other rows of a batch are hard negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxrec.data.batches import Batches, permutation


@dataclass(frozen=True, kw_only=True)
class ClusterBatches(Batches):
    """An endless sequence of batches, each from one cluster; number i is a pure function of i and the seed.

    Each round takes every cluster once, in an order of its own, so clusters are drawn uniformly whatever their sizes (as in ColEmbed V2, arXiv
    2602.03992); within a cluster rows are shuffled anew each epoch and none is dropped.

    Attributes:
      cluster: [rows] integers that say which cluster each row is of.

    Raises:
      ValueError: not one cluster for each row, or a cluster with fewer rows than a batch; names it.
    """

    cluster: np.ndarray

    def __post_init__(self):
        super().__post_init__()
        if np.shape(self.cluster) != (self.rows,) or np.asarray(self.cluster).dtype.kind not in "iu":
            raise ValueError(f"cluster must be {self.rows} integers, one for each row, got {np.asarray(self.cluster).dtype} {list(np.shape(self.cluster))}")
        names, counts = np.unique(self.cluster, return_counts=True)
        if counts.min() < self.size:
            name, count = names[np.argmin(counts)], counts.min()
            raise ValueError(f"cluster {name} has {count} rows, fewer than the {self.size} of a batch; make fewer clusters, or smaller batches")
        order = np.argsort(self.cluster, kind="stable")
        members = [Batches({"row": rows}, self.size, self.seed * len(names) + number) for number, rows in enumerate(np.split(order, np.cumsum(counts)[:-1]))]
        object.__setattr__(self, "_members", members)

    def indices(self, number: int) -> np.ndarray:
        """[size] the rows of batch `number`, over all processes: all of one cluster."""
        members: list[Batches] = getattr(self, "_members")  # noqa: B009 - set above, and no field
        turn, place = divmod(number, len(members))
        some = members[permutation(len(members), self.seed, turn)[place]]
        return some.arrays["row"][some.indices(turn)]
