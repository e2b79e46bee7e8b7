"""What `jaxrec eval` says of a run: one report for each kind of data that a method is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrec.data.passages import Passages
from jaxrec.data.passkeys import Passkeys
from jaxrec.data.sequences import Sequences
from jaxrec.data.task_pairs import TaskPairs
from jaxrec.data.text import TextRows
from jaxrec.evals import language_modelling, passkey, search, task_choice
from jaxrec.evals import report as recommendation
from jaxrec.experiment import Experiment
from jaxrec.stages.runs import evaluate_beside, load_run
from jaxrec.stages.searches import evaluate_search

Split = Literal["validation", "test"]
MEASURES: dict[type, Any] = {TextRows: language_modelling, Passkeys: passkey, TaskPairs: task_choice}
"""Kinds of data, and the module with a `report` of a method on them and its `table`."""


class Report(NamedTuple):
    """What was found: for people, and for machines."""

    text: str
    json: Any


def evaluate(experiment: Experiment, workdir: Path, split: Split = "test") -> Report:
    """The report on a run: recommenders and retrievers beside their baselines, other models by the measures of their data.

    Raises:
      FileNotFoundError, ValueError: as `load_run`, or the split asks nothing, or nothing measures a method on this kind of data.
    """
    if isinstance(experiment.data, Sequences):
        ranks = evaluate_beside(experiment, workdir, split)
        return Report(recommendation.table(ranks), recommendation.to_json(ranks))
    if isinstance(experiment.data, Passages):
        judged = evaluate_search(experiment, workdir, split)
        return Report(search.table(judged), search.to_json(judged))
    found = measure(experiment, workdir, split)
    return Report(_measures(experiment).table(experiment.name, found), found)


def measure(experiment: Experiment, workdir: Path, split: Split = "test") -> dict[str, Any]:
    """The measures of a run's best parameters on its kind of data, as the `report` of the module in `MEASURES` has them."""
    measures = _measures(experiment)
    experiment, params, _ = load_run(experiment, workdir)
    return measures.report(experiment.method, params, experiment.data, split)


def _measures(experiment: Experiment) -> Any:
    for kind, module in MEASURES.items():
        if isinstance(experiment.data, kind):
            return module
    known = ", ".join(kind.__name__ for kind in (Sequences, Passages, *MEASURES))
    raise ValueError(f"{experiment.name} is trained on {type(experiment.data).__name__}, and only experiments on {known} are evaluated")
