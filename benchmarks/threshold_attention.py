"""What threshold attention gains from the tiles it skips, and how many keys pass a gate that have nothing to do with the query.

    python -m benchmarks.threshold_attention

Time: the blocked kernel against itself without skipping, which does the same work on all tiles, and against the definition, which keeps all weights.
Queries and keys of 2,048 tokens are drawn around directions that whole tiles share, so that a known share of the tiles is live; they see each other
both ways. All take turns in one run, and the median of the turns counts. Directions that change from token to token leave hardly a tile dead: `touched`
is the share of live tiles for random vectors.

Survivors: random unit vectors, measured with the kernel and from the area of a spherical cap (threshold attention, arXiv 2601.12145, proves a bound).
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import betainc, betaincinv

from benchmarks.record import cores, record
from jaxrec.artifact import say
from kernels.threshold_attention import blocked, gates, reference, threshold_attention

SHAPE = (1, 2048, 4, 64)  # B, T, H, K
LIVE = (1, 4, 16)  # one tile in so many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dry", action="store_true", help="print the results and keep none")
    options = parser.parse_args()
    keep = (lambda rows: [say(f"  {row}") for row in rows]) if options.dry else functools.partial(record, "threshold_attention")
    for share in LIVE:
        keep(times(share, options.rounds))
    keep(touched())
    keep(noise())


def times(one_in: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds where one tile in `one_in` is live, forward, and forward and backward."""
    q, k, v, gate = clustered(one_in)
    live = share_of_live(q, k, v, gate, causal=False)
    if live != 1 / one_in:
        raise AssertionError(f"{live:.4f} of the tiles are live in place of {1 / one_in:.4f}; the clusters overlap")
    rows = []
    options = {"query_segment": None, "key_segment": None, "power": 2, "causal": False}
    for name, programs in {"forward": forwards(**options), "forward and backward": gradients(**options)}.items():
        medians = take_turns(programs, (q, k, v, gate), rounds)
        say(f"  {name}, {live:.2%} live: " + ", ".join(f"{program} {1e3 * each:.1f} ms" for program, each in medians.items()))
        milliseconds = {program: round(1e3 * each, 2) for program, each in medians.items()}
        ratio = round(medians["all tiles"] / medians["skipping"], 3)
        rows.append(
            {
                "name": f"{name}, {live:.2%} of tiles live",
                "ours": milliseconds["skipping"],
                "peer": milliseconds["all tiles"],
                "ratio": ratio,
                "unit": "ms, peer = the same kernel without skipping, ratio = times faster",
                "definition": milliseconds["definition"],
                "threads": cores(),
            }
        )
    return rows


