"""Mosaic TPU kernels: similarities live in VMEM a tile at a time, and what leaves it is a score for each query and document.

Similarities are laid out [document tokens, query tokens], so maxima go over sublanes. Query tokens come in tiles of whole queries; the sum over a
query's tokens is a product with a matrix of weights, [query tokens, queries], which holds the query mask as well.

`dense` has no mask of document tokens: `_stand_in` puts a document's first token in the place of masked ones, which changes no maximum. `ragged` reads
tokens straight from HBM, whichever documents they belong to, and knows the documents by their offsets in SMEM.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import dispatch

LANES = 128
QUERY_TILE = 256  # query tokens, at most, unless one query has more
DOCUMENTS = 8  # of a tile: the sublanes of a tile of scores
TOKEN_TILE = 256  # of one document in `dense`, of all in `ragged`
ALIGNMENT = 16  # rows that a slice of HBM starts at a multiple of, for 32 and 16 bits alike
NOTHING = -1e30  # finite: a weight of zero must make it zero


def dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> Array:
    """[B, C] float32 scores."""
    return _dense(queries, documents, query_mask, document_mask, with_places=False)[0]


def dense_places(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> tuple[Array, Array]:
    """The scores [B, C], and for each query token the row c * M + m of its best document token, [B, C, N] int32."""
    scores, place = _dense(queries, documents, query_mask, document_mask, with_places=True)
    (count, length), first = document_mask.shape, document_mask.argmax(axis=1).astype(jnp.int32)
    flat = jnp.minimum(place.reshape(count, -1), length - 1)  # padding up to whole tiles stands in for the first token, too
    flat = jnp.where(jnp.take_along_axis(document_mask, flat, axis=1), flat, first[:, None])
    return scores, jnp.moveaxis((flat + length * jnp.arange(count, dtype=jnp.int32)[:, None]).reshape(place.shape), 0, 1)


def ragged(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> Array:
    """[B, C] float32 scores. `document` [T] is each token's row of C = `documents`, C for no document's, in ascending order."""
    tiled, weight, size = _tile_queries(queries, query_mask)
    if spare := max(TOKEN_TILE - len(tokens), -len(tokens) % ALIGNMENT):
        tokens = jnp.pad(tokens, ((0, spare), (0, 0)))
    padded = -(-documents // DOCUMENTS) * DOCUMENTS
    offsets = jnp.searchsorted(document, jnp.arange(padded + 1, dtype=document.dtype)).astype(jnp.int32)
    offsets = jnp.where(jnp.arange(padded + 1) > documents, offsets[documents], offsets)
    (columns, dim), tiles = tiled.shape, len(tiled) // size
    scores = pl.pallas_call(
        functools.partial(_ragged_kernel, last=len(tokens) - TOKEN_TILE),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(tiles, padded // DOCUMENTS),
            in_specs=[
                pl.BlockSpec((size, dim), lambda q, c, offsets: (q, 0)),
                pl.BlockSpec((None, size, LANES), lambda q, c, offsets: (q, 0, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=pl.BlockSpec((None, DOCUMENTS, LANES), lambda q, c, offsets: (q, c, 0)),
            scratch_shapes=[
                pltpu.VMEM((2, TOKEN_TILE, dim), tokens.dtype),
                pltpu.VMEM((DOCUMENTS, size), jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((tiles, padded, LANES), jnp.float32),
        compiler_params=dispatch.tpu_compiler_params("parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=2 * len(tokens) * columns * dim, transcendentals=0, bytes_accessed=tiles * tokens.nbytes + tiled.nbytes + 4 * tiles * padded * LANES
        ),
        interpret=dispatch.interpret(),
        name="maxsim_ragged",
    )(offsets, tiled, weight, tokens)
    return _untile(scores, queries, size)[:, :documents]


def _dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array, *, with_places: bool) -> tuple[Array, Any]:
    """Scores [B, C], and with places the token of each document that is best for each query token, [C, B, N]."""
    tiled, weight, size = _tile_queries(queries, query_mask)
    documents = _stand_in(documents, document_mask)
    count, length, dim = documents.shape
    tile = min(length, TOKEN_TILE)
    (columns, _), tiles = tiled.shape, len(tiled) // size
    shapes = [jax.ShapeDtypeStruct((tiles, count, LANES), jnp.float32)] + [jax.ShapeDtypeStruct((count, columns), jnp.int32)] * with_places
    found = pl.pallas_call(
        functools.partial(_dense_kernel, tile=tile),
        grid=(tiles, pl.cdiv(count, DOCUMENTS), length // tile),
        in_specs=[
            pl.BlockSpec((size, dim), lambda q, c, m: (q, 0)),
            pl.BlockSpec((None, size, LANES), lambda q, c, m: (q, 0, 0)),
            pl.BlockSpec((DOCUMENTS, tile, dim), lambda q, c, m: (c, m, 0)),
        ],
        out_specs=[pl.BlockSpec((None, DOCUMENTS, LANES), lambda q, c, m: (q, c, 0))] + [pl.BlockSpec((DOCUMENTS, size), lambda q, c, m: (c, q))] * with_places,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM((DOCUMENTS, size), jnp.float32)],
        compiler_params=dispatch.tpu_compiler_params("parallel", "parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(
            flops=2 * count * length * columns * dim,
            transcendentals=0,
            bytes_accessed=tiles * documents.nbytes + tiled.nbytes + sum(4 * shape.size for shape in shapes),
        ),
        interpret=dispatch.interpret(),
        name="maxsim_dense",
    )(tiled, weight, documents)
    scores = _untile(found[0], queries, size)
    if not with_places:
        return scores, None
    each, padded = _queries_of_tile(queries)
    places = found[1].reshape(count, tiles, size)[:, :, : each * padded].reshape(count, tiles * each, padded)
    return scores, places[:, : queries.shape[0], : queries.shape[1]]


def _dense_kernel(queries_ref, weight_ref, documents_ref, scores_ref, *rest, tile):
    *places_refs, best_ref = rest
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        best_ref[...] = jnp.full_like(best_ref, -jnp.inf)

    for c in range(DOCUMENTS):
        similarity = _dot(documents_ref[c], queries_ref[...], (1, 1))  # [M, Q]
        highest = similarity.max(axis=0, keepdims=True)  # [1, Q]
        before = best_ref[c : c + 1, :]
        for places_ref in places_refs:  # one or none
            row = step * tile + lax.broadcasted_iota(jnp.int32, similarity.shape, 0)
            first = jnp.where(similarity == highest, row, jnp.iinfo(jnp.int32).max).min(axis=0, keepdims=True)
            places_ref[c : c + 1, :] = jnp.where((step == 0) | (highest > before), first, places_ref[c : c + 1, :])
        best_ref[c : c + 1, :] = jnp.maximum(before, highest)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        scores_ref[...] = _dot(best_ref[...], weight_ref[...], (1, 0))


def _ragged_kernel(offsets_ref, queries_ref, weight_ref, tokens_ref, scores_ref, buffer, best_ref, arrived, *, last):
    first = pl.program_id(1) * DOCUMENTS
    # lax.div and lax.rem, for // and % look at signs, and Mosaic asks the default device how.
    begin = lax.div(offsets_ref[first], ALIGNMENT) * ALIGNMENT
    steps = lax.div(offsets_ref[first + DOCUMENTS] - begin + TOKEN_TILE - 1, TOKEN_TILE)
    best_ref[...] = jnp.full_like(best_ref, NOTHING)

    def low_row(step):  # the last tile reaches back: what is seen twice changes no maximum
        return pl.multiple_of(jnp.minimum(begin + step * TOKEN_TILE, last), ALIGNMENT)

    def fetch(step):
        return pltpu.make_async_copy(tokens_ref.at[pl.ds(low_row(step), TOKEN_TILE)], buffer.at[lax.rem(step, 2)], arrived.at[lax.rem(step, 2)])

    @pl.when(steps > 0)
    def _():
        fetch(0).start()

    def scan(step, _):
        @pl.when(step + 1 < steps)
        def _():
            fetch(step + 1).start()

        fetch(step).wait()
        similarity = _dot(buffer[lax.rem(step, 2)], queries_ref[...], (1, 1))  # [T, Q]
        low = low_row(step)
        row = low + lax.broadcasted_iota(jnp.int32, similarity.shape, 0)
        for c in range(DOCUMENTS):
            start, end = offsets_ref[first + c], offsets_ref[first + c + 1]

            @pl.when((start < low + TOKEN_TILE) & (end > low) & (start < end))
            def _(c=c, start=start, end=end):
                own = jnp.where((row >= start) & (row < end), similarity, NOTHING)
                best_ref[c : c + 1, :] = jnp.maximum(best_ref[c : c + 1, :], own.max(axis=0, keepdims=True))

    lax.fori_loop(0, steps, scan, None)
    scores_ref[...] = _dot(best_ref[...], weight_ref[...], (1, 0))


def _tile_queries(queries: Array, query_mask: Array) -> tuple[Array, Array, int]:
    """Query tokens [tiles * size, D], their weights [tiles, size, LANES], 1 where a token is a query's own, and `size`, the tokens of a tile."""
    batch, length, dim = queries.shape
    each, length_padded = _queries_of_tile(queries)
    size = each * length_padded
    if each < batch:  # a tile that is not the whole array has whole lanes of places
        size = -(-size // LANES) * LANES
    tiles = -(-batch // each)
    padding = ((0, tiles * each - batch), (0, length_padded - length))
    queries = jnp.where(query_mask[..., None], queries, 0)  # whatever a masked token is, its weight of zero must make it zero
    rows = jnp.pad(queries, (*padding, (0, 0))).reshape(tiles, each * length_padded, dim)
    rows = jnp.pad(rows, ((0, 0), (0, size - each * length_padded), (0, 0))).reshape(tiles * size, dim)
    mask = jnp.pad(query_mask, padding).reshape(tiles, each * length_padded, 1).astype(jnp.float32)
    own = jnp.arange(each * length_padded)[:, None] // length_padded == jnp.arange(LANES)[None, :]
    weight = jnp.pad(mask * own[None], ((0, 0), (0, size - each * length_padded), (0, 0)))
    return rows, weight, size


def _queries_of_tile(queries: Array) -> tuple[int, int]:
    """How many queries [B, N, D] share a tile, and the tokens that each of them has there."""
    padded = -(-queries.shape[1] // 8) * 8
    return max(1, min(QUERY_TILE // padded, LANES, queries.shape[0])), padded


def _untile(scores: Array, queries: Array, size: int) -> Array:
    """[tiles, C, LANES] -> [B, C]."""
    each, _ = _queries_of_tile(queries)
    return jnp.moveaxis(scores[:, :, :each], 2, 1).reshape(-1, scores.shape[1])[: queries.shape[0]]


def _stand_in(documents: Array, mask: Array) -> Array:
    """The documents with their first own token in the place of masked ones, and of padding up to whole tiles; of none, zeros."""
    length = documents.shape[1]
    tile = min(-(-length // ALIGNMENT) * ALIGNMENT, TOKEN_TILE)
    first = jnp.take_along_axis(documents, mask.argmax(axis=1)[:, None, None], axis=1)  # [C, 1, D]
    first = jnp.where(mask.any(axis=1)[:, None, None], first, 0)
    spare = -length % tile
    documents = jnp.where(mask[..., None], documents, first)
    return jnp.concatenate([documents, jnp.broadcast_to(first, (len(documents), spare, documents.shape[2]))], axis=1) if spare else documents


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT  # Mosaic knows HIGHEST for float32 only
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
