"""Document retrieval: every document of a collection scored for every query of a split, exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrec.data.passages import Passages
from jaxrec.evals.encoding import TokenVectors, encode
from jaxrec.evals.search import DEPTH, METRICS, evaluate
from jaxrec.experiment import Evaluator
from jaxrec.method import Encoder
from jaxrec.param import Tree
from kernels.maxsim import maxsim_ragged

QUERIES = 32  # scored at a time


@dataclass(frozen=True)
class DocumentRetrieval(Evaluator):
    """Mean nDCG@10 and the others over a split's queries; whoever encodes is asked, with one vector per text or with many.

    Attributes:
      metric: the one that decides which checkpoint is best; reported first.
      split: whose queries. A collection without validation queries has nothing to choose by but what it trains on.
      documents: search only this many documents, those that are relevant to a query first; 0 = all. For validation that must not take long.
      queries: ask only this many, chosen once and for all; 0 = all.
    """

    metric: str = "nDCG@10"
    split: str = "validation"
    documents: int = 0
    queries: int = 0

    def check(self, data: Any) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric!r} is not measured; choose one of {', '.join(METRICS)}")
        if not isinstance(data, Passages):
            raise ValueError(f"DocumentRetrieval searches the documents of Passages, and this data is {type(data).__name__}")
        if self.split not in data.collection().queries:
            raise ValueError(f"the collection has no {self.split} queries; it has {', '.join(data.collection().queries)}")
        if not (data.collection().qrels[self.split].grades > 0).any():
            raise ValueError(f"no {self.split} query of the collection has a relevant document (a grade above 0), so there is nothing to measure")

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation nDCG@10", 0.6) and so on."""
        query, document = sample(data, self.split, self.queries, self.documents)
        ids, _ = search(method, params, data, self.split, min(DEPTH, len(document)), query=query, document=document)
        everything = np.full((len(data.collection().queries[self.split].ids), max(ids.shape[1], min(DEPTH, len(data.collection().ids)))), -1)
        everything[query, : ids.shape[1]] = ids
        judged = evaluate(everything, data.collection(), self.split)
        asked = np.isin(judged.query, query)
        for name in [self.metric, *(name for name in judged.values if name != self.metric)]:
            yield f"{self.split} {name}", float(judged.values[name][asked].mean())


def search(
    system: Encoder, params: Tree, data: Passages, split: str, k: int, *, query: np.ndarray | None = None, document: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k documents with the highest scores for each query of a split: rows [Q, k] int64, best first, equal scores by the lower row; and scores.

    Args:
      system: encodes queries and documents.
      params: of the system.
      data: the collection and its word pieces.
      split: whose queries.
      k: 1 to the number of documents.
      query, document: rows of the queries that are asked and of the documents that are searched; None: all.
    """
    tokens, pad = data.tokens(), data.info()["pad"]
    queries, documents = tokens[split], tokens["documents"]
    query, document = (np.arange(len(all)) if some is None else some for some, all in ((query, queries), (document, documents)))  # noqa: A001
    encoded = encode(system, params, documents[document], "document", pad=pad)
    rows, scores = best(encode(system, params, queries[query], "query", pad=pad), encoded, k)
    return document[rows], scores


def best(queries: TokenVectors, documents: TokenVectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query by exact MaxSim: rows [Q, k] and scores [Q, k], equal scores by the lower row."""
    values, mask = queries.padded()
    tokens, offsets = jax.device_put((documents.values, documents.offsets.astype(np.int32)))
    rows, scores = [], []
    for low in range(0, len(values), QUERIES):
        some = [np.concatenate([array[low : low + QUERIES], np.zeros_like(array[: max(0, low + QUERIES - len(array))])]) for array in (values, mask)]
        top, place = jax.device_get(_top(some[0], some[1], tokens, offsets, k))
        rows.append(place[: len(values) - low])
        scores.append(top[: len(values) - low])
    return np.concatenate(rows).astype(np.int64), np.concatenate(scores)


@functools.partial(jax.jit, static_argnums=4)
def _top(queries: jax.Array, mask: jax.Array, tokens: jax.Array, offsets: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(maxsim_ragged(queries, tokens, offsets, mask), k)  # of equal ones the first


def sample(data: Passages, split: str, queries: int, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of so many queries, rows of so many documents, all that are relevant to these among them), ascending; 0 = all."""
    collection = data.collection()
    qrels, random = collection.qrels[split], np.random.default_rng(0)
    asked = np.unique(qrels.queries[qrels.grades > 0])
    if 0 < queries < len(asked):
        asked = np.sort(random.choice(asked, queries, replace=False))
    everyone = np.arange(len(collection.ids))
    if not 0 < documents < len(everyone):
        return asked, everyone
    relevant = np.unique(qrels.documents[np.isin(qrels.queries, asked) & (qrels.grades > 0)])
    others = random.permutation(np.setdiff1d(everyone, relevant))[: max(0, documents - len(relevant))]
    return asked, np.sort(np.concatenate([relevant, others]))
