"""What comes of runs: parameters that another run starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Evaluator, Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.stages.runs import Trained, load_run

FAILURES: list[int] = []


@dataclasses.dataclass(frozen=True)
class Failing(Evaluator):
    """Fails as often as `FAILURES` says."""

    def check(self, data):
        pass

    def __call__(self, method, params, data) -> Iterator[tuple[str, float]]:
        if FAILURES:
            raise RuntimeError(f"failure {FAILURES.pop()}")
        yield "validation nothing", 1.0


DATA = Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24)
EXPERIMENT = Experiment(SASRec(dim=8, layers=1, heads=1), DATA, steps=6, log_every=2, save_every=2, eval_every=4, evals=(Failing(),))


def test_what_decides_nothing_does_not_train_again():
    fingerprint = Trained(EXPERIMENT).fingerprint()
    assert Trained(dataclasses.replace(EXPERIMENT, log_every=3, save_every=1, name="renamed", dispatch=2)).fingerprint() == fingerprint
    assert Trained(dataclasses.replace(EXPERIMENT, seed=1)).fingerprint() != fingerprint
    assert Trained(dataclasses.replace(EXPERIMENT, data=dataclasses.replace(DATA, source=Synthetic(users=65, items=50)))).fingerprint() != fingerprint


def test_a_training_that_failed_goes_on_where_it_was_saved(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path))
    FAILURES.append(1)
    with pytest.raises(RuntimeError, match="failure 1"):
        Trained(EXPERIMENT).get()
    assert Trained(EXPERIMENT).get()
    assert "continuing at step 2" in capfd.readouterr().err
    assert not list(tmp_path.glob("*.run"))


@pytest.mark.parametrize("content", [b"", b'{"steps": 6', b"[]", b"\xff"])
def test_a_damaged_record_of_the_configuration_is_named(content, tmp_path):
    (tmp_path / "experiment.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"experiment\.json is damaged: .*remove the file and run that training command again"):
        load_run(EXPERIMENT, tmp_path)
