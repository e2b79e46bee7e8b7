"""MaxSim with compressed documents, and its top k while the documents stream by: time and memory beside float32 and beside decoding first.

    python -m benchmarks.maxsim_compressed
    python -m benchmarks.maxsim_compressed --queries 8

Queries of 32 tokens against documents of 180 tokens, 128 dimensions: as float32, as int8 with a scale for each token, and as centroids with residuals of
2 bits. Each is asked for its 10 best documents in one pass (`ours`), and beside it, in turns on the same threads: by all scores and then the largest; by
decoding all tokens first; by NumPy, which decodes a block at a time, as the indexes do. `temporaries` is what a program holds beside its inputs.
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

from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.index.compress import ResidualCodec, int8_codes, int8_vectors, unit
from jaxrec.index.exact import best
from jaxrec.index.multivector.packed import VECTORS, Packed, maxsim
from kernels.maxsim import maxsim_ragged
from kernels.maxsim_compressed import Int8Tokens, ResidualTokens, Tokens, maxsim_int8, maxsim_residual, reference
from kernels.maxsim_topk import maxsim_topk
from kernels.shapes import RERANK

K = 10
BLOCK = 4096  # tokens that NumPy decodes at a time
REST = 0.1  # seconds before each turn: threads of NumPy's products keep spinning after the last of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--centroids", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    queries, offsets, forms = work(options.queries, options.documents, options.centroids)
    turns = {form: turn(queries, offsets, tokens) for form, tokens in forms.items()}
    fused = {form: programs["one pass"] for form, programs in turns.items()}
    answers = {form: {name: np.asarray(run()[1]) for name, run in programs.items()} for form, programs in turns.items()}
    for form, found in answers.items():
        for name, rows in found.items():
            if not np.array_equal(rows, found["one pass"]):
                raise AssertionError(f"{form}: {name} finds other documents than one pass; they do not do the same work")
    rows = []
    for form, programs in turns.items():
        peers = programs | ({"float32 tokens": fused["float32"]} if form != "float32" else {})
        medians = compare(peers, options.rounds)
        say(f"  {form}: " + ", ".join(f"{name} {median:.1f} ms" for name, median in medians.items()))
        mine = medians.pop("one pass")
        size = {"bytes a token": sum(leaf.nbytes for leaf in jax.tree.leaves(per_token(forms[form]))) / len(forms[form])}
        held = {name: temporaries(program) for name, program in programs.items() if hasattr(program, "func")}
        for name, theirs in medians.items():
            memory = {"temporaries MB": round(held["one pass"] / 1e6, 2), "of the peer": round(held[name] / 1e6, 2) if name in held else None}
            rows.append(
                {
                    "name": f"{form}, {options.queries} x {options.documents}: one pass, beside {name}",
                    "ours": round(mine, 2),
                    "peer": round(theirs, 2),
                    "ratio": round(theirs / mine, 3),
                    "unit": "ms, ratio = times faster",
                    "threads": cores(),
                    **size,
                    **memory,
                }
            )
    record("maxsim_compressed", rows)


def work(queries: int, documents: int, centroids: int) -> tuple[jax.Array, jax.Array, dict[str, Tokens]]:
    """queries [B, N, D], offsets [C + 1], and the forms of the tokens; all vectors at unit length, but the centroids are any of them."""
    random, dim, length = np.random.default_rng(0), RERANK.dim, RERANK.document_tokens
    asked = unit(random.standard_normal((queries, RERANK.query_tokens, dim), dtype=np.float32))
    tokens = unit(random.standard_normal((documents * length, dim), dtype=np.float32))
    chosen = random.integers(0, centroids, len(tokens), np.uint16)
    book = unit(random.standard_normal((centroids, dim), dtype=np.float32))
    packed = random.integers(0, 256, (len(tokens), dim // 4), np.uint8)  # as good as any codes: time does not depend on them
    residual = ResidualTokens(jnp.asarray(book), jnp.asarray(chosen), jnp.asarray(packed), jnp.asarray([-0.1, -0.03, 0.03, 0.1], jnp.float32))
    forms = {"float32": jnp.asarray(tokens), "int8": Int8Tokens(*map(jnp.asarray, int8_codes(tokens))), "2-bit residuals": residual}
    return jnp.asarray(asked), jnp.arange(documents + 1, dtype=jnp.int32) * length, forms


def turn(queries: jax.Array, offsets: jax.Array, tokens: Tokens) -> dict[str, Callable[[], Any]]:
    """What finds the K best documents, by name; each gives (scores [B, K], rows [B, K])."""

    def scores(queries, tokens, offsets):
        if isinstance(tokens, Int8Tokens):
            return maxsim_int8(queries, tokens.codes, tokens.scales, offsets)
        if isinstance(tokens, ResidualTokens):
            return maxsim_residual(queries, tokens.centroids, tokens.codes, tokens.residuals, tokens.weights, offsets)
        return maxsim_ragged(queries, tokens, offsets)

    programs = {
        "one pass": functools.partial(maxsim_topk, k=K),
        "all scores": lambda *arguments: jax.lax.top_k(scores(*arguments), K),
    }
    if not isinstance(tokens, jax.Array):
        programs["decoded first"] = lambda queries, tokens, offsets: jax.lax.top_k(maxsim_ragged(queries, reference.vectors(tokens), offsets), K)
    runs: dict[str, Callable[[], Any]] = {name: functools.partial(jax.jit(program), queries, tokens, offsets) for name, program in programs.items()}
    host = jax.tree.map(np.asarray, (queries, tokens, offsets))
    return runs | {"NumPy by blocks": lambda: numpy_topk(*host)}


def numpy_topk(queries: np.ndarray, tokens: Any, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores [B, K], rows [B, K]) by blocks of decoded tokens."""
    columns: dict[str, Any]
    asked = Packed.of(np.full(len(queries), queries.shape[1]), **{VECTORS: queries.reshape(-1, queries.shape[-1])})
    if isinstance(tokens, Int8Tokens):
        columns, decode = {"codes": tokens.codes, "scales": tokens.scales}, lambda block: int8_vectors(block["codes"], block["scales"])
    elif isinstance(tokens, ResidualTokens):
        codec = ResidualCodec(np.asarray(tokens.centroids), np.zeros(len(tokens.weights) - 1, np.float32), np.asarray(tokens.weights))
        columns, decode = {"codes": tokens.codes, "residuals": tokens.residuals}, lambda block: codec.decode(block["codes"], block["residuals"])
    else:
        columns, decode = {VECTORS: tokens}, lambda block: block[VECTORS]
    blocks = Packed(offsets.astype(np.int64), columns).blocks(np.arange(len(offsets) - 1), BLOCK)
    scores = np.concatenate([maxsim(asked, decode(some.columns), some.offsets) for _, some in blocks], axis=1)
    rows, values = best(np.broadcast_to(np.arange(scores.shape[1]), scores.shape), scores, K)
    return values, rows


def compare(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turns."""
    turns: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(REST)
            begin = time.perf_counter()
            jax.block_until_ready(run())
            turns[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(each) for name, each in turns.items()}


def temporaries(program: Any) -> int:
    """Bytes that a bound program holds beside its arguments and its answer."""
    return program.func.lower(*program.args).compile().memory_analysis().temp_size_in_bytes


def per_token(tokens: Tokens) -> Any:
    """The arrays that have a row for each token."""
    return (tokens.codes, tokens.residuals) if isinstance(tokens, ResidualTokens) else tokens


if __name__ == "__main__":
    main()
