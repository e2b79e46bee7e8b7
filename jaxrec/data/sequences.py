"""Sequences: the data of an experiment on histories. Source -> split -> windows -> packed rows -> batches; and its questions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.data.batches import Batches
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.data import Data
from jaxrec.data.examples import Examples
from jaxrec.data.features import Column, FeatureTable, column_info
from jaxrec.data.interactions import Interactions
from jaxrec.data.packing import lay_out, pack, windows
from jaxrec.data.source import Source
from jaxrec.data.splits import LeaveOneOut, Split
from jaxrec.limits import check

Form = Literal["next", "last", "stream"]


@dataclass(frozen=True)
class PackedRows(Artifact):
    """The training histories of a source, packed once into memory-mapped rows. Fields as in `Sequences`; `capacity` = items of a row."""

    version = 2

    source: Source
    split: Split
    length: int
    capacity: int
    stride: int
    packing: bool
    refit: bool
    form: Form
    segments: int

    def build(self, folder: Path) -> None:
        interactions = self.source.get()
        cuts = self.split.cuts(interactions)
        begin = interactions.offsets[:-1]
        end = begin + (cuts.refit if self.refit else cuts.train)
        last, whole = self.form == "last", self.form == "stream"
        user, first, predictions = windows(begin, end, self.length, self.stride, every_end=last)
        if self.packing:
            row, start, rows = pack(predictions + whole, self.capacity, most=self.segments)
        else:
            row, start, rows = np.arange(len(user)), np.zeros(len(user), np.int64), len(user)
        arrays = lay_out(row, start, rows, self.capacity, user, first, predictions, interactions.sequence, relative_times(interactions), last=last, whole=whole)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


@dataclass(frozen=True)
class Sequences(Data):
    """Histories to train on and questions to be asked.

    Attributes:
      source: where the interactions come from.
      batch: rows of a training batch, over all processes.
      length: the longest history a model sees, in items.
      row: tokens of a packed row; 0 = the next multiple of 64 that holds `length`.
      packing: several histories in a row; without it each row is one history padded to `row` = `length`.
      stride: 0 trains on each history's last `length` items, as most papers do; more also on earlier windows, this far apart.
      form: what a window asks: "next", at each item the next one; "last", only for its last item, from those before it (then `stride = 1`
        makes an example of every event: sliding-window augmentation); "stream", as "next", and the window holds the last item as well, as
        models that predict a token at a time need.
      segments: windows that share a row at most; 0 = any number.
      columns: computed columns of the items (text vectors, semantic IDs), beside those that the source has.
      split: what trains and what is asked.
      refit: train on validation as well, for a last run with everything fixed; validation then means nothing.
      seed: of the shuffles.
    """

    source: Source
    batch: int = 128
    length: int = 50
    row: int = 0
    packing: bool = True
    stride: int = 0
    form: Form = "next"
    segments: int = 0
    columns: tuple[Column, ...] = ()
    split: Split = dataclasses.field(default_factory=LeaveOneOut)
    refit: bool = False
    seed: int = 0

    def __post_init__(self):
        check(self, batch=1, length=1, row=0, stride=0, segments=0, seed=0)
        if self.row and self.row < self.longest:
            raise ValueError(f"row={self.row} cannot hold a history of length={self.length}; make row at least {self.longest}")

    @property
    def longest(self) -> int:
        """Items of the longest window."""
        return self.length + (self.form == "stream")

    @property
    def capacity(self) -> int:
        """Items of a row."""
        if not self.packing:
            return self.longest
        return self.row or -(-self.longest // 64) * 64

    def rows(self) -> dict[str, np.ndarray]:
        """The packed training rows, by batch key."""
        parts = (self.length, self.capacity, self.stride, self.packing, self.refit, self.form, self.segments)
        return PackedRows(self.source, self.split, *parts).get()

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        """The endless training batches of one process."""
        rows = self.rows()
        return Batches({**rows, "mask": _Mask(rows["target"])}, self.batch, self.seed, process, processes)  # type: ignore[dict-item]

    def info(self) -> dict[str, Any]:
        """What a method may take from the data: `items`, `users`, `length`, `segments` (most of a row), and the columns of items and users."""
        interactions = self.source.get()
        return {
            "items": len(interactions.items),
            "users": len(interactions.users),
            "length": self.length,
            "segments": self.segments or (self.capacity if self.packing else 1),
            "columns": column_info(interactions) | {column.name: column.info() for column in self.columns},
        }

    def column(self, name: str) -> Column:
        """The artifact of a computed column, or of one of the source's own."""
        computed = {column.name: column for column in self.columns}
        if name in computed:
            return computed[name]
        known = column_info(self.source.get())
        if name not in known:
            raise ValueError(f"the data has no column {name!r}; it has {', '.join([*computed, *known]) or 'none'}")
        return FeatureTable(self.source, name, known[name]["of"])

    def examples_per_row(self) -> float:
        """Mean number of histories that share a row."""
        return float(np.max(self.rows()["segment"], axis=1).mean())

    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """(sequence [E], offsets [U + 1]) of all training events, uncut: what a counting baseline counts."""
        interactions = self.source.get()
        cuts = self.split.cuts(interactions)
        keep = cuts.refit if self.refit else cuts.train
        inside = np.arange(len(interactions.sequence)) - np.repeat(interactions.offsets[:-1], interactions.lengths()) < np.repeat(keep, interactions.lengths())
        return np.asarray(interactions.sequence)[inside], np.r_[0, np.cumsum(keep)]

    def examples(self, split: Literal["validation", "test"]) -> Examples:
        """The questions of validation or of the test."""
        interactions = self.source.get()
        cuts = self.split.cuts(interactions)
        known = {"validation": cuts.validation, "test": cuts.test}
        if split not in known:
            raise ValueError(f"split {split!r}: choose validation or test")
        user = np.flatnonzero(known[split] > 0)
        keep, begin = known[split][user], interactions.offsets[user]
        event = np.repeat(begin, keep) + np.arange(keep.sum()) - np.repeat(np.cumsum(keep) - keep, keep)
        target = np.asarray(interactions.sequence)[begin + keep]
        times = relative_times(interactions)
        warm = np.zeros(len(interactions.items) + 1, bool)
        warm[self.training()[0]] = True
        return Examples(
            sequence=np.asarray(interactions.sequence)[event],
            offsets=np.r_[0, np.cumsum(keep)],
            target=target.astype(np.int32),
            user=user.astype(np.int32),
            cold=~warm[target],
            time=None if times is None else times[event],
        )

    def smoke(self) -> Sequences:
        """The same data in miniature: a synthetic source with the same element spec, for tests of a few steps."""
        small = Synthetic(users=64, items=50)
        short = {"length": min(self.length, 16), "row": min(self.row, 32)}
        return dataclasses.replace(self, source=small, batch=8, columns=tuple(column.smoke(small) for column in self.columns), **short)


def with_histories(data: Any) -> Sequences:
    """`data` itself, where histories are asked for.

    Raises:
      ValueError: it is of another kind.
    """
    if not isinstance(data, Sequences):
        raise ValueError(f"{type(data).__name__} holds no histories of users; only an experiment on Sequences can be used here")
    return data


class _Mask:
    """[rows, T] float32, 1 where there is a target; computed on access so that it takes no disk."""

    def __init__(self, target: np.ndarray):
        self._target = target

    def __len__(self) -> int:
        return len(self._target)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return (self._target[rows] > 0).astype(np.float32)


def relative_times(interactions: Interactions) -> np.ndarray | None:
    """[E] int32 seconds since the first event of the data set, or None without times."""
    if interactions.times is None:
        return None
    seconds = interactions.times - interactions.times.min()
    if seconds.max() > np.iinfo(np.int32).max:
        raise ValueError(f"the events span {seconds.max() / 31_556_952:.0f} years, more than 68; are some times in milliseconds, or 0 where unknown?")
    return seconds.astype(np.int32)
