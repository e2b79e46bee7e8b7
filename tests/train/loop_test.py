"""The run: resuming, stopping early, being interrupted, losing the disk, and saying what happened. Crashes are in checkpoint_test."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.artifact import Artifact, locked
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Evaluator, Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.optimizer import Adam
from jaxrec.param import flatten
from jaxrec.sharding import TABLES, Layout
from jaxrec.train.checkpoint import Checkpoints, read_params
from jaxrec.train.loop import judge, next_stop, train
from jaxrec.train.step import make_runner

SMALL = Experiment(
    method=SASRec(dim=16, layers=1, dropout=0.1, negatives=8),
    data=Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24),
    steps=12,
    layout=Layout(mesh=(("data", -1),)),
    log_every=4,
    save_every=4,
)


@dataclass(frozen=True)
class Scripted(Evaluator):
    """Yields the next of `values` at each call, after `act(params)` at the call that `when` numbers; -1: at every call."""

    values: tuple[float, ...] = (0.0,)
    when: int = -1
    act: Callable[[Any], None] = lambda params: None

    def __call__(self, method, params, data):
        number = self.__dict__.setdefault("calls", 0)
        self.__dict__["calls"] = number + 1
        if self.when in (-1, number):
            self.act(params)
        yield "score", self.values[min(number, len(self.values) - 1)]
        yield "other", 0.5


def state_of(experiment, workdir):
    """(arrays of the newest checkpoint by name, its progress)."""
    experiment = experiment.resolve()
    checkpoints = Checkpoints(workdir, refill=experiment.tables)
    runner = make_runner(experiment.method, experiment.optimizer.build(experiment.steps), experiment.layout)
    filled = runner.start().params if experiment.tables else None
    state, progress = checkpoints.restore(runner.abstract, filled)
    checkpoints.close()
    return flatten(state), progress


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(result, workdir) of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    return train(SMALL, workdir), workdir


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_reports_saves_and_learns(finished, capsys):
    result, workdir = finished
    assert result["step"] == 12 and np.isfinite(result["loss"])
    reported = rows(workdir)
    assert [row["step"] for row in reported] == [4, 8, 12]
    assert all(row.keys() == {"step", "seconds", "histories_per_second", "loss"} and row["histories_per_second"] > 0 for row in reported)
    assert reported[-1]["loss"] == result["loss"] < reported[0]["loss"]
    values = {"loss": result["loss"]}
    assert state_of(SMALL, workdir)[1] == {"best": None, "best_step": 0, "stale": 0, "metric": "", "values": values, "data": {"next_index": 12}}


def test_the_same_command_finishes_at_once_when_done(finished, monkeypatch):
    result, workdir = finished
    before = (workdir / "metrics.jsonl").read_text()
    monkeypatch.setattr("jaxrec.train.step.update", lambda *_, **__: pytest.fail("a finished run makes no step"))
    assert train(SMALL, workdir) == result and set(result) == {"loss", "step"}
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_saves_says_so_and_continues_bit_for_bit(number, finished, tmp_path, capsys):
    press = Scripted(when=0, act=lambda _: signal.raise_signal(number))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(SMALL, evals=(press,), eval_every=5), tmp_path)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert "interrupted; step 6 is saved. Run the same command again to continue." in capsys.readouterr().err
    assert Checkpoints(tmp_path).latest_step() == 6

    again = dataclasses.replace(SMALL, evals=(press,), eval_every=5)
    assert train(again, tmp_path)["best_score"] == 0
    assert "continuing at step 6" in capsys.readouterr().err
    assert_same(state_of(again, tmp_path)[0], state_of(SMALL, finished[1])[0])


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    def twice(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(SMALL, evals=(Scripted(when=0, act=twice),), eval_every=5), tmp_path)
    assert Checkpoints(tmp_path).latest_step() == 4  # nothing was saved on the way out


def test_off_the_main_thread_signals_are_left_alone(finished):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(SMALL, finished[1])))
    thread.start()
    thread.join()
    assert results == [finished[0]]


def test_what_is_no_number_is_never_the_best():
    progress = {"best": None, "best_step": 0, "stale": 0, "metric": ""}
    assert not judge(progress, {"recall": float("nan")}, 1)
    assert judge(progress, {"recall": 0.1}, 2) and progress == {"best": 0.1, "best_step": 2, "stale": 0, "metric": "recall"}
    assert not judge(progress, {"recall": float("nan")}, 3) and progress["stale"] == 1


def test_early_stopping_keeps_the_best_and_stays_stopped(tmp_path, capsys):
    values = (0.1, 0.5, 0.5, 0.2, 0.9)  # at steps 1, 2, 3, 4; a tie is no improvement
    experiment = dataclasses.replace(SMALL, evals=(Scripted(values),), eval_every=1, patience=2)
    result = train(experiment, tmp_path)
    assert (result["step"], result["best_score"], result["best_step"], result["other"]) == (4, 0.5, 2, 0.5)
    assert "stopped at step 4: no better score since step 2" in capsys.readouterr().err
    best, step = read_params(tmp_path)
    assert step == 2
    two_steps = dataclasses.replace(SMALL, evals=(Scripted(),), eval_every=2, patience=1)  # the schedule is that of twelve steps
    train(two_steps, tmp_path / "other")
    assert_same(best, read_params(tmp_path / "other")[0])
    assert train(experiment, tmp_path) == result


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    broken = dataclasses.replace(SMALL, optimizer=dataclasses.replace(SMALL.optimizer, peak=1e15, warmup=0.5), steps=60, log_every=3, save_every=1)
    with pytest.raises(FloatingPointError) as caught:
        train(broken, tmp_path)
    message = str(caught.value)
    step = int(message.split("the loss of step ")[1].split()[0])
    good = int(message.split("The checkpoint of step ")[1].split()[0])
    batch = broken.data.batches().indices(step)
    assert f"is nan on rows [{', '.join(map(str, batch))}]" in message or f"is inf on rows [{', '.join(map(str, batch))}]" in message
    assert "Lower optimizer.peak" in message and good <= step
    state, _ = state_of(broken, tmp_path)
    assert state["step"] == good


@dataclass(frozen=True)
class Cracked(Adam):
    """A learning rate that is no number at one step: that step's loss is finite, and all parameters after it are broken."""

    at: int = 0

    def schedule(self, steps):
        return lambda step: jnp.where(step == self.at, jnp.nan, 1e-3)


