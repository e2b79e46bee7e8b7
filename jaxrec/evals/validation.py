"""Validation while training: full-catalogue ranking of the validation questions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxrec.data.examples import Examples
from jaxrec.evals.report import measure
from jaxrec.evals.retrieval import rank
from jaxrec.experiment import Evaluator


@dataclass(frozen=True)
class NextItemRetrieval(Evaluator):
    """Mean NDCG@10, Recall@10 and the others over the validation questions, all items ranked, seen items kept.

    Attributes:
      metric: the one that decides which checkpoint is best; reported first.
      seen_removed: rank only items that the user has not seen, and ask only for those.
    """

    metric: str = "NDCG@10"
    seen_removed: bool = False

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation NDCG@10", 0.04) and so on."""
        examples = _validation(data)
        ranks = rank(method, params, examples, items=data.info()["items"], length=data.length)
        chosen = ranks.removed[ranks.removed > 0] if self.seen_removed else ranks.kept
        if not len(chosen):
            raise ValueError("validation asks nobody: no user has events on both sides of the cut; use LeaveOneOut(), or larger shares of TimeSplit")
        means = {name: float(values.mean()) for name, values in measure(chosen).items()}
        if self.metric not in means:
            raise ValueError(f"metric {self.metric!r} is not measured; choose one of {', '.join(means)}")
        for name in [self.metric, *(name for name in means if name.endswith("@10") and name != self.metric)]:
            yield f"validation {name}", means[name]


@functools.lru_cache(maxsize=2)
def _validation(data: Any) -> Examples:
    return data.examples("validation")
