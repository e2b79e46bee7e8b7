"""How exactly the language models and encoders compute what transformers computes, and what loading costs.

    JAXREC_TORCH_PYTHON=/venv/with/torch/and/transformers/bin/python python -m benchmarks.parity

One small random model of each family, written by transformers and read by us: the greatest difference of a logit (of an encoder: of a state of a text's
token, beside padding) from what transformers computes in float64, ours and transformers' own, in float32 and bfloat16. Then one model of `--dim` in
bfloat16 files: seconds to load it and the most memory that the loading process held above what it began with, in multiples of the weights as they are
loaded. With `--model FOLDER` a published model's own weights are compared instead (`benchmarks/peers/smollm2_folder.py` writes such a folder).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.process import Process
from benchmarks.record import cores, record
from jaxrec.artifact import say
from jaxrec.interop import safetensors_files, tokenizer_files
from jaxrec.nn import encoders, language_families

SMALL: dict[str, Any] = {
    "vocab_size": 70,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DTYPES = ("float64", "float32", "bfloat16")  # in this order: what bfloat16 has rounded stays rounded
GEMMA = SMALL | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama 2": {"model_type": "llama", **SMALL, "num_key_value_heads": 4},
    "Llama 3": {"model_type": "llama", **SMALL, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "Mistral": {"model_type": "mistral", **SMALL, "sliding_window": 5},
    "Qwen 2": {"model_type": "qwen2", **SMALL},
    "Qwen 3": {"model_type": "qwen3", **SMALL, "head_dim": 16},
    "Gemma 2": {"model_type": "gemma2", **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    "Gemma 3": {"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 8},
}
"""Configs small enough for a test, in which nothing that a family has is idle: windows are shorter than the texts, caps are reached."""
ENCODER = {name: size for name, size in SMALL.items() if name != "num_key_value_heads"} | {"pad_token_id": 0}
T5 = {"model_type": "t5", "vocab_size": 70, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_heads": 4, "relative_attention_max_distance": 24}
ENCODERS: dict[str, dict[str, Any]] = {
    "BERT": {"model_type": "bert", **ENCODER},
    "RoBERTa": {"model_type": "roberta", **ENCODER},
    "ModernBERT": {"model_type": "modernbert", **ENCODER, "num_hidden_layers": 8, "local_attention": 8},
    "T5, encoder": T5,
    "T5 1.1, encoder": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
"""The same for encoders: of the layers some are scanned and some are not."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--model", type=Path, help="measure this folder of a published language model alone")
    parser.add_argument("--only", choices=[*FAMILIES, *ENCODERS], help="measure this one alone")
    parser.add_argument("--load", type=Path, help="only load this folder and print what it cost (the benchmark calls itself so)")
    options = parser.parse_args()
    if options.load:
        print(json.dumps(loading(options.load)))
        return
    if not (python := os.environ.get("JAXREC_TORCH_PYTHON")):
        raise SystemExit("JAXREC_TORCH_PYTHON is not set, and parity is with transformers; set it to a Python that has torch and transformers")
    peer, other = (Process(python, script, cores()) for script in ("language_models_torch.py", "encoders_torch.py"))
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            peer.ask(open=str(options.model))
            rows = [compare(peer, f"{options.model.name} (its own weights)", options.model)]
        else:
            rows = [compare_random(peer, family, Path(folder) / family) for family in FAMILIES if options.only in (None, family)]
            rows += [compare_encoder(other, name, Path(folder) / name) for name in ENCODERS if options.only in (None, name)]
        if not (options.only or options.model):
            rows.append(load_cost(peer, Path(folder) / "large", options.dim, options.layers))
        record("parity", rows)
    peer.close()
    other.close()


def compare_random(peer: Process, family: str, folder: Path) -> dict[str, Any]:
    """`compare` for a small random model, made here."""
    peer.ask(make=str(folder), config=FAMILIES[family])
    return compare(peer, family, folder)


def compare(peer: Process, name: str, folder: Path) -> dict[str, Any]:
    """One result: the greatest differences of logits in float32 and bfloat16, of the model that the peer has made or opened last."""
    model = language_families.from_config(safetensors_files.read_config(folder))
    if (folder / "tokenizer.json").exists():  # a model that has learned is asked about text
        ids = np.array(tokenizer_files.open_tokenizer(folder, vocabulary=model.vocabulary).encode(Path(__file__).read_text()).ids[:192]).reshape(4, 48)
    else:
        ids = np.random.default_rng(0).integers(1, model.vocabulary - 6, (4, 48))
    theirs = {dtype: np.asarray(peer.ask(logits=ids.tolist(), dtype=dtype)["logits"]) for dtype in DTYPES}
    errors = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        params = language_families.from_hf(model, safetensors_files.open_tensors(folder), dtype=dtype)
        found = jax.jit(lambda params, ids: params.logits(params(ids)))(params, ids)
        errors[jnp.dtype(dtype).name] = float(np.abs(np.asarray(found, np.float64) - theirs["float64"]).max())
    return result(name, "logit", errors, theirs, peer)