def test_an_update_that_is_not_finite_stops_the_run_before_it_is_evaluated_and_kept(tmp_path):
    evaluated = Scripted(act=lambda params: evaluated.__dict__.setdefault("seen", []).append(params))
    broken = dataclasses.replace(SMALL, optimizer=Cracked(at=11), evals=(evaluated,), eval_every=4)
    with pytest.raises(FloatingPointError) as caught:
        train(broken, tmp_path)
    rows = ", ".join(map(str, broken.data.batches().indices(11)))
    loss = str(caught.value).split("though its loss is ")[1].split(",")[0]
    assert str(caught.value).startswith(f"experiment: the state after step 11 is not finite, though its loss is {loss}, on rows [{rows}]. ")
    assert np.isfinite(float(loss)) and "The checkpoint of step 8 is good." in str(caught.value) and "start in another workdir" in str(caught.value)
    assert len(evaluated.__dict__["seen"]) == 2
    state, _ = state_of(broken, tmp_path)
    assert state["step"] == 8 and all(np.isfinite(leaf).all() for leaf in state.values())
    assert read_params(tmp_path)[1] == 4
    assert all("finite" not in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


@dataclass(frozen=True)
class Kinked(SASRec):
    """With a term whose value is 0 and whose gradient is 0 / 0."""

    def loss(self, params, batch, key):
        found = super().loss(params, batch, key)
        return found.replace(terms={**found.terms, "kink": (jnp.sqrt(0 * params.norm.scale.sum()), jnp.ones(()))})


def test_a_configuration_that_left_no_checkpoint_does_not_hold_its_workdir(tmp_path):
    kinked = Kinked(**{f.name: getattr(SMALL.method, f.name) for f in dataclasses.fields(SMALL.method)})
    with pytest.raises(FloatingPointError, match=r"the state after step 0 is not finite, though.*No checkpoint was saved yet\. .* then start again\."):
        train(dataclasses.replace(SMALL, method=kinked, steps=1), tmp_path)
    with pytest.raises(ValueError, match="dropout=1.5 must be at least 0 and below 1"):
        train(dataclasses.replace(SMALL, method=dataclasses.replace(SMALL.method, dropout=1.5)), tmp_path)
    two = dataclasses.replace(SMALL, steps=2)
    assert train(two, tmp_path)["step"] == 2
    with pytest.raises(ValueError, match="holds another run; these fields differ:\n  steps: 2 -> 12"):
        train(SMALL, tmp_path)
    (tmp_path / "experiment.json").write_text('{"steps"')
    with pytest.raises(ValueError, match=r"experiment.json is damaged: .*remove the file and run that training command again, which writes it anew"):
        train(two, tmp_path)
    (tmp_path / "experiment.json").unlink()
    assert train(two, tmp_path)["step"] == 2


def test_an_evaluation_that_fails_says_at_which_step(tmp_path):
    def fail(_):
        raise ValueError("7 of 9 scores are NaN")

    with pytest.raises(ValueError, match="experiment, evaluated after 2 steps: 7 of 9 scores are NaN"):
        train(dataclasses.replace(SMALL, steps=2, evals=(Scripted(act=fail),)), tmp_path)


def test_a_workdir_belongs_to_one_configuration(finished, capsys):
    _, workdir = finished
    with pytest.raises(ValueError, match=r"holds another run; these fields differ:\n  method.dim: 16 -> 32\n  seed: 0 -> 1\nUse the old values"):
        train(dataclasses.replace(SMALL, method=dataclasses.replace(SMALL.method, dim=32), seed=1), workdir)
    free = dataclasses.replace(
        SMALL, log_every=1, save_every=3, eval_every=2, patience=9, dispatch=2, layout=Layout(mesh=(("data", 4), ("model", 2)), rules=TABLES), name="b"
    )
    assert train(free, workdir)["step"] == 12
    assert train(SMALL, workdir)["step"] == 12


def test_two_runs_cannot_share_a_workdir(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(RuntimeError, match="another training runs in .*; wait for it, or choose another workdir"):
        train(SMALL, tmp_path)


@dataclass(frozen=True)
class Table(Artifact):
    """A table of item vectors."""

    scale: float = 1.0

    def build(self, folder):
        np.save(folder / "table.npy", self.scale * np.arange(128 * 16, dtype=np.float32).reshape(128, 16) / 2048)

    def load(self, folder):
        return np.load(folder / "table.npy", mmap_mode="r")


@dataclass(frozen=True)
class FrozenItems(SASRec):
    """SASRec over given item vectors."""

    def spec(self):
        spec = super().spec()
        table = dataclasses.replace(spec.item.table, trainable=False)
        return spec.replace(item=spec.item.replace(table=table))


def test_tables_are_filled_stay_and_are_not_stored(tmp_path, capsys):
    method = FrozenItems(**{f.name: getattr(SMALL.method, f.name) for f in dataclasses.fields(SMALL.method)})
    seen = []

    def look_and_stop(params):
        seen.append(np.asarray(params.item.table))
        signal.raise_signal(signal.SIGTERM)

    watch = Scripted(values=(0.0, 1.0), act=look_and_stop)
    experiment = dataclasses.replace(SMALL, method=method, tables={"item.table": Table()}, evals=(watch,), eval_every=5)
    for _ in range(3):  # from the start, from step 6 and from step 11
        with contextlib.suppress(KeyboardInterrupt):
            train(experiment, tmp_path)
    assert len(seen) == 3
    for table in seen:
        np.testing.assert_array_equal(table, Table().get())
    stored, _ = read_params(tmp_path)
    assert "item.table" not in stored and "norm.scale" in stored
    capsys.readouterr()
    started = dataclasses.replace(experiment, init_from={"": str(tmp_path)}, steps=1, evals=())
    train(started, tmp_path / "same")
    assert "note:" not in capsys.readouterr().err
    train(dataclasses.replace(started, tables={"item.table": Table(scale=2.0)}), tmp_path / "other")
    assert f"note: {tmp_path} learned with other item.table than are used here" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"the model has no parameter 'item.tabel' to fill; it has item.table"):
        train(dataclasses.replace(experiment, tables={"item.tabel": Table()}), tmp_path / "a")
    bigger = dataclasses.replace(method, dim=32)
    with pytest.raises(ValueError, match=r"parameter 'item.table' has shape \(128, 32\), the table for it \(128, 16\)"):
        train(dataclasses.replace(experiment, method=bigger), tmp_path / "b")


@pytest.mark.parametrize("way", ["jit", "pmap"])
def test_a_run_continues_under_another_layout(way, finished, tmp_path):
    longer = dataclasses.replace(SMALL, save_every=6, evals=(Scripted(when=0, act=lambda _: signal.raise_signal(signal.SIGTERM)),), eval_every=5)
    with pytest.raises(KeyboardInterrupt):
        train(longer, tmp_path)
    layout = Layout(mesh=(("data", 2), ("model", 4)), rules=TABLES) if way == "jit" else Layout(compile="pmap")
    assert train(dataclasses.replace(longer, layout=layout), tmp_path)["step"] == 12
    state, _ = state_of(longer, tmp_path)
    if way == "jit":  # under pmap the devices draw their own dropout
        for name, leaf in state_of(SMALL, finished[1])[0].items():
            np.testing.assert_allclose(state[name], leaf, rtol=0, atol=1e-5, err_msg=name)


@dataclass(frozen=True)
class Start(Artifact):
    """Parameters of another run."""

    def build(self, folder):
        np.savez(folder / "params.npz", **{"norm.scale": np.full(16, 0.5, np.float32)})

    def load(self, folder):
        with np.load(folder / "params.npz") as file:
            return dict(file)


def test_pmap_trains_with_features_tables_and_starts_like_jit(tmp_path):
    method = SASRec(dim=16, layers=1, dropout=0.0, loss_name="softmax", features=(Feature("price", kind="numeric"),))
    stop = Scripted(when=0, act=lambda _: signal.raise_signal(signal.SIGTERM))
    plain = dataclasses.replace(SMALL, method=method, init_from={"": Start()}, steps=4, eval_every=2, log_every=1)
    mapped = dataclasses.replace(plain, layout=Layout(compile="pmap"), evals=(stop,))
    with pytest.raises(KeyboardInterrupt):
        train(mapped, tmp_path / "pmap")
    result = train(dataclasses.replace(plain, evals=(Scripted(),)), tmp_path / "jit")
    assert train(mapped, tmp_path / "pmap") == pytest.approx(result, rel=1e-5)  # from step 3
    expected, found = (state_of(plain, tmp_path / name)[0] for name in ("jit", "pmap"))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
    assert train(dataclasses.replace(mapped, steps=0), tmp_path / "untrained")["score"] == 0
    np.testing.assert_array_equal(read_params(tmp_path / "untrained")[0]["norm.scale"], Start().get()["norm.scale"])


def test_bursts_end_at_every_report_evaluation_and_save():
    experiment = dataclasses.replace(SMALL, steps=23, dispatch=10, log_every=4, eval_every=7, save_every=0)
    stops, step = [], 0
    while step < 23:
        step = next_stop(step, experiment)
        stops.append(step)
    assert stops == [4, 7, 8, 12, 14, 16, 20, 21, 23]


def test_bursts_change_nothing(finished, tmp_path):
    train(dataclasses.replace(SMALL, dispatch=3), tmp_path)
    state, expected = state_of(SMALL, tmp_path)[0], state_of(SMALL, finished[1])[0]
    for name in expected:
        np.testing.assert_allclose(jnp.asarray(state[name], jnp.float32), jnp.asarray(expected[name], jnp.float32), rtol=0, atol=1e-6, err_msg=name)
    assert len(jax.devices()) == 8


def test_evaluation_is_a_program_of_one_device(tmp_path):
    """Kernels are split over several devices only where the step does so."""
    devices = []

    def look(params):
        devices.extend(len(jnp.asarray(leaf).devices()) for leaf in jax.tree.leaves(params))

    train(dataclasses.replace(SMALL, steps=2, evals=(Scripted(act=look),)), tmp_path / "run")
    assert jax.device_count() == 8 and set(devices) == {1}
