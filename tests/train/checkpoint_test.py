"""Checkpoints: what survives a crash and a full disk, in real processes; and what the readers of a run say."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.experiment import load
from jaxrec.param import flatten
from jaxrec.train.checkpoint import Checkpoints, fill, read_params, save_params, start_from
from jaxrec.train.loop import train
from jaxrec.train.step import State, make_runner

EXPERIMENT = '''
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Evaluator, Experiment
from jaxrec.methods.sequential.sasrec import SASRec


@dataclass(frozen=True)
class Slow(Evaluator):
    """Gives the test time to kill the run; if the test says so, no large file can be written once the first checkpoint is there."""

    def __call__(self, method, params, data):
        time.sleep(0.02)
        if os.environ.get("FULL_DISK") and Path(os.environ["FULL_DISK"]).exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
        yield "score", 0.0


experiment = Experiment(
    method=SASRec(dim=16, layers=1, dropout=0.1, negatives=8),
    data=Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24),
    steps=60,
    evals=(Slow(),),
    log_every=1,
    eval_every=2,
    save_every=5,
)
'''


def start(path, workdir, **environment):
    """A process that trains."""
    command = [sys.executable, "-m", "jaxrec", "train", str(path), "--workdir", str(workdir)]
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps(workdir):
    """The steps reported so far; a line that is being written does not count."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def newest(experiment, workdir):
    """(arrays of the newest checkpoint by name, its progress)."""
    experiment = experiment.resolve()
    checkpoints = Checkpoints(workdir)
    state, progress = checkpoints.restore(make_runner(experiment.method, experiment.optimizer.build(experiment.steps), experiment.layout).abstract)
    checkpoints.close()
    return flatten(state), progress


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("experiments") / "killed.py"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture(scope="module")
def uninterrupted(path, tmp_path_factory):
    """The arrays of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(load(path), workdir)
    return newest(load(path), workdir)


def assert_finishes_like(uninterrupted, path, workdir):
    assert train(load(path), workdir)["step"] == 60
    (state, progress), (expected, expected_progress) = newest(load(path), workdir), uninterrupted
    assert progress == expected_progress and state.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(state[name], expected[name], err_msg=name)


def test_a_killed_run_continues_bit_for_bit(path, uninterrupted, tmp_path):
    at = int(np.random.default_rng().integers(8, 50))
    process = start(path, tmp_path)
    deadline = time.monotonic() + 300
    while max(steps(tmp_path), default=0) < at:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and max(steps(tmp_path)) < 60, f"killed at step {at}"
    assert_finishes_like(uninterrupted, path, tmp_path)
    assert sorted(set(steps(tmp_path))) == list(range(1, 61))


def test_a_full_disk_leaves_the_previous_checkpoint(path, uninterrupted, tmp_path):
    process = start(path, tmp_path, FULL_DISK=str(tmp_path / "checkpoints" / "5"), JAX_ENABLE_COMPILATION_CACHE="0")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert "ERROR" not in said  # what the threads of orbax would log
    assert "could not be written to" in said and "is intact. Free some disk space and run the same command again" in said
    survivor = int(said.split("the checkpoint of step ")[-1].split()[0])
    assert newest(load(path), tmp_path)[0]["step"] == survivor > 0
    assert_finishes_like(uninterrupted, path, tmp_path)


@pytest.mark.parametrize("where, heard", [("5.orbax-checkpoint-tmp/state", False), ("elsewhere", True)])
def test_a_write_that_nobody_waited_for_is_no_news_of_its_own(where, heard, caplog):
    async def abandon():
        asyncio.get_running_loop().create_future().set_exception(ValueError(f"Failed to write 10 bytes to {where}"))
        gc.collect()  # asyncio tells of it when the future goes

    asyncio.run(abandon())
    assert ("never retrieved" in caplog.text) == heard


def test_a_run_is_read_on_a_machine_with_fewer_devices(path, tmp_path):
    spread = jax.device_put(jnp.arange(16.0), NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data")))
    save_params(tmp_path / "best", {"w": spread}, 1)
    checkpoints = Checkpoints(tmp_path / "unevaluated")
    checkpoints.save(State(jnp.asarray(1, jnp.int32), {"w": spread}, ()), {})
    checkpoints.close()
    program = (
        "import sys, pathlib, jax; from jaxrec.train.checkpoint import read_params; "
        "print(jax.device_count(), *(read_params(pathlib.Path(p))[0]['w'].sum() for p in sys.argv[1:]))"
    )
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / "unevaluated")]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": flags}, capture_output=True, text=True)
    assert ended.stdout == "1 120.0 120.0\n", ended.stderr


def test_readers_prefer_the_best_parameters(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint; train first: jaxrec train experiments/run.py"):
        read_params(tmp_path / "run")
    run = tmp_path / "run"
    checkpoints = Checkpoints(run)
    state = State(jnp.asarray(3, jnp.int32), {"a": {"b": jnp.arange(4.0)}, "c": jnp.ones(2)}, {"moment": jnp.zeros(4)})
    checkpoints.save(state, {"data": {"next_index": 3}})
    checkpoints.close()
    leaves, step = read_params(run)
    assert step == 3 and leaves.keys() == {"a.b", "c"}
    np.testing.assert_array_equal(leaves["a.b"], np.arange(4))
    for number in (2, 5):
        save_params(run / "best", {"a.b": np.full(4, number, np.float32), "c": np.ones(2, np.float32)}, number)
        leaves, step = read_params(run)
        assert step == number and (np.asarray(leaves["a.b"]) == number).all()
    assert len([p for p in (run / "best").iterdir() if p.name.isdigit()]) == 1  # only the best is kept


def test_a_best_found_again_at_an_earlier_step_replaces_the_later_one(tmp_path):
    # A run is killed after its best of step 6, continues from step 4, and now evaluates at step 5.
    for number in (6, 5):
        save_params(tmp_path / "best", {"a": np.full(2, number, np.float32)}, number)
    leaves, step = read_params(tmp_path)
    assert step == 5 and (np.asarray(leaves["a"]) == 5).all()


def test_the_latest_two_states_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 3):
        checkpoints.save(State(jnp.asarray(step, jnp.int32), {"a": jnp.ones(2)}, ()), {"step": step})
    checkpoints.wait()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "3"] and checkpoints.latest_step() == 3
    checkpoints.close()


def saved(workdir, *steps, best=None):
    """Checkpoints of `steps`, and the best parameters of one of them."""
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(State(jnp.asarray(step, jnp.int32), {"a": jnp.full(2, step)}, ()), {"step": step})
    if best is not None:
        checkpoints.save_best({"a": jnp.full(2, best)}, best)
    checkpoints.close()


def test_the_best_parameters_that_cannot_be_written_are_reported_like_a_checkpoint(tmp_path, monkeypatch):
    saved(tmp_path, 3)
    checkpoints = Checkpoints(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxrec.train.checkpoint.save_params", full)
    expected = r"the best parameters, of step 4, could not be written to .* \(\[Errno 28\] No space left on device\); the checkpoint of step 3 is intact"
    with pytest.raises(OSError, match=expected):
        checkpoints.save_best({"a": jnp.ones(2)}, 4)
    checkpoints.close()


def test_ranks_go_when_the_parameters_they_are_of_do(tmp_path):
    ranks = tmp_path / "ranks_test.npz"
    ranks.touch()
    saved(tmp_path, 1)
    assert not ranks.exists()
    saved(tmp_path, best=1)
    ranks.touch()
    saved(tmp_path, 2)  # the best ones stay
    assert ranks.exists()
    saved(tmp_path, best=2)
    assert not ranks.exists()


def truncate(folder):
    """Cuts the file that lists the arrays of a checkpoint."""
    (path,) = folder.glob("*/_METADATA")
    os.truncate(path, 20)


def test_a_damaged_checkpoint_is_named_with_what_is_left(tmp_path):
    saved(tmp_path, 1, 2, best=2)
    truncate(tmp_path / "best" / "2")
    with pytest.raises(ValueError, match=r"the checkpoint .*best/2 cannot be read; the checkpoint of step 2 is left: remove .*best/2, and it takes its place"):
        read_params(tmp_path)
    shutil.rmtree(tmp_path / "best" / "2")
    truncate(tmp_path / "checkpoints" / "2")
    expected = (
        r"the checkpoint .*checkpoints/2 cannot be read; the checkpoint of step 1 is left: remove .*checkpoints/2, and it takes its place\. JSONDecodeError: "
    )
    abstract = State(jax.ShapeDtypeStruct((), jnp.int32), {"a": jax.ShapeDtypeStruct((2,), jnp.int32)}, ())
    for read in (lambda: read_params(tmp_path), lambda: Checkpoints(tmp_path).restore(abstract)):
        with pytest.raises(ValueError, match=expected):
            read()
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    assert read_params(tmp_path)[1] == 1 and Checkpoints(tmp_path).restore(abstract)[0].step == 1
    truncate(tmp_path / "checkpoints" / "1")
    with pytest.raises(ValueError, match=r"checkpoints/1 cannot be read; there is no older one: train again in another workdir"):
        read_params(tmp_path)


def test_starting_from_another_run_replaces_what_the_prefix_names(tmp_path):
    save_params(tmp_path / "best", {"w": np.full(2, 7, np.float32)}, 1)
    params = {"reference": {"w": jnp.zeros(2)}, "policy": {"w": jnp.zeros(2)}}
    got = start_from(params, {"reference": str(tmp_path)})
    assert (np.asarray(got["reference"]["w"]) == 7).all() and (np.asarray(got["policy"]["w"]) == 0).all()
    assert (np.asarray(start_from({"w": jnp.zeros(2)}, {"": str(tmp_path)})["w"]) == 7).all()
    with pytest.raises(ValueError, match=r"the model has no parameter 'teacher.w' to fill; it has policy.w, reference.w"):
        start_from(params, {"teacher": str(tmp_path)})


def test_filling_keeps_the_models_type():
    assert fill({"w": jnp.zeros(2, jnp.int32)}, {"w": np.array([1, 2], np.int64)})["w"].dtype == jnp.int32
