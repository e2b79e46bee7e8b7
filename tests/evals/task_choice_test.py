"""Choice among candidates: by hand, ties as a guess would fare, task by task; and adapters that learn what a group prefers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.task_pairs import SyntheticTasks, TaskPairs, TaskTexts
from jaxrec.data.text import SyntheticText, TextRows, Tokens
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals import task_choice
from jaxrec.evals.task_choice import CandidateChoice, report, right, score_candidates, table
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA, Predictor
from jaxrec.methods.adaptation.meta_lora import MetaLoRA
from jaxrec.nn.bert import BERT
from jaxrec.nn.lora import LoRA
from jaxrec.optimizer import Adam
from jaxrec.param import create, flatten
from jaxrec.train.checkpoint import read_params, start_from
from jaxrec.train.loop import train
from jaxrec.train.part import Part

SOURCE = SyntheticTasks(questions=30)
DATA = TaskPairs(SOURCE, WordPiece(TaskTexts(SOURCE), size=512), length=24, batch=32)


@dataclass(frozen=True)
class Oracle(Predictor):
    """Scores by the row's sum of word pieces; in task 1 by its negative, in task 2 all alike."""

    def predict(self, params, batch):
        return jnp.asarray([1.0, -1.0, 0.0])[batch["task"]] * jnp.sum(batch["text"], axis=1)


def test_right_by_hand():
    scores = np.array([[3.0, 1, 2], [1, 3, 2], [2, 2, 1], [5, 5, 5], [-1, -1, 0], [np.nan, 1, 2], [0, np.nan, -1]])
    np.testing.assert_allclose(right(scores), [1, 0, 1 / 2, 1 / 3, 0, 0, 0])
    random = np.random.default_rng(0).integers(0, 3, (4000, 4))  # many ties, nothing known
    assert right(random).mean() == pytest.approx(1 / 4, abs=0.02) and (random.argmax(axis=1) == 0).mean() > 0.4  # what the first of equals would claim


def test_accuracy_is_a_mean_over_tasks(monkeypatch):
    asked = DATA.questions("test")
    sums = asked["text"].sum(axis=2)
    expected = [
        np.mean([right(sign * sums[number : number + 1])[0] for number in np.flatnonzero(asked["task"] == task)]) for task, sign in enumerate((1, -1, 0))
    ]
    assert expected[2] == 0.25
    for rows in (256, 7):  # the last rows fill up a batch
        monkeypatch.setattr(task_choice, "ROWS", rows)
        np.testing.assert_array_equal(score_candidates(Oracle(), {}, asked), np.array([1, -1, 0])[asked["task"], None] * sums)
    found = report(Oracle(), {}, DATA, "test")
    assert [task["accuracy"] for task in found["tasks"].values()] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx(np.mean(expected)) and found["deviation"] == pytest.approx(np.std(expected)) and found["chance"] == 0.25
    assert [task["questions"] for task in report(Oracle(), {}, DATA, "test", questions=5)["tasks"].values()] == [5] * 3
    assert "task 2  0.2500      30 questions" in table("oracle", found)


def test_evaluator():
    values = dict(CandidateChoice("test")(Oracle(), {}, DATA))
    assert list(values) == ["test accuracy", "test accuracy deviation"] and values["test accuracy"] == report(Oracle(), {}, DATA, "test")["accuracy"]
    CandidateChoice().check(DATA)
    with pytest.raises(ValueError, match="TextRows has no questions with candidates; CandidateChoice needs TaskPairs"):
        CandidateChoice().check(TextRows(Tokens(SyntheticText())))
    with pytest.raises(ValueError, match="there is no split 'valid'; choose one of train, validation, test"):
        CandidateChoice("valid").check(DATA)


def test_retraining_learns_the_tasks_and_gives_its_base_alone_to_new_ones(tmp_path):
    encoder = BERT(vocabulary=FROM_DATA, length=24, dim=32, layers=1, heads=2, hidden=64, dropout=0.0)
    experiment = Experiment(
        MetaLoRA(encoder, lora=LoRA(rank=4)), DATA, steps=60, optimizer=Adam(peak=3e-3), evals=(CandidateChoice(),), log_every=0, save_every=0
    )
    assert train(experiment, tmp_path / "run")["validation accuracy"] > 0.5  # a guess: .25
    trained, _ = read_params(tmp_path / "run")
    fresh = create(dataclasses.replace(experiment.resolve().method, adapt=True).spec(), jax.random.key(1))  # type: ignore[type-var]
    started = flatten(start_from(fresh, {"base": Part(str(tmp_path / "run"), "base")}))
    for name, leaf in flatten(fresh).items():
        np.testing.assert_array_equal(started[name], trained[name] if name.startswith("base.") else leaf)
        assert name.startswith("base.") or not np.array_equal(leaf, trained[name])
    alone = dataclasses.replace(experiment, steps=1, init_from={"adapters": Part(str(tmp_path / "run"), "adapters")})
    with pytest.raises(ValueError, match=r"adapters that start adapters were trained on the base \w{16}, and base is \w{16}; start the base from the same run"):
        train(alone, tmp_path / "alone")
