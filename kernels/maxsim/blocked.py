"""Blocks of documents in plain XLA, for any platform: a block's similarities are reduced while they are still in the cache.

Similarities are laid out [document tokens, query tokens]: on a CPU that product runs at twice the speed of its transpose, and the maximum over a
document's tokens then goes down the rows, which vectorises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels import dispatch

BLOCK_BYTES = 4 * 2**20
"""Of the similarities and tokens of a block. A Xeon with 1.25 MiB of L2 was fastest at 2 to 4 MiB, and half as slow again at 32 MiB."""
ACCELERATOR = 4  # times larger blocks where there is no such cache to fit and every block costs the launch of programs; a guess, not measured
WHOLE_BYTES = 32 * 2**20
"""Similarities up to which everything is one block: tokens need no copying then, 14 against 20 ms for 180,000 of them and 32 query tokens."""
BEST_BYTES = 256 * 2**20  # of the maxima [C, B, N] that `ragged` carries from block to block; more queries than that allows take turns


def dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> Array:
    """[B, C] float32 scores; no more than a block of the similarities exists at a time."""
    best = functools.partial(_best, queries.reshape(-1, queries.shape[-1]))

    def block(documents: Array, mask: Array) -> Array:
        return total(best(documents, mask).max(axis=1), query_mask)

    return _over_blocks(block, queries, documents, document_mask).T


def dense_places(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> tuple[Array, Array]:
    """The scores [B, C], and for each query token the row c * M + m of its best document token, [B, C, N] int32."""
    best = functools.partial(_best, queries.reshape(-1, queries.shape[-1]))
    shape, (count, length) = query_mask.shape, document_mask.shape

    def block(documents: Array, mask: Array) -> tuple[Array, Array]:
        similarity = best(documents, mask)  # [c, M, B * N]
        highest = similarity.max(axis=1)
        # Two reductions that vectorise: argmax, one that does not, takes twice the time of everything else.
        place = jnp.where(similarity == highest[:, None], lax.broadcasted_iota(jnp.int32, similarity.shape, 1), length).min(axis=1)
        return total(highest, query_mask), place.reshape(-1, *shape)

    scores, places = _over_blocks(block, queries, documents, document_mask)
    return scores.T, jnp.moveaxis(places + length * jnp.arange(count, dtype=jnp.int32)[:, None, None], 0, 1)


def ragged(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> Array:
    """[B, C] float32 scores. `document` [T] is each token's row of C = `documents`, C for no document's, in ascending order."""

    def scores(queries: Array, mask: Array) -> Array:
        return total(_ragged_best(queries.reshape(-1, queries.shape[-1]), tokens, document, documents), mask).T

    return in_turns(scores, queries, query_mask, documents)


def ragged_places(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> tuple[Array, Array]:
    """The scores [B, C], and for each query token the row of its best document token, [B, C, N] int32.

    The similarities are computed twice: the first pass finds each document's maximum, the second the first row that has it.
    """
    last = len(document) - 1

    def places(queries: Array, mask: Array) -> tuple[Array, Array]:
        flat = queries.reshape(-1, queries.shape[-1])  # [B * N, D]
        best = _ragged_best(flat, tokens, document, documents)  # [C, B * N]

        def first_row(place: Array, row: Array, tokens: Array, document: Array) -> Array:
            is_best = dot(tokens, flat) == best.at[document].get(mode="fill", fill_value=jnp.nan)
            return place.at[document].min(jnp.where(is_best, row[:, None], last), mode="drop", indices_are_sorted=True)

        place = _over_tokens(first_row, jnp.full(best.shape, last, jnp.int32), len(flat), tokens, document)
        return total(best, mask).T, jnp.moveaxis(place.reshape(-1, *mask.shape), 0, 1)

    return in_turns(places, queries, query_mask, documents)


def gradients(cotangent: Array, places: Array, queries: Array, tokens: Array, query_mask: Array) -> tuple[Array, Array]:
    """Gradients to queries [B, N, D] and tokens [T, D], both float32, of sum(cotangent * scores): the maximum hands it to one token only.

    Args:
      cotangent: [B, C] float32.
      places: [B, C, N] rows of `tokens`.
      queries, tokens, query_mask: [B, N, D], [T, D], [B, N].
    """
    weight = jnp.where(query_mask[:, None, :], cotangent[:, :, None], 0)  # [B, C, N]
    (batch, count, length), dim = weight.shape, queries.shape[-1]
    size = max(1, min(count, block_bytes() // (4 * batch * length * dim)))

    def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_queries, d_tokens = carry
        first = jnp.minimum(number * size, count - size)
        fresh = first + jnp.arange(size) >= number * size  # the last block reaches back over documents that are done
        place = lax.dynamic_slice_in_dim(places, first, size, axis=1)  # [B, c, N]
        share = jnp.where(fresh[None, :, None], lax.dynamic_slice_in_dim(weight, first, size, axis=1), 0)
        d_queries += jnp.einsum("bcn,bcnd->bnd", share, tokens[place].astype(jnp.float32))
        return d_queries, d_tokens.at[place].add(share[..., None] * queries[:, None].astype(jnp.float32))

    start = jnp.zeros(queries.shape, jnp.float32), jnp.zeros(tokens.shape, jnp.float32)
    return lax.fori_loop(0, -(-count // size), step, start)


def _best(queries: Array, documents: Array, mask: Array) -> Array:
    """Similarities [c, M, B * N], -inf for masked document tokens. queries [B * N, D], documents [c, M, D], mask [c, M]."""
    similarity = dot(documents.reshape(-1, documents.shape[-1]), queries)
    return jnp.where(mask[..., None], similarity.reshape(*mask.shape, -1), -jnp.inf)


def total(best: Array, query_mask: Array) -> Array:
    """[C, B]: the maxima [C, B * N] summed over each query's own tokens."""
    return jnp.where(query_mask, best.reshape(len(best), *query_mask.shape), 0).sum(axis=-1)


