"""Semantic IDs: every item as a short tuple of codes whose prefixes mean something (Rajput et al. 2023, arXiv 2305.05065)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxrec.artifact import Artifact
from jaxrec.data.features import Column
from jaxrec.data.source import Source
from jaxrec.stages.quantizers import Quantizer, ResidualKMeans


@dataclass(frozen=True)
class SidTable:
    """The semantic ID of every item.

    Attributes:
      codes: [N + 1, H] int32; row = item id, row 0 (padding) is all -1.
      widths: how many codes each of the H positions has.
      levels: the first positions, that a quantizer gave; 0 = all. One more holds the digit that tells items with equal codes apart.
      dedup: what was done about equal codes; see `SemanticIds`.
    """

    codes: np.ndarray
    widths: tuple[int, ...]
    levels: int = 0
    dedup: Literal["digit", "random", "none"] = "none"

    @property
    def size(self) -> int:
        """N."""
        return len(self.codes) - 1

    @property
    def semantic(self) -> np.ndarray:
        """[N, L] the codes that the quantizer gave, of items 1..N."""
        return self.codes[1:, : self.levels or len(self.widths)]

    @functools.cached_property
    def order(self) -> np.ndarray:
        """[N] item ids in the order of their tuples; equal ones by id. The items of a prefix are neighbours."""
        return np.lexsort(np.asarray(self.codes[1:]).T[::-1]) + 1

    def sid(self, item: int) -> tuple[int, ...]:
        """The ID of item 1..N."""
        if not 1 <= item <= self.size:
            raise ValueError(f"item={item} is not one of 1..{self.size}")
        return tuple(self.codes[item].tolist())

    def items(self, prefix: Sequence[int]) -> np.ndarray:
        """Ids of the items whose ID begins with `prefix`, in the order of their IDs."""
        if len(prefix) > len(self.widths):
            raise ValueError(f"the prefix {tuple(prefix)} is longer than an ID, which has {len(self.widths)} codes")
        low, high = 0, self.size
        for position, code in enumerate(prefix):
            column = self.codes[self.order[low:high], position]
            low, high = low + np.searchsorted(column, code, "left"), low + np.searchsorted(column, code, "right")
        return self.order[low:high]

    def resolve(self, sid: Sequence[int], generator: np.random.Generator | None = None) -> int:
        """The item of a whole ID, 0 if there is none. Of several, dedup="random" draws one with `generator`; otherwise it is the lowest."""
        if len(sid) != len(self.widths):
            raise ValueError(f"{tuple(sid)} is not a whole ID, which has {len(self.widths)} codes")
        found = self.items(sid)
        if self.dedup == "random" and len(found) > 1:
            if generator is None:
                raise ValueError(f"{len(found)} items share the ID {tuple(sid)} and dedup='random' draws one of them; give a NumPy generator")
            return int(generator.choice(found))
        return int(found[0]) if len(found) else 0


@dataclass(frozen=True)
class SemanticIds(Artifact):
    """Semantic IDs by a quantizer of item embeddings.

    Attributes:
      embeddings: gives [N + 1, E]; row 0 is padding.
      quantizer: vectors to codes.
      dedup: items with equal codes get a last digit 1, 2, ... in the order of their ids, and all others the digit 0 ("digit"); or they share their ID,
        and one is drawn when it is resolved ("random") or the lowest id taken ("none").
      digits: how many different digits there may be; 0 = as many as needed.
      seed: of the quantizer.
      previous: older IDs, whose code numbers the new ones take over as far as they agree on the items that both have (of the same outside id; of
        embeddings that name no source, all items).
    """

    version: ClassVar[int] = 2
    embeddings: Artifact
    quantizer: Quantizer = field(default_factory=ResidualKMeans)
    dedup: Literal["digit", "random", "none"] = "digit"
    digits: int = 0
    seed: int = 0
    previous: SemanticIds | None = None

    def __post_init__(self):
        if self.dedup not in ("digit", "random", "none"):
            raise ValueError(f"dedup={self.dedup!r} is not one of digit, random, none")
        if self.digits < 0 or (self.digits and self.dedup != "digit"):
            raise ValueError(f"digits={self.digits} with dedup={self.dedup!r}: digits bounds what dedup='digit' may use, and 0 leaves it open")

    def build(self, folder: Path) -> None:
        vectors = np.asarray(self.embeddings.get()[1:], np.float32)
        check(vectors, max(self.quantizer.widths), self._names())
        params = self.quantizer.fit(vectors, self.seed)
        codes = self.quantizer.encode(params, vectors)
        if self.previous is not None:
            before, after = self.previous.get(), SidTable(_padded(codes), self.quantizer.widths)
            old, new = self.previous._names(), self._names()
            if old is not None and new is not None:
                before, after = shared(before, after, old, new)
            numbers = renumbering(before, after)
            params = self.quantizer.renumber(params, numbers)
            codes = np.stack([number[code] for number, code in zip(numbers, codes.T, strict=True)], axis=1)
        widths = self.quantizer.widths
        if self.dedup == "digit":
            digit = digits(codes)
            most = int(digit.max()) + 1
            if 0 < self.digits < most:
                largest = int(np.argmax(digit))
                raise ValueError(
                    f"{most - 1} items share the codes {tuple(codes[largest].tolist())} (item {largest + 1} is one), which takes {most} digits, and "
                    f"digits={self.digits}; allow more, or give the quantizer more codes or levels"
                )
            codes, widths = np.concatenate([codes, digit[:, None]], axis=1), (*widths, self.digits or most)
        np.save(folder / "codes.npy", _padded(codes))
        np.savez(folder / "quantizer.npz", **{name: np.asarray(array) for name, array in sorted(params.items())})  # type: ignore[arg-type]
        (folder / "table.json").write_text(json.dumps({"widths": widths, "levels": len(self.quantizer.widths), "dedup": self.dedup}))

    def load(self, folder: Path) -> SidTable:
        known = json.loads((folder / "table.json").read_text())
        return SidTable(np.load(folder / "codes.npy", mmap_mode="r"), tuple(known["widths"]), known["levels"], known["dedup"])

    def _names(self) -> Sequence[str] | None:
        """Outside ids of items 1..N, where the embeddings say of what source they are."""
        source = getattr(self.embeddings, "source", None)
        return source.get().items if isinstance(source, Source) else None

    def params(self) -> dict[str, np.ndarray]:
        """What the quantizer learned, by name."""
        self.get()
        with np.load(self.folder() / "quantizer.npz") as arrays:
            return dict(arrays)

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """[M, L] codes of the embeddings [M, E] of new items, by what was learned from the old ones; the digit is yours to give."""
        vectors = np.asarray(vectors, np.float32)
        width = self.embeddings.get().shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"the new items' embeddings are {vectors.shape}; the IDs were made of vectors of {width} numbers, so give [M, {width}]")
        check(vectors)
        return self.quantizer.encode(self.params(), vectors) if len(vectors) else np.zeros((0, len(self.quantizer.widths)), np.int32)

    def extended(self, vectors: np.ndarray) -> SidTable:
        """The table with new items N + 1, N + 2, ... behind the old ones, whose IDs stay: codes by `assign` of [M, E], and the next free digits.

        Raises:
          ValueError: a digit would be more than the last position has; a model with more of them has to be trained.
        """
        table = self.get()
        codes = np.concatenate([table.semantic, self.assign(vectors)])
        if self.dedup == "digit":
            digit, most = digits(codes, before=np.asarray(table.codes[1:, -1])), table.widths[-1]
            if (digit >= most).any():
                full = codes[int(np.argmax(digit >= most))]
                raise ValueError(f"more than {most} items share the codes {tuple(full.tolist())}; make new IDs, with digits={int(digit.max()) + 1} or more")
            codes = np.concatenate([codes, digit[:, None]], axis=1)
        return dataclasses.replace(table, codes=_padded(codes))

    def reconstructed(self) -> list[np.ndarray]:
        """For l = 1..L [N, E], what the first l codes of items 1..N stand for."""
        params, codes = self.params(), np.asarray(self.get().semantic)
        return [self.quantizer.reconstruct(params, codes[:, :level]) for level in range(1, codes.shape[1] + 1)]

    def smoke(self, source: Source) -> SemanticIds:
        """The same over a small source, whose embeddings are the miniature of ours."""
        return dataclasses.replace(self, embeddings=self.embeddings.smoke(source), quantizer=self.quantizer.smoke(), digits=0, previous=None)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class SidPrefixes(Column):
    """The prefixes of an item's semantic ID as a categorical column: items that begin alike share what a model learns (Snap 2026, arXiv 2604.03949).

    Row i holds, for l = 1..L, the number 1..size of the first l codes of item i among all prefixes of all lengths; 0 = padding, or too rare. Digits are
    left out: they mean nothing.

    Attributes:
      sids: the IDs.
      name: of the column.
      min_count: prefixes of fewer items are 0, so that the shorter ones speak for them.
    """

    sids: Artifact
    name: str = field(default="sid_prefix", metadata={"fingerprint": False})
    min_count: int = 1

    def build(self, folder: Path) -> None:
        codes = np.asarray(self.sids.get().semantic)
        table, size = np.zeros((len(codes) + 1, codes.shape[1]), np.int32), 0
        for level in range(codes.shape[1]):
            _, number, count = np.unique(codes[:, : level + 1], axis=0, return_inverse=True, return_counts=True)
            kept = count >= self.min_count
            table[1:, level] = np.where(kept, size + np.cumsum(kept), 0)[number.reshape(-1)]
            size += int(kept.sum())
        np.save(folder / "table.npy", table)
        (folder / "column.json").write_text(json.dumps({"size": size}))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "table.npy", mmap_mode="r")

    def info(self) -> dict[str, Any]:
        rows, width = self.get().shape
        return {"of": "item", "kind": "categorical", "rows": rows, "width": width, **json.loads((self.folder() / "column.json").read_text())}

    def smoke(self, source: Source) -> SidPrefixes:
        return dataclasses.replace(self, sids=self.sids.smoke(source))  # type: ignore[attr-defined]


def check(vectors: np.ndarray, codes: int = 0, names: Sequence[str] | None = None) -> None:
    """Refuses embeddings [N, E] of items 1..N, called `names` outside, that cannot be quantised into `codes` codes.

    Raises:
      ValueError: a value that is not finite, a row of zeros, or fewer distinct rows than codes; it names the item.
    """
    broken = ~np.isfinite(vectors)
    if broken.any():
        item, column = np.argwhere(broken)[0]
        raise ValueError(
            f"the embedding of item {names[item] if names else item + 1} has {vectors[item, column]} in column {column}; every value must be a finite number"
        )
    zero = np.flatnonzero(~vectors.any(axis=1)) + 1
    if len(zero):
        shown = ", ".join(str(names[item - 1] if names else item) for item in zero[:8].tolist()) + (", ..." if len(zero) > 8 else "")
        raise ValueError(f"the embeddings of {len(zero)} items are all zero: {shown}; give these items a text (or whatever is embedded), or leave them out")
    distinct: set[int] = set()
    for row in vectors:
        if len(distinct) >= codes:
            break
        distinct.add(hash(row.tobytes()))
    if len(distinct) < codes:
        raise ValueError(f"codes={codes} is more than the {len(distinct)} different embeddings of the {len(vectors)} items; ask for codes <= {len(distinct)}")


def digits(codes: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """[N] int32: 0 where the row of codes [N, L] is the only one of its kind, else 1, 2, ... among its equals in the order of rows.

    The first rows keep the digits that they have `before`, and those behind get the next of their kind.
    """
    if before is not None:
        found, taken = np.zeros(len(codes), np.int32), collections.Counter[bytes]()
        for row, kind in enumerate(map(bytes, np.ascontiguousarray(codes, np.int32))):
            found[row] = before[row] if row < len(before) else taken[kind]
            taken[kind] = max(taken[kind], int(found[row]) + 1)
        return found
    _, group, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    rank = np.empty(len(codes), np.int32)
    rank[order] = np.arange(len(codes)) - np.repeat(np.cumsum(count) - count, count)
    return np.where(count[group] > 1, rank + 1, 0).astype(np.int32)


def stability(old: SidTable, new: SidTable) -> tuple[float, ...]:
    """For l = 1..L the share of items whose first l codes are the same in both tables.

    Raises:
      ValueError: the tables have different numbers of items or levels.
    """
    before, after = _comparable(old, new)
    return tuple(np.logical_and.accumulate(before == after, axis=1).mean(axis=0).tolist())


def shared(old: SidTable, new: SidTable, before: Sequence[str], after: Sequence[str]) -> tuple[SidTable, SidTable]:
    """Both tables with the items alone that stand in both catalogues, `before` and `after` by outside id, in one order.

    Raises:
      ValueError: there is none.
    """
    row = {item: number for number, item in enumerate(before, 1)}
    kept = [(row[item], number) for number, item in enumerate(after, 1) if item in row]
    if not kept:
        raise ValueError(f"none of the {len(after)} items is among the {len(before)} of the previous IDs; leave previous=None")
    return tuple(dataclasses.replace(table, codes=np.asarray(table.codes)[[0, *rows]]) for table, rows in zip((old, new), zip(*kept), strict=True))  # type: ignore[return-value]


def renumbering(old: SidTable, new: SidTable) -> list[np.ndarray]:
    """For each level the number [W] that each new code should have so that most items keep their old one (Kuhn 1955, the Hungarian method).

    A level is matched on the items whose codes before it agree once they are renumbered, all items where none do.

    Raises:
      ValueError: the tables have different numbers of items, levels or codes.
    """
    before, after = _comparable(old, new)
    if old.widths[: before.shape[1]] != new.widths[: after.shape[1]]:
        raise ValueError(f"the tables have {old.widths} and {new.widths} codes; only equally many can be matched one to one")
    same, numbers = np.ones(len(before), bool), []
    for level, width in enumerate(new.widths[: after.shape[1]]):
        rows = same if same.any() else ~same
        together = np.zeros((width, width), np.int64)  # [new, old]
        np.add.at(together, (after[rows, level], before[rows, level]), 1)
        numbers.append(linear_sum_assignment(together, maximize=True)[1].astype(np.int32))
        same = same & (numbers[-1][after[:, level]] == before[:, level])
    return numbers


def renumbered(table: SidTable, numbers: Sequence[np.ndarray]) -> SidTable:
    """The table with code w of level l called `numbers[l][w]`; digits stay."""
    codes = np.array(table.codes)
    for level, number in enumerate(numbers):
        codes[1:, level] = number[codes[1:, level]]
    return dataclasses.replace(table, codes=codes)


def _comparable(old: SidTable, new: SidTable) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(old.semantic), np.asarray(new.semantic)
    if before.shape != after.shape:
        raise ValueError(f"the tables have {before.shape} and {after.shape} items and levels; compare IDs of the same items and levels")
    return before, after


def _padded(codes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full((1, codes.shape[1]), -1), codes]).astype(np.int32)
