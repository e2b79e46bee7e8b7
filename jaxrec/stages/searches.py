"""Searches: what trained retrievers, BM25 and both together find for the judged queries of a collection."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxrec.artifact import Artifact, write_atomically
from jaxrec.data.collection import CollectionSource
from jaxrec.data.passages import Passages
from jaxrec.evals.document_retrieval import search
from jaxrec.evals.search import DEPTH, Judged, evaluate
from jaxrec.experiment import Experiment
from jaxrec.index.bm25 import BM25Index
from jaxrec.index.hybrid import Answer, reciprocal_rank_fusion
from jaxrec.stages.runs import load_run


@dataclass(frozen=True)
class BM25Lists(Artifact):
    """The documents that BM25 finds for a split's queries: rows [Q, k] and scores [Q, k]."""

    source: CollectionSource
    split: str
    k: int

    def build(self, folder: Path) -> None:
        collection = self.source.get()
        rows, scores = BM25Index(collection.passages(), **self.source.lexical).search(collection.queries[self.split].texts, self.k)
        np.savez(folder / "lists.npz", rows=rows, scores=scores)

    def load(self, folder: Path) -> Answer:
        with np.load(folder / "lists.npz", allow_pickle=False) as file:
            return file["rows"], file["scores"]


def evaluate_search(experiment: Experiment, workdir: Path, split: str = "test") -> dict[str, Judged]:
    """The metrics of a trained retriever, of BM25, and of both fused by reciprocal ranks; the retriever's lists are kept as `lists_<split>.npz`.

    Raises:
      FileNotFoundError, ValueError: as `load_run`, or the collection has no such split.
    """
    experiment, params, _ = load_run(experiment, workdir)
    data = experiment.data
    assert isinstance(data, Passages)
    collection = data.collection()
    if split not in collection.queries:
        raise ValueError(f"the collection has no {split} queries; it has {', '.join(collection.queries)}")
    deep = min(DEPTH, len(collection.ids))
    found = search(experiment.method, params, data, split, deep)  # type: ignore[arg-type]
    file = io.BytesIO()
    np.savez(file, rows=found[0], scores=found[1])
    write_atomically(workdir / f"lists_{split}.npz", file.getvalue())
    words = BM25Lists(data.source, split, deep).get()
    answers = {experiment.name: found, "BM25": words, f"BM25 + {experiment.name}": reciprocal_rank_fusion([words, found], deep)}
    return {name: evaluate(rows, collection, split) for name, (rows, _) in answers.items()}
