"""Hard negatives: the documents that a search ranks high for a training query, but not so high that they may well answer it.

Positive-aware mining (Moreira et al. 2024, NV-Retriever, arXiv 2407.15831): a candidate is dropped unless its score is below a share of the relevant
document's. Few documents of a collection are judged, and the best-ranked of the others are often relevant, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import say
from jaxrec.data.collection import Collection, CollectionSource, Qrels
from jaxrec.data.passages import Negatives, Passages
from jaxrec.evals.document_retrieval import search
from jaxrec.index.bm25 import BM25Index
from jaxrec.index.exact import NOTHING
from jaxrec.param import abstract, unflatten
from jaxrec.stages.runs import Trained


@dataclass(frozen=True, kw_only=True)
class Mined(Negatives):
    """The hardest of a search's first `depth` documents that pass the threshold; where there are fewer than `count`, others are drawn at random.

    Attributes:
      count: S, negatives of each training query.
      depth: documents searched for each query.
      threshold: share of the score of a query's relevant document (its lowest-ranked one) that a negative must stay below; 1 = of that score itself.
      seed: of the random ones.
    """

    count: int = 20
    depth: int = 100
    threshold: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if not (1 <= self.count <= self.depth and 0 < self.threshold <= 1):
            raise ValueError(f"{self}: need 1 <= count <= depth, and threshold above 0 and at most 1")

    def inputs(self) -> dict[str, Any]:
        return {"numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def collection(self) -> Collection:
        """What is searched."""
        raise TypeError(f"{type(self).__name__} is mined from nothing: it has no collection method")

    def candidates(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The first documents of each training query: rows [Q, depth], best first, -1 = nothing, and scores [Q, depth]."""
        raise TypeError(f"{type(self).__name__} searches nothing: it has no candidates method")

    def build(self, folder: Path) -> None:
        collection = self.collection()
        qrels, documents = collection.qrels["train"], len(collection.ids)
        rows, scores = self.candidates(min(self.depth, documents))
        mined = positive_aware(rows, scores, qrels, count=self.count, threshold=self.threshold)
        asked = np.unique(qrels.queries[qrels.grades > 0])
        short = asked[(mined[asked] < 0).any(axis=1)]
        random = np.random.default_rng(self.seed)
        for query in short:
            seen = np.union1d(rows[query], qrels.of(int(query))[0])
            others = random.permutation(np.setdiff1d(np.arange(documents), seen))
            free = np.flatnonzero(mined[query] < 0)[: len(others)]
            mined[query, free] = others[: len(free)]
        if len(short):
            say(f"  {len(short):,} of {len(asked):,} queries have fewer than {self.count} candidates below the threshold; the rest is drawn at random")
        np.save(folder / "negatives.npy", mined)

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "negatives.npy", mmap_mode="r")


@dataclass(frozen=True)
class BM25Negatives(Mined):
    """Mined with BM25: documents that share words with the query.

    Attributes:
      source: the collection.
      plurals: whether English plurals are made singular; turn it off for other languages.
    """

    source: CollectionSource
    plurals: bool = True

    def collection(self) -> Collection:
        return self.source.get()

    def candidates(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        collection = self.collection()
        rows, scores = BM25Index(collection.passages(), plurals=self.plurals).search(collection.queries["train"].texts, depth)
        return np.where(scores > 0, rows, NOTHING), scores  # what shares no word was not found


@dataclass(frozen=True)
class EncoderNegatives(Mined):
    """Mined with a trained encoder, by exact search in the collection that it was trained on.

    Attributes:
      encoder: the run whose encoder searches; its data are the `Passages` of the collection that the negatives are for.
    """

    encoder: Trained

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.encoder.experiment.data, Passages):
            raise ValueError(f"negatives are mined from Passages, and the data of encoder is {type(self.encoder.experiment.data).__name__}")

    def collection(self) -> Collection:
        return self.encoder.experiment.data.collection()  # type: ignore[attr-defined] - checked above

    def candidates(self, depth: int) -> tuple[np.ndarray, np.ndarray]:
        experiment = self.encoder.experiment.resolve()
        params = unflatten(abstract(experiment.method.spec()), self.encoder.get())
        return search(experiment.method, params, experiment.data, "train", depth)  # type: ignore[arg-type]


def positive_aware(rows: np.ndarray, scores: np.ndarray, qrels: Qrels, *, count: int, threshold: float) -> np.ndarray:
    """[Q, count] int32: the first of each query's candidates that are not relevant and score below a share of what is; -1 where there are fewer.

    s < s+ - (1 - threshold) |s+|, where s+ is the score of the query's lowest-ranked relevant document; for s+ > 0 that is s < threshold s+. No candidate
    passes where a relevant document is not found itself: all that was found may be better than it.

    Args:
      rows: [Q, K] documents, best first, -1 = nothing.
      scores: [Q, K].
      qrels: of the Q queries.
      count: negatives of a query.
      threshold: above 0 and at most 1.
    """
    mined = np.full((len(rows), count), NOTHING, np.int32)
    for query in np.unique(qrels.queries[qrels.grades > 0]):
        documents, grades = qrels.of(int(query))
        relevant = np.isin(rows[query], documents[grades > 0])
        if relevant.sum() < (grades > 0).sum():
            continue
        positive = scores[query][relevant].min()
        passed = rows[query][~relevant & (scores[query] < positive - (1 - threshold) * abs(positive)) & (rows[query] != NOTHING)][:count]
        mined[query, : len(passed)] = passed
    return mined
