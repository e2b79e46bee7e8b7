"""Exact search: every inner product, in blocks that fit the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.artifact import replacing
from jaxrec.index.index import HEADER, Index, check_k, checked_exclude, checked_filter, checked_ids, checked_vectors, read_header, write_header

QUERIES, BLOCK = 256, 16_384  # at most 16 MiB of scores at a time
NOTHING = -1  # the id of a place that no candidate takes


class ExactIndex(Index):
    """Brute force. The answer that approximate indexes are measured against, and the fastest way to search few vectors."""

    def __init__(self, ids: ArrayLike = (), vectors: ArrayLike | None = None):
        self._ids = np.zeros(0, np.int64)  # [N] ascending, so that a lower row is a lower id
        self._vectors = np.zeros((0, 0), np.float32)  # [N, D]
        if vectors is not None:
            self.add(ids, vectors)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """[N] int64, ascending."""
        return self._ids

    @property
    def vectors(self) -> np.ndarray:
        """[N, D] float32 in the order of `ids`."""
        return self._vectors

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        ids = checked_ids(ids)
        vectors = checked_vectors(vectors, len(ids), self._vectors.shape[1] or None)
        if len(held := np.intersect1d(ids, self._ids)):
            raise ValueError(f"the index already holds {_some(held)}; delete them first to replace their vectors")
        if len(self) == 0 and np.all(ids[1:] > ids[:-1]):
            self._ids, self._vectors = ids, vectors  # no copy: the vectors may be a memory map
            return
        merged = np.concatenate([self._ids, ids])
        order = np.argsort(merged)
        self._ids, self._vectors = merged[order], np.concatenate([self._vectors.reshape(-1, vectors.shape[1]), vectors])[order]

    def delete(self, ids: ArrayLike) -> None:
        ids = checked_ids(ids)
        if len(absent := np.setdiff1d(ids, self._ids)):
            raise ValueError(f"the index does not hold {_some(absent)}; only ids that were added can be deleted")
        keep = ~np.isin(self._ids, ids)
        self._ids, self._vectors = self._ids[keep], self._vectors[keep]

    def search(self, queries: ArrayLike, k: int, *, filter: ArrayLike | None = None, exclude: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:  # noqa: A002
        check_k(k, len(self))
        queries = checked_vectors(queries, None, self._vectors.shape[1], "queries")  # [B, D]
        exclude = checked_exclude(exclude, len(queries))  # [B, S]
        rows = None if filter is None else np.flatnonzero(np.isin(self._ids, checked_filter(filter)))
        ids, scores = np.full((len(queries), k), NOTHING, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        for begin in range(0, len(queries), QUERIES):
            some = slice(begin, begin + QUERIES)
            found, scored = self._search(queries[some], k, rows, exclude[some])
            ids[some, : found.shape[1]], scores[some, : found.shape[1]] = found, scored
        ids[scores == -np.inf] = NOTHING
        return ids, scores

    def save(self, path: Path) -> None:
        with replacing(Path(path), HEADER, "an index") as folder:
            np.save(folder / "ids.npy", self._ids, allow_pickle=False)
            np.save(folder / "vectors.npy", self._vectors, allow_pickle=False)
            write_header(folder, "ExactIndex")

    @classmethod
    def load(cls, path: Path) -> Self:
        read_header(Path(path), "ExactIndex")
        return cls.map(Path(path) / "ids.npy", Path(path) / "vectors.npy")

    @classmethod
    def map(cls, ids: Path, vectors: Path) -> Self:
        """The index of two .npy files, ascending ids and their vectors, which are memory-mapped and not read."""
        index = cls()
        index._ids, index._vectors = np.load(ids, mmap_mode="r", allow_pickle=False), np.load(vectors, mmap_mode="r", allow_pickle=False)
        if index._vectors.ndim != 2 or index._ids.shape != index._vectors.shape[:1]:
            raise ValueError(f"{ids} has {index._ids.shape} and {vectors} {index._vectors.shape}: they are not of one index; build it again")
        return index

    def _search(self, queries: np.ndarray, k: int, rows: np.ndarray | None, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids and scores [B, <= k] among `rows` (None: all); what is excluded has score -inf."""
        candidates = self._ids if rows is None else self._ids[rows]
        place = np.searchsorted(candidates, exclude)  # [B, S] where each excluded id stands, if it does
        held = candidates[np.minimum(place, len(candidates) - 1)] == exclude if len(candidates) else np.zeros(exclude.shape, bool)
        query, _ = np.nonzero(held)
        place = place[held]
        ids, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        for begin in range(0, len(candidates), BLOCK):
            end = min(begin + BLOCK, len(candidates))
            block = self._vectors[begin:end] if rows is None else self._vectors[rows[begin:end]]
            found = queries @ block.T  # [B, n]
            inside = (begin <= place) & (place < end)
            found[query[inside], place[inside] - begin] = -np.inf
            here = np.broadcast_to(candidates[begin:end], found.shape)
            ids, scores = best(np.concatenate([ids, here], axis=1), np.concatenate([scores, found], axis=1), k)
        return ids, scores


def best(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of `scores` [B, N] and their `ids` [B, N], best first; of equal scores those further left. [B, min(k, N)] each."""
    k = min(k, scores.shape[1])
    bar = np.partition(scores, -k, axis=1)[:, [-k]]  # [B, 1] the k-th largest
    above, at = scores > bar, scores == bar
    room = k - above.sum(axis=1, keepdims=True)
    keep = above | (at & (np.cumsum(at, axis=1, dtype=np.int32) <= room))  # exactly k in each row
    column = np.nonzero(keep)[1].reshape(len(scores), k)
    kept = np.take_along_axis(scores, column, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    return np.take_along_axis(ids, np.take_along_axis(column, order, axis=1), axis=1), np.take_along_axis(kept, order, axis=1)


def _some(ids: np.ndarray) -> str:
    return f"id{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''}"
