"""How fast SASRec trains: packed against padded rows, and against the same model in torch.

    JAXREC_DATA_DIR=... JAXREC_TORCH_PYTHON=/venv/with/torch/bin/python python -m benchmarks.sasrec_step

Every optimiser step of a comparison sees the same number of histories; all contenders take turns in one run, on the same threads, and the median of
their turns counts. Without JAXREC_DATA_DIR the histories are made up, with the sizes of the data set; without JAXREC_TORCH_PYTHON torch is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.data.batches import Batches
from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.builders.movielens import MovieLens
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.method import bind
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.optimizer import Adam
from jaxrec.sharding import Layout
from jaxrec.train.step import make_runner

BUCKETS = (8, 16, 32, 50)
KEPT = 8  # batches that come round in turn
Batch = dict[str, np.ndarray]


class Ours:
    """Our step on batches in memory. A part is (how many such steps count as one, its batches); each part's shape is a program of its own."""

    def __init__(self, method: SASRec, parts: list[tuple[float, list[Batch]]]):
        self._runner = make_runner(method, Adam(warmup=0.0).build(1), Layout())
        self._state, self._parts = self._runner.start(), parts

    def time(self, steps: int) -> tuple[float, float]:
        """(wall, CPU) seconds of one step, from `steps` steps of each part."""
        wall = cpu = 0.0
        for share, batches in self._parts:
            begin = time.perf_counter(), time.process_time()
            for number in range(steps):
                self._state, metrics = self._runner.run(self._state, [batches[number % len(batches)]])
                float(metrics["loss"][0])
            wall += share * (time.perf_counter() - begin[0]) / steps
            cpu += share * (time.process_time() - begin[1]) / steps
        return wall, cpu


class Torch:
    """The twin's step on the same batches."""

    def __init__(self, process: Process, name: str, method: SASRec, batches: list[Batch], *, packing: bool, loss_name: str, folder: Path):
        self._process, self._name = process, name
        arrays = {key: np.stack([batch[key] for batch in batches]) for key in ("history", "target", "segment", "position")}
        np.savez(folder / "batches.npz", **arrays)  # type: ignore[arg-type]
        sizes = {key: getattr(method, key) for key in ("items", "length", "dim", "layers", "heads", "dropout", "negatives")}
        process.ask(open=name, batches=str(folder / "batches.npz"), model={**sizes, "packing": packing, "loss_name": loss_name})

    def time(self, steps: int) -> tuple[float, float]:
        """(wall, CPU) seconds of one step, from `steps` of them."""
        answer = self._process.ask(time=self._name, steps=steps)
        return answer["seconds"] / steps, answer["cpu"] / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["beauty", "ml1m"], default=["beauty", "ml1m"])
    parser.add_argument("--losses", nargs="+", choices=["bce", "sampled_softmax", "softmax"], default=["bce", "sampled_softmax", "softmax"], help="of ml1m")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=1.5, help="least length of a turn")
    options = parser.parse_args()
    python = os.environ.get("JAXREC_TORCH_PYTHON")
    if not python:
        say("JAXREC_TORCH_PYTHON is not set: torch is left out. Set it to a Python that has torch and numpy.")
    torch = Process(python, "sasrec_torch.py", cores()) if python else None
    with tempfile.TemporaryDirectory() as folder:
        if "beauty" in options.shapes:
            record("sasrec_step", beauty(torch, Path(folder), options))
        for loss_name in options.losses if "ml1m" in options.shapes else ():
            record("sasrec_step", ml1m(loss_name, torch, Path(folder), options))
    if torch is not None:
        torch.close()


