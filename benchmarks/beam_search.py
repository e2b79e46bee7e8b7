"""How fast semantic IDs are generated: our compiled beam search beside Hugging Face `generate`.

    JAXREC_TORCH_PYTHON=/venv/with/torch/and/transformers/bin/python python -m benchmarks.beam_search

TIGER's sizes (4 + 4 layers of 128, 6 heads of 64), 12,101 items of 4 codes, histories of 20 items, batches of 16, random weights: cost does not
depend on them. Both take turns in one run on the same threads; the median of the turns counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.methods.generative.sid_generator import Sids
from jaxrec.methods.generative.tiger import TIGER
from jaxrec.ops.trie import Trie
from jaxrec.param import create, flatten, unflatten

ITEMS, CODES, HISTORY, BATCH = 12_101, 256, 20, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    codes = made_up_codes(random)
    history = random.integers(1, ITEMS + 1, (BATCH, HISTORY)).astype(np.int32)
    python = os.environ.get("JAXREC_TORCH_PYTHON")
    if not python:
        say("JAXREC_TORCH_PYTHON is not set: only our side is timed. Set it to a Python that has torch, transformers and numpy.")
    method, params = ours(codes)
    with tempfile.TemporaryDirectory() as folder:
        peer = Process(python, "tiger_generate.py", cores()) if python else None
        if peer is not None:
            np.savez(Path(folder) / "work.npz", codes=codes, history=history)
            peer.ask(open=str(Path(folder) / "work.npz"), model={name: getattr(method, name) for name in ("dim", "hidden", "head", "heads", "layers")})
        for beams in options.beams:
            for constrained in (True, False):
                record("beam_search", [compare(method, params, history, peer, beams, constrained, options.rounds)])
        if peer is not None:
            peer.close()


def made_up_codes(random: np.random.Generator) -> np.ndarray:
    """[N, 4]: an uneven first level, two even ones, and a digit that tells equal triples apart."""
    share = random.dirichlet(np.full(CODES, 0.5))
    codes = np.stack([random.choice(CODES, ITEMS, p=share), random.integers(0, CODES, ITEMS), random.integers(0, CODES, ITEMS)], axis=1)
    seen: dict[tuple[int, ...], int] = {}
    digit = np.zeros(ITEMS, int)
    for item, triple in enumerate(map(tuple, codes.tolist())):
        digit[item] = seen[triple] = seen.get(triple, -1) + 1
    return np.concatenate([codes, digit[:, None]], axis=1)


def ours(codes: np.ndarray) -> tuple[TIGER, object]:
    """TIGER of the published size over these IDs, with random weights."""
    trie = Trie.build(codes, (codes.max(axis=0) + 1).tolist())
    sizes = trie.sizes
    sids = Sids("sid", sizes.items, sizes.bucket, sizes.widths, sizes.nodes, sizes.branching, sizes.dense, draw=0)
    method = TIGER(sids=sids, segments=1)
    named = {f"sids.trie.{name}": jnp.asarray(leaf) for name, leaf in flatten(trie).items()}
    named["sids.codes"] = jnp.asarray(np.concatenate([np.full((1, codes.shape[1]), -1), codes]), jnp.int32)
    params = create(method.spec(), jax.random.key(0))
    return method, unflatten(params, flatten(params) | named)


def compare(method: TIGER, params: object, history: np.ndarray, peer: Process | None, beams: int, constrained: bool, rounds: int) -> dict:
    """One result: users a second of both."""
    chosen = dataclasses.replace(method, constrained=constrained)
    generate = jax.jit(functools.partial(chosen.generate, beams=beams))
    segment = (history > 0).astype(np.int32)
    batch = {"history": history, "segment": segment, "position": np.arange(history.shape[1], dtype=np.int32)[None] * segment}
    _, items, _ = jax.block_until_ready(generate(params, batch))
    turns: list[float] = []
    theirs: list[float] = []
    valid = None
    if peer is not None:
        peer.ask(time=beams, constrained=constrained, calls=1)
    for number in range(rounds):
        begin = time.perf_counter()
        calls = 0
        while time.perf_counter() - begin < 2 or not calls:
            jax.block_until_ready(generate(params, batch))
            calls += 1
        turns.append((time.perf_counter() - begin) / calls)
        if peer is not None:
            answer = peer.ask(time=beams, constrained=constrained, calls=1)
            theirs.append(answer["seconds"])
            valid = answer["valid"]
        say(f"  {beams} beams, turn {number + 1} of {rounds}: {1e3 * turns[-1]:.0f} ms" + (f", peer {1e3 * theirs[-1]:.0f} ms" if theirs else ""))
    mine, other = statistics.median(turns), statistics.median(theirs) if theirs else None
    return {
        "name": f"{beams} beams, {'constrained' if constrained else 'free'}: Hugging Face generate",
        "ours": round(len(history) / mine, 1),
        "peer": None if other is None else round(len(history) / other, 2),
        "unit": "users/s",
        "valid": {"ours": round(float((np.asarray(items) > 0).mean()), 4), "peer": valid},
        "threads": cores(),
        "versions": peer.versions if peer is not None else {},
    }


if __name__ == "__main__":
    main()
