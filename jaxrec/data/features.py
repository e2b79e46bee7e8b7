"""Columns: what is known of each item or user as one array, row = id, for a model to look up."""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source

Kind = Literal["categorical", "numeric", "vector"]


class Column(Artifact):
    """A column of the items or users: `get()` gives an array [rows, width], or several by name. Subclasses are frozen dataclasses.

    Rows are ids: items 1..N with row 0 for padding, users 0..U-1. A source has columns of its own (`FeatureTable`); others are computed
    (text vectors, semantic IDs) and reach a model through `Sequences.columns`, under their `name`.
    """

    name: str
    of: Literal["item", "user"] = "item"

    def info(self) -> dict[str, Any]:
        """What a method may need to know before it sees the array, JSON-able: `of`, `kind`, `rows`, `width`, `size` and more."""
        raise TypeError(f"{type(self).__name__} does not describe itself")

    def smoke(self, source: Source) -> Column:
        """A column of the same form over a small source, quick to build."""
        raise TypeError(f"{type(self).__name__} has no miniature")


@dataclass(frozen=True)
class FeatureTable(Column):
    """A source's own column: categorical codes 1..size (0 = none), or standardised numbers (0 = unknown).

    What a column is, its values say: text or lists of text are categorical, numbers numeric, lists of numbers a vector.

    Attributes:
      source: whose column it is.
      column: its name.
      of: of the items or of the users.
    """

    source: Source
    column: str
    of: Literal["item", "user"] = "item"

    @property
    def name(self) -> str:  # type: ignore[override] - the column's own
        return self.column

    def info(self) -> dict[str, Any]:
        return column_info(self.source.get())[self.column]

    def build(self, folder: Path) -> None:
        interactions = self.source.get()
        values = columns(interactions, self.of)
        if self.column not in values:
            raise ValueError(f"{type(self.source).__name__} has no {self.of} column {self.column!r}; it has {', '.join(values) or 'none'}")
        name, ids = f"{type(self.source).__name__} column {self.column!r}", interactions.items if self.of == "item" else interactions.users
        _refuse_ragged(name, values[self.column], ids)
        _refuse_infinite(name, values[self.column], ids)
        kind, rows, names = encode(values[self.column])
        if self.of == "item":  # row 0 is padding
            rows = np.concatenate([np.zeros((1, rows.shape[1]), rows.dtype), rows])
        np.save(folder / "table.npy", rows)
        (folder / "column.json").write_text(json.dumps({"kind": kind, "codes": names}))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "table.npy", mmap_mode="r")

    def codes(self) -> list[str]:
        """The text of each categorical code, from code 1."""
        self.get()
        return json.loads((self.folder() / "column.json").read_text())["codes"]


def columns(interactions: Interactions, of: Literal["item", "user"]) -> dict[str, list[Any]]:
    """The usable columns of the items or users; titles and free text of items are not features."""
    if of == "user":
        return dict(interactions.user_fields)
    return {name: values for name, values in interactions.item_fields.items() if name not in ("title", "text")}


def column_info(interactions: Interactions) -> dict[str, dict[str, Any]]:
    """For each usable column: `of`, `kind`, and the table's `rows`, `width` and `size`, the number of codes (0 unless categorical)."""
    found: dict[str, dict[str, Any]] = {}
    for of in ("item", "user"):
        for name, values in columns(interactions, of).items():
            kind = kind_of(values)
            lengths = [len(value) if isinstance(value, (list, tuple)) else 1 for value in values]
            size = len(distinct(values)) if kind == "categorical" else 0
            found[name] = {"of": of, "kind": kind, "rows": len(values) + (of == "item"), "width": max([1, *lengths]), "size": size}
    return found


def encode(values: Sequence[Any]) -> tuple[Kind, np.ndarray, list[str]]:
    """(kind, [rows, width] array, names of the codes) of a column."""
    kind = kind_of(values)
    if kind == "categorical":
        names = distinct(values)
        code = {name: number for number, name in enumerate(names, 1)}
        lists = [[code[str(part)] for part in _parts(value)] for value in values]
        rows = np.zeros((len(values), max([1, *map(len, lists)])), np.int32)
        for row, codes in zip(rows, lists, strict=True):
            row[: len(codes)] = codes
        return kind, rows, names
    width = max(np.size(value) for value in values if value is not None)
    rows = np.array([np.full(width, np.nan) if value is None else np.atleast_1d(value) for value in values], np.float64)
    mean, spread = np.nanmean(rows, axis=0), np.nanstd(rows, axis=0)
    scaled = (rows - mean) / np.where(spread > 0, spread, 1) if kind == "numeric" else rows
    return kind, np.nan_to_num(scaled).astype(np.float32), []


def kind_of(values: Sequence[Any]) -> Kind:
    """What a column holds, by its first value, or part of a list, that is not None."""
    for value in values:
        whole = not isinstance(value, (list, tuple))
        for part in [value] if whole else value:
            if part is not None:
                return "categorical" if isinstance(part, (str, bool) if whole else str) else "numeric" if whole else "vector"
    return "categorical"


def _refuse_ragged(name: str, values: Sequence[Any], ids: Sequence[str]) -> None:
    """Raises ValueError, naming the row, where a column of vectors has one of another width than most."""
    if kind_of(values) == "vector":
        widths = [None if value is None else len(value) for value in values]
        usual = collections.Counter(width for width in widths if width is not None).most_common(1)[0][0]
        for row, width in enumerate(widths):
            if width not in (None, usual):
                fix = "give all the same width, and none where it is unknown; if the numbers are codes, write them as text"
                raise ValueError(f"{name}: the vector of {ids[row]!r} has {width} numbers, and most have {usual}; {fix}")


def _refuse_infinite(name: str, values: Sequence[Any], ids: Sequence[str]) -> None:
    """Raises ValueError, naming the row, where a column of numbers or vectors holds an infinity, which no mean and no spread survives."""
    if kind_of(values) != "categorical":
        for row, value in enumerate(values):
            if value is not None and np.isinf(np.asarray(value, np.float64)).any():
                raise ValueError(f"{name}: that of {ids[row]!r} is infinite; correct it, or leave it empty where it is unknown")


def distinct(values: Sequence[Any]) -> list[str]:
    """The sorted texts that occur in a categorical column."""
    return sorted({str(part) for value in values for part in _parts(value)})


def _parts(value: Any) -> Sequence[Any]:
    return [part for part in (value if isinstance(value, (list, tuple)) else [value]) if part is not None and part != ""]


@dataclass(frozen=True)
class RandomVectors(Column):
    """A random unit vector for each item: what a text vector is worth is what it gains over this one.

    Attributes:
      source: whose items.
      width: of a vector.
      name: of the column.
      seed: of the vectors.
    """

    source: Source
    width: int = 64
    name: str = field(default="text", metadata={"fingerprint": False})
    seed: int = 0

    def info(self) -> dict[str, Any]:
        return {"of": "item", "kind": "vector", "rows": len(self.source.get().items) + 1, "width": self.width, "size": 0}

    def smoke(self, source: Source) -> RandomVectors:
        return replace(self, source=source)

    def build(self, folder: Path) -> None:
        vectors = np.random.default_rng(self.seed).normal(size=(len(self.source.get().items) + 1, self.width))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[0] = 0
        np.save(folder / "vectors.npy", vectors.astype(np.float32))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "vectors.npy", mmap_mode="r")