def clustered(one_in: int) -> tuple[Array, Array, Array, Array]:
    """q, k, v and gate, of which tile i of queries passes tile j of keys where i and j are the same modulo `one_in`."""
    batch, tokens, heads, width = SHAPE
    keys = jax.random.split(jax.random.key(0), 3)
    centre = jnp.eye(width)[jnp.arange(tokens) // blocked.TILE % one_in][None, :, None]  # [1, T, 1, K]
    noise = (0.05 * jax.random.normal(key, SHAPE) for key in keys[:2])
    q, k = (unit(centre + each) for each in noise)
    return q, k, jax.random.normal(keys[2], SHAPE), jnp.full((batch, tokens, heads), 0.6)


def forwards(**options: Any) -> dict[str, Callable[..., Any]]:
    """Programs of (q, k, v, gate) that give o."""
    return {
        "skipping": jax.jit(functools.partial(threshold_attention, backend="blocked", **options)),
        "all tiles": jax.jit(lambda *inputs: blocked.forward(*inputs, skip=False, **options)[0]),
        "definition": jax.jit(functools.partial(reference.attend, **options)),
    }


def gradients(**options: Any) -> dict[str, Callable[..., Any]]:
    """Programs of (q, k, v, gate) that give o and the gradients of half its square."""

    def all_tiles(*inputs: Array) -> Any:
        o, live = blocked.forward(*inputs, skip=False, **options)
        return o, blocked.backward(o, live, *inputs, **options)

    def derived(attend: Callable[..., Array]) -> Callable[..., Any]:
        def both(*inputs: Array) -> Any:
            o, pullback = jax.vjp(attend, *inputs)
            return o, pullback(o)

        return jax.jit(both)

    return {
        "skipping": derived(functools.partial(threshold_attention, backend="blocked", **options)),
        "all tiles": jax.jit(all_tiles),
        "definition": derived(functools.partial(reference.attend, **options)),
    }


def take_turns(programs: dict[str, Callable[..., Any]], inputs: tuple[Array, ...], rounds: int) -> dict[str, float]:
    """Median seconds of a call of each program, after they have been found to agree."""
    results = {name: jax.block_until_ready(program(*inputs)) for name, program in programs.items()}
    for name, result in results.items():
        for actual, wanted in zip(jax.tree.leaves(result), jax.tree.leaves(results["definition"]), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4 * float(jnp.abs(wanted).max()), err_msg=name)
    turns: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            jax.block_until_ready(program(*inputs))  # not timed: whoever comes after the definition finds the caches full of its weights
            begin = time.perf_counter()
            jax.block_until_ready(program(*inputs))
            turns[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in turns.items()}


def touched() -> list[dict[str, Any]]:
    """The share of tiles that are live for random vectors: with gates that 1 % of the keys pass, and with those of the paper's beta = 1."""
    keys = jax.random.split(jax.random.key(0), 2)
    q, k = (unit(jax.random.normal(key, SHAPE)) for key in keys)
    batch, tokens, heads, width = SHAPE
    one_percent = np.sqrt(1 - betaincinv((width - 1) / 2, 0.5, 0.02))
    counts = jnp.arange(1, tokens + 1)[None, :, None]
    rows = []
    for name, gate in {"a gate that 1 % pass": jnp.asarray(one_percent, jnp.float32), "beta = 1": gates(counts, 1.0, 1.0, width)}.items():
        gate = jnp.broadcast_to(gate, (batch, tokens, heads))
        zeros = 1 - float(passing(q, k, gate, causal=True).sum()) / (batch * heads * tokens * (tokens + 1) / 2)
        live = share_of_live(q, k, k, gate, causal=True)
        rows.append({"name": f"live tiles, random vectors, {name}", "ours": round(live, 4), "zero_weights": round(zeros, 6), "unit": "share of causal tiles"})
    return rows


def noise() -> list[dict[str, Any]]:
    """Unrelated keys that pass the gate, and that pass those of two independent views, per query: measured, and `peer` the expectation."""
    rows = []
    for width in (16, 32, 64, 128):
        for keys in (16, 128, 1024, 4096):
            for beta in (0.5, 1.0):
                queries = 2**26 // keys // width * 4
                passed = np.asarray(survivors(jax.random.key(keys * width), queries, keys, width, beta), np.float64)
                label = f"passing keys per query, n = {keys}, d = {width}, beta = {beta}"
                rows.append(_against(label, passed.mean(), keys * tail(gates(jnp.array(keys), beta, 1.0, width), width), queries))
    for keys in (16, 64, 256):
        both = consensus(jax.random.key(keys), 2**18, keys, 64, 1.0)
        label = f"keys that pass in both views per query, n = {keys}, d = 64, beta = 1.0"
        rows.append(_against(label, both, keys * tail(gates(jnp.array(keys), 1.0, 1.0, 64), 64) ** 2, 2**18))
    return rows


def _against(name: str, measured: Any, expected: float, queries: int) -> dict[str, Any]:
    ratio = round(float(measured) / expected, 3) if expected else None
    error = round(float(np.sqrt(expected / queries)), 7)  # of a Poisson count
    return {
        "name": name,
        "ours": round(float(measured), 7),
        "peer": round(expected, 7),
        "ratio": ratio,
        "standard_error": error,
        "unit": "keys",
        "queries": queries,
    }


def tail(threshold: Array | float, width: int) -> float:
    """The probability that two random unit vectors of so many dimensions have a product above `threshold` >= 0."""
    return float(betainc((width - 1) / 2, 0.5, max(0.0, 1 - float(threshold) ** 2)) / 2)


def survivors(key: Array, queries: int, keys: int, width: int, beta: float) -> Array:
    """[queries] how many of random keys pass the gate of a random query, kappa = 1."""
    q, k = (unit(jax.random.normal(key, (1, tokens, 1, width))) for key, tokens in zip(jax.random.split(key), (queries, keys)))
    gate = jnp.broadcast_to(gates(jnp.array(keys), beta, 1.0, width), q.shape[:3])
    return passing(q, k, gate, causal=False)[0, :, 0]


def passing(q: Array, k: Array, gate: Array, *, causal: bool) -> Array:
    """[B, T, H] how many visible keys pass each query's gate: with power 1 and values of 1, minus the derivative to the gate."""
    values = jnp.ones((*k.shape[:3], 1))
    return jax.jit(jax.grad(lambda gate: -threshold_attention(q, k, values, gate, power=1, causal=causal, backend="blocked").sum()))(gate)


def consensus(key: Array, queries: int, keys: int, width: int, beta: float) -> float:
    """How many keys pass the gates of two independent views, per query; `queries` is a multiple of 4096."""
    gate = gates(jnp.array(keys), beta, 1.0, width)
    *parts, last = jax.random.split(key, 3)
    views = [unit(jax.random.normal(part, (keys, width))) for part in parts]

    @jax.jit
    def chunk(key: Array) -> Array:
        asked = [unit(jax.random.normal(part, (4096, width))) for part in jax.random.split(key)]
        first, second = (a @ view.T > gate for a, view in zip(asked, views))
        return (first & second).sum()

    return float(sum(int(chunk(part)) for part in jax.random.split(last, queries // 4096)) / queries)


def share_of_live(q: Array, k: Array, v: Array, gate: Array, *, causal: bool) -> float:
    """Live tiles, of those that hold a visible pair."""
    _, live = jax.jit(functools.partial(blocked.forward, query_segment=None, key_segment=None, power=2, causal=causal))(q, k, v, gate)
    heads, tiles = q.shape[0] * q.shape[2], q.shape[1] // blocked.TILE
    return float(live.sum()) / (heads * (tiles * (tiles + 1) / 2 if causal else tiles**2))


def unit(vectors: Array) -> Array:
    """The vectors at length 1."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
