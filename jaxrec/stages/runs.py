"""Runs: an experiment, its workdir, and what comes out of them: trained parameters and evaluations."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxrec.artifact import Artifact
from jaxrec.data.sequences import with_histories
from jaxrec.evals.retrieval import Ranks, rank
from jaxrec.evals.upgrade import BY_OLD_ITEMS, rank_pairs
from jaxrec.experiment import Experiment, changes
from jaxrec.method import Baseline
from jaxrec.methods.sequential.hbct import HBCT
from jaxrec.methods.sequential.item_knn import ItemKNN
from jaxrec.methods.sequential.last_item import LastItem
from jaxrec.methods.sequential.markov import Markov
from jaxrec.methods.sequential.popularity import Popularity
from jaxrec.param import Tree, abstract, unflatten
from jaxrec.sharding import Layout
from jaxrec.train.checkpoint import read_identity, read_params
from jaxrec.train.loop import train

BASELINES: tuple[Baseline, ...] = (Popularity(), LastItem(), Markov(), ItemKNN())
"""What every model is held against, always."""
UNHEEDED = {"layout": Layout(), "dispatch": 1, "log_every": 0, "save_every": 0, "smoke": {}, "name": ""}
"""Fields that do not decide what is learned, and what stands for them."""


def load_run(experiment: Experiment, workdir: Path) -> tuple[Experiment, Tree, int]:
    """(the resolved experiment, its best parameters, their step) of a run.

    Raises:
      FileNotFoundError: the run does not exist or has no checkpoint.
      ValueError: the run was made with another configuration, and it names each field that differs; or a file of the run is damaged.
    """
    experiment = experiment.resolve()
    path = workdir / "experiment.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no run in {workdir}; train first: jaxrec train experiments/{experiment.name}.py")
    changed = changes(read_identity(workdir), experiment, search=True)
    if changed:
        raise ValueError(
            f"{workdir} was trained with another configuration (was -> asked for):\n  "
            + "\n  ".join(changed)
            + "\nGive the same overrides, or the --workdir of the other run."
        )
    spec = experiment.method.spec()
    leaves, step = read_params(workdir)
    leaves |= experiment.arrays()
    return experiment, unflatten(abstract(spec), leaves), step


def evaluate_run(experiment: Experiment, workdir: Path, split: Literal["validation", "test"] = "test", *, keep: bool = True) -> Ranks:
    """Where a trained run ranks each target; unless `keep` is False, kept beside the run as `ranks_<split>.npz` for `compare`."""
    experiment, params, _ = load_run(experiment, workdir)
    data = with_histories(experiment.data)
    if not len(data.examples(split)):
        raise ValueError(f"the {split} split asks nobody: no user has events on both sides of the cut; use LeaveOneOut(), or larger shares of TimeSplit")
    ranks = rank(experiment.method, params, data.examples(split), items=data.info()["items"], length=data.length)  # type: ignore[arg-type]
    if keep:
        ranks.save(workdir / f"ranks_{split}.npz")
    return ranks


@dataclass(frozen=True)
class BaselineRanks(Artifact):
    """Where a counting baseline ranks each target of a data set: counted once, and then at hand for every table."""

    baseline: Baseline
    data: Any
    split: str

    def build(self, folder: Path) -> None:
        items = self.data.info()["items"]
        sequence, offsets = self.data.training()
        counts = self.baseline.fit(sequence, offsets, items)
        rank(self.baseline, counts, self.data.examples(self.split), items=items, length=self.data.length).save(folder / "ranks.npz")

    def load(self, folder: Path) -> Ranks:
        return Ranks.load(folder / "ranks.npz")


def evaluate_beside(experiment: Experiment, workdir: Path, split: Literal["validation", "test"] = "test") -> dict[str, Ranks]:
    """A run's ranks by its name, for an upgrade also M(n,o) and M(o,o), what new and old queries find among the old items, and every baseline's."""
    systems = {experiment.name: evaluate_run(experiment, workdir, split)}
    if isinstance(experiment.method, HBCT):
        found, params, _ = load_run(experiment, workdir)
        data = with_histories(found.data)
        asked = {"items": data.info()["items"], "length": data.length, "names": BY_OLD_ITEMS}
        systems |= rank_pairs(found.method, params, data.examples(split), **asked)  # type: ignore[arg-type]
    return systems | baseline_ranks(experiment.data, split)


def baseline_ranks(data: Any, split: str) -> dict[str, Ranks]:
    """The ranks of every baseline by its name."""
    # A baseline sees no batches: what only shapes them must not make it be counted again.
    plain = dataclasses.replace(data, batch=1, length=1, row=0, packing=True, stride=0, form="next", segments=0, columns=(), seed=0)
    return {type(baseline).__name__: BaselineRanks(baseline, plain, split).get() for baseline in BASELINES}


@dataclass(frozen=True)
class Trained(Artifact):
    """The parameters of an experiment, trained on first use: `init_from={"reference": Trained(experiment)}`.

    An interrupted training goes on when they are asked for again. What does not decide them (`UNHEEDED`) is not in the fingerprint.
    """

    experiment: Experiment = dataclasses.field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {"experiment": dataclasses.replace(self.experiment, **UNHEEDED)}

    def build(self, folder: Path) -> None:
        run = self.folder().with_suffix(".run")  # stays where it is when this is interrupted
        train(self.experiment, run)
        os.replace(run, folder / "run")

    def load(self, folder: Path) -> dict[str, Any]:
        return read_params(folder / "run")[0] | self.experiment.resolve().arrays()  # tables are not stored with the run
