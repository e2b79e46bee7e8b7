"""How fast MaxSim is on this machine: `kernels.maxsim` beside flat and padded torch and maxsim-cpu, on the same work.

    JAXREC_TORCH_PYTHON=/venv/with/torch/bin/python python -m benchmarks.maxsim

One query of 32 tokens against 1,000 documents of 180 tokens (uniform), 20 to 340 (ragged), or 8 to 1,024 with a long tail (skewed), all of 128
dimensions, float32. Both take turns in one run on the same threads; the median of the turns counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from kernels.maxsim import maxsim, maxsim_ragged
from kernels.shapes import RERANK, MaxSim

WORKLOADS = ("uniform", "ragged", "skewed")
CALLS = 20  # of a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    python = os.environ.get("JAXREC_TORCH_PYTHON")
    if not python:
        say("JAXREC_TORCH_PYTHON is not set: only our side is timed. Set it to a Python that has torch and numpy, and maxsim-cpu if you like.")
    for workload in WORKLOADS:
        queries, tokens, lengths = work(RERANK, workload)
        if workload == "uniform":
            score = jax.jit(maxsim)
            arguments = jax.device_put((queries, tokens.reshape(len(lengths), -1, RERANK.dim)))
        else:
            score = jax.jit(maxsim_ragged)
            arguments = jax.device_put((queries, tokens, np.r_[0, np.cumsum(lengths)].astype(np.int32)))
        names = ["flat", "padded", "maxsim-cpu"]
        record("maxsim", compare(workload, score, arguments, names, python, options.rounds, CALLS, queries=queries, tokens=tokens, lengths=lengths))


def work(shape: MaxSim, workload: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """queries [B, N, D], tokens [T, D] and lengths [C]; all vectors at unit length."""
    random = np.random.default_rng(0)
    mean = shape.document_tokens
    lengths = {
        "uniform": np.full(shape.documents, mean),
        "ragged": random.integers(20, 341, shape.documents),
        "skewed": np.clip(random.lognormal(np.log(2 * mean / 3), 0.9, shape.documents), 8, 1024).astype(int),
    }[workload]
    sizes = (shape.queries, shape.query_tokens, shape.dim), (int(lengths.sum()), shape.dim)
    queries, tokens = (random.standard_normal(size, dtype=np.float32) for size in sizes)
    return queries / np.linalg.norm(queries, axis=-1, keepdims=True), tokens / np.linalg.norm(tokens, axis=-1, keepdims=True), lengths


def compare(
    label: str, ours: Callable[..., Any], arguments: Any, names: list[str], python: str | None, rounds: int, calls: int, **arrays: np.ndarray
) -> list[dict[str, Any]]:
    """One result for each peer of `names` that is installed: milliseconds of ours and theirs, the ratio theirs / ours; and ours alone without any."""
    result = jax.block_until_ready(ours(*arguments))
    checksum = float(np.asarray(jax.tree.leaves(result)[0], np.float64).sum())
    turns: dict[str, list[float]] = {"ours": []}
    peer = Process(python, "maxsim_torch.py", cores()) if python else None
    with tempfile.TemporaryDirectory() as folder:
        if peer is not None:
            np.savez(Path(folder) / "work.npz", **arrays)
            there = peer.ask(open=str(Path(folder) / "work.npz"))["peers"]
            turns |= {name: [] for name in names if name in there}
            for name in turns.keys() - {"ours"}:
                answer = peer.ask(time=name, calls=1)
                if not np.isclose(answer["checksum"], checksum, rtol=1e-4):
                    raise AssertionError(f"{label}: {name} sums to {answer['checksum']}, ours to {checksum}; they do not do the same work")
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(ours(*arguments))
            turns["ours"].append((time.perf_counter() - begin) / calls)
            for name in turns.keys() - {"ours"}:
                assert peer is not None
                turns[name].append(peer.ask(time=name, calls=max(1, calls // 4))["seconds"])
    versions = peer.versions if peer is not None else {}
    if peer is not None:
        peer.close()
    medians = {name: 1e3 * statistics.median(each) for name, each in turns.items()}
    say(f"  {label}: " + ", ".join(f"{name} {median:.1f} ms" for name, median in medians.items()))
    mine = medians.pop("ours")
    rows = [
        {
            "name": f"{label}: {name}",
            "ours": round(mine, 2),
            "peer": round(theirs, 2),
            "ratio": round(theirs / mine, 3),
            "unit": "ms, ratio = times faster",
            "threads": cores(),
            "versions": versions,
        }
        for name, theirs in medians.items()
    ]
    return rows or [{"name": label, "ours": round(mine, 2), "unit": "ms", "threads": cores()}]


if __name__ == "__main__":
    main()