def _ragged_best(queries: Array, tokens: Array, document: Array, documents: int) -> Array:
    """[C, B * N] the largest similarity of each document to each query token, -inf for documents without tokens."""

    def raise_to(best: Array, row: Array, tokens: Array, document: Array) -> Array:
        return best.at[document].max(dot(tokens, queries), mode="drop", indices_are_sorted=True)

    return _over_tokens(raise_to, jnp.full((documents, len(queries)), -jnp.inf), len(queries), tokens, document)


def _over_blocks(block: Callable[[Array, Array], Any], queries: Array, documents: Array, mask: Array) -> Any:
    """`block(documents [c, M, D], mask [c, M])` of all documents; the last block reaches back, so that nothing is padded."""
    count, length = mask.shape
    size = max(1, _block_tokens(count * length, queries.shape[0] * queries.shape[1], documents.shape[-1]) // max(length, 1))
    if count <= size:
        return block(documents, mask)

    def step(number: Array, results: Any) -> Any:
        first = jnp.minimum(number * size, count - size)
        result = block(*(lax.dynamic_slice_in_dim(array, first, size) for array in (documents, mask)))
        return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, first, 0), results, result)

    shapes = jax.eval_shape(block, documents[:size], mask[:size])
    return lax.fori_loop(0, -(-count // size), step, jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), shapes))


def _over_tokens(update: Callable[..., Array], result: Array, columns: int, tokens: Array, document: Array) -> Array:
    """`update(result, row [t], tokens [t, D], document [t])` over all tokens. Updates may be repeated: the last block reaches back over others."""
    count = len(tokens)
    size = _block_tokens(count, columns, tokens.shape[-1])
    if count <= size:
        return update(result, jnp.arange(count, dtype=jnp.int32), tokens, document)

    def step(number: Array, result: Array) -> Array:
        first = jnp.minimum(number * size, count - size)
        block = (lax.dynamic_slice_in_dim(array, first, size) for array in (tokens, document))
        return update(result, first + jnp.arange(size, dtype=jnp.int32), *block)

    return lax.fori_loop(0, -(-count // size), step, result)


def _block_tokens(tokens: int, columns: int, dim: int) -> int:
    """Document tokens of a block, for so many tokens in all and query tokens beside them: all of them if their similarities are few."""
    return tokens if 4 * tokens * columns <= WHOLE_BYTES else max(1, block_bytes() // (4 * (columns + dim)))


def block_bytes() -> int:
    return BLOCK_BYTES if dispatch.platform() == "cpu" else ACCELERATOR * BLOCK_BYTES


def in_turns(answer: Callable[[Array, Array], Any], queries: Array, query_mask: Array, documents: int) -> Any:
    """`answer(queries [b, N, D], mask [b, N])` of all queries, so many at a time that their maxima fit `BEST_BYTES`."""
    count = len(queries)
    size = max(1, BEST_BYTES // max(4 * documents * queries.shape[1], 1))
    if count <= size:
        return answer(queries, query_mask)
    turns = [jnp.pad(array, [(0, -count % size)] + [(0, 0)] * (array.ndim - 1)).reshape(-1, size, *array.shape[1:]) for array in (queries, query_mask)]
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], lax.map(lambda turn: answer(*turn), tuple(turns)))


def dot(tokens: Array, queries: Array) -> Array:
    """[T, D] against [Q, D] -> [T, Q] float32."""
    return lax.dot_general(tokens, queries, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