def compare_encoder(peer: Process, name: str, folder: Path) -> dict[str, Any]:
    """One result: the greatest differences of states in float32 and bfloat16, of texts of several lengths."""
    random = np.random.default_rng(0)
    ids, mask = random.integers(1, 64, (4, 48)), (np.arange(48)[None] < np.array([[48], [31], [20], [3]])).astype(np.int32)
    peer.ask(make=str(folder), config=ENCODERS[name])
    texts = [row[: kept.sum()] for row, kept in zip(ids, mask, strict=True)]  # the peer reads each alone, without padding

    def states(dtype: str) -> np.ndarray:
        return np.concatenate([peer.ask(states=[text.tolist()], mask=[[1] * len(text)], dtype=dtype)["states"][0] for text in texts])

    theirs = {dtype: states(dtype) for dtype in DTYPES}
    model = encoders.from_config(safetensors_files.read_config(folder))
    params = model.from_hf(safetensors_files.read(folder))
    errors = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        chosen = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        found = jax.jit(lambda params, ids, mask: params(ids, mask))(chosen, ids, mask)
        errors[jnp.dtype(dtype).name] = float(np.abs(np.asarray(found, np.float64)[mask > 0] - theirs["float64"]).max())
    return result(name, "state", errors, theirs, peer)


def result(name: str, of: str, errors: dict[str, float], theirs: dict[str, np.ndarray], peer: Process) -> dict[str, Any]:
    """What is recorded of our errors and of what transformers computes in each of `DTYPES`."""
    say(f"  {name}: {errors['float32']:.1e} float32, {errors['bfloat16']:.1e} bfloat16")
    return {
        "name": f"{name}: greatest error of a {of}",
        "ours": float(f"{errors['float32']:.2g}"),
        "unit": "float32, against float64 of transformers",
        "bfloat16": float(f"{errors['bfloat16']:.2g}"),
        **{f"{dtype} of transformers": float(f"{np.abs(theirs[dtype] - theirs['float64']).max():.2g}") for dtype in DTYPES[1:]},
        f"greatest {of}": round(float(np.abs(theirs["float64"]).max()), 2),
        "versions": peer.versions,
    }


def load_cost(peer: Process, folder: Path, dim: int, layers: int) -> dict[str, Any]:
    """One result: seconds to load a larger model, ours in a process of its own."""
    sizes = {"hidden_size": dim, "num_hidden_layers": layers, "intermediate_size": 8 * dim // 3 // 64 * 64, "num_attention_heads": dim // 64}
    config = {"model_type": "llama", "vocab_size": 32_000, **sizes, "num_key_value_heads": dim // 64}
    parameters = peer.ask(make=str(folder), config=config)["parameters"]
    ours = json.loads(subprocess.run([sys.executable, "-m", "benchmarks.parity", "--load", str(folder)], check=True, capture_output=True, text=True).stdout)
    return {
        "name": f"loading {parameters / 1e6:.0f}M parameters",
        "ours": round(ours["seconds"], 2),
        "peer": round(peer.ask(open=str(folder))["seconds"], 2),
        "unit": "s",
        "most memory over weights": round(ours["memory"] / ours["weights"], 2),
        "versions": peer.versions,
    }


def loading(folder: Path) -> dict[str, float]:
    """Seconds, bytes of the weights, and the most bytes held above the begin while they were loaded."""
    jax.block_until_ready(jnp.zeros(1))
    model = language_families.from_config(safetensors_files.read_config(folder))
    begin = time.perf_counter()
    with most_memory() as most:
        params = jax.block_until_ready(language_families.from_hf(model, safetensors_files.open_tensors(folder), stacked=False))
    return {"seconds": time.perf_counter() - begin, "memory": most[0], "weights": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}


@contextmanager
def most_memory() -> Iterator[list[int]]:
    """The most anonymous memory of this process above what it has now, looked at every few milliseconds; pages of mapped files are not its own."""

    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    most, begin, ended = [0], held(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.003):
            most[0] = max(most[0], held() - begin)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
        most[0] = max(most[0], held() - begin)


if __name__ == "__main__":
    main()
