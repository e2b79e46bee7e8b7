"""PLAID: centroids as the first guess at a token, residual codes for the best documents (Santhanam et al. 2022, arXiv 2205.09707)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.index.compress import ResidualCodec, assign, fit_centroids
from jaxrec.index.exact import best
from jaxrec.index.multivector.compressed import CODES, RESIDUALS, WHOLE, Compressed, check_codec
from jaxrec.index.multivector.multivector import Vectors
from jaxrec.index.multivector.packed import CODES_AT_ONCE, TOKENS, VECTORS, Packed, maxsim, maxsim_of, ranges

NORM = 0.01  # how far from 1 a vector's norm may be


class Plaid(Compressed):
    """Staged search: the lists of the centroids nearest to each query token, then all codes of a document, then its decoded tokens.

    1. A query token reads the lists of its `probes` best centroids. A document in one of them scores for it as the best such centroid; in none, as the
       last of them, which is the most that its centroids can be worth. The best `candidates` by the sum go on.
    2. They are scored by the centroids of all of their tokens; the best `decoded` go on.
    3. MaxSim with the decoded tokens ranks these, and is their score.

    The paper leaves out centroids below a fixed cosine, below which all those of another encoder may lie; a rank cannot fail in this way. If the lists
    hold fewer than k documents, more of them are read.

    Args:
      ids, vectors, fingerprint: see `MultiVectorIndex`. Vectors have norm 1.
      bits: for each entry of a residual: 1, 2 or 4; 32: the vectors are stored as they are, and scores are exact.
      residuals: coded by "scalar", entry by entry (`ResidualCodec`), or "product", 8 / bits of their principal directions to a byte
        (`ProductResidualCodec`): of the same size, nearer, slower to build.
      centroids: K; 0: as `ResidualCodec.fit` has it.
      probes: centroids for each query token.
      candidates: documents that pass the first stage, or 8 k if that is more.
      decoded: documents that pass the second stage, or 2 k if that is more.
      seed: of the codec.
    """

    TUNABLE = ("probes", "candidates", "decoded")
    LIMITS: ClassVar = {"bits": 1, "centroids": 0, "probes": 1, "candidates": 1, "decoded": 1, "seed": 0}

    def __init__(
        self,
        ids: ArrayLike = (),
        vectors: Vectors | None = None,
        *,
        bits: int = 2,
        residuals: Literal["scalar", "product"] = "scalar",
        centroids: int = 0,
        probes: int = 32,
        candidates: int = 1024,
        decoded: int = 256,
        seed: int = 0,
        fingerprint: str = "",
    ):
        check_codec(bits, residuals, (1, 2, 4, WHOLE))
        codec = {"bits": bits, "residuals": residuals, "centroids": centroids, "seed": seed}
        super().__init__(fingerprint=fingerprint, **codec, probes=probes, candidates=candidates, decoded=decoded)
        self._lists: Packed | None = None  # by centroid, the rows of the documents that have a token there; None: to be made
        if vectors is not None:
            self.add(ids, vectors)

    def _check(self, documents: Packed, ids: np.ndarray) -> None:
        check_unit(documents, ids, type(self).__name__)

    def _learn(self, vectors: np.ndarray) -> None:
        if self._options["bits"] == WHOLE:
            centroids, _ = fit_centroids(vectors, self._options["centroids"], seed=self._options["seed"])
            self._codec = ResidualCodec(centroids, np.zeros(0, np.float32), np.zeros(1, np.float32))
        else:
            super()._learn(vectors)

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        if self._options["bits"] == WHOLE:
            return {CODES: assign(vectors, self.codec.centroids), VECTORS: vectors}
        return dict(zip((CODES, RESIDUALS), self.codec.encode(vectors), strict=True))

    def _decode(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return columns[VECTORS] if VECTORS in columns else self.codec.decode(columns[CODES], columns[RESIDUALS])

    def _insert(self, documents: Packed, ids: np.ndarray, order: np.ndarray) -> None:
        super()._insert(documents, ids, order)
        self._lists = None

    def _remove(self, ids: np.ndarray, keep: np.ndarray) -> None:
        super()._remove(ids, keep)
        self._lists = None

    def _score(self, query: Packed, rows: np.ndarray) -> np.ndarray:
        if self._options["bits"] == WHOLE:
            return np.concatenate([maxsim(query, some.vectors, some.offsets)[0] for _, some in self._held.blocks(rows, TOKENS)])
        return np.concatenate([self._maxsim(query, some, normalize=True)[0] for _, some in self._held.blocks(rows, CODES_AT_ONCE)])

    def _candidates(self, query: Packed, k: int, rows: np.ndarray) -> np.ndarray:
        first, second = max(self._options["candidates"], 8 * k), max(self._options["decoded"], 2 * k)
        if len(rows) <= second:
            return rows
        similarity = query.vectors @ self.codec.centroids.T  # [m, K]
        if len(rows) > first:
            rows = self._listed(similarity, k, first, rows)
        if len(rows) > second:
            some = Packed(self._held.offsets, {CODES: self._held.columns[CODES]}).take(rows)
            scores = maxsim_of(query, similarity.take(some.columns[CODES], axis=1), some.offsets)
            rows = np.sort(best(rows[None], scores, second)[0][0])
        return rows

    def _listed(self, similarity: np.ndarray, k: int, count: int, rows: np.ndarray) -> np.ndarray:
        """The `count` best of `rows` by the lists of `probes` centroids for each query token, or all in them, k at least: similarity [m, K]."""
        allowed = np.zeros(len(self), bool)
        allowed[rows] = True
        probes = self._options["probes"]
        while True:
            reached, guess = guesses(similarity, self._listing(), probes, allowed)
            if len(reached) >= k or probes >= similarity.shape[1]:
                return np.sort(best(reached[None], guess[None], count)[0][0])
            probes *= 2

    def _listing(self) -> Packed:
        if self._lists is None:
            key = self._held.columns[CODES].astype(np.int64) * len(self._held) + np.repeat(np.arange(len(self._held)), self.lengths)
            centroid, row = np.divmod(np.unique(key), len(self._held))
            small = np.uint16 if len(self._held) <= 2**16 else np.uint32
            self._lists = Packed.of(np.bincount(centroid, minlength=len(self.codec.centroids)), rows=row.astype(small))
        return self._lists

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = super()._arrays()
        if self._learned:
            arrays |= {"lists": self._listing().columns["rows"], "list_offsets": self._listing().offsets}
        return arrays

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        if self._learned:
            self._lists = Packed(arrays.pop("list_offsets"), {"rows": arrays.pop("lists")})
        super()._restore(arrays)


def guesses(similarity: np.ndarray, lists: Packed, probes: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows [n], scores [n]) of the documents in the lists of the `probes` best centroids of each query token.

    A score is no less than by all centroids of the document, and the same if `probes` is K.

    Args:
      similarity: [m, K] of query tokens with centroids.
      lists: the rows of each centroid, each once.
      probes: K at most counts.
      allowed: [N] booleans, the rows to look for.
    """
    probes = min(probes, similarity.shape[1])
    cells = np.argpartition(-similarity, probes - 1, axis=1)[:, :probes]  # [m, probes]
    order = np.argsort(np.take_along_axis(similarity, cells, axis=1), axis=1)  # worst first: where several values are written to one place the last stays
    cells = np.take_along_axis(cells, order, axis=1)
    values = np.take_along_axis(similarity, cells, axis=1)
    lengths = lists.lengths[cells.ravel()]
    found = lists.columns["rows"][ranges(lists.offsets[cells.ravel()], lengths)]
    reached = np.zeros(len(allowed), bool)
    reached[found] = True
    rows = np.flatnonzero(reached & allowed)
    place = np.full(len(allowed), len(rows))  # what is not allowed shares one place beyond
    place[rows] = np.arange(len(rows))
    scores = np.repeat(values[:, :1], len(rows) + 1, axis=1)  # [m, n + 1]
    asker = np.repeat(np.arange(len(similarity)), lengths.reshape(cells.shape).sum(axis=1))
    scores[asker, place[found]] = np.repeat(values.ravel(), lengths)
    return rows, scores[:, :-1].sum(axis=0)


def check_unit(documents: Packed, ids: np.ndarray, engine: str) -> None:
    """Raises ValueError unless all tokens have norm 1."""
    norms = np.sqrt(np.einsum("td,td->t", documents.vectors, documents.vectors))
    if len(norms) and (worst := np.abs(norms - 1)).max() > NORM:
        place = int(worst.argmax())
        document = ids[int(np.searchsorted(documents.offsets, place, side="right")) - 1]
        raise ValueError(f"document {document} has a token of norm {norms[place]:.3g}; {engine} keeps directions, so divide by the norm and leave out zeros")
