"""Negatives drawn at random from the collection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.collection import CollectionSource
from jaxrec.data.passages import Negatives


@dataclass(frozen=True)
class RandomNegatives(Negatives):
    """For each training query so many different documents, any but those that are relevant to it.

    Attributes:
      source: the collection.
      count: S, negatives of each training query; M2-BERT (arXiv 2402.07440) draws 32.
      seed: of the draws.
    """

    source: CollectionSource
    count: int = 32
    seed: int = 0

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"count={self.count} draws nothing; use 1 or more")

    def inputs(self) -> dict[str, Any]:
        return {"numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def build(self, folder: Path) -> None:
        collection, random = self.source.get(), np.random.default_rng(self.seed)
        if "train" not in collection.qrels:
            raise ValueError(f"negatives are of training queries, and the collection has {', '.join(collection.qrels)} alone; take one with a training split")
        qrels, documents = collection.qrels["train"], len(collection.ids)
        drawn = np.empty((len(qrels.offsets) - 1, self.count), np.int32)
        for query in range(len(drawn)):
            judged, grades = qrels.of(query)
            relevant = judged[grades > 0]
            if self.count > documents - len(relevant):
                raise ValueError(f"count={self.count} negatives of training query {query} are more than the {documents - len(relevant)} other documents")
            some = random.choice(documents, self.count + len(relevant), replace=False)
            drawn[query] = some[~np.isin(some, relevant)][: self.count]
        np.save(folder / "negatives.npy", drawn)

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "negatives.npy", mmap_mode="r")