def beauty(torch: Process | None, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Short histories: what packing gives, and what is left of it against torch with the same packing."""
    real = bool(os.environ.get("JAXREC_DATA_DIR"))
    data = Sequences(AmazonP5("beauty") if real else Synthetic(users=22_363, items=12_101, length=9.0), batch=128)
    method = bind(SASRec(dim=64, negatives=512), data.info())
    histories = round(data.batch * data.examples_per_row())
    padded = dataclasses.replace(data, packing=False, batch=histories)
    batches = {"packed": take(data.batches()), "padded": take(padded.batches())}
    contenders: dict[str, Ours | Torch] = {name: Ours(method, [(1.0, kept)]) for name, kept in batches.items()}
    contenders["buckets"] = Ours(method, list(bucketed(padded.rows(), histories)))
    if torch is not None:
        for name, kept in batches.items():
            contenders[f"torch {name}"] = Torch(torch, f"beauty {name}", method, kept, packing=name == "packed", loss_name=method.loss_name, folder=folder)
    named = {
        "padded": "packed rows of 64, ours padded to 50",
        "buckets": f"packed rows of 64, ours in length buckets {BUCKETS}",
        "torch packed": "packed rows of 64, torch with the same packing",
        "torch padded": "packed rows of 64, torch padded to 50",
    }
    pairs = [("packed", peer, f"beauty, sampled softmax 512: {what}") for peer, what in named.items()]
    return compare(contenders, pairs, histories, "Amazon Beauty" if real else "made up, of the size of Amazon Beauty", torch, options)


def ml1m(loss_name: str, torch: Process | None, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Long histories: the same padded batches as torch, and packed ones."""
    real = bool(os.environ.get("JAXREC_DATA_DIR"))
    source = MovieLens("1m") if real else Synthetic(users=6040, items=3416, length=165.5)
    padded = Sequences(source, batch=128, length=200, packing=False)
    packed = dataclasses.replace(padded, packing=True, row=256)
    packed = dataclasses.replace(packed, batch=round(padded.batch / packed.examples_per_row()))
    negatives = 1 if loss_name == "bce" else 256
    method = bind(SASRec(dim=50, dropout=0.2, loss_name=loss_name, negatives=negatives), padded.info())  # type: ignore[arg-type]
    batches = {"padded": take(padded.batches()), "packed": take(packed.batches())}
    whole = padded.batch / (packed.batch * packed.examples_per_row())  # rows are whole, so a packed step is a little more or less than the padded one
    contenders: dict[str, Ours | Torch] = {name: Ours(method, [(whole if name == "packed" else 1.0, kept)]) for name, kept in batches.items()}
    label = f"ml-1m, {loss_name}" + ("" if loss_name == "softmax" else f" {negatives}")
    pairs = [("padded", "torch", f"{label}: padded to 200, torch padded to 200"), ("packed", "torch", f"{label}: packed rows of 256, torch padded to 200")]
    if torch is not None:
        contenders["torch"] = Torch(torch, label, method, batches["padded"], packing=False, loss_name=loss_name, folder=folder)
    if loss_name == "bce":
        own = f"{label}: padded to 200 with shared negatives, torch padded to 200 with a negative per token"
        pairs.append(("padded", "torch own", own))
        if torch is not None:
            contenders["torch own"] = Torch(torch, own, method, batches["padded"], packing=False, loss_name="bce_own", folder=folder)
    return compare(contenders, pairs, padded.batch, "MovieLens 1M" if real else "made up, of the size of MovieLens 1M", torch, options)


def compare(
    contenders: dict[str, Ours | Torch],
    pairs: list[tuple[str, str, str]],
    histories: int,
    data: str,
    torch: Process | None,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Lets the contenders take turns and gives a result for each pair (ours, peer, name) of which both are there."""
    steps = {}
    for name, contender in contenders.items():  # the first call compiles
        contender.time(1)
        steps[name] = max(1, round(options.seconds / contender.time(1)[0]))
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        for name, contender in contenders.items():
            turns[name].append(contender.time(steps[name]))
        say(f"  turn {number + 1} of {options.rounds}: " + ", ".join(f"{name} {1e3 * turns[name][-1][0]:.0f} ms" for name in contenders))
    wall, cpu = ({name: statistics.median(turn[which] for turn in turns[name]) for name in contenders} for which in (0, 1))
    return [
        {
            "name": name,
            "ours": round(histories / wall[ours], 1),
            "peer": round(histories / wall[peer], 1),
            "ratio": round(wall[peer] / wall[ours], 3),
            "unit": "histories/s",
            "cpu_ms_per_step": {"ours": round(1e3 * cpu[ours], 1), "peer": round(1e3 * cpu[peer], 1)},
            "ratio_of_turns": [round(min(ratios), 3), round(max(ratios), 3)],
            "histories_per_step": histories,
            "threads": cores(),
            "data": data,
            "versions": torch.versions if torch is not None and isinstance(contenders[peer], Torch) else {},
        }
        for ours, peer, name in pairs
        if peer in contenders
        for ratios in [[other[0] / own[0] for own, other in zip(turns[ours], turns[peer], strict=True)]]
    ]


def take(batches: Batches) -> list[Batch]:
    """The first batches of an endless sequence."""
    return [batches[number] for number in range(KEPT)]


def bucketed(rows: dict[str, np.ndarray], histories: int) -> Iterator[tuple[float, list[Batch]]]:
    """(share of the histories, batches) of each bucket, cut to its length, from rows [U, T] of one history each."""
    lengths = np.sum(rows["segment"] > 0, axis=1)
    for low, high in zip((0, *BUCKETS), BUCKETS):
        members = np.flatnonzero((low < lengths) & (lengths <= high))
        if len(members):
            arrays = {name: array[members][:, :high] for name, array in rows.items()}
            yield len(members) / len(lengths), take(Batches({**arrays, "mask": (arrays["target"] > 0).astype(np.float32)}, histories))


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main()
