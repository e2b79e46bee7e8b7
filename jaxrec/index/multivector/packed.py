"""Packed tokens: the rows of several documents (or queries) one after another, with no padding, and MaxSim over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax import Array
from numpy.typing import ArrayLike

VECTORS = "vectors"  # the column of packed token vectors
TOKENS = 4096  # that are decoded at a time, so that they stay in the cache
COMPILED = 2**14  # tokens of codes from which on a compiled program scores them
CODES_AT_ONCE = 2**18  # tokens of codes that it is given at a time


@dataclass(frozen=True)
class Packed:
    """Document n owns rows offsets[n] to offsets[n + 1] - 1 of every column.

    Attributes:
      offsets: [N + 1] int64, from 0.
      columns: arrays [T, ...], by name.
    """

    offsets: np.ndarray
    columns: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, lengths: np.ndarray, **columns: np.ndarray) -> Packed:
        """From the documents' `lengths` [N]."""
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), columns)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each document."""
        return np.diff(self.offsets)

    @property
    def vectors(self) -> np.ndarray:
        """[T, D] the column of vectors."""
        return self.columns[VECTORS]

    def take(self, rows: np.ndarray) -> Packed:
        """Documents `rows` [n] in that order; no copy where they follow each other."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and np.all(rows[1:] > rows[:-1]):
            first, last = self.offsets[rows[0]], self.offsets[rows[-1] + 1]
            return Packed(self.offsets[rows[0] : rows[-1] + 2] - first, {name: column[first:last] for name, column in self.columns.items()})
        begin, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        place = ranges(begin, lengths)
        return Packed.of(lengths, **{name: column.take(place, axis=0) for name, column in self.columns.items()})

    def inserted(self, more: Packed, order: np.ndarray) -> Packed:
        """These documents and `more`, put into `order` [N + M]."""
        columns = {}
        for name in {**self.columns, **more.columns}:  # one side may have had no token yet, and so no columns
            pair = [packed.columns[name] for packed in (self, more) if name in packed.columns]
            columns[name] = np.concatenate(pair)
        joined = Packed.of(np.concatenate([self.lengths, more.lengths]), **columns)
        return joined if np.all(order[1:] > order[:-1]) else joined.take(order)

    def blocks(self, rows: np.ndarray, tokens: int) -> Iterator[tuple[np.ndarray, Packed]]:
        """`rows` [n] in parts of about `tokens` tokens, one document at least, each with its documents."""
        part = np.cumsum(self.lengths[rows]) // tokens
        for some in np.split(rows, np.flatnonzero(np.diff(part)) + 1):
            if len(some):
                yield some, self.take(some)


def ranges(begin: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[sum of lengths] the numbers begin[n], begin[n] + 1, ... of each range, one range after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - (ends - lengths), lengths)


