"""ScaNN: approximate search by a tree, anisotropic quantisation and exact re-scoring (Guo et al. 2020, arXiv 1908.10396)."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.artifact import replacing
from jaxrec.index.exact import NOTHING, ExactIndex
from jaxrec.index.index import HEADER, Index, check_k, checked_exclude, checked_ids, checked_vectors, read_header, write_header
from jaxrec.limits import check_options

SMALLEST = 256  # vectors that ScaNN's codebooks (16 centres a block) and tree are trained on at the least
SCORED = 20_000  # vectors whose quantised scores a query sees at least: fewer save no time worth having, and cost recall
SLACK = 1000  # changes since the last build that are always tolerated; beyond, a tenth of the index


def installed() -> bool:
    """Whether this machine has the scann package; it is made for Linux only."""
    return importlib.util.find_spec("scann") is not None


class ScannIndex(Index):
    """Approximate search for large sets, exact search for small ones.

    The first search or `save` builds the tree. Later additions wait in a side buffer that is searched exactly, deletions are taken
    out of the answers, and the tree is built again when these are more than a tenth of the index. With a `filter` the allowed
    vectors are searched exactly, and so is a query whose leaves hold fewer than k candidates: only ever *which* k is approximate.

    Args:
      exact_below: with fewer vectors than this search is exact and ScaNN is not used.
      leaves: of the tree; 0 = sqrt(N).
      probes: leaves that a query searches; 0 = those that hold a tenth of the vectors, 20,000 of them at least, and ten times as many as are asked for.
      reorder: candidates that are scored exactly, at least.
    """

    def __init__(
        self, ids: ArrayLike = (), vectors: ArrayLike | None = None, *, exact_below: int = 10_000, leaves: int = 0, probes: int = 0, reorder: int = 300
    ):
        self._options = {"exact_below": exact_below, "leaves": leaves, "probes": probes, "reorder": reorder}
        check_options(self, self._options, exact_below=0, leaves=0, probes=0, reorder=1)
        if exact_below < SMALLEST:
            raise ValueError(f"exact_below={exact_below}: ScaNN cannot be trained on so few vectors; use {SMALLEST} or more")
        self._exact = ExactIndex(ids, vectors)  # all that the index holds
        self._searcher: Any = None
        self._forget()

    def __len__(self) -> int:
        return len(self._exact)

    @property
    def exact(self) -> ExactIndex:
        """The same ids and vectors, searched exactly."""
        return self._exact

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        self._exact.add(ids, vectors)
        self._fresh = np.union1d(self._fresh, checked_ids(ids))

    def delete(self, ids: ArrayLike) -> None:
        self._exact.delete(ids)
        self._fresh = np.setdiff1d(self._fresh, ids)
        self._gone = np.union1d(self._gone, np.intersect1d(self._built, ids))

    def search(self, queries: ArrayLike, k: int, *, filter: ArrayLike | None = None, exclude: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:  # noqa: A002
        if filter is None:
            self._refresh(max(SLACK, len(self) // 10))
        if filter is not None or self._searcher is None:
            return self._exact.search(queries, k, filter=filter, exclude=exclude)
        check_k(k, len(self))
        queries = checked_vectors(queries, None, self._exact.vectors.shape[1], "queries")  # [B, D]
        exclude = checked_exclude(exclude, len(queries))  # [B, S]
        ids, scores = self._approximate(queries, k + exclude.shape[1] + len(self._gone))  # [B, K] with all that could be taken out
        for row, barred in enumerate(exclude):
            scores[row, np.isin(ids[row], barred)] = -np.inf
        scores[np.isin(ids, self._gone)] = -np.inf
        if len(self._fresh):
            fresh = self._exact.search(queries, k, filter=self._fresh, exclude=exclude)
            ids, scores = (np.concatenate(pair, axis=1) for pair in zip((ids, scores), fresh, strict=True))
        order = np.lexsort((ids, -scores), axis=1)[:, :k]
        ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        if (short := np.isneginf(scores).any(axis=1)).any():
            ids[short], scores[short] = self._exact.search(queries[short], k, exclude=exclude[short])
        return ids, scores

    def save(self, path: Path) -> None:
        self._refresh(0)
        with replacing(Path(path), HEADER, "an index") as folder:
            np.save(folder / "ids.npy", self._exact.ids, allow_pickle=False)
            if self._searcher is None:
                np.save(folder / "vectors.npy", self._exact.vectors, allow_pickle=False)
            else:  # ScaNN keeps the vectors, in the same order, to score candidates exactly; one copy is enough
                (folder / "scann").mkdir()
                self._searcher.serialize(str(folder / "scann"), relative_path=True)
            write_header(folder, "ScannIndex", **self._options)

    @classmethod
    def load(cls, path: Path) -> Self:
        path = Path(path)
        header = read_header(path, "ScannIndex")
        index = cls(**{name: header[name] for name in ("exact_below", "leaves", "probes", "reorder")})
        built = path / "scann"
        index._exact = ExactIndex.map(path / "ids.npy", built / "dataset.npy" if built.is_dir() else path / "vectors.npy")
        if built.is_dir():
            if (built / "scann_docids.pkl").exists():  # ScaNN would unpickle it, which can run anything
                raise ValueError(f"{built} holds scann_docids.pkl, which ScannIndex never writes; build the index again from its vectors")
            index._searcher = _scann().load_searcher(str(built))
        index._forget()
        return index

    def _forget(self) -> None:
        """There are no changes since the tree was built."""
        self._built = self._exact.ids if self._searcher is not None else np.zeros(0, np.int64)  # what the searcher holds, by its rows
        self._fresh, self._gone = np.zeros(0, np.int64), np.zeros(0, np.int64)  # added, and deleted of what is built, since then

    def _refresh(self, tolerated: int) -> None:
        """Builds the tree if there is none or it is out of date by more than the `tolerated` number of changes."""
        if len(self) < self._options["exact_below"]:
            self._searcher = None
            self._forget()
        elif self._searcher is None or len(self._fresh) + len(self._gone) > tolerated:
            leaves = self._leaves(len(self))
            builder = _scann().builder(np.ascontiguousarray(self._exact.vectors), 10, "dot_product")
            builder = builder.tree(leaves, leaves, training_sample_size=min(len(self), 250_000))
            self._searcher = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(self._options["reorder"]).build()
            self._forget()

    def _leaves(self, vectors: int) -> int:
        return self._options["leaves"] or math.isqrt(vectors)

    def _approximate(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and exact scores [B, count] of the searcher; NOTHING and -inf where its leaves hold too few."""
        count = min(count, len(self._built))
        candidates = min(max(self._options["reorder"], 2 * count), len(self._built))
        share = max(0.1, SCORED / len(self._built), 10 * count / len(self._built))  # of the vectors, to be looked at
        leaves = self._leaves(len(self._built))
        probes = min(self._options["probes"] or math.ceil(share * leaves), leaves)
        rows, scores = self._searcher.search_batched_parallel(np.ascontiguousarray(queries), count, candidates, probes)
        empty = np.isnan(scores)
        return np.where(empty, NOTHING, self._built[rows]), np.where(empty, -np.inf, scores).astype(np.float32)


def _scann() -> Any:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise ImportError(
            "approximate search needs the scann package, which exists for Linux only (pip install scann); elsewhere search exactly, with ExactIndex"
        ) from error
    return scann_ops_pybind
