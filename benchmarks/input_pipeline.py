"""How fast batches are read, against how fast a training step eats them: the input never holds the step up.

    JAXREC_DATA_DIR=... python -m benchmarks.input_pipeline

Two data sets: Amazon Beauty packed into rows of 64 tokens, and a million rows of 64 tokens on disk. Reading and stepping take turns in one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from benchmarks.sasrec_step import Ours, take
from jaxrec.artifact import say
from jaxrec.data.batches import Batches, BatchIterator
from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.method import bind
from jaxrec.methods.sequential.sasrec import SASRec

ROW = 64  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large data set")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    options = parser.parse_args()
    real = bool(os.environ.get("JAXREC_DATA_DIR"))
    data = Sequences(AmazonP5("beauty") if real else Synthetic(users=22_363, items=12_101, length=9.0), batch=128)
    method = bind(SASRec(dim=64, negatives=512), data.info())
    record("input_pipeline", measure("beauty", data.batches(), Ours(method, [(1.0, take(data.batches()))]), data.examples_per_row(), options))
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing {options.rows:,} rows")
        batches = Batches(write_rows(Path(folder), options.rows, method.items), data.batch)
        label = f"{options.rows:,} rows on disk"
        record("input_pipeline", measure(label, batches, Ours(method, [(1.0, take(batches))]), 1.0, options))


def measure(label: str, batches: Batches, step: Ours, examples_per_row: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches per second of both iterators against those of the step."""
    iterators: dict[str, Iterator[Any]] = {"grain": batches.iterate(), "plain": BatchIterator(batches)}
    step.time(1)  # compiles
    for iterator in iterators.values():
        next(iterator)
    read: dict[str, list[float]] = {name: [] for name in iterators}
    eaten = []
    for number in range(options.rounds):
        for name, iterator in iterators.items():
            read[name].append(rate(iterator, options.seconds))
        eaten.append(1 / step.time(max(1, round(options.seconds * (eaten[-1] if eaten else 1))))[0])
        say(f"  turn {number + 1} of {options.rounds}: " + ", ".join(f"{name} {read[name][-1]:.0f}/s" for name in iterators) + f", step {eaten[-1]:.1f}/s")
    need = statistics.median(eaten)
    return [
        {
            "name": f"{label}: {name} iterator, training step",
            "ours": round(statistics.median(rates), 1),
            "peer": round(need, 2),
            "unit": "batches/s",
            "histories_per_s": round(statistics.median(rates) * batches.size * examples_per_row),
            "rows_per_batch": batches.size,
        }
        for name, rates in read.items()
    ]


def rate(iterator: Iterator[Any], seconds: float) -> float:
    """Batches per second over a turn. The prefetched ones are taken first, so that only what is read now counts."""
    for _ in range(16):
        next(iterator)
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds:
        next(iterator)
        count += 1
    return count / passed


def write_rows(folder: Path, rows: int, items: int) -> dict[str, np.ndarray]:
    """[rows, ROW] arrays of one history each, by batch key, written to disk and memory-mapped."""
    random = np.random.default_rng(0)
    arrays = {}
    for name in ("history", "target", "segment", "position", "user", "mask"):
        path = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float32 if name == "mask" else np.int32, (rows, ROW))
        for first in range(0, rows, 50_000):
            block = array[first : first + 50_000]
            if name in ("history", "target"):
                block[:] = random.integers(1, items + 1, block.shape)
            else:
                block[:] = {"segment": 1, "mask": 1, "user": 0}.get(name, np.arange(ROW)[None] % 50)
        array.flush()
        arrays[name] = np.load(path, mmap_mode="r")
    return arrays


if __name__ == "__main__":
    main()
