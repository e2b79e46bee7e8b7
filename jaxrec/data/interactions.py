"""Interactions: the one form that every source of sequences is read into.

Inside jaxrec an item is an integer 1..N and 0 is padding; a user is an integer 0..U-1. The outside ids (an ASIN, a movie id, a
function's qualified name) live in `items` and `users`, as text, and come back in every answer to the user.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Every user's items in time order, flat.

    Attributes:
      users: [U] outside ids of users, text.
      items: [N] outside ids of items, text; internal id = position + 1.
      offsets: [U + 1] int64; user u's events are `sequence[offsets[u]:offsets[u + 1]]`.
      sequence: [E] int32 internal item ids, 1..N.
      times: [E] int64 seconds since 1970, non-decreasing within a user; None when the source has none.
      ratings: [E] float32; None when the source has none.
      item_fields: further columns of the items by name, each a list of N values (`title` text; `categories` list of text; numbers).
      user_fields: likewise for users, each a list of U values.
    """

    users: list[str]
    items: list[str]
    offsets: np.ndarray
    sequence: np.ndarray
    times: np.ndarray | None = None
    ratings: np.ndarray | None = None
    item_fields: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    user_fields: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        events, users, items = len(self.sequence), len(self.users), len(self.items)
        if len(self.offsets) != users + 1 or self.offsets[0] != 0 or self.offsets[-1] != events:
            raise ValueError(f"offsets must run from 0 to {events} in {users + 1} entries, got {self.offsets[:1]}..{self.offsets[-1:]} in {len(self.offsets)}")
        if events and not (1 <= self.sequence.min() and self.sequence.max() <= items):
            raise ValueError(f"item ids must be 1..{items}, got {self.sequence.min()}..{self.sequence.max()}")
        for name, column, rows in [(n, c, items) for n, c in self.item_fields.items()] + [(n, c, users) for n, c in self.user_fields.items()]:
            if len(column) != rows:
                raise ValueError(f"column {name!r} has {len(column)} values for {rows} rows")

    def lengths(self) -> np.ndarray:
        """[U] number of events of each user."""
        return np.diff(self.offsets)

    def titles(self) -> list[str]:
        """[N] what to call each item: its title where there is one, its outside id otherwise."""
        titles = self.item_fields.get("title") or [""] * len(self.items)
        return [title or item for title, item in zip(titles, self.items, strict=True)]

    def save(self, folder: Path) -> None:
        """Writes flat arrays (memory-mappable) and JSON columns into `folder`."""
        for name in ("offsets", "sequence", "times", "ratings"):
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array)
        columns = {"users": self.users, "items": self.items, "item_fields": dict(self.item_fields), "user_fields": dict(self.user_fields)}
        (folder / "columns.json").write_text(json.dumps(columns))

    @classmethod
    def open(cls, folder: Path) -> Interactions:
        """Opens what `save` wrote; the arrays are memory-mapped."""
        arrays = {n: np.load(p, mmap_mode="r") for n in ("offsets", "sequence", "times", "ratings") if (p := folder / f"{n}.npy").exists()}
        return cls(**arrays, **json.loads((folder / "columns.json").read_text()))
