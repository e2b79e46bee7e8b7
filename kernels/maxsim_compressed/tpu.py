"""Mosaic TPU kernels: a tile of codes is copied to VMEM and becomes vectors there; the scan over documents is that of `kernels.maxsim.tpu`.

int8 codes are exact in bfloat16, so their product with float32 queries takes three passes of the matrix unit in place of the six of two float32 factors:
one for each bfloat16 part of the query. For bfloat16 queries it takes one.

Centroids lie in VMEM whole, and the row of each token is copied to the tile, an address from SMEM at a time: Mosaic has no gather of rows. Rows of the
table of products [K, Q] would have to be copied likewise; they are no shorter than rows of centroids, differ for each tile of queries, and do not give the
norm. A byte of residuals is repeated over its entries by a product with zeros and ones, which is exact; moving lanes apart takes no other instruction.
Codes are copied to HBM once more where the number of tokens is no multiple of 128, which it had better be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.maxsim.tpu import LANES, TOKEN_TILE, Stream, dot, pad_tokens, stream_scorer, vectors
from kernels.maxsim_compressed.tokens import TINY, Int8Tokens, ResidualTokens, Tokens

TABLE_BYTES = 32 * 2**20  # of centroids in VMEM, at most
DOCUMENTS = 4096  # that one call scores, at most: their offsets lie in SMEM


def refusal(tokens: Tokens) -> str:
    """Why the kernel does not take these tokens; empty where it does."""
    if isinstance(tokens, ResidualTokens) and tokens.product:
        return "the kernel has no look-up for product codes"
    if isinstance(tokens, ResidualTokens) and _table_bytes(tokens) > TABLE_BYTES:
        return f"{len(tokens.centroids)} centroids do not fit the {TABLE_BYTES >> 20} MiB that the kernel has for them"
    return ""


def documents_at_once(queries: Array, tokens: Tokens, documents: int) -> int:
    """Of so many documents, those that one call of a scorer should be for."""
    return min(documents, DOCUMENTS)


def scorer(queries: Array, query_mask: Array, tokens: Tokens, documents: int) -> Callable[[Array], Array]:
    """A function of offsets [C + 1], ascending from anywhere, to the scores [B, C] of the documents there; the tokens are those of `documents`."""
    if isinstance(tokens, Int8Tokens):
        return stream_scorer(queries, query_mask, _int8(tokens), documents, name="maxsim_int8")
    if isinstance(tokens, ResidualTokens):
        return stream_scorer(queries.astype(jnp.float32), query_mask, _residual(tokens), documents, name="maxsim_residual")
    return stream_scorer(queries, query_mask, vectors(tokens), documents)


def _int8(tokens: Int8Tokens) -> Stream:
    return Stream((pad_tokens(tokens.codes, LANES), _by_lanes(tokens.scales)), (pltpu.VMEM, pltpu.VMEM), LANES, _int8_similarity, bfloat16_parts)


def _int8_similarity(tiles, queries, constants, scratch) -> Array:
    codes, scales = tiles
    whole = codes[...].astype(jnp.float32).astype(jnp.bfloat16)  # [T, D]
    product = sum(dot(whole, part[...], (1, 1)) for part in queries)
    columns = [jnp.broadcast_to(scales[row], (LANES, LANES)).T for row in range(TOKEN_TILE // LANES)]  # from lanes to sublanes
    return product * jnp.concatenate(columns)[:, :1]


def bfloat16_parts(values: Array) -> tuple[Array, ...]:
    """Arrays of bfloat16 whose sum is `values` to the last bit."""
    rest, parts = values.astype(jnp.float32), []
    for _ in range({2: 1 if values.dtype == jnp.bfloat16 else 2, 4: 3}[values.dtype.itemsize]):
        part = lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)  # a cast there and back is one that XLA may leave out
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return tuple(parts)


def _residual(tokens: ResidualTokens) -> Stream:
    residuals, dim = lax.bitcast_convert_type(tokens.residuals, jnp.int8), tokens.dim
    entry = 2 * residuals.shape[1] + 4 + 2 * 2**tokens.bits + 4 * tokens.normalize  # its byte, its bucket, its weight, and a share of the norm
    table = pl.BlockSpec(tokens.centroids.shape, lambda q, c, offsets: (0, 0), pipeline_mode=pl.Buffered(1))
    return Stream(
        (pad_tokens(residuals, LANES), _by_lanes(tokens.codes.astype(jnp.int32))),
        (pltpu.VMEM, pltpu.SMEM),
        LANES,
        functools.partial(_residual_similarity, bits=tokens.bits, normalize=tokens.normalize),
        constants=((tokens.centroids, table), (tokens.weights, pl.BlockSpec(memory_space=pltpu.SMEM))),
        scratch=(pltpu.VMEM((TOKEN_TILE, dim), jnp.float32),),
        vmem=_table_bytes(tokens),
        flops=dim * entry,
        transcendentals=int(tokens.normalize),
    )


def _residual_similarity(tiles, queries, constants, scratch, *, bits, normalize) -> Array:
    (residuals, codes), (centroids, weights), (rows,) = tiles, constants, scratch
    for part in range(TOKEN_TILE // LANES):

        def fetch(lane, _, part=part):
            rows[pl.ds(part * LANES + lane, 1), :] = centroids[pl.ds(codes[part, 0, lane], 1), :]

        lax.fori_loop(0, LANES, fetch, None, unroll=8)
    each = 8 // bits
    read = (residuals[...].astype(jnp.int32) & 255).astype(jnp.float32).astype(jnp.bfloat16)  # [T, bytes]
    entry = lax.broadcasted_iota(jnp.int32, (read.shape[1], rows.shape[1]), 1)
    owner = entry >> (each.bit_length() - 1) == lax.broadcasted_iota(jnp.int32, entry.shape, 0)
    repeated = dot(read, owner.astype(jnp.float32).astype(jnp.bfloat16), (1, 0)).astype(jnp.int32)  # [T, D] the byte of each entry
    place = lax.broadcasted_iota(jnp.int32, repeated.shape, 1) & (each - 1)
    buckets = (repeated >> (8 - bits - bits * place)) & (2**bits - 1)
    residual = jnp.full(buckets.shape, weights[0])
    for number in range(1, 2**bits):
        residual = jnp.where(buckets == number, weights[number], residual)
    decoded = rows[...] + residual
    if normalize:
        decoded = decoded / jnp.maximum(jnp.sqrt((decoded * decoded).sum(axis=1, keepdims=True)), TINY)
    return dot(decoded, queries[0][...], (1, 1))


def _by_lanes(column: Array) -> Array:
    """[T] -> [T / LANES, 1, LANES], of which slices may begin at any row, and no lane is padding."""
    return pad_tokens(column, LANES).reshape(-1, 1, LANES)


def _table_bytes(tokens: ResidualTokens) -> int:
    return 4 * -(-len(tokens.centroids) // 8) * 8 * -(-tokens.dim // LANES) * LANES
