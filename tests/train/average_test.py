"""The average of parameters: by hand, from artifacts and from runs, and what it refuses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrec.artifact import Artifact
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.param import create, flatten
from jaxrec.train.average import Average
from jaxrec.train.checkpoint import save_params, start_from


@dataclass(frozen=True)
class Planted(Artifact):
    """Parameters that are made up: `value` everywhere."""

    value: float
    names: tuple[str, ...] = ("a.kernel", "b")
    width: int = 3
    table: int = 7

    def build(self, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        floats = {name: np.full((2, self.width), self.value, np.float32) for name in self.names}
        return {**floats, "table": np.full(4, self.table, np.int32)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("weights", "expected"), [((), 3.0), ((1.0, 1.0, 1.0), 3.0), ((2.0, 1.0, 1.0), 2.5), ((0.0, 0.0, 5.0), 6.0)])
def test_it_is_the_weighted_mean(weights, expected):
    average = Average((Planted(1.0), Planted(2.0), Planted(6.0)), weights).get()
    assert set(average) == {"a.kernel", "b", "table"}
    for name in ("a.kernel", "b"):
        assert average[name].dtype == np.float32
        np.testing.assert_allclose(average[name], expected, rtol=1e-6)
    np.testing.assert_array_equal(average["table"], [7] * 4)


def test_the_average_of_equal_runs_is_that_run():
    for name, leaf in Average((Planted(0.1),) * 3).get().items():
        np.testing.assert_array_equal(leaf, Planted(0.1).load(Path())[name])


def test_runs_start_a_model(tmp_path):
    method = SASRec(items=20, length=4, dim=8, layers=1, heads=2, dropout=0.0)
    params = [create(method.spec(), jax.random.key(seed)) for seed in (0, 1)]
    for number, tree in enumerate(params):
        workdir = tmp_path / f"run{number}"
        save_params(workdir / "best", flatten(tree), step=number)
        (workdir / "experiment.json").write_text(f'{{"seed": {number}}}')
    average = Average((str(tmp_path / "run0"), str(tmp_path / "run1")))
    started = start_from(params[0], {"": average})
    jax.tree.map(lambda mean, a, b: np.testing.assert_allclose(mean, (a + b) / 2, rtol=1e-6), started, *params)
    before = average.fingerprint()
    save_params(tmp_path / "run1" / "best", flatten(params[0]), step=9)  # the run went on
    assert average.fingerprint() != before


def test_the_weights_are_part_of_what_it_is():
    runs = (Planted(1.0), Planted(2.0))
    assert len({Average(runs).fingerprint(), Average(runs, (1.0, 2.0)).fingerprint(), Average(runs[::-1]).fingerprint()}) == 3


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to average; give one run or more"):
        Average(())
    for weights in ((1.0,), (0.0, 0.0), (-1.0, 2.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="must be 2 numbers of at least 0, not all 0, one for each run"):
            Average((Planted(1.0), Planted(2.0)), weights)
    other = dataclasses.replace(Planted(2.0), names=("a.kernel", "c"))
    with pytest.raises(ValueError, match=r"Planted-\w+ and Planted-\w+ are of different models: only one of them has b, c; average runs of one model"):
        Average((Planted(1.0), other)).get()
    with pytest.raises(ValueError, match=r"of different models: a\.kernel is float32 \[2, 3\] and float32 \[2, 4\]"):
        Average((Planted(1.0), Planted(2.0, width=4))).get()
    with pytest.raises(ValueError, match="differ in table, whole numbers that have no average; average runs that share it"):
        Average((Planted(1.0), Planted(2.0, table=8))).get()
    with pytest.raises(FileNotFoundError, match=r"nowhere has no checkpoint; train first: jaxrec train experiments/nowhere\.py"):
        Average((str(tmp_path / "nowhere"),)).fingerprint()
