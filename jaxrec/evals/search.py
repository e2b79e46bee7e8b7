"""Search: how well lists of documents answer judged queries, by trec_eval's metrics, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec.data.collection import Collection
from jaxrec.evals.report import Interval
from jaxrec.index.exact import NOTHING
from jaxrec.ops import metrics

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of grades [B, K] and judged [B, R]
    "nDCG@10": lambda grades, judged: metrics.graded_ndcg(grades, judged, 10),
    "MRR@10": lambda grades, judged: metrics.graded_mrr(grades, 10),
    "Recall@10": lambda grades, judged: metrics.graded_recall(grades, judged, 10),
    "Recall@100": lambda grades, judged: metrics.graded_recall(grades, judged, 100),
    "Success@5": lambda grades, judged: metrics.graded_success(grades, 5),
    "mAP": metrics.graded_average_precision,
}
DEPTH = 100  # documents that a list must go down to; mAP sees all that it is given


@dataclass(frozen=True, eq=False)
class Judged:
    """A system's metrics on one split.

    Attributes:
      values: name -> [Q] float64, a value per query that has a relevant document.
      query: [Q] rows of these queries, ascending.
      left_out: how many queries of the split have none, so that there is nothing to find.
    """

    values: Mapping[str, np.ndarray]
    query: np.ndarray
    left_out: int

    def mean(self) -> dict[str, float]:
        """name -> mean over the queries."""
        return {name: float(value.mean()) for name, value in self.values.items()}

    def intervals(self, *, resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """name -> mean and 95 % percentile interval of the bootstrap over queries (Efron, 1979)."""
        random = np.random.default_rng(seed)
        values = np.stack([*self.values.values()], axis=1)  # [Q, metrics]
        n = len(values)
        drawn = np.stack([np.bincount(random.integers(n, size=n), minlength=n) @ values / n for _ in range(resamples)])  # [resamples, metrics]
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        return {name: Interval(*map(float, line)) for name, *line in zip(self.values, values.mean(axis=0), low, high, strict=True)}


@dataclass(frozen=True, eq=False)
class Run:
    """Documents found for queries, in any order: what a TREC run file says.

    Attributes:
      query: [E] rows of queries.
      document: [E] rows of documents.
      score: [E] larger is better.
    """

    query: np.ndarray
    document: np.ndarray
    score: np.ndarray

    def __post_init__(self):
        if not len(self.query) == len(self.document) == len(self.score):
            raise ValueError(f"a run has {len(self.query)} queries, {len(self.document)} documents and {len(self.score)} scores; each line has one of each")
        if np.isnan(self.score).any():
            line = int(np.argmax(np.isnan(self.score)))
            raise ValueError(f"line {line} of the run, query {self.query[line]}, has score NaN, which has no place in an order")

    @classmethod
    def of(cls, ids: np.ndarray, scores: np.ndarray) -> Run:
        """The run of an engine's answer: ids [B, K], -1 = nothing, and scores [B, K]."""
        query, place = np.nonzero(np.asarray(ids) != NOTHING)
        return cls(query, ids[query, place], scores[query, place])

    def without_own(self, collection: Collection, split: str) -> Run:
        """Without documents that have the query's own id, as BEIR asks of sets whose queries are documents (ArguAna, Quora)."""
        row = {name: number for number, name in enumerate(collection.ids)}
        own = np.array([row.get(name, NOTHING) for name in collection.queries[split].ids])  # [B]
        keep = own[self.query] != self.document
        return Run(self.query[keep], self.document[keep], self.score[keep])

    def lists(self, queries: int, k: int) -> np.ndarray:
        """ids [queries, k] of documents, best first, equal scores by the lower row, -1 where fewer were found."""
        order = np.lexsort((self.document, -self.score, self.query))
        query, document = self.query[order], self.document[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        kept = place < k
        ids = np.full((queries, k), NOTHING, np.int64)
        ids[query[kept], place[kept]] = document[kept]
        return ids

    def trec(self, collection: Collection, split: str, *, k: int = 1000, tag: str = "jaxrec") -> str:
        """The text of a TREC run file, `query Q0 document rank score tag` a line; the score falls with the rank, so that no reader reorders ties."""
        names = collection.queries[split].ids
        lines = []
        for name, row in zip(names, self.lists(len(names), k), strict=True):
            found = row[row != NOTHING]
            lines += [f"{name} Q0 {collection.ids[document]} {rank} {-rank} {tag}\n" for rank, document in enumerate(found, start=1)]
        return "".join(lines)


def evaluate(ids: np.ndarray, collection: Collection, split: str) -> Judged:
    """The metrics of lists of documents against a split's qrels.

    nDCG is of linear gain, relevant is a grade above 0, and a document without a judgement is irrelevant, all as in trec_eval. Where
    trec_eval orders by score itself, this keeps the lists as they are. A query without a relevant document is left out and counted.

    Args:
      ids: [B, K] rows of documents, best first, -1 = nothing, for all B queries of the split in order; K >= 100, or all documents.
      collection: what was searched.
      split: which of its queries were asked.

    Raises:
      ValueError: lists that are too short, name documents that do not exist or one twice, or no query has a relevant document.
    """
    if split not in collection.qrels:
        raise ValueError(f"no split {split!r}; the collection has {', '.join(collection.qrels)}")
    qrels, documents = collection.qrels[split], len(collection.ids)
    ids = np.asarray(ids)
    _check_lists(ids, len(collection.queries[split].ids), documents)
    query = qrels.queries  # [J]
    relevant = np.bincount(query[qrels.grades > 0], minlength=len(ids)) > 0  # [B]
    if not relevant.any():
        raise ValueError(f"none of the {len(ids)} {split} queries has a relevant document; there is nothing to measure")
    key = query * documents + qrels.documents  # [J] ascending: one number per judged pair
    asked = np.arange(len(ids))[:, None] * documents + ids  # [B, K]
    place = np.searchsorted(key, asked).clip(max=len(key) - 1)
    grades = np.where((key[place] == asked) & (ids != NOTHING), qrels.grades[place], 0)[relevant]  # [Q, K]
    judged = np.zeros((len(ids), int(np.diff(qrels.offsets).max())), np.int32)  # [B, R]
    judged[query, np.arange(len(query)) - qrels.offsets[query]] = qrels.grades
    values = {name: metric(grades, judged[relevant]) for name, metric in METRICS.items()}
    return Judged(values, np.flatnonzero(relevant), int((~relevant).sum()))


def macro_average(systems: Iterable[Judged]) -> dict[str, float]:
    """name -> mean over data sets of their means, each data set counting the same, as ViDoRe and BEIR report."""
    means = [judged.mean() for judged in systems]
    if not means:
        raise ValueError("no data set to average over; evaluate one first")
    return {name: sum(mean[name] for mean in means) / len(means) for name in means[0]}


def _check_lists(ids: np.ndarray, queries: int, documents: int) -> None:
    deep = min(DEPTH, documents)
    if ids.ndim != 2 or len(ids) != queries or ids.shape[1] < deep or ids.dtype.kind not in "iu":
        raise ValueError(f"lists must be integers of shape [{queries}, {deep} or more], got {ids.dtype} of shape {list(ids.shape)}; search with k={deep}")
    if ids.size and not (ids.min() >= NOTHING and ids.max() < documents):
        raise ValueError(f"lists name documents {ids.min()}..{ids.max()}; there are rows 0 to {documents - 1}, and -1 for nothing")
    ordered = np.sort(ids, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NOTHING)
    if twice.any():
        query, place = np.argwhere(twice)[0]
        raise ValueError(f"the list of query {query} holds document {ordered[query, place]} twice; a document may stand in a list once")


def to_json(systems: Mapping[str, Judged]) -> dict[str, dict[str, Any]]:
    """name -> queries, queries left out and intervals, ready for `json.dumps`."""
    return {
        name: {"queries": len(judged.query), "left_out": judged.left_out, "metrics": {m: vars(i) for m, i in judged.intervals().items()}}
        for name, judged in systems.items()
    }


def table(systems: Mapping[str, Judged]) -> str:
    """All systems beneath each other as monospaced text: mean, half the width of its 95 % interval, `*` for the best mean.

    Raises:
      ValueError: there are no systems, or they were asked different queries.
    """
    if not systems:
        raise ValueError("no system to show; evaluate one first")
    first_name, first = next(iter(systems.items()))
    for name, judged in systems.items():
        if not np.array_equal(judged.query, first.query):
            raise ValueError(f"{first_name} and {name} were asked different queries; evaluate both on the same split of the same collection")
    rows = {name: judged.intervals() for name, judged in systems.items()}
    highest = {metric: max(row[metric].mean for row in rows.values()) for metric in first.values}
    width = max(len(name) for name in ["system", *rows])
    heading = f"{len(first.query):,} queries" + (f" ({first.left_out:,} left out: no relevant document)" if first.left_out else "")
    lines = [heading, f"{'system':{width}}" + "".join(f"  {metric:14}" for metric in highest).rstrip()]
    for name, row in rows.items():
        cells = [f"{i.mean:.4f}±{(i.high - i.low) / 2:.4f}{'*' * (i.mean == highest[m] > 0)}" for m, i in row.items()]
        lines.append((f"{name:{width}}" + "".join(f"  {cell:14}" for cell in cells)).rstrip())
    return "\n".join(lines) + "\n"
