"""How fast MaxSim trains on this machine: the in-batch softmax loss, forward and backward, beside torch on the same work.

    JAXREC_TORCH_PYTHON=/venv/with/torch/bin/python python -m benchmarks.maxsim_gradient

64 queries of 32 tokens against 64 documents of 180 tokens, 128 dimensions, float32. Torch keeps all similarities, 94 MB, and their maxima's places;
ours keeps one row number for each query token and document. Turns as in `benchmarks.maxsim`.
"""

from __future__ import annotations

import argparse
import os

import jax
import jax.numpy as jnp

from benchmarks.maxsim import compare, work
from benchmarks.record import record
from jaxrec.artifact import say
from kernels.maxsim import maxsim
from kernels.shapes import IN_BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    python = os.environ.get("JAXREC_TORCH_PYTHON")
    if not python:
        say("JAXREC_TORCH_PYTHON is not set: only our side is timed. Set it to a Python that has torch and numpy.")
    queries, tokens, lengths = work(IN_BATCH, "uniform")
    arguments = jax.device_put((queries, tokens.reshape(IN_BATCH.documents, -1, IN_BATCH.dim)))
    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    rows = compare("64 x 64 in-batch", step, arguments, ["gradient"], python, options.rounds, 4, queries=queries, tokens=tokens, lengths=lengths)
    memory = step.lower(*arguments).compile().memory_analysis()
    record("maxsim_gradient", [row | {"temporary_bytes": memory.temp_size_in_bytes} for row in rows])


def loss(queries: jax.Array, documents: jax.Array) -> jax.Array:
    """-log softmax of each query's own document, mean over the batch."""
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(maxsim(queries, documents), axis=-1)))


if __name__ == "__main__":
    main()
