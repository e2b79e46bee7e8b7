"""Every experiment loads and resolves, and runs in miniature: one of each family of methods in the default tests, the others among the slow ones."""

from pathlib import Path

import numpy as np
import pytest

from experiments.compress_scifact import reductions
from experiments.grid_ablation import BASES, grid
from jaxrec.evals.encoding import TokenVectors
from jaxrec.experiment import load, override
from jaxrec.index.compress import unit
from jaxrec.train.loop import train

FILES = sorted((Path(__file__).parent.parent / "experiments").glob("*.py"))


def miniatures():
    """Each file; slow, where a shorter name has a method of the same family on the same kind of data: `contract_test` trains every method as it is."""
    seen = set()
    for path in sorted(FILES, key=lambda path: (len(path.stem), path.stem)):
        experiment = load(path)
        kind = (type(experiment.method).__module__.rpartition(".")[0], type(experiment.data))
        yield pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if kind in seen else [])
        seen.add(kind)


def test_there_are_experiments():
    assert len(FILES) >= 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_loads(path):
    assert load(path).name == path.stem
    assert f"jaxrec train experiments/{path.name}" in path.read_text(), "its docstring gives the command"


@pytest.mark.parametrize("path", list(miniatures()))
def test_experiment_runs_in_miniature(path, tmp_path):
    experiment = load(path)
    result = train(experiment.smoked(), tmp_path / "run")
    assert result["step"] == (4 if experiment.steps else 0)
    best = [value for name, value in result.items() if name.startswith("best_") and name != "best_step"]
    assert len(best) == 1 and 0 <= best[0] <= 1
    assert not experiment.steps or np.isfinite(result["loss"])


@pytest.mark.parametrize("name", BASES)
def test_every_variant_of_grids_study_changes_its_base(name):
    base = load(FILES[0].with_name(f"{name}.py"))
    variants = {variant: override(base, changes) for variant, changes in grid(base).items()}
    assert variants.pop("base") == base
    assert len({repr(experiment) for experiment in (base, *variants.values())}) == len(variants) + 1, "one of them changes nothing, or two change the same"


@pytest.mark.slow
def test_every_reduction_keeps_the_documents_and_costs_no_more_than_float32():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 30)
    documents = TokenVectors(unit(rng.normal(size=(lengths.sum(), 32))).astype(np.float32), np.r_[0, np.cumsum(lengths)])
    for name, reduce in reductions().items():
        kept, size = reduce(documents)
        assert len(kept) == 30 and np.diff(kept.offsets).min() >= 1 and np.isfinite(kept.values).all(), name
        assert len(kept.values) * size < len(documents.values) * 128 or name == "float32", name
