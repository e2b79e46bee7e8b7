"""MUVERA: one vector for many, whose inner product is about MaxSim (Jayaram et al. 2024, arXiv 2405.19504)."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.index.multivector.exact import ExactMultiVector, Storage
from jaxrec.index.multivector.multivector import Vectors
from jaxrec.index.multivector.packed import Packed
from jaxrec.index.scann import ScannIndex
from jaxrec.limits import check

ENCODED = "encodings"  # the folder of the single-vector index
MOST_BITS = 16  # of a cell: more would be cells without a token, each a block to be stored


@dataclass(frozen=True)
class FixedDimensionalEncoding:
    """Space is cut into 2^bits cells by random planes, several times; a block of the encoding is what a set has in a cell.

        query_c = sum_{q in c} P q,   document_c = mean_{d in c} P d,   <query, document> / repetitions is about MaxSim

    A cell where a document has nothing takes the token whose bits differ least from the cell's, of equal ones the first. Cells go by plain binary
    numbers: what the paper's Gray code is for, Hamming distances, these give without it.

    Attributes:
      repetitions: of the cutting, R.
      bits: planes for each, k; 0: one cell, mean pooling.
      projection: dimensions that P maps to, by random signs; 0: P is the identity.
      final: dimensions of the whole encoding after a count sketch; 0: no sketch, R 2^k projection of them.
      fill_empty: whether cells without a token take one.
      seed: of planes, signs and sketch, each with a stream of its own. Queries and documents need the same.
    """

    repetitions: int = 20
    bits: int = 5
    projection: int = 16
    final: int = 0
    fill_empty: bool = True
    seed: int = 0

    def __post_init__(self):
        check(self, repetitions=1, bits=(0, MOST_BITS + 1), projection=0, final=0, seed=0)

    def queries(self, queries: Packed) -> np.ndarray:
        """[B, F] float32."""
        return self._encode(queries, document=False)

    def documents(self, documents: Packed) -> np.ndarray:
        """[N, F] float32; a document without tokens is zero."""
        return self._encode(documents, document=True)

    def width(self, dim: int) -> int:
        """F for tokens of `dim` dimensions."""
        return self.final or self.repetitions * 2**self.bits * (self.projection or dim)

    def _encode(self, sets: Packed, *, document: bool) -> np.ndarray:
        dim = sets.vectors.shape[1]
        encoded = np.zeros((len(sets), self.width(dim)), np.float32)
        for row in np.flatnonzero(sets.lengths):
            vectors = sets.vectors[sets.offsets[row] : sets.offsets[row + 1]]
            blocks = self._blocks(np.asarray(vectors, np.float32), document).ravel()
            encoded[row] = blocks if not self.final else self._sketch(blocks, dim)
        return encoded

    def _blocks(self, vectors: np.ndarray, document: bool) -> np.ndarray:
        """[R, 2^k, P] of one set's tokens [n, D], n >= 1."""
        planes, signs = _draws(self, vectors.shape[1])
        count, cells = len(vectors), 2**self.bits
        sides = (vectors @ planes > 0).reshape(count, self.repetitions, self.bits)
        cell = (sides @ (1 << np.arange(self.bits))).T  # [R, n]
        projected = np.broadcast_to(vectors, (self.repetitions, *vectors.shape)) if signs is None else vectors @ signs  # [R, n, P]
        inside = cell[:, None] == np.arange(cells)[None, :, None]  # [R, cells, n]
        blocks = inside.astype(np.float32) @ projected
        if document:
            held = inside.sum(axis=2)  # [R, cells]
            blocks /= np.maximum(held, 1)[..., None]
            if self.fill_empty:
                repetition, empty = np.nonzero(held == 0)
                differ = np.bitwise_count(cell[repetition] ^ empty[:, None])  # [empty cells, n]
                blocks[repetition, empty] = projected[repetition, differ.argmin(axis=1)]
        return blocks

    def _sketch(self, blocks: np.ndarray, dim: int) -> np.ndarray:
        """[final] a count sketch: each coordinate is added, with a random sign, to a random place."""
        place, sign = _sketches(self, dim)
        return np.bincount(place, sign * blocks, self.final).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _draws(encoding: FixedDimensionalEncoding, dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(normals of the planes [D, R k], projections [R, D, P] or None)."""
    planes = np.random.default_rng([encoding.seed, 0]).normal(size=(dim, encoding.repetitions * encoding.bits)).astype(np.float32)
    if not encoding.projection:
        return planes, None
    signs = np.random.default_rng([encoding.seed, 1]).integers(0, 2, (encoding.repetitions, dim, encoding.projection))
    return planes, ((2 * signs - 1) / np.sqrt(encoding.projection)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _sketches(encoding: FixedDimensionalEncoding, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(place, sign) of each coordinate of an encoding."""
    random, width = np.random.default_rng([encoding.seed, 2]), dataclasses.replace(encoding, final=0).width(dim)
    return random.integers(0, encoding.final, width), 2.0 * random.integers(0, 2, width) - 1


class Muvera(ExactMultiVector):
    """Candidates by the inner product of fixed dimensional encodings, then MaxSim with the stored vectors.

    Inner products, not cosines: the norm of a document's encoding is part of the estimate. Nothing is learned, so nothing goes out of date.

    Args:
      ids, vectors, storage, fingerprint: see `ExactMultiVector`.
      repetitions, bits, projection, final, seed: see `FixedDimensionalEncoding`.
      depth: candidates that MaxSim ranks, or k if that is more.
      exact_below: below this many documents encodings are searched exactly, above by ScaNN.
    """

    TUNABLE = ("depth",)
    LIMITS: ClassVar = {"depth": 1}

    def __init__(
        self,
        ids: ArrayLike = (),
        vectors: Vectors | None = None,
        *,
        repetitions: int = 20,
        bits: int = 5,
        projection: int = 16,
        final: int = 0,
        depth: int = 256,
        exact_below: int = 10_000,
        storage: Storage = "float32",
        seed: int = 0,
        fingerprint: str = "",
    ):
        super().__init__(storage=storage, fingerprint=fingerprint)
        self._encoding = FixedDimensionalEncoding(repetitions, bits, projection, final, seed=seed)
        self._set({"repetitions": repetitions, "bits": bits, "projection": projection, "final": final, "depth": depth})
        self._set({"exact_below": exact_below, "seed": seed})
        self._first = ScannIndex(exact_below=exact_below)  # the documents that have tokens
        if vectors is not None:
            self.add(ids, vectors)

    def _insert(self, documents: Packed, ids: np.ndarray, order: np.ndarray) -> None:
        super()._insert(documents, ids, order)
        real = np.flatnonzero(documents.lengths)
        if len(real):
            self._first.add(ids[real], self._encoding.documents(documents.take(real)))

    def _remove(self, ids: np.ndarray, keep: np.ndarray) -> None:
        self._first.delete(self._ids[~keep & (self.lengths > 0)])
        super()._remove(ids, keep)

    def _candidates(self, query: Packed, k: int, rows: np.ndarray) -> np.ndarray:
        depth = max(self._options["depth"], k)
        if len(rows) <= depth:
            return rows
        filtered = None if len(rows) == len(self._first) else self._ids[rows]
        found, _ = self._first.search(self._encoding.queries(query), depth, filter=filtered)
        return np.sort(np.searchsorted(self._ids, found[0]))

    def _search(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._ranked(queries, k, rows)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._first.exact.ids.nbytes + self._first.exact.vectors.nbytes

    def _write(self, folder: Path) -> None:
        self._first.save(folder / ENCODED)

    def _read(self, folder: Path) -> None:
        self._first = ScannIndex.load(folder / ENCODED)
        if not np.array_equal(self._first.exact.ids, self._ids[self.lengths > 0]):
            raise ValueError(f"{folder} is not whole: {ENCODED} holds the encodings of other documents; build the index again")
