"""The TPU kernels compile for real TPUs, without one: it proves that Mosaic takes them and that they fit, not what they compute or how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

PREAMBLE = """
import functools, json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from kernels import dispatch, shapes

chip = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices[0]

def abstract(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(chip))
"""

SOFTMAX_LOSS = """
from kernels.softmax_loss import log_likelihood, softmax_loss

CASES = [(shapes.BEAUTY, jnp.bfloat16), (shapes.ML_1M, jnp.float32), (shapes.LARGE, jnp.float32), (shapes.ODD[3], jnp.bfloat16)]
CASES += [(shapes.Softmax(1024, 768, 30_000, (0, 30_000)), jnp.float32)]
for shape, dtype in CASES:
    arguments = [abstract(dtype, shape.tokens, shape.dim), abstract(dtype, shape.rows, shape.dim), abstract(jnp.int32, shape.tokens)]
    weight = abstract(jnp.float32, shape.tokens)
    loss = functools.partial(softmax_loss, valid=shape.valid)
    likelihood = functools.partial(log_likelihood, valid=shape.valid)
    with dispatch.compiling_for("tpu"):
        gradient = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments, weight).compile()
        jax.jit(likelihood).lower(*arguments).compile()
    text = gradient.as_text()
    print(json.dumps({
        "shape": str(shape), "dtype": jnp.dtype(dtype).name, "logits": shape.tokens * shape.rows * 4,
        "kernels": sum(name in text for name in ("softmax_loss_forward", "softmax_loss_d_table")),
        "temporaries": gradient.memory_analysis().temp_size_in_bytes, "flops": gradient.cost_analysis()["flops"],
        "products": 2 * shape.tokens * shape.rows * shape.dim,
    }))
"""

MAXSIM = """
from kernels.maxsim import maxsim, maxsim_ragged

CASES = [(shapes.RERANK, jnp.bfloat16), (shapes.IN_BATCH, jnp.float32), (shapes.PAGES, jnp.bfloat16), (shapes.ODD_MAXSIM[2], jnp.float32)]
for shape, dtype in CASES:
    queries = abstract(dtype, shape.queries, shape.query_tokens, shape.dim)
    documents = abstract(dtype, shape.documents, shape.document_tokens, shape.dim)
    mask = abstract(bool, shape.documents, shape.document_tokens)
    tokens, offsets = abstract(dtype, shape.documents * shape.document_tokens, shape.dim), abstract(jnp.int32, shape.documents + 1)
    with dispatch.compiling_for("tpu"):
        gradient = jax.grad(lambda queries, documents, mask: maxsim(queries, documents, None, mask).sum(), (0, 1))
        compiled = {"maxsim_dense": jax.jit(gradient).lower(queries, documents, mask).compile(),
                    "maxsim_ragged": jax.jit(maxsim_ragged).lower(queries, tokens, offsets).compile()}
    for name, program in compiled.items():
        print(json.dumps({
            "shape": str(shape), "name": name, "kernels": int(name in program.as_text()), "flops": program.cost_analysis()["flops"],
            "temporaries": program.memory_analysis().temp_size_in_bytes,
            "documents": shape.documents * shape.document_tokens * shape.dim * dtype.dtype.itemsize,
            "products": 2 * shape.queries * shape.query_tokens * shape.documents * shape.document_tokens * shape.dim,
        }))
"""

MAXSIM_COMPRESSED = """
from kernels.maxsim_compressed import Int8Tokens, ResidualTokens, maxsim_int8, maxsim_residual
from kernels.maxsim_topk import maxsim_topk

