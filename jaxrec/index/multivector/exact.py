"""Exact multi-vector search: every MaxSim, over packed tokens, in blocks that fit the cache."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from jaxrec.index.compress import int8_codes
from jaxrec.index.exact import best
from jaxrec.index.multivector.multivector import MultiVectorIndex, Vectors
from jaxrec.index.multivector.packed import CODES_AT_ONCE, VECTORS, Packed, maxsim, maxsim_of_codes
from kernels.maxsim_compressed import maxsim_int8

Storage = Literal["float32", "float16", "int8"]
TOKENS = 8192  # of documents that are scored at a time
ASKED = 1024  # of queries, likewise
SCALES = "scales"


class ExactMultiVector(MultiVectorIndex):
    """Brute force: the answer that the other engines are measured against, and the one to beat below 100,000 documents.

    Args:
      ids, vectors, fingerprint: see `MultiVectorIndex`.
      storage: float32, 4 D bytes a token; float16, 2 D; or int8 with a scale for each token, D + 4. Scores are float32 of what is stored.
    """

    def __init__(self, ids: ArrayLike = (), vectors: Vectors | None = None, *, storage: Storage = "float32", fingerprint: str = ""):
        if storage not in ("float32", "float16", "int8"):
            raise ValueError(f"storage={storage!r} is none of float32, float16 and int8")
        super().__init__(fingerprint=fingerprint, storage=storage)
        if vectors is not None:
            self.add(ids, vectors)

    def _check(self, documents: Packed, ids: np.ndarray) -> None:
        if self._options["storage"] == "float16" and len(documents.vectors) and np.abs(documents.vectors).max() > np.finfo(np.float16).max:
            raise ValueError(f"a vector's entry {np.abs(documents.vectors).max():.3g} does not fit float16 (65,504 at most); normalise, or store float32")

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        if self._options["storage"] == "int8":
            codes, scales = int8_codes(vectors)
            return {VECTORS: codes, SCALES: scales}
        return {VECTORS: vectors.astype(self._options["storage"])}

    def _score(self, query: Packed, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([_scores(query, block)[0] for _, block in self._blocks(rows)])

    def _search(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for some, asked in queries.blocks(np.arange(len(queries)), ASKED):
            found[some], scores[some] = self._scan(asked, k, rows)
        return found, scores

    def _scan(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, scores = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
        for some, block in self._blocks(rows):
            here = np.broadcast_to(some, (len(queries), len(some)))
            found, scores = best(np.concatenate([found, here], axis=1), np.concatenate([scores, _scores(queries, block)], axis=1), k)
        return found, scores

    def _blocks(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Packed]]:
        return self._held.blocks(rows, CODES_AT_ONCE if self._options["storage"] == "int8" else TOKENS)


def _scores(queries: Packed, documents: Packed) -> np.ndarray:
    """[B, C] MaxSim with stored documents."""
    if SCALES in documents.columns:
        return maxsim_of_codes(queries, documents, functools.partial(_decoded_scores, queries), _int8_scores)
    return _decoded_scores(queries, documents)


def _decoded_scores(queries: Packed, documents: Packed) -> np.ndarray:
    return maxsim(queries, documents.vectors.astype(np.float32, copy=False), documents.offsets, documents.columns.get(SCALES))


@jax.jit
def _int8_scores(queries: Array, columns: Mapping[str, Array], offsets: Array, mask: Array) -> Array:
    return maxsim_int8(queries, columns[VECTORS], columns[SCALES], offsets, mask)
