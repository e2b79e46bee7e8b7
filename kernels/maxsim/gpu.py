"""A Mosaic GPU kernel for Hopper: document tokens stream through shared memory, and a maximum for each query token and document leaves the chip.

A block of the grid has 64 query tokens for each warpgroup that computes, and goes through some documents of whichever lengths. One more warpgroup
copies tiles of document tokens (TMA) into a ring of buffers, ahead of the others. These multiply [64, D] by [D, tile] (wgmma, float32 sums) and keep each
row's maximum, and if asked for the token that has it, in registers until the document ends. The sum over a query's tokens is XLA's: it reads maxima
[C, B * N], where similarities would be [C, M, B * N].

Padded documents are packed ones of equal lengths, with a mask. Tiles start at whole `ALIGNMENT`s, wherever documents do: what a tile has of other documents
is -inf before the maximum. Tokens that are not whole `ALIGNMENT`s in all, or not a multiple of 32 wide, are padded to that, which copies them.

It takes bfloat16 and float16 of up to `WIDEST` dimensions. The rest is `blocked`'s: wgmma would round float32 to 10 bits of mantissa.

It was compiled for an H100 and simulated on a CPU; no GPU has run it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import dispatch
from kernels.maxsim import blocked

ROWS = 64  # query tokens of a warpgroup: the rows of one wgmma
DOCUMENTS = 8  # of a block of the grid, at most
BLOCKS = 264  # of fewer, blocks have fewer documents: two for each of an H100's 132 multiprocessors
BUFFERS = 4  # tiles that are on their way or being read
ALIGNMENT = 8  # tokens that a tile starts at a multiple of: shared memory is swizzled by so many rows
WIDEST = 256  # dimensions, of which the buffers and 128 query tokens fit shared memory


def dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> Array:
    """[B, C] float32 scores."""
    if not _takes(queries):
        return blocked.dense(queries, documents, query_mask, document_mask)
    return _scores(queries, *_packed(documents, document_mask), query_mask, with_places=False)[0]


def dense_places(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> tuple[Array, Array]:
    """The scores [B, C], and for each query token the row c * M + m of its best document token, [B, C, N] int32."""
    if not _takes(queries):
        return blocked.dense_places(queries, documents, query_mask, document_mask)
    scores, places = _scores(queries, *_packed(documents, document_mask), query_mask, with_places=True)
    return scores, places


def ragged(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> Array:
    """[B, C] float32 scores. `document` [T] is each token's row of C = `documents`, C for no document's, in ascending order."""
    if not _takes(queries):
        return blocked.ragged(queries, tokens, document, query_mask, documents)
    return _scores(queries, tokens, _offsets(document, documents), None, query_mask, with_places=False)[0]


def ragged_places(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> tuple[Array, Array]:
    """The scores [B, C], and for each query token the row of its best document token, [B, C, N] int32."""
    if not _takes(queries):
        return blocked.ragged_places(queries, tokens, document, query_mask, documents)
    scores, places = _scores(queries, tokens, _offsets(document, documents), None, query_mask, with_places=True)
    return scores, places


def _takes(queries: Array) -> bool:
    return queries.dtype in (jnp.bfloat16, jnp.float16) and queries.shape[-1] <= WIDEST


def _packed(documents: Array, mask: Array) -> tuple[Array, Array, Array]:
    """Tokens [C * M, D], offsets [C + 1] and mask [C * M] of documents [C, M, D]."""
    count, length, dim = documents.shape
    return documents.reshape(-1, dim), length * jnp.arange(count + 1, dtype=jnp.int32), mask.reshape(-1)


def _offsets(document: Array, documents: int) -> Array:
    return jnp.searchsorted(document, jnp.arange(documents + 1, dtype=document.dtype)).astype(jnp.int32)


def _scores(queries: Array, tokens: Array, offsets: Array, mask: Array | None, query_mask: Array, *, with_places: bool) -> tuple[Array, ...]:
    """Scores [B, C], and with places the rows of the best tokens, [B, C, N]. offsets [C + 1] and mask [T] are of tokens [T, D]."""
    documents = len(offsets) - 1

    def answer(queries: Array, query_mask: Array) -> tuple[Array, ...]:
        best, *places = _maxima(queries.reshape(-1, queries.shape[-1]), tokens, offsets, mask, with_places=with_places)
        return blocked.total(best, query_mask).T, *[jnp.moveaxis(place.reshape(documents, *query_mask.shape), 0, 1) for place in places]

    return blocked.in_turns(answer, queries, query_mask, documents)


def _maxima(queries: Array, tokens: Array, offsets: Array, mask: Array | None, *, with_places: bool) -> list[Array]:
    """[C, Q] largest similarities of query tokens [Q, D] in each document, -inf where it has no token, and with places the first rows that have them."""
    (asked, dim), documents = queries.shape, len(offsets) - 1
    width = -(-dim // 32) * 32
    tile = _tile(len(tokens) // documents, width)
    warpgroups = 1 if asked <= ROWS else 2
    size = warpgroups * ROWS
    spare = max(tile - len(tokens), -len(tokens) % ALIGNMENT)
    queries = jnp.pad(queries, ((0, -asked % size), (0, width - dim)))
    tokens = jnp.pad(tokens, ((0, spare), (0, width - dim)))
    masks = [] if mask is None else [jnp.pad(mask, (0, spare)).astype(jnp.float32)]
    tiles = len(queries) // size
    each = max(1, min(DOCUMENTS, documents * tiles // BLOCKS))
    groups = -(-documents // each)
    offsets = jnp.concatenate([offsets, jnp.broadcast_to(offsets[-1:], groups * each - documents)])

    swizzle = 128 if width % 64 == 0 else 64  # bytes
    transforms = plgpu.TilingTransform((ALIGNMENT, swizzle // queries.dtype.itemsize)), plgpu.SwizzleTransform(swizzle)
    shape = groups * each, len(queries)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)] + [jax.ShapeDtypeStruct(shape, jnp.int32)] * with_places
    found = dispatch.gpu_kernel(
        functools.partial(_kernel, tiles=tiles, documents=each),
        cost=pl.CostEstimate(
            flops=2 * len(tokens) * queries.size,
            transcendentals=0,
            bytes_accessed=tiles * sum(array.nbytes for array in (tokens, *masks)) + queries.nbytes + 4 * sum(result.size for result in results),
        ),
        out_type=results,
        scratch_types={
            "asked": plgpu.SMEM((size, width), queries.dtype, transforms=transforms),
            "buffer": plgpu.SMEM((BUFFERS, tile, width), tokens.dtype, transforms=transforms),
            "keeps": [plgpu.SMEM((BUFFERS, tile), jnp.float32) for _ in masks],
            "ready": plgpu.Barrier(),
            "arrived": plgpu.Barrier(num_arrivals=1 + len(masks), num_barriers=BUFFERS),
            "consumed": plgpu.Barrier(num_arrivals=warpgroups, num_barriers=BUFFERS),
        },
        grid=(groups * tiles,),
        grid_names=("block",),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        kernel_name="maxsim_gpu",
    )(queries, tokens, offsets, *masks)
    return [array[:documents, :asked] for array in found]


def _tile(length: int, width: int) -> int:
    """Document tokens of a tile, for documents of so many on average: a guess, not measured."""
    return 128 if length > 256 and width <= 128 else 64


def _kernel(queries_ref, tokens_ref, offsets_ref, *refs, tiles, documents, asked, buffer, keeps, ready, arrived, consumed):
    """One block of the grid: the last warpgroup copies, the others compute. Neighbouring blocks have the same documents, which then are in the L2 cache."""
    keep_refs, out_refs = refs[: len(keeps)], refs[len(keeps) :]
    block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
    (size, _), tile = asked.shape, buffer.shape[1]
    first_row, first = lax.rem(block, tiles) * size, lax.div(block, tiles) * documents
    scan = functools.partial(_scan, offsets_ref, first, documents, tile, tokens_ref.shape[0] - tile)

    @pl.when(warpgroup == size // ROWS)
    def _copy():
        def copy(count, low, start, end, carry):
            slot = lax.rem(count, BUFFERS)

            @pl.when(count >= BUFFERS)
            def _():
                plgpu.barrier_wait(consumed.at[slot])

            for source, target in zip((tokens_ref, *keep_refs), (buffer, *keeps), strict=True):
                plgpu.copy_gmem_to_smem(source.at[pl.ds(low, tile)], target.at[slot], arrived.at[slot])
            return carry

        plgpu.copy_gmem_to_smem(queries_ref.at[pl.ds(first_row, size)], asked, ready)
        scan(copy)

    @pl.when(warpgroup < size // ROWS)
    def _compute():
        own = pl.ds(warpgroup * ROWS, ROWS)

        def compare(count, low, start, end, carry):
            slot = lax.rem(count, BUFFERS)
            plgpu.barrier_wait(arrived.at[slot])
            similarity = _product(asked.at[own], buffer.at[slot])
            masks = [lax.broadcast_in_dim(plgpu.layout_cast(keep[slot], plgpu.Layout.WGMMA.reduce(0)), similarity.shape, [1]) for keep in keeps]
            if masks:  # read by ordinary loads, which the next copy, by another proxy to memory, waits for only behind a fence
                plgpu.commit_smem()
            plgpu.barrier_arrive(consumed.at[slot])
            return _raise_to(similarity, low, start, end, masks, carry)

        def nothing(start):  # which token is the best of a document without any does not matter, if only it exists
            values = [(-jnp.inf, jnp.float32), (jnp.maximum(start - 1, 0), jnp.int32)][: len(out_refs)]
            return tuple(plgpu.layout_cast(jnp.full((ROWS,), *value), plgpu.Layout.WGMMA.reduce(1)) for value in values)

        def write(number, found):
            for out_ref, result in zip(out_refs, found, strict=True):
                out_ref[first + number, pl.ds(first_row + warpgroup * ROWS, ROWS)] = result

        plgpu.barrier_wait(ready)
        scan(compare, nothing, write)


def _scan(offsets_ref, first, documents, tile, last, visit: Callable[..., Any], initial=lambda start: (), finish=lambda number, carry: None) -> None:
    """Visits the tiles of so many documents from `first` on, the same ones in the same order for every warpgroup.

    `visit(count, low, start, end, carry)` is of a tile from token `low`, after `count` others, of the document with the tokens from `start` to `end`. A
    document's carry begins with `initial(start)`, and `finish(number, carry)` gets the last one.
    """

    def document(number, count):
        start, end = offsets_ref[first + number], offsets_ref[first + number + 1]
        begin = lax.div(start, ALIGNMENT) * ALIGNMENT
        steps = jnp.where(end > start, lax.div(end - begin + (tile - 1), tile), 0)

        def step(number, carry):  # the last tile reaches back: what is seen twice changes no maximum
            low = pl.multiple_of(jnp.minimum(begin + number * tile, last), ALIGNMENT)
            return visit(count + number, low, start, end, carry)

        finish(number, lax.fori_loop(0, steps, step, initial(start)))
        return count + steps

    lax.fori_loop(0, documents, document, jnp.int32(0))


def _product(queries, tokens):
    """[ROWS, tile] similarities in registers, of query tokens [ROWS, D] and document tokens [tile, D] in shared memory."""

    def multiply(sums):
        plgpu.wgmma(sums, queries, tokens.transpose((1, 0)))
        return sums[...]

    return pl.run_scoped(multiply, plgpu.ACC((queries.shape[0], tokens.shape[0]), jnp.float32))


def _raise_to(similarity, low, start, end, masks, carry):
    """The best of `carry` and of the tile from token `low`, of which the tokens from `start` to `end` that no mask has as 0 take part."""
    best, *places = carry
    token = low + plgpu.broadcasted_iota(jnp.int32, similarity.shape, 1, layout=plgpu.Layout.WGMMA)
    own = (token >= start) & (token < end)
    for mask in masks:
        own &= mask > 0
    similarity = jnp.where(own, similarity, -jnp.inf)
    highest = similarity.max(axis=1)
    if places:
        has_it = similarity == lax.broadcast_in_dim(highest, similarity.shape, [0])
        first = jnp.where(has_it, token, jnp.iinfo(jnp.int32).max).min(axis=1)
        places = [jnp.where(highest > best, first, places[0])]
    return jnp.maximum(best, highest), *places
