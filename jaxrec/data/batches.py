"""Batches by index vector: random access to shuffled batches of memory-mapped rows, and an iterator that stops and resumes exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ENDLESS = 2**40  # batches; longer than any run


@dataclass(frozen=True)
class Batches:
    """An endless sequence of shuffled batches; number i is a pure function of i and the seed.

    Rows are shuffled anew each epoch and the epochs follow each other without a gap: no row is dropped, and a batch may span two
    epochs. Every process computes the same order and takes its own share of each batch, so the global batch does not depend on how
    many processes there are.

    Attributes:
      arrays: [rows, ...] each, by batch key; memory-mapped or not.
      size: rows of a batch over all processes.
      seed: of the shuffles.
      process, processes: which share of each batch is read here.
    """

    arrays: Mapping[str, np.ndarray]
    size: int
    seed: int = 0
    process: int = 0
    processes: int = 1

    def __post_init__(self):
        if self.size < 1 or self.size % self.processes:
            raise ValueError(f"a batch of {self.size} rows does not divide over {self.processes} processes; choose a multiple")
        if not self.rows:
            raise ValueError("there is nothing to train on: no history has two events before the cut; check the split and the data")

    @property
    def rows(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __len__(self) -> int:
        return ENDLESS

    def indices(self, number: int) -> np.ndarray:
        """[size] the rows of batch `number`, over all processes."""
        epoch, first = divmod(number * self.size, self.rows)
        pieces, need = [], self.size
        while need:
            piece = permutation(self.rows, self.seed, epoch)[first : first + need]
            pieces.append(piece)
            need, epoch, first = need - len(piece), epoch + 1, 0
        return np.concatenate(pieces)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        share = self.size // self.processes
        rows = self.indices(number)[self.process * share : (self.process + 1) * share]
        return {name: np.asarray(array[rows]) for name, array in self.arrays.items()}

    def iterate(self) -> BatchIterator | Any:
        """An iterator from batch 0 with `get_state` and `set_state`: grain's where grain is installed, with its prefetching threads."""
        try:
            import grain
        except ImportError:  # a bare accelerator image
            return BatchIterator(self)
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return iter(grain.MapDataset.source(self).to_iter_dataset(options))  # type: ignore[arg-type] - has len and getitem, which is all grain asks


@functools.lru_cache(maxsize=4)
def permutation(rows: int, seed: int, epoch: int) -> np.ndarray:
    """[rows] the order of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """The plain iterator over `Batches`; its state has the form of grain's."""

    def __init__(self, batches: Batches):
        self._batches, self._next = batches, 0

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._batches[self._next]
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        self._next = int(state["next_index"])
