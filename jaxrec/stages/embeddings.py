"""Text embeddings of items: computed from their texts by an encoder, or read from a file, as a column that any model can use."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import checksum, say
from jaxrec.data.features import Column, RandomVectors
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source
from jaxrec.stages.text_encoders import TextEncoder, TfidfSvd


@dataclass(frozen=True)
class ItemVectors(Column):
    """A vector for each item: `get()` is [items + 1, E] float32, memory-mapped; row = item id, row 0 (padding) zeros.

    Attributes:
      source: whose items.
      name: of the column.
    """

    source: Source
    name: str = field(default="text", kw_only=True, metadata={"fingerprint": False})

    def vectors(self, interactions: Interactions) -> np.ndarray:
        """[N, E] float32, in the order of the items."""
        raise TypeError(f"{type(self).__name__} has no vectors")

    def info(self) -> dict[str, Any]:
        rows, width = self.get().shape
        return {"of": "item", "kind": "vector", "rows": rows, "width": width, "size": 0}

    def smoke(self, source: Source) -> Column:
        return RandomVectors(source, name=self.name)

    def build(self, folder: Path) -> None:
        vectors = self.vectors(self.source.get())
        np.save(folder / "vectors.npy", np.concatenate([np.zeros_like(vectors[:1]), vectors]))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "vectors.npy", mmap_mode="r")


@dataclass(frozen=True)
class TextEmbeddings(ItemVectors):
    """The items' texts (`item_texts`), encoded.

    Attributes:
      encoder: `TfidfSvd`, which needs no download, or `BertEncoder`.
      fields: the item fields that make an item's text, in order; () takes the title and then every other field that holds text.
    """

    encoder: TextEncoder = field(default_factory=TfidfSvd)
    fields: tuple[str, ...] = ()

    def inputs(self) -> dict[str, Any]:
        return {"encoder": self.encoder.inputs()}

    def vectors(self, interactions: Interactions) -> np.ndarray:
        texts = item_texts(interactions, self.fields)
        silent = [row for row, text in enumerate(texts) if not text]
        if silent:
            first = ", ".join(interactions.items[row] for row in silent[:3])
            say(f"  {len(silent):,} of {len(texts):,} items have no text ({first} first); their ids are encoded in its place")
        encoder = copy.copy(self.encoder)  # what it loads goes with it; the column stays, and would keep the weights on the device
        return encoder.encode([text or item for text, item in zip(texts, interactions.items, strict=True)])


def item_texts(interactions: Interactions, fields: Sequence[str] = ()) -> list[str]:
    """[N] the text of each item, a line per field: title and free text as they are, others as `categories: Makeup, Nails`; "" where all are empty.

    Raises:
      ValueError: `fields` names one that the items do not have.
    """
    held = interactions.item_fields
    if unknown := [name for name in fields if name not in held]:
        raise ValueError(f"the items have no field {', '.join(unknown)}; they have {', '.join(held) or 'none'}")
    chosen = fields or sorted((name for name, values in held.items() if _is_text(values)), key=lambda name: name != "title")
    lines: list[list[str]] = [[] for _ in interactions.items]
    for name in chosen:
        label = "" if name in ("title", "text") else f"{name}: "
        for item, value in zip(lines, held[name], strict=True):
            parts = value if isinstance(value, (list, tuple)) else [value]
            if content := ", ".join(part for part in (" ".join(str(part).split()) for part in parts if part is not None) if part):
                item.append(label + content)
    return ["\n".join(item) for item in lines]


def _is_text(values: Sequence[Any]) -> bool:
    """Whether a field holds words: text, or lists of text, with a letter somewhere (codes written as digits say nothing to an encoder)."""
    parts = (part for value in values for part in (value if isinstance(value, (list, tuple)) else [value]))
    return any(isinstance(part, str) and any(map(str.isalpha, part)) for part in parts)


@dataclass(frozen=True)
class EmbeddingFile(ItemVectors):
    """Vectors that were made elsewhere, checked.

    Attributes:
      path: `.npy` [N, E] in the order of the source's items (or [N + 1, E] with a zero row 0), `.npz` with arrays `ids` [n] and `vectors`
        [n, E], or `.parquet` with columns `id` and `vector`. Ids are the source's outside ids; those it does not know are passed over.
      ids: a text file with one outside id per line, for a `.npy` in an order of its own.
    """

    path: str = field(metadata={"fingerprint": False})
    ids: str = field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {name: checksum(_existing(path)) for name, path in (("path", self.path), ("ids", self.ids)) if path}

    def vectors(self, interactions: Interactions) -> np.ndarray:
        items = interactions.items
        ids, rows = read_vectors(_existing(self.path), _existing(self.ids) if self.ids else None)
        if rows.ndim != 2 or not rows.shape[-1]:
            raise ValueError(f"{self.path}: vectors have shape {rows.shape}, expected [items, width]; save one row of numbers per item")
        if not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(f"{self.path}: vectors are {rows.dtype}, expected float32 (or float16, float64); convert them before saving")
        if ids is None:
            rows = self._in_order(rows, len(items))
        else:
            rows = rows[self._positions(ids, len(rows), items)]
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is refused by name
            rows = np.asarray(rows, np.float32)
        self._refuse(np.flatnonzero(~np.isfinite(rows).all(axis=1)), items, "hold NaN or inf", "compute them again, in float32 if float16 overflowed")
        self._refuse(
            np.flatnonzero(~rows.any(axis=1)), items, "are all zero, which has no direction", "give these items a vector (of their title, or the mean of all)"
        )
        return rows

    def _in_order(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The rows of the items from a file without ids."""
        if len(rows) == count:
            return rows
        if len(rows) != count + 1:
            raise ValueError(
                f"{self.path}: {len(rows)} rows for {count} items; save one row per item in the order of the source's items, or name each row's item in ids="
            )
        if np.any(rows[0]):
            raise ValueError(f"{self.path}: {len(rows)} rows for {count} items, so row 0 is padding, but it is not zero; drop the row too many, or zero row 0")
        return rows[1:]

    def _positions(self, ids: list[str], count: int, items: list[str]) -> np.ndarray:
        """[N] the row of each item in a file with ids."""
        if len(ids) != count:
            raise ValueError(f"{self.ids or self.path}: {len(ids)} ids for {count} vectors; give one id per vector")
        position = {item: row for row, item in enumerate(ids)}
        if len(position) < len(ids):
            again = next(item for row, item in enumerate(ids) if position[item] != row)
            raise ValueError(f"{self.ids or self.path}: {len(ids) - len(position)} ids stand more than once, {again!r} first; keep one vector per item")
        missing = [item for item in items if item not in position]
        if missing:
            first = ", ".join(missing[:3])
            raise ValueError(
                f"{self.path}: {len(missing)} of {len(items)} items have no vector, {first} first (the file begins {', '.join(ids[:3])}); add them"
            )
        if len(ids) > len(items):
            say(f"  {len(ids) - len(items):,} of {len(ids):,} vectors are of items that the source does not have")
        return np.array([position[item] for item in items])

    def _refuse(self, rows: np.ndarray, items: list[str], what: str, fix: str) -> None:
        if len(rows):
            first = ", ".join(items[row] for row in rows[:3])
            raise ValueError(f"{self.path}: the vectors of {len(rows)} items {what}, {first} first; {fix}")


