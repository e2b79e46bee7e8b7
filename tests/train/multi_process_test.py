"""Two processes on one machine train like one: shares of each batch, one log, checkpoints together, and one decision to stop."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxrec.experiment import load
from jaxrec.train.checkpoint import read_params
from jaxrec.train.loop import train

PROGRAM = '''
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Evaluator, Experiment, override
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.sharding import FSDP, Layout
from jaxrec.train.loop import train


@dataclass(frozen=True)
class Slow(Evaluator):
    """Gives the test time to interrupt the run."""

    seconds: float = 0.0

    def __call__(self, method, params, data):
        time.sleep(self.seconds)
        yield "slow", 0.0


experiment = Experiment(
    method=SASRec(dim=16, layers=1, dropout=0.1, negatives=8),
    data=Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24),
    steps=8,
    evals=(NextItemRetrieval(), Slow()),
    layout=Layout(mesh=(("data", -1),), rules=FSDP),
    log_every=2,
    eval_every=2,
    save_every=4,
)


if __name__ == "__main__":
    process, processes, port, workdir, seconds = sys.argv[1:]
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    assert (jax.process_count(), jax.device_count()) == (int(processes), 8)
    try:
        print(train(override(experiment, {"evals": (NextItemRetrieval(), Slow(float(seconds)))}), Path(workdir)))
    except KeyboardInterrupt:
        print("interrupted")
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "two_processes.py"
    path.write_text(PROGRAM)
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(program, workdir, seconds=0.0):
    """Two processes of four devices each."""
    port = str(free_port())
    flags = os.environ["XLA_FLAGS"].replace("host_platform_device_count=8", "host_platform_device_count=4")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": flags}
    commands = [[sys.executable, str(program), str(process), "2", port, str(workdir), str(seconds)] for process in range(2)]
    return [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]


def finish(processes):
    """The last line that each process printed, and what it said; fails if one did. Gloo prints as well."""
    answers = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    return [(printed.splitlines()[-1], said) for printed, said in answers]


@pytest.mark.slow
def test_two_processes_train_like_one(program, tmp_path):
    (first, said), (second, nothing) = finish(start(program, tmp_path / "two"))
    assert first == second and "'step': 8" in first
    assert "step 8/8" in said and "step 8/8" not in nothing  # one process speaks
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 8  # four reports, four evaluations
    train(load(program), tmp_path / "one")
    for workdir in ("best", "checkpoints"):
        (two, step), (one, one_step) = read_params(tmp_path / "two"), read_params(tmp_path / "one")
        assert step == one_step and two.keys() == one.keys()
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-5, err_msg=name)
        if workdir == "best":  # then compare the newest states
            for run in ("one", "two"):
                (tmp_path / run / "best").rename(tmp_path / run / "was_best")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_one_step(program, tmp_path):
    processes = start(program, tmp_path, seconds=1.0)
    while not (tmp_path / "metrics.jsonl").exists() or "slow" not in (tmp_path / "metrics.jsonl").read_text():
        assert all(process.poll() is None for process in processes), [process.communicate() for process in processes]
        time.sleep(0.05)
    processes[1].terminate()
    (first, said), (second, _) = finish(processes)
    assert first == second == "interrupted" and "is saved. Run the same command again to continue." in said
    step = int(said.split("interrupted; step ")[1].split()[0])
    assert 2 < step < 8
    (first, said), _ = finish(start(program, tmp_path, seconds=1.0))
    assert f"continuing at step {step}" in said and "'step': 8" in first
