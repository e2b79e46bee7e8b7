"""The average of trained parameters: one model out of several runs from one start, no slower than any of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.train.checkpoint import run_content
from jaxrec.train.part import read


@dataclass(frozen=True)
class Average(Artifact):
    """sum_i w_i theta_i / sum_i w_i: `init_from={"": Average((Trained(a), Trained(b)))}` with `steps=0` evaluates and exports it.

    Wortsman et al. 2022 (model soups, arXiv 2203.05482). It needs runs that started from the same parameters: between others lies no good model.

    Attributes:
      runs: artifacts that load named arrays (`Trained`, `PretrainedBert`), or workdirs of runs, whose best parameters count.
      weights: one for each run, at least 0; () = equal ones.

    Raises:
      ValueError: weights that do not fit; or, when it is built, runs of different models, which it names.
    """

    runs: tuple[Artifact | str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if not self.runs:
            raise ValueError("there is nothing to average; give one run or more")
        if self.weights and (len(self.weights) != len(self.runs) or not all(isfinite(w) and w >= 0 for w in self.weights) or not sum(self.weights)):
            raise ValueError(f"weights={self.weights} must be {len(self.runs)} numbers of at least 0, not all 0, one for each run; or () for equal ones")

    def inputs(self) -> dict[str, Any]:
        """What the workdirs among the runs hold; an artifact's fingerprint is in the fields."""
        return {run: run_content(Path(run)) for run in self.runs if isinstance(run, str)}

    def build(self, folder: Path) -> None:
        weights = np.asarray(self.weights or [1.0] * len(self.runs)) / (sum(self.weights) or len(self.runs))
        first, total = _load(self.runs[0]), {}
        for run, weight in zip(self.runs, weights, strict=True):
            leaves = first if run is self.runs[0] else _load(run)
            _check_same(_name(self.runs[0]), first, _name(run), leaves)
            for name, leaf in leaves.items():
                if np.issubdtype(leaf.dtype, np.integer) or leaf.dtype == bool:
                    total[name] = leaf
                else:
                    total[name] = total.get(name, 0.0) + weight * leaf.astype(np.float64)
        np.savez(folder / "params.npz", allow_pickle=False, **{name: np.asarray(total[name], leaf.dtype) for name, leaf in first.items()})

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            return dict(file)


def _load(run: Artifact | str) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in read(run).items()}


def _name(run: Artifact | str) -> str:
    return run if isinstance(run, str) else f"{type(run).__name__}-{run.fingerprint()}"


def _check_same(first: str, wanted: dict[str, np.ndarray], other: str, found: dict[str, np.ndarray]) -> None:
    if different := sorted(wanted.keys() ^ found.keys()):
        raise ValueError(f"{first} and {other} are of different models: only one of them has {', '.join(different[:3])}; average runs of one model")
    for name, leaf in wanted.items():
        if leaf.shape != found[name].shape or leaf.dtype != found[name].dtype:
            raise ValueError(
                f"{first} and {other} are of different models: {name} is {leaf.dtype} {list(leaf.shape)} and {found[name].dtype} {list(found[name].shape)}"
            )
        if (np.issubdtype(leaf.dtype, np.integer) or leaf.dtype == bool) and not np.array_equal(leaf, found[name]):
            raise ValueError(f"{first} and {other} differ in {name}, whole numbers that have no average; average runs that share it")
