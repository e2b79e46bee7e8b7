"""Upgrades: what a new model's queries find in the index of the old one, what they find in their own, and what compatibility cost.

M(q, g) is a metric with queries of model q and items of model g: o the old model, n the new one, n* a new one trained without regard to the old. An upgrade
is backward compatible if M(n, o) > M(o, o): then new queries may search the old index at once (Shen et al. 2020, arXiv 2003.11942).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec.data.examples import Examples
from jaxrec.evals.report import measure
from jaxrec.evals.retrieval import Ranks, rank
from jaxrec.experiment import Evaluator
from jaxrec.methods.sequential.hbct import HBCT, OldIndex
from jaxrec.param import Tree

BY_OLD_ITEMS = ("M(n,o)", "M(o,o)")
PAIRS = ("M(n,n)", *BY_OLD_ITEMS)


@dataclass(frozen=True)
class Upgrade:
    """One metric, larger = better, of an upgrade.

    Attributes:
      old_old: M(o, o): the system before.
      new_old: M(n, o): new queries, old index.
      new_new: M(n, n): all vectors computed anew.
      free_free: M(n*, n*): what the new model could do if it had not to be compatible.
    """

    old_old: float
    new_old: float
    new_new: float
    free_free: float

    @property
    def compatible(self) -> bool:
        """M(n, o) > M(o, o)."""
        return self.new_old > self.old_old

    @property
    def gain(self) -> float:
        """(M(n, o) - M(o, o)) / (M(n*, n*) - M(o, o)): the share of what can be won that new queries win before any item is encoded anew.

        NaN unless the unconstrained model is better than the old one: there is nothing to win.
        """
        room = self.free_free - self.old_old
        return (self.new_old - self.old_old) / room if room > 0 else float("nan")

    @property
    def cost(self) -> float:
        """(M(n, n) - M(n*, n*)) / M(n*, n*): below 0 if being compatible made the new model worse. NaN if M(n*, n*) is 0."""
        return (self.new_new - self.free_free) / self.free_free if self.free_free else float("nan")

    @classmethod
    def of(cls, pairs: dict[str, Ranks], free: Ranks, metric: str = "NDCG@10") -> Upgrade:
        """Of the ranks that `rank_pairs` gave, and those of an unconstrained model; seen items kept, all targets.

        Raises:
          ValueError: they were asked different questions, or the metric is not measured.
        """
        if metric not in (known := list(measure(np.ones(1, int)))):
            raise ValueError(f"metric {metric!r} is not measured; choose one of {', '.join(known)}")
        for name, ranks in pairs.items():
            ranks.check_same_questions(free, name, "M(n*,n*)")
        old_old, new_old, new_new, free_free = (
            float(measure(ranks.kept)[metric].mean()) for ranks in (pairs["M(o,o)"], pairs["M(n,o)"], pairs["M(n,n)"], free)
        )
        return cls(old_old, new_old, new_new, free_free)


def rank_pairs(method: HBCT, params: Tree, examples: Examples, *, items: int, length: int, names: Sequence[str] = PAIRS) -> dict[str, Ranks]:
    """Each pair -> the ranks of the same targets. The old model is asked as it is deployed: by inner products, in its own space."""
    systems: dict[str, tuple[Any, Tree]] = {"M(n,n)": (method, params), "M(n,o)": (OldIndex(method), params), "M(o,o)": (method.old, params["old"])}
    return {name: rank(*systems[name], examples, items=items, length=length) for name in names}


@dataclass(frozen=True)
class UpgradeRetrieval(Evaluator):
    """M(n,o) and M(o,o) over the validation questions, all items ranked, seen items kept; beside `NextItemRetrieval`, which gives M(n,n).

    Attributes:
      metric: what M is.
    """

    metric: str = "NDCG@10"

    def check(self, data: Any) -> None:
        if self.metric not in (known := list(measure(np.ones(1, int)))):
            raise ValueError(f"metric {self.metric!r} is not measured; choose one of {', '.join(known)}")

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation M(n,o) NDCG@10", 0.04) and so on."""
        if not isinstance(method, HBCT):
            raise ValueError(f"{type(method).__name__} has no old model to be compatible with; UpgradeRetrieval is for HBCT")
        examples, catalogue = data.examples("validation"), {"items": data.info()["items"], "length": data.length}
        for name, ranks in rank_pairs(method, params, examples, **catalogue, names=BY_OLD_ITEMS).items():
            yield f"validation {name} {self.metric}", float(measure(ranks.kept)[self.metric].mean())
