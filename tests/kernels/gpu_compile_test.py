"""The GPU kernels compile for an H100, without one: it proves that Mosaic and ptxas take them and that they fit, not what they compute or how fast."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

# What the compiler wants to know of a chip, a stream_executor.GpuTargetConfigProto: NVIDIA's published numbers of an H100 SXM.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

MAXSIM = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from kernels import dispatch, shapes
from kernels.maxsim import gpu, maxsim, maxsim_ragged

chip = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=sys.argv[1]).devices[0]

def abstract(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=SingleDeviceSharding(chip))

CASES = [(shapes.RERANK, jnp.bfloat16), (shapes.IN_BATCH, jnp.bfloat16), (shapes.PAGES, jnp.float16), (shapes.ODD_MAXSIM[1], jnp.float16),
         (shapes.ODD_MAXSIM[2], jnp.bfloat16), (shapes.MaxSim(8, 32, 100, 1000, 256), jnp.bfloat16)]
for shape, dtype in CASES:
    queries = abstract(dtype, shape.queries, shape.query_tokens, shape.dim)
    documents = abstract(dtype, shape.documents, shape.document_tokens, shape.dim)
    mask = abstract(bool, shape.documents, shape.document_tokens)
    tokens, offsets = abstract(dtype, shape.documents * shape.document_tokens, shape.dim), abstract(jnp.int32, shape.documents + 1)

    masks = abstract(bool, shape.queries, shape.query_tokens)
    owner = abstract(jnp.int32, tokens.shape[0])
    with dispatch.compiling_for("gpu"):
        jax.jit(gpu.dense_places).lower(queries, documents, masks, mask).compile()
        jax.jit(gpu.ragged_places, static_argnums=4).lower(queries, tokens, owner, masks, shape.documents).compile()
        programs = [jax.jit(lambda q, d, mask: maxsim(q, d, None, mask, backend="gpu")).lower(queries, documents, mask).compile(),
                    jax.jit(lambda q, t, offsets: maxsim_ragged(q, t, offsets, backend="gpu")).lower(queries, tokens, offsets).compile()]
    for program in programs:
        print(json.dumps({
            "shape": str(shape), "temporaries": program.memory_analysis().temp_size_in_bytes,
            "similarities": 4 * shape.queries * shape.query_tokens * shape.documents * shape.document_tokens,
        }))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda12_plugin") is None, reason="compiling for a GPU needs its compiler; pip install 'jax[cuda12]' of jax's version"
    ),
]


def test_maxsim_compiles_to_wgmma_without_spills(tmp_path):
    # The compiler writes what it makes of each kernel; a cache would keep it from making any.
    environment = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_TO": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", MAXSIM, H100], env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 12
    for result in results:
        if result["similarities"] > 2**24:  # of documents nothing is copied where their tokens are whole alignments
            assert result["temporaries"] < result["similarities"] / 10, result
    programs = [path.read_text() for path in tmp_path.glob("*.ptx")]
    assert len(programs) == 24
    for program in programs:
        assert ".target sm_90a" in program
        assert re.search(r"wgmma\.mma_async\S*\.f32\.(bf16\.bf16|f16\.f16)", program) and "cp.async.bulk.tensor" in program
    reports = [path.read_text() for path in tmp_path.glob("*.ptxas")]
    assert len(reports) == 24
    for report in reports:
        assert "0 bytes spill stores, 0 bytes spill loads" in report, report
