"""Table: your own data, one CSV or Parquet file of (user, item, time[, rating]) and, if you have it, one of items."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import checksum
from jaxrec.data.builders.tabular_files import TabularFile, existing
from jaxrec.data.builders.text_lines import repeated
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source


@dataclasses.dataclass(frozen=True)
class Table(Source):
    """Interactions from a table with a row per event; `.csv`, `.tsv` (each plain or `.gz`) or `.parquet`.

    Attributes:
      path: the file of events.
      items_path: the file of items, a row per item; its further columns become item fields. With it and without `min_item`, items that nobody
        has touched yet stay in the catalogue.
      user, item: columns of the ids, integers or text. Users and items are numbered in the order of their ids.
      time: column of seconds since 1970, timestamps, or ISO 8601 text (UTC unless it says otherwise). "" takes the order of the file and gives no times.
      rating: column of ratings; "" gives none.
      title: column of the items file that holds the items' titles.
      item_id: column of the items file that holds their ids; "" takes the name in `item`.
      categorical: columns of the items file whose numbers are codes, not quantities.
      min_user, min_item: keep users and items with at least so many events, repeated until both hold (the k-core).
      min_rating: keep events rated at least so high, before counting.
    """

    path: str = dataclasses.field(metadata={"fingerprint": False})
    items_path: str = dataclasses.field(default="", metadata={"fingerprint": False})
    user: str = "user"
    item: str = "item"
    time: str = "time"
    rating: str = ""
    title: str = "title"
    item_id: str = ""
    min_user: int = 0
    min_item: int = 0
    min_rating: float = 0.0
    categorical: tuple[str, ...] = ()

    def __post_init__(self):
        if self.min_user < 0 or self.min_item < 0:
            raise ValueError(f"min_user={self.min_user} and min_item={self.min_item} must not be negative; 0 keeps all")
        if self.min_rating and not self.rating:
            raise ValueError(f"min_rating={self.min_rating} needs ratings; name their column with rating=")

    def inputs(self) -> dict[str, Any]:
        return {name: checksum(existing(Path(path))) for name, path in (("path", self.path), ("items_path", self.items_path)) if path}

    def read(self) -> Interactions:
        file = TabularFile.read(Path(self.path))
        user_ids, user = file.ids(self.user)  # [R]
        item_ids, item = file.ids(self.item)  # [R]
        times = file.seconds(self.time) if self.time else None
        ratings = file.numbers(self.rating) if self.rating else None
        fields: dict[str, list[Any]] = {}
        catalogue = item_ids
        if self.items_path:
            catalogue, fields = self._items()
            item = _renumber(file, item_ids, item, catalogue, self.items_path)
        kept = np.flatnonzero(ratings >= self.min_rating) if ratings is not None and self.min_rating else np.arange(len(user))
        kept = kept[core(user[kept], item[kept], self.min_user, self.min_item)]
        if not len(kept):
            filters = f"min_user={self.min_user}, min_item={self.min_item}, min_rating={self.min_rating}"
            raise ValueError(f"{self.path}: none of {len(user)} events is left after {filters}; lower them")
        keys = (user[kept],) if times is None else (times[kept], user[kept])
        kept = kept[np.lexsort(keys)]  # stable: events of one second stay in the order of the file
        users, user = np.unique(user[kept], return_inverse=True)
        if self.items_path and not self.min_item:
            items, sequence = np.arange(len(catalogue)), item[kept]
        else:
            items, sequence = np.unique(item[kept], return_inverse=True)
        return Interactions(
            users=[user_ids[u] for u in users],
            items=[catalogue[i] for i in items],
            offsets=np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64),
            sequence=(sequence + 1).astype(np.int32),
            times=None if times is None else times[kept],
            ratings=None if ratings is None else ratings[kept].astype(np.float32),
            item_fields={name: [column[i] for i in items] for name, column in fields.items()},
        )

    def _items(self) -> tuple[list[str], dict[str, list[Any]]]:
        """The ids of the items file, sorted, and its further columns in the same order."""
        file = TabularFile.read(Path(self.items_path))
        key = self.item_id or self.item
        ids, position = file.ids(key)  # [R]
        file.refuse(repeated(position), lambda row: f"item {ids[position[row]]!r} appears a second time; each item must have one row")
        rows = np.argsort(position)
        if unknown := set(self.categorical) - set(file.table.column_names):
            raise ValueError(f"{self.items_path} has no column {', '.join(sorted(unknown))}, named in categorical; it has {', '.join(file.table.column_names)}")
        fields = {}
        for name in file.table.column_names:
            if name not in (key, self.title):
                column = file.values(name)
                fields[name] = [column[row] for row in rows]
                if name in self.categorical:
                    fields[name] = [None if value is None else str(value) for value in fields[name]]
        if self.title in file.table.column_names or self.title != Table.title:  # a title column that was asked for must exist
            titles = file.column(self.title).to_pylist()
            fields["title"] = [str(titles[row] if titles[row] is not None else "") for row in rows]
        return ids, fields


def core(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Positions of the events of the largest part in which every user has at least `min_user` events and every item `min_item`."""
    kept = np.arange(len(user))
    while len(kept):
        enough = (np.bincount(user[kept])[user[kept]] >= min_user) & (np.bincount(item[kept])[item[kept]] >= min_item)
        if enough.all():
            break
        kept = kept[enough]
    return kept


def _renumber(file: TabularFile, ids: list[str], item: np.ndarray, catalogue: list[str], items_path: str) -> np.ndarray:
    """[R] positions in `catalogue` for positions `item` in `ids`; an id that the catalogue lacks is an error."""
    position = {item_id: row for row, item_id in enumerate(catalogue)}
    renumbered = np.array([position.get(item_id, -1) for item_id in ids])[item]
    file.refuse(renumbered < 0, lambda row: f"item {ids[item[row]]!r} is not in {items_path}; add it there, or remove the row")
    return renumbered
