"""Runs of language models: what a trained one says of held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxrec.data.text import TextRows
from jaxrec.evals.language_modelling import report
from jaxrec.experiment import Experiment
from jaxrec.stages.runs import load_run


def evaluate_text(experiment: Experiment, workdir: Path, split: str = "test", *, rows: int = 0) -> dict[str, Any]:
    """`report` of the best parameters of a run; `rows` of each length at most, 0 = all."""
    experiment, params, _ = load_run(experiment, workdir)
    assert isinstance(experiment.data, TextRows)
    return report(experiment.method, params, experiment.data, split, rows=rows)