def read_vectors(path: Path, ids: Path | None) -> tuple[list[str] | None, np.ndarray]:
    """(the id of each row, or None; the rows) of a file of vectors, as `EmbeddingFile.path` and `.ids` describe them."""
    if ids is not None and path.suffix != ".npy":
        raise ValueError(f"ids={str(ids)!r} goes with a .npy; {path} names its items itself")
    try:
        if path.suffix == ".npy":
            return None if ids is None else ids.read_text(encoding="utf8").splitlines(), _open_array(path)
        if path.suffix == ".npz":
            with np.load(path) as file:
                if missing := {"ids", "vectors"} - set(file):
                    raise ValueError(
                        f"it has no array {', '.join(sorted(missing))}, only {', '.join(file) or 'none'}; save it by np.savez(path, ids=, vectors=)"
                    )
                return list(map(str, file["ids"].tolist())), file["vectors"]
        if path.suffix == ".parquet":
            return _read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path}: {path.suffix!r} is not one of .npy, .npz, .parquet; save the vectors as one of these")


def _open_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"it is no array of numbers ({error}); save it by np.save(path, vectors), vectors float32") from None


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow  # half a second to import, and only this needs it
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    if missing := {"id", "vector"} - set(table.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(missing))}, only {', '.join(table.column_names)}; rename the columns to id and vector")
    ids, column = list(map(str, table["id"].to_pylist())), table["vector"].combine_chunks()
    kind = column.type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        raise ValueError(f"its column vector holds {kind}, expected a list of floats per row")
    if column.null_count:
        raise ValueError(f"{column.null_count} of its {len(ids)} rows have no vector; give every row one, or leave the row out")
    lengths = np.full(len(ids), kind.list_size) if pyarrow.types.is_fixed_size_list(kind) else column.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) and (odd := np.flatnonzero(lengths != lengths[0])).size:
        raise ValueError(f"the vector of {ids[odd[0]]!r} has {lengths[odd[0]]} numbers, that of {ids[0]!r} has {lengths[0]}; give all vectors one width")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return ids, values.reshape(len(ids), -1) if len(ids) else values.reshape(0, 0)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {Path(path).absolute()}; check the path of the embeddings")
    return Path(path)
