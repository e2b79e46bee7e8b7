"""Report: what the ranks say, in every protocol side by side, with confidence intervals, and models shown losing where they lose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jaxrec.evals.retrieval import CUTOFFS, Ranks
from jaxrec.ops import metrics

DECISIVE = ("Recall@10", "NDCG@10")  # a model that is below a baseline on one of these is marked


@dataclass(frozen=True)
class Interval:
    """A mean over users and its 95 % bootstrap confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A system's metrics in one protocol.

    Attributes:
      seen: "seen kept" or "seen removed".
      targets: "all targets", "warm targets" or "cold targets".
      n: users asked.
      not_asked: users left out, because the item that came next is one they had seen.
      metrics: name -> interval; empty if nobody was asked.
    """

    seen: str
    targets: str
    n: int
    not_asked: int
    metrics: Mapping[str, Interval]


PLACES = max(CUTOFFS) + 1
"""Ranks that the metrics tell apart: 1..10, and all beyond as the last."""


def measure(rank: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, NDCG and MRR of each rank [B] at the cut-offs, by name."""
    functions = {"Recall": metrics.recall, "NDCG": metrics.ndcg, "MRR": metrics.mrr}
    return {f"{name}@{k}": function(rank, k) for name, function in functions.items() for k in CUTOFFS}


def summarise(ranks: Ranks, *, resamples: int = 1000, seed: int = 0) -> list[Row]:
    """The metrics in every protocol, with 95 % percentile intervals of the bootstrap over users (Efron, 1979).

    Metrics up to rank 10 depend on the users only by how many of them have rank 1, 2, ..., 10, and beyond. To draw n users with
    replacement is to draw these counts from a multinomial distribution, so that is what we draw: the same, without [resamples, n]. Where nobody has a hit the
    interval is [0, 0] however few were asked: the bootstrap knows only what it has seen.
    """
    random = np.random.default_rng(seed)
    value = measure(np.arange(1, PLACES + 1))
    values = np.stack(list(value.values()), axis=1)  # [places, metrics]
    rows = []
    for seen, targets, rank, not_asked in ranks.protocols():
        n, intervals = len(rank), {}
        if n:
            share = np.bincount(np.minimum(rank, PLACES) - 1, minlength=PLACES) / n
            low, high = np.quantile(random.multinomial(n, share, size=resamples) @ values / n, (0.025, 0.975), axis=0)
            intervals = {name: Interval(*map(float, line)) for name, *line in zip(value, share @ values, low, high, strict=True)}
        rows.append(Row(seen, targets, n, not_asked, intervals))
    return rows


def to_json(systems: Mapping[str, Ranks]) -> dict[str, list[dict[str, Any]]]:
    """name -> rows, ready for `json.dumps`."""
    return {name: [asdict(row) for row in summarise(ranks)] for name, ranks in systems.items()}


def table(systems: Mapping[str, Ranks], *, targets: Collection[str] = ("all targets", "warm targets", "cold targets")) -> str:
    """All systems beneath each other, protocol by protocol, as monospaced text (120 columns for names of up to 24 letters).

    Each number is a mean and half the width of its 95 % interval. `*` marks the best mean, `<` a model below a baseline on Recall@10 or
    NDCG@10; the lines beneath say below which. `targets` chooses among the protocols.

    Raises:
      ValueError: the systems were asked different questions.
    """
    for name, ranks in list(systems.items())[1:]:
        first = next(iter(systems))
        systems[first].check_same_questions(ranks, first, name)
    rows = {name: summarise(ranks) for name, ranks in systems.items()}
    baselines = {name for name, ranks in systems.items() if ranks.baseline}
    protocols = zip(*rows.values(), strict=True)
    blocks = [_block(dict(zip(rows, protocol, strict=True)), baselines) for protocol in protocols if protocol[0].targets in targets]
    return "\n\n".join(blocks) + "\n"


def _block(rows: Mapping[str, Row], baselines: set[str]) -> str:
    """One protocol: a heading, a line per system, a line per model that loses."""
    row = next(iter(rows.values()))
    heading = f"{row.seen}, {row.targets}: {row.n:,} users"
    if row.not_asked:
        heading += f" ({row.not_asked:,} not asked: they had seen the target)"
    if not row.n:
        return heading
    means = {system: {name: interval.mean for name, interval in row.metrics.items()} for system, row in rows.items()}
    ahead = {  # of a model on a metric: the baselines
        (model, metric): [b for b in rows if b in baselines and means[b][metric] > means[model][metric]]
        for model in rows
        if model not in baselines
        for metric in DECISIVE
    }
    best = {metric: max(line[metric] for line in means.values()) for metric in row.metrics}
    width = max(len(name) for name in ["system", *rows])
    lines = [heading, f"{'system':{width}}" + "".join(f"  {metric:14}" for metric in row.metrics).rstrip()]
    for system in rows:
        cells = ""
        for metric, interval in rows[system].metrics.items():
            mark = "<" if ahead.get((system, metric)) else "*" if interval.mean == best[metric] > 0 else ""
            cells += f"  {f'{interval.mean:.4f}±{(interval.high - interval.low) / 2:.4f}{mark}':14}"
        lines.append((f"{system:{width}}" + cells).rstrip())
    lines += [f"{model} < {', '.join(names)} on {metric}" for (model, metric), names in ahead.items() if names]
    return "\n".join(lines)
