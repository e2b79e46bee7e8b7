"""What keeping to a catalogue costs a generative recommender, as the catalogue grows: time per decoding step and memory of the trie.

    python -m benchmarks.trie_scale
    python -m benchmarks.trie_scale --width 2048 --levels 8 --most 1_000_000

The time is that of finding and scoring the children of all beams' nodes (the mask), without the model. Beside it stand a whole search with a decoder that
does nothing, with and without the trie (`search`, `free`), and the mask with a deny-list. STATIC (Su et al. 2026, arXiv 2602.22647) reports .033 ms a
step on accelerators: quoted as published, on another device and other sizes, so no ratio is given.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.ops.decode import beam_search, candidates, restrict
from jaxrec.ops.trie import Trie

SHAPES = ((16, 10), (64, 50))  # batch x beams
DENIED = 50  # items per request
PUBLISHED = {"STATIC": 0.033, "unit": "ms/step", "source": "arXiv 2602.22647, abstract"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="codes per level")
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--most", type=int, default=10_000_000, help="items of the largest catalogue; the smallest has 1,000")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sizes = [10**power for power in range(3, 10) if 10**power <= options.most]
    record("trie_scale", [measure(items, options.width, options.levels, options.rounds) for items in sizes])


def measure(items: int, width: int, levels: int, rounds: int) -> dict[str, Any]:
    """One row: milliseconds per step by batch x beams, and the trie's size, for random semantic IDs."""
    codes = np.random.default_rng(0).integers(0, width, (items, levels), np.int32)
    begin = time.perf_counter()
    built = Trie.build(codes, (width,) * levels)
    seconds = time.perf_counter() - begin
    trie = jax.device_put(built)
    found = {f"{batch} x {beams}": times(trie, batch, beams, rounds) for batch, beams in SHAPES}
    memory = sum(array.nbytes for array in jax.tree.leaves(built))
    row = {
        "name": f"{items:,} items, {levels} levels of {width}",
        "ours": {shape: by["mask"] for shape, by in found.items()},
        "unit": "ms/step",
        **{f"{what}_ms_per_step": {shape: by[what] for shape, by in found.items()} for what in ("deny", "search", "free")},
        "denied": DENIED,
        "bytes": memory,
        "bytes_per_item": round(memory / items, 1),
        "build_s": round(seconds, 2),
        "nodes": built.sizes.nodes,
        "branching": built.sizes.branching,
        "published": PUBLISHED,
    }
    say(f"  {row['name']}: {row['ours']} ms a step, {memory / 2**20:.1f} MiB, built in {seconds:.1f} s")
    return row


def times(trie: Trie, batch: int, beams: int, rounds: int) -> dict[str, float]:
    """Median milliseconds per step of the mask (the mean of the levels), of it with a deny-list, and of searches with and without the trie."""
    random = np.random.default_rng(1)
    widths = trie.sizes.widths
    scores = jnp.asarray(random.normal(size=(batch, beams, max(widths))), jnp.float32)
    denied = jnp.asarray(random.integers(1, trie.sizes.items + 1, (batch, DENIED)), jnp.int32)
    places = random.integers(0, trie.sizes.items, (batch, beams))  # beams at random items' prefixes

    def idle(level: int, codes: jax.Array | None, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
        return cache[..., : widths[level]], cache

    def mask(level: int) -> Callable[..., Any]:
        return jax.jit(lambda trie, node, scores, denied: candidates(trie, level, node, scores, None if denied is None else restrict(trie, deny=denied)))

    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    for level, width in enumerate(widths):
        node = trie.above(level - 1, jnp.asarray(places))[0] if level else jnp.zeros((batch, 1), jnp.int32)
        own = scores[:, : node.shape[1], :width]
        calls[f"mask {level}"] = mask(level), (trie, node, own, None)
        calls[f"deny {level}"] = mask(level), (trie, node, own, denied)
    calls["search"] = jax.jit(lambda trie, scores: beam_search(idle, scores, beams=beams, trie=trie)), (trie, scores[:, :1])
    calls["free"] = jax.jit(lambda scores: beam_search(idle, scores, beams=beams, widths=widths)), (scores[:, :1],)
    found = medians(calls, rounds)
    means = {what: statistics.mean(found[f"{what} {level}"] for level in range(len(widths))) for what in ("mask", "deny")}
    return {what: round(value, 4) for what, value in (means | {what: found[what] / len(widths) for what in ("search", "free")}).items()}


def medians(calls: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns, so that a busy machine is busy for all."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, (call, arguments) in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            if turn:  # the first one compiles
                spent[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(turns) for name, turns in spent.items()}


if __name__ == "__main__":
    main()
