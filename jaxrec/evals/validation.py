"""Validation while training: full-catalogue ranking of the validation questions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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
      users: ask only so many users, chosen once and for all; 0 = all of them. For systems that take long to answer.
    """

    metric: str = "NDCG@10"
    seen_removed: bool = False
    users: int = 0

    def check(self, data: Any) -> None:
        known = list(measure(np.ones(1, int)))
        if self.metric not in known:
            raise ValueError(f"metric {self.metric!r} is not measured; choose one of {', '.join(known)}")
        if not len(_validation(data, self.users)):
            raise ValueError("validation asks nobody: no user has events on both sides of the cut; use LeaveOneOut(), or larger shares of TimeSplit")

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation NDCG@10", 0.04) and so on."""
        examples = _validation(data, self.users)
        ranks = rank(method, params, examples, items=data.info()["items"], length=data.length, seen_removed=self.seen_removed)
        chosen = ranks.removed[ranks.removed > 0] if self.seen_removed else ranks.kept
        if not len(chosen):
            raise ValueError("seen_removed=True leaves nobody to ask: every validation target is an item that the user had seen")
        means = {name: float(values.mean()) for name, values in measure(chosen).items()}
        for name in [self.metric, *(name for name in means if name.endswith("@10") and name != self.metric)]:
            yield f"validation {name}", means[name]


@functools.lru_cache(maxsize=2)
def _validation(data: Any, users: int) -> Examples:
    examples = data.examples("validation")
    if not 0 < users < len(examples):
        return examples
    return examples.select(np.sort(np.random.default_rng(0).choice(len(examples), users, replace=False)))
