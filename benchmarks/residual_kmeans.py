"""How good and how fast residual k-means is: ours against faiss and scikit-learn.

    JAXREC_FAISS_PYTHON=/venv/with/faiss/bin/python python -m benchmarks.residual_kmeans

12,101 x 768 made-up vectors of norm 1 around 600 centres, 3 levels of 256 codes, 20 iterations. Everybody computes in one thread, and CPU seconds count,
because they hold where other work shares the machine; contenders take turns in one run, and the median of their turns counts. Errors are relative to the
variance. Without JAXREC_FAISS_PYTHON only ours is measured.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # jax and BLAS read these when they are imported
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.ops.quantize import reconstruct, residual_codes, residual_kmeans

LEVELS, CODES, ITERATIONS = 3, 256, 20
Turn = dict[str, float]


def made_up(items: int = 12_101, width: int = 768, centres: int = 600) -> np.ndarray:
    """[items, width] float32 of norm 1, around random centres."""
    random = np.random.default_rng(0)
    centre = random.standard_normal((centres, width), np.float32)
    vectors = centre[random.integers(centres, size=items)] + 0.7 * random.standard_normal((items, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours(vectors: np.ndarray, seed: int) -> Turn:
    """One fit and the assignment of its vectors."""
    wall, cpu = time.perf_counter(), time.process_time()
    codebooks = residual_kmeans(jnp.asarray(vectors), LEVELS, CODES, jax.random.key(seed), iterations=ITERATIONS)
    codes = jax.block_until_ready(residual_codes(jnp.asarray(vectors), codebooks)[0])
    spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    left = vectors.astype(np.float64) - np.asarray(reconstruct(codes, codebooks))
    return {**spent, "error": float((left**2).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    options = parser.parse_args()
    vectors = made_up()
    variance = float(((vectors - vectors.mean(axis=0, dtype=np.float64)) ** 2).sum())
    python = os.environ.get("JAXREC_FAISS_PYTHON")
    if not python:
        say("JAXREC_FAISS_PYTHON is not set: peers are left out. Set it to a Python that has faiss, scikit-learn and numpy.")
    peers = Process(python, "residual_kmeans_peers.py", 1) if python else None
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "vectors.npy", vectors)
        contenders: dict[str, Callable[[int], Turn]] = {"ours": lambda seed: ours(vectors, seed)}
        if peers is not None:
            size = {"levels": LEVELS, "codes": CODES, "iterations": ITERATIONS}
            for name in ("faiss", "sklearn"):
                contenders[name] = lambda seed, name=name: peers.ask(fit=name, vectors=str(Path(folder) / "vectors.npy"), seed=seed, **size)
        ours(vectors, 0)  # compiles
        turns: dict[str, list[Turn]] = {name: [] for name in contenders}
        for seed in range(options.rounds):
            for name, contender in contenders.items():
                turns[name].append(contender(seed))
                say(f"  turn {seed + 1}: {name} {turns[name][-1]['cpu']:.1f} CPU s, error {turns[name][-1]['error'] / variance:.4f}")
    record("residual_kmeans", rows(turns, variance, peers.versions if peers is not None else {}))
    if peers is not None:
        peers.close()


def rows(turns: dict[str, list[Turn]], variance: float, versions: dict[str, str]) -> list[dict[str, Any]]:
    """A result for the time and one for the error, against each peer."""
    middle = {name: {what: statistics.median(turn[what] for turn in mine) for what in ("seconds", "cpu", "error")} for name, mine in turns.items()}
    found = []
    for peer in [name for name in turns if name != "ours"] or [None]:
        against = f" against {peer}" if peer else ""
        for name, what, unit, scale in (("time", "cpu", "CPU s", 1.0), ("error", "error", "relative MSE", 1 / variance)):
            values = {"ours": middle["ours"][what] * scale, "peer": middle[peer][what] * scale if peer else None}
            found.append(
                {
                    "name": f"residual k-means {name}{against}",
                    **{who: None if value is None else round(value, 4) for who, value in values.items()},
                    "unit": unit,
                    "wall_seconds": {who: round(middle[who]["seconds"], 2) for who in ("ours", *([peer] if peer else []))},
                    "all_turns": {who: [round(turn[what] * scale, 4) for turn in turns[who]] for who in ("ours", *([peer] if peer else []))},
                    "work": f"12,101 x 768, {LEVELS} levels of {CODES} codes, {ITERATIONS} iterations",
                    "threads": 1,
                    "data": "made up",
                    "versions": versions,
                }
            )
    return found


if __name__ == "__main__":
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main()
