"""Does our SASRec learn what an implementation in another framework learns? Torch's twin, fed the very same batches in the same order.

    JAXREC_DATA_DIR=... JAXREC_TORCH_PYTHON=/venv/with/torch/bin/python python -m benchmarks.sasrec_peer sasrec_ml1m [--minutes 9]

Ours is the run of `benchmarks.accuracy` with seed 0, at the checkpoint that validation chose; the twin is trained for as many steps. The two differ in
framework, initial values, dropout masks and sampled negatives. The twin's vectors are ranked by our evaluation. An interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.accuracy import METRICS, train_seed
from benchmarks.interrupt import add_minutes, interrupt_after
from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.data.examples import Examples
from jaxrec.evals.compare import Difference, compare
from jaxrec.evals.report import summarise
from jaxrec.evals.retrieval import Ranks, rank
from jaxrec.experiment import Experiment, load
from jaxrec.method import Batch, Encoder, Vectors
from jaxrec.stages.runs import evaluate_run

TOLD = ("history", "target", "segment", "position")  # what the twin reads of a batch
MOUTHFUL = 50  # steps between two files of batches, and between two saves


@dataclass(frozen=True)
class Given(Encoder):
    """Vectors that another system made: one for each user asked, one for each item."""

    def encode_query(self, params: dict[str, Any], batch: Batch) -> Vectors:
        return self._vectors(params["query"][batch["user"][:, 0]])

    def encode_item(self, params: dict[str, Any], batch: Batch) -> Vectors:
        return self._vectors(params["table"][batch["item"]])

    def _vectors(self, rows: Any) -> Vectors:
        return Vectors(rows[:, None], jnp.ones((len(rows), 1), bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", metavar="NAME", help="of a SASRec in experiments/, without .py")
    add_minutes(parser)
    options = parser.parse_args()
    python = os.environ.get("JAXREC_TORCH_PYTHON")
    if not python:
        parser.error("set JAXREC_TORCH_PYTHON to a Python that has torch and numpy")
    interrupt_after(options.minutes)
    experiment, workdir, trained = train_seed(load(Path("experiments") / f"{options.experiment}.py"), 0)
    ours = evaluate_run(experiment, workdir, "test")
    twin = Process(python, "sasrec_torch.py", cores())
    peer = train_twin(experiment.resolve(), trained["best_step"], twin, workdir.with_name(workdir.name + "-torch"))
    twin.close()
    names = ("jaxrec", "torch")
    record("sasrec_peer", results(options.experiment, trained["best_step"], ours, peer, compare(ours, peer, names=names), twin.versions))


def train_twin(experiment: Experiment, steps: int, twin: Process, workdir: Path) -> Ranks:
    """Trains the twin on the batches of the experiment and ranks the test targets by its vectors."""
    workdir.mkdir(parents=True, exist_ok=True)
    method, data, saved = experiment.method, experiment.data, str(workdir / "state.pt")
    sizes = {key: getattr(method, key) for key in ("items", "length", "dim", "layers", "heads", "dropout", "negatives", "loss_name")}
    warmup = round(experiment.optimizer.warmup * experiment.steps)
    done = twin.ask(start="twin", model={**sizes, "packing": data.packing}, warmup=warmup, **{"from": saved})["done"]
    batches = data.batches()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batches.npz"
        while done < steps:
            numbers = range(done, min(done + MOUTHFUL, steps))
            np.savez(file, **{key: np.stack([batches[number][key] for number in numbers]) for key in TOLD})  # type: ignore[arg-type]
            answer = twin.ask(learn="twin", batches=str(file), to=saved)
            done = answer["done"]
            say(f"torch: step {done:,}/{steps:,}  loss {answer['loss']:.4f}")
        return rank_vectors(data.examples("test"), twin, file, items=method.items, length=data.length)


def rank_vectors(examples: Examples, twin: Process, file: Path, *, items: int, length: int) -> Ranks:
    """Where the twin's vectors rank each target."""
    asked = [{key: batch[key] for key in ("history", "segment", "position")} for batch in examples.batches(256, length)]
    np.savez(file, **{key: np.stack([batch[key] for batch in asked]) for key in asked[0]})  # type: ignore[arg-type]
    answer = file.with_name("vectors.npz")
    twin.ask(encode="twin", batches=str(file), to=str(answer))
    with np.load(answer) as vectors:
        query = np.zeros((examples.user.max() + 1, vectors["query"].shape[1]), np.float32)
        query[examples.user] = vectors["query"][: len(examples)]
        return rank(Given(), {"query": query, "table": vectors["table"]}, examples, items=items, length=length)


def results(name: str, steps: int, ours: Ranks, peer: Ranks, differences: list[Difference], versions: dict[str, str]) -> list[dict[str, Any]]:
    """A result per protocol: both systems' metrics, and ours less the peer's with its 95 % interval over users."""
    found = []
    for own, other in zip(summarise(ours), summarise(peer), strict=True):
        apart = [each for each in differences if (each.seen, each.targets) == (own.seen, own.targets)]
        if own.targets == "cold targets" or not apart:
            continue
        values = {"ours": own, "peer": other}
        found.append(
            {
                "name": f"{name}, {own.seen}, {own.targets}",
                **{who: {metric: round(row.metrics[metric].mean, 5) for metric in METRICS} for who, row in values.items()},
                "ratio": None,
                "difference": {each.metric: [round(value, 5) for value in (each.mean, each.low, each.high)] for each in apart if each.metric in METRICS},
                "unit": "mean over users",
                "users": own.n,
                "steps": steps,
                "versions": versions,
            }
        )
    return found


if __name__ == "__main__":
    main()
