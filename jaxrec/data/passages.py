"""Passages: the data of an experiment on text retrieval. Collection -> word pieces -> pairs of a query and a relevant document -> batches."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxrec.artifact import Artifact, say
from jaxrec.data.batches import Batches
from jaxrec.data.cluster_batches import ClusterBatches
from jaxrec.data.collection import Collection, CollectionSource
from jaxrec.data.data import Data
from jaxrec.data.tokenizers import Tokenizer, WordPiece, tokenize


@dataclass(frozen=True)
class TokenizedCollection(Artifact):
    """The word pieces of a collection's documents [N, Td] and of each split's queries [Q, Tq], int32, memory-mapped."""

    source: CollectionSource
    tokenizer: Tokenizer
    query_length: int
    document_length: int

    version: ClassVar[int] = 2

    def build(self, folder: Path) -> None:
        collection, tokenizer, frame = self.source.get(), self.tokenizer.get(), self.tokenizer.frame()
        texts = {split: queries.texts for split, queries in collection.queries.items()}
        for name, some, length in [("documents", collection.passages(), self.document_length), *((s, t, self.query_length) for s, t in texts.items())]:
            ids, cut = tokenize(tokenizer, some, length, "document" if name == "documents" else "query", frame)
            if cut:
                say(f"  {cut:,} of {len(ids):,} {name if name == 'documents' else name + ' queries'} are longer than {length} tokens and were cut")
            np.save(folder / f"{name}.npy", ids)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


class Negatives(Artifact):
    """Hard negatives: `get()` is [Q, S] int32 rows of documents for each training query, hardest first, none of them relevant; -1 where there are fewer."""


@dataclass(frozen=True)
class Passages(Data):
    """Queries with a relevant document each to train on, and a collection to search.

    A training row is a judgement with a grade above 0: `query` [B, Tq], `document` [B, Td], and with negatives `negative` [B, S, Td], all ids of
    word pieces; `query_row`, `document_row` [B] and `negative_row` [B, S], which say who is the same; `mask` [B], 1.

    Attributes:
      source: the collection.
      tokenizer: of its texts.
      batch: rows of a training batch, over all processes.
      query_length, document_length: word pieces of a query and of a document, the special ones included; longer ones are cut.
      negatives: where hard negatives come from; None: those of the batch alone.
      hard: of them per row, the hardest of its query.
      clusters: gives [N] integers, which cluster each document is of: then a batch has documents of one cluster, which makes them harder negatives.
      seed: of the shuffles.
    """

    source: CollectionSource
    tokenizer: Tokenizer
    batch: int = 32
    query_length: int = 32
    document_length: int = 180
    negatives: Negatives | None = None
    hard: int = 0
    clusters: Artifact | None = None
    seed: int = 0

    def __post_init__(self):
        if (self.negatives is None) != (self.hard == 0):
            raise ValueError(f"hard={self.hard} negatives per row need negatives=, and the other way round; set both or neither")

    @property
    def capacity(self) -> int:
        """Word pieces of a row."""
        return self.query_length + (1 + self.hard) * self.document_length

    def collection(self) -> Collection:
        return self.source.get()

    def tokens(self) -> dict[str, np.ndarray]:
        """`documents` [N, Td], and [Q, Tq] by split."""
        return TokenizedCollection(self.source, self.tokenizer, self.query_length, self.document_length).get()

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of training queries [P] and of the documents [P] that are relevant to them."""
        splits = self.collection().qrels
        if "train" not in splits:
            raise ValueError(f"training needs training queries, and the collection has {', '.join(splits)} alone; take one with a training split")
        qrels = splits["train"]
        relevant = qrels.grades > 0
        return qrels.queries[relevant], qrels.documents[relevant]

    def rows(self) -> dict[str, Any]:
        """The training rows: each key of a batch, over all P pairs."""
        tokens, (query, document) = self.tokens(), self.pairs()
        rows: dict[str, Any] = {
            "query": Gathered(tokens["train"], query),
            "document": Gathered(tokens["documents"], document),
            "query_row": query.astype(np.int32),
            "document_row": document.astype(np.int32),
            "mask": np.ones(len(query), np.float32),
        }
        if self.negatives is not None:
            rows["negative_row"] = self._hard_rows(query)
            rows["negative"] = Gathered(tokens["documents"], rows["negative_row"])
        return rows

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        """The endless training batches of one process."""
        rows = self.rows()
        if self.clusters is not None:
            return ClusterBatches(rows, self.batch, self.seed, process, processes, cluster=np.asarray(self.clusters.get())[rows["document_row"]])
        return Batches(rows, self.batch, self.seed, process, processes)

    def info(self) -> dict[str, Any]:
        """What a method may take from the data: `documents`, the lengths, and what the tokenizer knows."""
        lengths = {"query_length": self.query_length, "document_length": self.document_length}
        return {"documents": len(self.collection().ids), **lengths, **self.tokenizer.info()}

    def examples_per_row(self) -> float:
        """Texts of a row, the unit of the log's speed."""
        return 2.0 + self.hard

    def smoke(self) -> Passages:
        """The same data in miniature: a synthetic collection and short texts, for tests of a few steps."""
        small = self.source.smoke()
        return dataclasses.replace(
            self, source=small, tokenizer=WordPiece(small, size=512), batch=8, query_length=8, document_length=16, negatives=None, hard=0, clusters=None
        )

    def _hard_rows(self, query: np.ndarray) -> np.ndarray:
        """[P, hard] rows of documents."""
        assert self.negatives is not None
        found = self.negatives.get()[query]
        if found.shape[1] < self.hard or (found[:, : self.hard] < 0).any():
            raise ValueError(f"hard={self.hard} negatives per row are asked for, and {type(self.negatives).__name__} has fewer for some queries; mine more")
        return np.ascontiguousarray(found[:, : self.hard])


class Gathered:
    """Rows of a table by number, gathered only when asked for: `table[number[rows]]`."""

    def __init__(self, table: np.ndarray, number: np.ndarray):
        self._table, self._number = table, number

    def __len__(self) -> int:
        return len(self._number)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._table[self._number[rows]]
