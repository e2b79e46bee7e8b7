"""Table: your own data, one CSV or Parquet file of (user, item, time[, rating]) and, if you have them, one of items and one of users."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxrec.artifact import checksum, say
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
      users_path: the file of users, a row per user; its further columns become user fields. With it and without `min_user`, users without events
        stay, so that what is known of them can be used in a query.
      user, item: columns of the ids, integers or text. Users and items are numbered in the order of their ids.
      time: column of seconds since 1970, timestamps, or ISO 8601 text (UTC unless it says otherwise). "" takes the order of the file and gives no times.
      rating: column of ratings; "" gives none.
      title: column of the items file that holds the items' titles.
      item_id, user_id: column of the items file, and of the users file, that holds their ids; "" takes the name in `item` and in `user`.
      categorical: columns of the items and users files whose numbers are codes, not quantities.
      min_user, min_item: keep users and items with at least so many events, repeated until both hold (the k-core).
      min_rating: keep events rated at least so high, before counting.
    """

    version: ClassVar[int] = 2

    path: str = dataclasses.field(metadata={"fingerprint": False})
    items_path: str = dataclasses.field(default="", metadata={"fingerprint": False})
    users_path: str = dataclasses.field(default="", metadata={"fingerprint": False})
    user: str = "user"
    item: str = "item"
    time: str = "time"
    rating: str = ""
    title: str = "title"
    item_id: str = ""
    user_id: str = ""
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
        paths = {"path": self.path, "items_path": self.items_path, "users_path": self.users_path}
        return {name: checksum(existing(Path(path))) for name, path in paths.items() if path}

    def read(self) -> Interactions:
        file = TabularFile.read(Path(self.path))
        users, user = file.ids(self.user)  # [R]
        items, item = file.ids(self.item)  # [R]
        times = file.seconds(self.time) if self.time else None
        ratings = file.numbers(self.rating) if self.rating else None
        if unused := [name for name in file.table.column_names if name not in (self.user, self.item, self.time, self.rating)]:
            say(f"{self.path}: columns not used: {', '.join(unused)}; features are columns of the items and users files, and rating= names the ratings")
        user_fields, item_fields = {}, {}
        if self.items_path:
            ids, item_fields = self._described("item", self.items_path, self.item_id or self.item, title=self.title)
            items, item = ids, _renumber(file, "item", items, item, ids, self.items_path)
        if self.users_path:
            ids, user_fields = self._described("user", self.users_path, self.user_id or self.user)
            users, user = ids, _renumber(file, "user", users, user, ids, self.users_path)
        self._check_names(item_fields, user_fields)
        kept = np.flatnonzero(ratings >= self.min_rating) if ratings is not None and self.min_rating else np.arange(len(user))
        kept = kept[core(user[kept], item[kept], self.min_user, self.min_item)]
        if not len(kept):
            filters = f"min_user={self.min_user}, min_item={self.min_item}, min_rating={self.min_rating}"
            raise ValueError(f"{self.path}: none of {len(user)} events is left after {filters}; lower them")
        keys = (user[kept],) if times is None else (times[kept], user[kept])
        kept = kept[np.lexsort(keys)]  # stable: events of one moment stay in the order of the file
        user_rows, user = _present(user[kept], len(users), whole=bool(self.users_path) and not self.min_user)
        item_rows, item = _present(item[kept], len(items), whole=bool(self.items_path) and not self.min_item)
        return Interactions(
            users=[users[row] for row in user_rows],
            items=[items[row] for row in item_rows],
            offsets=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(user_rows)))]).astype(np.int64),
            sequence=(item + 1).astype(np.int32),
            times=None if times is None else np.floor(times[kept]).astype(np.int64),
            ratings=None if ratings is None else ratings[kept].astype(np.float32),
            item_fields={name: [column[row] for row in item_rows] for name, column in item_fields.items()},
            user_fields={name: [column[row] for row in user_rows] for name, column in user_fields.items()},
        )

    def _described(self, what: str, path: str, key: str, title: str = "") -> tuple[list[str], dict[str, list[Any]]]:
        """The ids of the items or users file, sorted, and its further columns in the same order; that of the titles is called `title`."""
        file = TabularFile.read(Path(path))
        ids, position = file.ids(key)  # [R]
        file.refuse(repeated(position), lambda row: f"{what} {ids[position[row]]!r} appears a second time; each {what} must have one row")
        rows = np.argsort(position)
        fields = {}
        for name in file.table.column_names:
            if name not in (key, title):
                column = file.values(name, codes=name in self.categorical)
                fields[name] = [column[row] for row in rows]
        if title and (title in file.table.column_names or title != Table.title):  # a title column that was asked for must exist
            titles = file.column(title).to_pylist()
            fields["title"] = [str(titles[row] if titles[row] is not None else "") for row in rows]
        return ids, fields

    def _check_names(self, item_fields: Mapping[str, Any], user_fields: Mapping[str, Any]) -> None:
        """Raises ValueError where a name of `categorical` is no column, or one name is a column of both files."""
        columns = [*item_fields, *user_fields]
        if unknown := set(self.categorical) - set(columns):
            raise ValueError(f"categorical names {', '.join(sorted(unknown))}, and the items and users files have {', '.join(columns) or 'no columns'}")
        if both := set(item_fields) & set(user_fields):
            raise ValueError(f"{self.items_path} and {self.users_path} both have a column {', '.join(sorted(both))}; rename it in one of them")


def core(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """Positions of the events of the largest part in which every user has at least `min_user` events and every item `min_item`."""
    kept = np.arange(len(user))
    while len(kept):
        enough = (np.bincount(user[kept])[user[kept]] >= min_user) & (np.bincount(item[kept])[item[kept]] >= min_item)
        if enough.all():
            break
        kept = kept[enough]
    return kept


def _renumber(file: TabularFile, what: str, ids: list[str], number: np.ndarray, known: list[str], path: str) -> np.ndarray:
    """[R] positions in `known`, the ids of the file `path`, for positions `number` in `ids`; an id that is not known is an error."""
    position = {known_id: row for row, known_id in enumerate(known)}
    renumbered = np.array([position.get(own_id, -1) for own_id in ids])[number]
    file.refuse(renumbered < 0, lambda row: f"{what} {ids[number[row]]!r} is not in {path}; add it there, or remove the row")
    return renumbered


def _present(number: np.ndarray, count: int, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below `count` that stay, sorted, and [E] positions among them: those that occur in `number` [E], or the `whole`."""
    return (np.arange(count), number) if whole else np.unique(number, return_inverse=True)
