"""How fast language models write: our compiled loop beside `generate` of transformers, on the same random model.

    JAXREC_TORCH_PYTHON=/venv/with/torch/and/transformers/bin/python python -m benchmarks.generation

A Llama of 110M parameters in float32, prompts of 128 tokens and 64 greedy ones after them, one text at a time and sixteen. Both read one folder of
weights, write the same tokens, and take turns in one run on the same threads; the median of the turns counts. Each result also says how long our
reading of the prompts takes, and how many GB of weights a second the writing reads, which bounds it for one text, beside how fast this machine reads
memory at all.
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
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.language_model import Decoder
from jaxrec.ops.sampling import greedy, start, write

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "intermediate_size": 2048,
    "tie_word_embeddings": True,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not (python := os.environ.get("JAXREC_TORCH_PYTHON")):
        raise SystemExit("JAXREC_TORCH_PYTHON is not set, and transformers writes the model; set it to a Python that has torch and transformers")
    peer = Process(python, "language_models_torch.py", cores())
    with tempfile.TemporaryDirectory() as folder:
        parameters = peer.ask(make=folder, config=CONFIG)["parameters"]
        say(f"{parameters / 1e6:.0f}M parameters")
        peer.ask(open=folder)
        model = language_families.from_config(safetensors_files.read_config(Path(folder)))
        params = language_families.from_hf(model, safetensors_files.open_tensors(Path(folder)), stacked=False)
        for batch in options.batches:
            ids = np.random.default_rng(batch).integers(1, CONFIG["vocab_size"], (batch, options.prompt)).astype(np.int32)
            record("generation", [compare(ours(options.prompt, options.new), params, ids, peer, options.new, options.rounds)])
    peer.close()


def ours(prompt: int, new: int) -> Callable[[Decoder, Any], jax.Array]:
    """The tokens [B, new] that follow prompts [B, prompt]."""

    @jax.jit
    def generate(params: Decoder, ids: jax.Array) -> jax.Array:
        writing = start(*params.prefill(ids, jnp.ones_like(ids), slots=prompt + new), room=new)
        return write(params.step, greedy, writing, until=new).ids

    return generate


def reading(params: Decoder, ids: np.ndarray, new: int) -> float:
    """Seconds to read the prompts, the least of three."""
    prefill = jax.jit(lambda params, ids: params.prefill(ids, jnp.ones_like(ids), slots=ids.shape[1] + new))
    jax.block_until_ready(prefill(params, ids))
    return min(_seconds(lambda: prefill(params, ids)) for _ in range(3))


def bandwidth() -> float:
    """Bytes a second that one sum over 1 GB reads."""
    array = jnp.ones(2**28)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    return array.nbytes / min(_seconds(lambda: total(array)) for _ in range(5))


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def compare(generate: Callable[[Decoder, Any], jax.Array], params: Decoder, ids: np.ndarray, peer: Process, new: int, rounds: int) -> dict[str, Any]:
    """One result: tokens a second of both, prompts included in the time."""
    found = np.asarray(generate(params, ids))
    theirs = np.asarray(peer.ask(generate=ids.tolist(), new=new, calls=1)["ids"])
    same = float((found == theirs).mean())
    if same < 0.9:  # rounding may turn one token, and all that follow it
        raise AssertionError(f"only {same:.0%} of the tokens are the same; they do not do the same work")
    turns: list[float] = []
    others: list[float] = []
    for number in range(rounds):
        turns.append(_seconds(lambda: generate(params, ids)))
        others.append(peer.ask(generate=ids.tolist(), new=new, calls=1)["seconds"])
        say(f"  batch {len(ids)}, turn {number + 1} of {rounds}: {turns[-1]:.2f} s, transformers {others[-1]:.2f} s")
    mine, other = statistics.median(turns), statistics.median(others)
    prompts = reading(params, ids, new)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    return {
        "name": f"batch {len(ids)}: transformers generate",
        "ours": round(found.size / mine, 1),
        "peer": round(found.size / other, 1),
        "unit": "tokens/s",
        "same tokens": round(same, 4),
        "seconds": round(mine, 2),
        "of which prompts": round(prompts, 2),
        "weights read, GB/s": round(weights * new / (mine - prompts) / 1e9, 1),
        "memory read, GB/s": round(bandwidth() / 1e9, 1),
        "threads": cores(),
        "versions": peer.versions,
    }


if __name__ == "__main__":
    main()
