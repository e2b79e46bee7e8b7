"""Every experiment loads, resolves and runs in miniature."""

from pathlib import Path

import numpy as np
import pytest

from jaxrec.experiment import load
from jaxrec.train.loop import train

FILES = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def test_there_are_experiments():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_runs_in_miniature(path, tmp_path):
    experiment = load(path)
    assert experiment.name == path.stem
    assert f"jaxrec train experiments/{path.name}" in (Path(path).read_text()), "its docstring gives the command"
    result = train(experiment.smoked(), tmp_path / "run")
    assert result["step"] == (4 if experiment.steps else 0)
    best = [value for name, value in result.items() if name.startswith("best_") and name != "best_step"]
    assert len(best) == 1 and 0 <= best[0] <= 1
    assert not experiment.steps or np.isfinite(result["loss"])
