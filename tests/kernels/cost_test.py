"""What the MaxSim kernels tell the compiler that they cost, against counting by hand; Mosaic's compiler counts nothing inside of a kernel."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from kernels import dispatch
from kernels.maxsim import maxsim, maxsim_ragged
from kernels.maxsim_compressed import Int8Tokens, ResidualTokens, maxsim_int8, maxsim_residual
from kernels.maxsim_topk import maxsim_topk

B, N, C, M, D, K, BITS = 20, 16, 8, 512, 128, 64, 2
TILES = 2  # of 256 and 64 query tokens; the second is padded to as many as the first
ROWS, TOKENS = 256 * TILES, C * M
PRODUCTS = 2 * ROWS * TOKENS * D
OUT = 4 * TILES * C * 128  # scores, a lane for each query of a tile
ASKED = 4 * ROWS * 128  # the weights of query tokens


def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype)


def cost(function, *arguments):
    """The estimate of the one kernel that tracing for a TPU meets."""
    found = []

    def search(jaxpr):
        for equation in jaxpr.eqns:
            found.extend([equation.params["cost_estimate"]] if equation.primitive.name == "pallas_call" else [])
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                if equation.primitive.name != "pallas_call" and (hasattr(inner, "eqns") or hasattr(inner, "jaxpr")):
                    search(getattr(inner, "jaxpr", inner))

    with dispatch.compiling_for("tpu"):
        search(jax.make_jaxpr(function)(*arguments).jaxpr)
    (one,) = found
    assert one is not None
    return one


QUERIES = {dtype: array(dtype, B, N, D) for dtype in (jnp.float32, jnp.bfloat16)}
OFFSETS = array(jnp.int32, C + 1)
INT8 = Int8Tokens(array(jnp.int8, TOKENS, D), array(jnp.float32, TOKENS))


def residual(normalize):
    parts = array(jnp.float32, K, D), array(jnp.uint16, TOKENS), array(jnp.uint8, TOKENS, D * BITS // 8), array(jnp.float32, 2**BITS)
    return ResidualTokens(*parts, normalize=normalize)


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.bfloat16, 2)])
def test_whole_vectors(dtype, size):
    dense = cost(maxsim, QUERIES[dtype], array(dtype, C, M, D))
    ragged = cost(maxsim_ragged, QUERIES[dtype], array(dtype, TOKENS, D), OFFSETS)
    for one in (dense, ragged):
        assert one.flops == PRODUCTS and one.transcendentals == 0
        assert one.bytes_accessed == size * (TILES * TOKENS + ROWS) * D + ASKED + OUT


@pytest.mark.parametrize(("dtype", "passes"), [(jnp.float32, 3), (jnp.bfloat16, 1)])
def test_int8_takes_a_product_for_each_part_of_a_query(dtype, passes):
    one = cost(maxsim_int8, QUERIES[dtype], INT8.codes, INT8.scales, OFFSETS)
    assert one.flops == passes * PRODUCTS and one.transcendentals == 0
    assert one.bytes_accessed == TILES * TOKENS * (D + 4) + passes * 2 * ROWS * D + ASKED + OUT


@pytest.mark.parametrize("normalize", [True, False])
def test_residual_codes_are_decoded_for_each_tile_of_queries(normalize):
    tokens = residual(normalize)
    fields = tokens.centroids, tokens.codes, tokens.residuals, tokens.weights
    one = cost(functools.partial(maxsim_residual, normalize=normalize), QUERIES[jnp.float32], *fields, OFFSETS)
    spread = 2 * TOKENS * (D * BITS // 8) * D  # bytes over their entries, a product with zeros and ones
    elementwise = TOKENS * D * (4 + 2 * 2**BITS + 4 * normalize)
    assert one.flops == PRODUCTS + TILES * (spread + elementwise)
    assert one.transcendentals == TILES * TOKENS * normalize
    assert one.bytes_accessed == TILES * TOKENS * (D * BITS // 8 + 4) + 4 * K * D + 4 * 2**BITS + 4 * ROWS * D + ASKED + OUT


def test_a_block_of_documents_costs_its_share():
    documents = 3 * 4096
    tokens = array(jnp.float32, 2 * documents, D)
    one = cost(functools.partial(maxsim_topk, k=5), QUERIES[jnp.float32], tokens, array(jnp.int32, documents + 1))
    assert one.flops == 2 * ROWS * 2 * 4096 * D