CASES = [(shapes.RERANK, jnp.float32, 65_536, 2), (shapes.IN_BATCH, jnp.bfloat16, 4096, 4), (shapes.ODD_MAXSIM[1], jnp.float32, 5, 1)]
for shape, dtype, centroids, bits in CASES:
    count, documents = shape.documents * shape.document_tokens, shape.documents
    queries, offsets = abstract(dtype, shape.queries, shape.query_tokens, shape.dim), abstract(jnp.int32, documents + 1)
    int8 = Int8Tokens(abstract(jnp.int8, count, shape.dim), abstract(jnp.float32, count))
    residual = ResidualTokens(abstract(jnp.float32, centroids, shape.dim), abstract(jnp.uint16, count), abstract(jnp.uint8, count, shape.dim * bits // 8),
                              abstract(jnp.float32, 2**bits))
    fields = residual.centroids, residual.codes, residual.residuals, residual.weights
    with dispatch.compiling_for("tpu"):
        compiled = {"maxsim_int8": jax.jit(maxsim_int8).lower(queries, int8.codes, int8.scales, offsets),
                    "maxsim_residual": jax.jit(maxsim_residual).lower(queries, *fields, offsets)}
        if shape == shapes.RERANK:
            for name, tokens in (("maxsim_ragged", abstract(dtype, count, shape.dim)), ("maxsim_int8", int8), ("maxsim_residual", residual)):
                compiled["top k of " + name] = jax.jit(functools.partial(maxsim_topk, k=10)).lower(queries, tokens, abstract(jnp.int32, 10_001))
    for name, program in compiled.items():
        program = program.compile()
        print(json.dumps({
            "shape": str(shape), "name": name, "kernels": int(name.split()[-1] in program.as_text()), "flops": program.cost_analysis()["flops"],
            "temporaries": program.memory_analysis().temp_size_in_bytes, "decoded": 4 * count * shape.dim,
            "products": 2 * shape.queries * shape.query_tokens * count * shape.dim * (3 if name == "maxsim_int8" and dtype == jnp.float32 else 1),
            "decoding": 2 * count * shape.dim * shape.dim * bits // 8 if name == "maxsim_residual" else 0,
        }))
"""

THRESHOLD_ATTENTION = """
from kernels.threshold_attention import threshold_attention

CASES = [(shapes.LONG_HISTORY, jnp.bfloat16, True, True), (shapes.DECODE, jnp.bfloat16, False, True), (shapes.WIDE, jnp.float32, True, False),
         (shapes.ODD_ATTENTION[2], jnp.float32, True, True), (shapes.ODD_ATTENTION[3], jnp.bfloat16, False, False)]
for shape, dtype, causal, segments in CASES:
    arguments = [abstract(dtype, shape.batch, shape.queries, shape.heads, shape.width), abstract(dtype, shape.batch, shape.keys, shape.groups, shape.width),
                 abstract(dtype, shape.batch, shape.keys, shape.groups, shape.value_width), abstract(jnp.float32, shape.batch, shape.queries, shape.heads)]
    arguments += [abstract(jnp.int32, shape.batch, shape.queries), abstract(jnp.int32, shape.batch, shape.keys)] if segments else []

    def loss(*arguments):
        return (threshold_attention(*arguments, causal=causal).astype(jnp.float32) ** 2).sum()

    with dispatch.compiling_for("tpu"):
        gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arguments).compile()
    text = gradient.as_text()
    products = 2 * shape.batch * shape.heads * shape.queries * shape.keys
    print(json.dumps({
        "shape": str(shape), "kernels": sum(f"threshold_attention_{name}" in text for name in ("forward", "d_q", "d_kv")),
        "temporaries": gradient.memory_analysis().temp_size_in_bytes, "scores": 2 * products, "flops": gradient.cost_analysis()["flops"],
        "products": products * (5 * shape.width + 4 * shape.value_width),
    }))
"""

TRAINING = """
import dataclasses
import numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxrec.methods.sequential import sasrec
from jaxrec.nn.attention import AttentionKind
from jaxrec.sharding import Layout, make_mesh
from jaxrec.train.step import make_runner

devices = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1]).devices
layout = Layout(mesh=(("data", len(devices)),))
tiny, batch = sasrec.tiny()
CASES = [dataclasses.replace(tiny, loss_name="softmax"), dataclasses.replace(tiny, dim=64, attention=AttentionKind(weights="threshold", positions="rotary"))]
for method in CASES:
    runner = make_runner(method, optax.adam(1e-3), layout, devices=devices)
    rows = NamedSharding(make_mesh(layout, devices), PartitionSpec("data"))
    batch = {name: jax.ShapeDtypeStruct((32, *array.shape[1:]), array.dtype, sharding=rows) for name, array in batch.items()}
    with dispatch.compiling_for("tpu"):
        text = runner.step.lower(runner.abstract, batch).compile().as_text()
    print(json.dumps({"kernels": text.count("tpu_custom_call"), "sums": text.count("all-reduce")}))
"""

# Set before jax is imported, hence the subprocess. They keep libtpu from looking for a TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs libtpu; pip install 'jax[tpu]' (it has a licence of its own)"
    ),
]


def compile_for(topology: str, program: str) -> list[dict]:
    command = [sys.executable, "-c", PREAMBLE + program, topology]
    run = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_training_step_over_four_chips_compiles_with_its_kernels():
    for result in compile_for("v5e:2x2", TRAINING):
        assert result["kernels"] >= 2 and result["sums"] >= 1, result


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_softmax_loss_compiles(topology):
    results = compile_for(topology, SOFTMAX_LOSS)
    assert len(results) == 5
    for result in results:
        assert result["kernels"] == 2, result
        assert result["flops"] >= 4 * result["products"], result  # the cost estimate reaches the compiler
        if result["logits"] > 2**27:
            assert result["temporaries"] < result["logits"] / 4, result


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_maxsim_compiles(topology):
    results = compile_for(topology, MAXSIM)
    assert len(results) == 8
    for result in results:
        assert result["kernels"] == 1, result
        assert result["flops"] >= result["products"], result
        assert result["temporaries"] <= 10 * result["documents"] + 2**20, result  # copies of the tokens, and no similarities


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_maxsim_of_compressed_documents_compiles(topology):
    results = compile_for(topology, MAXSIM_COMPRESSED)
    assert len(results) == 9
    for result in results:
        assert result["kernels"] == 1, result
        if not result["name"].startswith("top k"):  # a loop over blocks of documents, which the compiler counts once
            assert result["flops"] >= result["products"] + result["decoding"], result
        assert result["temporaries"] < result["decoded"] + 2**20, result


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_threshold_attention_compiles(topology):
    results = compile_for(topology, THRESHOLD_ATTENTION)
    assert len(results) == 5
    for result in results:
        assert result["kernels"] == 3, result
        assert result["flops"] >= result["products"], result
        if result["scores"] > 2**27:
            assert result["temporaries"] < result["scores"] / 4, result