def maxsim(queries: Packed, tokens: np.ndarray, offsets: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """[B, C] float32: sum over a query's tokens of the largest inner product with a token of the document.

    Args:
      queries: B packed queries.
      tokens: [T, D] float32.
      offsets: [C + 1]; document c owns tokens offsets[c] to offsets[c + 1] - 1, one at least.
      scales: [T] the factor of each token, None for ones.
    """
    similarity = queries.vectors @ tokens.T  # [query tokens, T]: a document's tokens lie side by side, which makes the maximum fast
    return maxsim_of(queries, similarity if scales is None else similarity * scales[None], offsets)


def maxsim_of(queries: Packed, similarity: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[B, C] MaxSim from `similarity` [query tokens, T], see `maxsim`."""
    return np.add.reduceat(np.maximum.reduceat(similarity, offsets[:-1], axis=1), queries.offsets[:-1], axis=0)


def maxsim_of_codes(queries: Packed, documents: Packed, decoding: Callable[[Packed], np.ndarray], compiled: Callable[..., Array]) -> np.ndarray:
    """[B, C] MaxSim with documents of codes, one token at least each.

    Args:
      queries: B packed queries.
      documents: C packed documents.
      decoding: the scores of a few of the documents by NumPy, which serves where there are too few tokens to compile a program for.
      compiled: the scores [B, C] of (queries [B, N, D], columns, offsets [C + 1], mask [B, N]), jitted; called with sizes that are rounded up.
    """
    if documents.offsets[-1] < COMPILED:
        return np.concatenate([decoding(some) for _, some in documents.blocks(np.arange(len(documents)), TOKENS)], axis=1)
    columns = {name: _padded(column, _rounded(len(column))) for name, column in documents.columns.items()}
    offsets = _padded(documents.offsets.astype(np.int32), _rounded(len(documents)) + 1, documents.offsets[-1])  # further documents have no tokens
    mask = np.arange(-(-queries.lengths.max() // 8) * 8) < queries.lengths[:, None]  # [B, N]
    asked = np.zeros((*mask.shape, queries.vectors.shape[1]), np.float32)
    asked[mask] = queries.vectors
    batch = _rounded(len(queries))
    return np.asarray(compiled(_padded(asked, batch), columns, offsets, _padded(mask, batch)))[: len(queries), : len(documents)]


def _padded(array: np.ndarray, length: int, value: float = 0) -> np.ndarray:
    whole = np.empty((length, *array.shape[1:]), array.dtype)
    whole[: len(array)], whole[len(array) :] = array, value
    return whole


def _rounded(count: int) -> int:
    """`count` or up to an eighth more, so that few programs are compiled."""
    step = max(1, (1 << (count - 1).bit_length()) // 16)
    return -(-count // step) * step


def checked_documents(vectors: Sequence[ArrayLike] | ArrayLike, lengths: ArrayLike | None, ids: np.ndarray, dim: int | None) -> Packed:
    """Finite float32 token vectors of the documents `ids`, from a list of [n, D] or flat [T, D] with `lengths` [N]; raises ValueError."""
    if lengths is None:
        packed = _joined(vectors, dim, "vectors")
    else:
        flat, sizes = np.asarray(vectors, np.float32), np.asarray(lengths)
        if flat.ndim != 2 or (dim is not None and flat.shape[1] != dim):
            raise ValueError(f"vectors must have shape [T, {dim or 'D'}] where lengths are given, got {list(flat.shape)}")
        if sizes.ndim != 1 or (sizes.size and (sizes.dtype.kind not in "iu" or sizes.min() < 0)):
            raise ValueError(f"lengths must be integers >= 0 of shape [N], got {sizes.dtype} of shape {list(sizes.shape)}")
        if sizes.sum() != len(flat):
            raise ValueError(f"lengths add up to {sizes.sum()}, but there are {len(flat)} token vectors")
        packed = Packed.of(sizes, **{VECTORS: flat})
    if len(packed) != len(ids):
        raise ValueError(f"there are {len(ids)} ids and {len(packed)} documents; give each document one id")
    _check_finite(packed, lambda row: f"document {ids[row]}")
    return packed


def checked_queries(queries: Sequence[ArrayLike] | ArrayLike, mask: ArrayLike | None, dim: int) -> Packed:
    """Finite float32 queries of one token at least, from a list of [m, D] or [B, N, D] with `mask` [B, N]; raises ValueError."""
    if mask is None:
        packed = _joined(queries, dim, "queries")
    else:
        array, real = np.asarray(queries, np.float32), np.asarray(mask)
        if array.ndim != 3 or array.shape[2] != dim or real.shape != array.shape[:2] or real.dtype != bool:
            raise ValueError(
                f"queries must have shape [B, N, {dim}] and mask be booleans of shape [B, N], got {list(array.shape)} and {real.dtype} of {list(real.shape)}"
            )
        packed = Packed.of(real.sum(axis=1), **{VECTORS: array[real]})
    if not packed.lengths.all():
        raise ValueError(f"queries[{int(np.argmin(packed.lengths))}] has no tokens, and every document would score alike; leave it out")
    _check_finite(packed, lambda row: f"queries[{row}]")
    return packed


def _joined(arrays: Sequence[ArrayLike] | ArrayLike, dim: int | None, what: str) -> Packed:
    if isinstance(arrays, np.ndarray) and arrays.ndim != 3:
        raise ValueError(f"{what} must be a list of arrays [n, {dim or 'D'}], or one array [B, N, {dim or 'D'}], got an array of shape {list(arrays.shape)}")
    parts = [np.asarray(one, np.float32) for one in arrays]  # pyright: ignore[reportGeneralTypeIssues]
    dim = dim or next((part.shape[1] for part in parts if part.ndim == 2), None)
    for row, part in enumerate(parts):
        if part.ndim != 2 or part.shape[1] != dim:
            raise ValueError(f"{what}[{row}] must have shape [n, {dim or 'D'}], also where it has no tokens, got {list(part.shape)}")
    lengths = np.array([len(part) for part in parts], np.int64)
    return Packed.of(lengths, **{VECTORS: np.concatenate(parts) if parts else np.zeros((0, dim or 0), np.float32)})


def _check_finite(packed: Packed, name) -> None:
    if not np.isfinite(packed.vectors).all():
        place = int(np.flatnonzero(~np.isfinite(packed.vectors).all(axis=1))[0])
        row = int(np.searchsorted(packed.offsets, place, side="right")) - 1
        raise ValueError(f"{name(row)} holds NaN or infinity in token {place - packed.offsets[row]}; inner products need finite numbers")
