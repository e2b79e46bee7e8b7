"""Mosaic TPU kernels: similarities live in VMEM a tile at a time, and what leaves it is a score for each query and document.

Similarities are laid out [document tokens, query tokens], so maxima go over sublanes. Query tokens come in tiles of whole queries; the sum over a
query's tokens is a product with a matrix of weights, [query tokens, queries], which holds the query mask as well.

`dense` has no mask of document tokens: `_stand_in` puts a document's first token in the place of masked ones, which changes no maximum. `ragged` reads
tokens straight from HBM, whichever documents they belong to, and knows the documents by their offsets in SMEM. What a token is there, a vector or codes
that become one in VMEM, is a `Stream`'s to say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
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
VMEM_BYTES = 16 * 2**20  # that a kernel may use unless it says otherwise
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
    offsets = jnp.searchsorted(document, jnp.arange(documents + 1, dtype=document.dtype)).astype(jnp.int32)
    return stream_scorer(queries, query_mask, vectors(tokens), documents)(offsets)


@dataclass(frozen=True)
class Stream:
    """Tokens in HBM, of which a kernel copies a tile at a time, and how a tile becomes similarities.

    Attributes:
      sources: arrays of a row for each token, or of rows of `LANES` tokens, [T / LANES, 1, LANES]. T is whole `alignment`s, and a tile at least.
      spaces: where the tile of each of them goes, VMEM or SMEM.
      alignment: tokens that a tile starts at a multiple of.
      similarity: of (tiles, queries, constants, scratch), all references, the similarities [TOKEN_TILE, Q] float32.
      split: the query tokens [Q, D] as the arrays of that shape that `similarity` reads, each for a product with the tile.
      constants: arrays that it reads whole, with their places.
      scratch: shapes of what it writes between.
      vmem: bytes that this takes beyond the usual.
      flops, transcendentals: operations that make a token what is multiplied, and finish its similarities.
    """

    sources: tuple[Array, ...]
    spaces: tuple[Any, ...]
    alignment: int
    similarity: Callable[..., Array]
    split: Callable[[Array], tuple[Array, ...]] = lambda queries: (queries,)
    constants: tuple[tuple[Array, pl.BlockSpec], ...] = ()
    scratch: tuple[Any, ...] = ()
    vmem: int = 0
    flops: int = 0
    transcendentals: int = 0


def vectors(tokens: Array) -> Stream:
    """A stream of the tokens [T, D] themselves."""
    return Stream((pad_tokens(tokens, ALIGNMENT),), (pltpu.VMEM,), ALIGNMENT, lambda tiles, queries, *_: dot(tiles[0][...], queries[0][...], (1, 1)))


def pad_tokens(tokens: Array, alignment: int) -> Array:
    """[T, ...] with zeros up to whole alignments, and to a tile at least."""
    spare = max(TOKEN_TILE - len(tokens), -len(tokens) % alignment)
    return jnp.pad(tokens, ((0, spare), *[(0, 0)] * (tokens.ndim - 1))) if spare else tokens


def stream_scorer(queries: Array, query_mask: Array, stream: Stream, documents: int, *, name: str = "maxsim_ragged") -> Callable[[Array], Array]:
    """A function of offsets [C + 1], ascending from anywhere, to the scores [B, C] of the documents there; all tokens are of `documents`."""
    tiled, weight, size = tile_queries(queries, query_mask)
    asked, tiles, dim = stream.split(tiled), len(tiled) // size, tiled.shape[1]
    tokens = len(stream.sources[0])
    buffers = [
        space((2, TOKEN_TILE // (tokens // len(source)), *source.shape[1:]), source.dtype) for source, space in zip(stream.sources, stream.spaces, strict=True)
    ]

    def score(offsets: Array) -> Array:
        some = len(offsets) - 1
        padded, share = -(-some // DOCUMENTS) * DOCUMENTS, some / max(documents, 1)
        offsets = jnp.concatenate([offsets, jnp.broadcast_to(offsets[-1:], padded - some)]).astype(jnp.int32)
        read = tiles * share * sum(source.nbytes for source in stream.sources)
        once = sum(array.nbytes for array in (weight, *asked, *(array for array, _ in stream.constants)))
        decoded = tiles * share * tokens
        found = pl.pallas_call(
            functools.partial(_ragged_kernel, stream=stream, tokens=tokens),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(tiles, padded // DOCUMENTS),
                in_specs=[
                    pl.BlockSpec((None, size, LANES), lambda q, c, offsets: (q, 0, 0)),
                    [pl.BlockSpec((size, dim), lambda q, c, offsets: (q, 0)) for _ in asked],
                    [place for _, place in stream.constants],
                    [pl.BlockSpec(memory_space=pl.ANY) for _ in stream.sources],
                ],
                out_specs=pl.BlockSpec((None, DOCUMENTS, LANES), lambda q, c, offsets: (q, c, 0)),
                scratch_shapes=[
                    pltpu.VMEM((DOCUMENTS, size), jnp.float32),
                    pltpu.SemaphoreType.DMA((len(buffers), 2)),
                    buffers,
                    list(stream.scratch),
                ],
            ),
            out_shape=jax.ShapeDtypeStruct((tiles, padded, LANES), jnp.float32),
            compiler_params=_compiler_params(stream.vmem),
            cost_estimate=pl.CostEstimate(
                flops=int(2 * tokens * share * len(tiled) * dim * len(asked) + decoded * stream.flops),
                transcendentals=int(decoded * stream.transcendentals),
                bytes_accessed=int(read + once + 4 * tiles * padded * LANES),
            ),
            interpret=dispatch.interpret(),
            name=name,
        )(offsets, weight, list(asked), [array for array, _ in stream.constants], list(stream.sources))
        return _untile(found, queries, size)[:, :some]

    return score


def _compiler_params(vmem: int) -> pltpu.CompilerParams:
    parameters = dispatch.tpu_compiler_params("parallel", "arbitrary")
    return dataclasses.replace(parameters, vmem_limit_bytes=vmem + VMEM_BYTES) if vmem else parameters


def _dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array, *, with_places: bool) -> tuple[Array, Any]:
    """Scores [B, C], and with places the token of each document that is best for each query token, [C, B, N]."""
    tiled, weight, size = tile_queries(queries, query_mask)
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
            bytes_accessed=tiles * documents.nbytes + tiled.nbytes + weight.nbytes + sum(4 * shape.size for shape in shapes),
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
        similarity = dot(documents_ref[c], queries_ref[...], (1, 1))  # [M, Q]
        highest = similarity.max(axis=0, keepdims=True)  # [1, Q]
        before = best_ref[c : c + 1, :]
        for places_ref in places_refs:  # one or none
            row = step * tile + lax.broadcasted_iota(jnp.int32, similarity.shape, 0)
            first = jnp.where(similarity == highest, row, jnp.iinfo(jnp.int32).max).min(axis=0, keepdims=True)
            places_ref[c : c + 1, :] = jnp.where((step == 0) | (highest > before), first, places_ref[c : c + 1, :])
        best_ref[c : c + 1, :] = jnp.maximum(before, highest)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        scores_ref[...] = dot(best_ref[...], weight_ref[...], (1, 0))


def _ragged_kernel(offsets_ref, weight_ref, queries, constants, sources, scores_ref, best_ref, arrived, buffers, scratch, *, stream, tokens):
    first, last = pl.program_id(1) * DOCUMENTS, tokens - TOKEN_TILE
    # lax.div and lax.rem, for // and % look at signs, and Mosaic asks the default device how.
    begin = lax.div(offsets_ref[first], stream.alignment) * stream.alignment
    steps = lax.div(offsets_ref[first + DOCUMENTS] - begin + TOKEN_TILE - 1, TOKEN_TILE)
    best_ref[...] = jnp.full_like(best_ref, NOTHING)

    def low_row(step):  # the last tile reaches back: what is seen twice changes no maximum
        return pl.multiple_of(jnp.minimum(begin + step * TOKEN_TILE, last), stream.alignment)

    def copies(step):
        for number, (source, buffer) in enumerate(zip(sources, buffers, strict=True)):
            rows = buffer.shape[1]  # of TOKEN_TILE / rows tokens each
            low = low_row(step) if rows == TOKEN_TILE else lax.div(low_row(step), TOKEN_TILE // rows)
            yield pltpu.make_async_copy(source.at[pl.ds(low, rows)], buffer.at[lax.rem(step, 2)], arrived.at[number, lax.rem(step, 2)])

    @pl.when(steps > 0)
    def _():
        for copy in copies(0):
            copy.start()

    def scan(step, _):
        @pl.when(step + 1 < steps)
        def _():
            for copy in copies(step + 1):
                copy.start()

        for copy in copies(step):
            copy.wait()
        similarity = stream.similarity([buffer.at[lax.rem(step, 2)] for buffer in buffers], queries, constants, scratch)  # [T, Q]
        low = low_row(step)
        row = low + lax.broadcasted_iota(jnp.int32, similarity.shape, 0)
        for c in range(DOCUMENTS):
            start, end = offsets_ref[first + c], offsets_ref[first + c + 1]

            @pl.when((start < low + TOKEN_TILE) & (end > low) & (start < end))
            def _(c=c, start=start, end=end):
                own = jnp.where((row >= start) & (row < end), similarity, NOTHING)
                best_ref[c : c + 1, :] = jnp.maximum(best_ref[c : c + 1, :], own.max(axis=0, keepdims=True))

    lax.fori_loop(0, steps, scan, None)
    scores_ref[...] = dot(best_ref[...], weight_ref[...], (1, 0))


def tile_queries(queries: Array, query_mask: Array) -> tuple[Array, Array, int]:
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


def dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT  # Mosaic knows HIGHEST for float32 only
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
