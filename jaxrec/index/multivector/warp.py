"""WARP: scores from the tokens of a few lists alone, what was not read imputed (Scheerer et al. 2025, arXiv 2501.17788)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.index.exact import best
from jaxrec.index.multivector.compressed import CODES, RESIDUALS, Compressed, check_codec
from jaxrec.index.multivector.multivector import Vectors
from jaxrec.index.multivector.packed import Packed, ranges

ROWS = "rows"
BOUND = 128  # centroids of a query token that are sorted at first


class Warp(Compressed):
    """Token retrieval is the search: no document is gathered.

    Tokens are stored by centroid. Query token i reads the lists of its `probes` best centroids; a token there scores
    S[i, c] + sum_d q_id weight(bucket_d), which is its inner product with the decoded vector, not brought to norm 1. With b_i(p) the best of document p,

        score(p) = sum_i b_i(p), or m_i where no token of p was read,

    m_i the score of the first centroid, best first, at which the lists hold t' = floor(sqrt(8 T)) of the T tokens together. Only documents of which a
    token was read are ranked; if these are fewer than k, more lists are read. The imputation suits encoders trained for it (XTR, arXiv 2304.01982).

    Args:
      ids, vectors, fingerprint: see `MultiVectorIndex`.
      bits: for each entry of a residual: 1, 2 or 4.
      residuals: see `Plaid`.
      centroids: K; 0: as `ResidualCodec.fit` has it.
      probes: lists for each query token.
      seed: of the codec.
    """

    TUNABLE = ("probes",)
    LIMITS: ClassVar = {"bits": 1, "centroids": 0, "probes": 1, "seed": 0}

    def __init__(
        self,
        ids: ArrayLike = (),
        vectors: Vectors | None = None,
        *,
        bits: int = 4,
        residuals: Literal["scalar", "product"] = "scalar",
        centroids: int = 0,
        probes: int = 32,
        seed: int = 0,
        fingerprint: str = "",
    ):
        check_codec(bits, residuals)
        super().__init__(fingerprint=fingerprint, bits=bits, residuals=residuals, centroids=centroids, probes=probes, seed=seed)
        self._sizes = np.zeros(0, np.int64)  # [N] tokens of each document; `_held` goes by centroid here
        if vectors is not None:
            self.add(ids, vectors)

    @property
    def lengths(self) -> np.ndarray:
        return self._sizes

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip((CODES, RESIDUALS), self.codec.encode(vectors), strict=True))

    def _decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.codec.decode(columns[CODES], columns[RESIDUALS], normalize=False)

    def _insert(self, documents: Packed, ids: np.ndarray, order: np.ndarray) -> None:
        self._measure(documents.vectors)
        place = np.empty(len(order), np.int64)  # the new row of each old one, and then of each document
        place[order] = np.arange(len(order))
        held = len(self._sizes)
        self._sizes = np.concatenate([self._sizes, documents.lengths])[order]
        if not self._learned:
            return
        new = self._encode(documents.vectors)
        rows = np.repeat(place[held:], documents.lengths)
        if self._held.columns:
            old = self._held.columns
            codes = np.repeat(np.arange(len(self._held)), self._held.lengths)
            new[CODES] = np.concatenate([codes, new[CODES]])
            new[RESIDUALS] = np.concatenate([old[RESIDUALS], new[RESIDUALS]])
            rows = np.concatenate([place[old[ROWS]], rows])
        self._hold(new[CODES], rows, new[RESIDUALS], np.lexsort((rows, new[CODES])))

    def _remove(self, ids: np.ndarray, keep: np.ndarray) -> None:
        self._sizes = self._sizes[keep]
        if self._learned:
            rows, codes = self._held.columns[ROWS], np.repeat(np.arange(len(self._held)), self._held.lengths)
            self._hold(codes, (np.cumsum(keep) - 1)[rows], self._held.columns[RESIDUALS], np.flatnonzero(keep[rows]))

    def _hold(self, codes: np.ndarray, rows: np.ndarray, residuals: np.ndarray, order: np.ndarray) -> None:
        """Holds the tokens `order` in that order, which is one of ascending codes."""
        lengths = np.bincount(codes[order], minlength=len(self.codec.centroids))
        self._held = Packed.of(lengths, **{ROWS: rows[order].astype(np.uint32), RESIDUALS: residuals[order]})

    def _score(self, query: Packed, rows: np.ndarray) -> np.ndarray:
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        place = np.flatnonzero(wanted[self._held.columns[ROWS]])
        place = place[np.argsort(self._held.columns[ROWS][place], kind="stable")]
        codes = np.searchsorted(self._held.offsets, place, side="right") - 1
        documents = Packed.of(self._sizes[rows], **{CODES: codes.astype(np.uint32), RESIDUALS: self._held.columns[RESIDUALS][place]})
        return self._maxsim(query, documents, normalize=False)[0]

    def _search(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for number in range(len(queries)):
            vectors = queries.take(np.array([number])).vectors  # [m, D]
            similarity = vectors @ self.codec.centroids.T  # [m, K]
            tables = self.codec.products(vectors)  # [m, bytes, 256]
            missing = imputed(similarity, self._held.lengths, max(1, math.isqrt(8 * int(self._held.offsets[-1]))))
            probes = min(self._options["probes"], similarity.shape[1])
            while True:
                read, total = self._probe(similarity, tables, missing, probes)
                ranked = rows[read[rows]]
                if len(ranked) >= k or probes == similarity.shape[1]:
                    break
                probes = min(2 * probes, similarity.shape[1])
            found[[number]], scores[[number]] = best(ranked[None], total[None, ranked], k)
        return found, scores

    def _probe(self, similarity: np.ndarray, tables: np.ndarray, missing: np.ndarray, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """([N] whether a token was read, [N] float32 scores) of the documents, by `probes` lists for each query token."""
        seen, total = np.zeros(len(self), bool), np.zeros(len(self), np.float32)
        cells = np.argpartition(-similarity, probes - 1, axis=1)[:, :probes]  # [m, probes]
        byte = 256 * np.arange(tables.shape[1], dtype=np.int32)
        for token, some in enumerate(cells):
            some = np.sort(some)
            lengths = self._held.lengths[some]
            place = ranges(self._held.offsets[some], lengths)
            parts = tables[token].ravel().take(self._held.columns[RESIDUALS][place] + byte[None])  # [n, bytes]
            values = np.repeat(similarity[token, some], lengths) + parts.sum(axis=1)
            score = np.full(len(self), -np.inf, np.float32)
            np.maximum.at(score, self._held.columns[ROWS][place], values)
            here = score > -np.inf
            seen |= here
            total += np.where(here, score, missing[token])
        return seen, total

    def _arrays(self) -> dict[str, np.ndarray]:
        return super()._arrays() | {"sizes": self._sizes}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        self._sizes = arrays.pop("sizes")
        super()._restore(arrays)


def imputed(similarity: np.ndarray, sizes: np.ndarray, enough: int) -> np.ndarray:
    """[m] the similarity of the first centroid, best first, at which the lists hold `enough` tokens together, or all that there are.

    Args:
      similarity: [m, K] of query tokens with centroids.
      sizes: [K] tokens of each list.
      enough: t'.
    """
    for bound in (BOUND, similarity.shape[1]):  # nearly always a few centroids hold enough
        bound = min(bound, similarity.shape[1])
        cells = np.argpartition(-similarity, bound - 1, axis=1)[:, :bound]
        values = np.take_along_axis(similarity, cells, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        reached = np.cumsum(np.take_along_axis(sizes[cells], order, axis=1), axis=1) >= min(enough, sizes.sum())  # [m, bound]
        if reached[:, -1].all():
            break
    first = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    return np.take_along_axis(values, first, axis=1)[:, 0]
