"""Tiles of tokens in plain XLA, decoded while they are in the cache; documents in blocks, each the tiles that its tokens lie in.

int8 codes are multiplied as float32, which holds them exactly, and the product by the scale: the query is not rounded, so there is no integer product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels.maxsim.blocked import block_bytes, dot, total
from kernels.maxsim_compressed.tokens import TINY, Int8Tokens, ResidualTokens, Tokens

TILES = 16  # that the documents of a block fill, about: half of the last one is another block's
LEAST = 256  # tokens of a tile, however many queries there are: fewer make slow products


def documents_at_once(queries: Array, tokens: Tokens, documents: int) -> int:
    """Of so many documents, those that one call of a scorer should be for."""
    columns = queries.shape[0] * queries.shape[1]
    filling = TILES * _tile(queries, tokens) * documents // max(len(tokens), 1)
    return max(1, min(documents, filling, block_bytes() // (4 * max(columns, 1))))


def scorer(queries: Array, query_mask: Array, tokens: Tokens, documents: int) -> Callable[[Array], Array]:
    """A function of offsets [C + 1], ascending from anywhere, to the scores [B, C] of the documents there."""
    rows, similarity = _similarity(queries.reshape(-1, queries.shape[-1]), tokens)
    count, size = len(tokens), min(_tile(queries, tokens), len(tokens))

    def score(offsets: Array) -> Array:
        def step(number: Array, best: Array) -> Array:
            first = jnp.minimum(offsets[0] + number * size, count - size)  # the last tile reaches back: what is seen twice changes no maximum
            tile = jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, first, size), rows)
            starts = jnp.zeros(size, jnp.int32).at[jnp.maximum(offsets - first, 0)].add(1, mode="drop", indices_are_sorted=True)
            return best.at[jnp.cumsum(starts)].max(similarity(tile), mode="drop", indices_are_sorted=True)

        before = jnp.full((len(offsets), query_mask.size), -jnp.inf)  # row 0 is for tokens before the first document
        steps = (offsets[-1] - offsets[0] + size - 1) // max(size, 1)
        return total(lax.fori_loop(0, steps, step, before)[1:], query_mask).T

    return score


def _tile(queries: Array, tokens: Tokens) -> int:
    return max(LEAST, block_bytes() // (4 * (queries.shape[0] * queries.shape[1] + queries.shape[-1])))


def _similarity(queries: Array, tokens: Tokens) -> tuple[Any, Callable[[Any], Array]]:
    """(arrays of a row for each token, the similarities [t, Q] float32 of t rows of them) for query tokens [Q, D]."""
    if isinstance(tokens, Int8Tokens):
        wide = queries.astype(jnp.float32)
        return (tokens.codes, tokens.scales), lambda rows: dot(rows[0].astype(jnp.float32), wide) * rows[1][:, None]
    if isinstance(tokens, ResidualTokens):
        return (tokens.codes, tokens.residuals), _residual(queries.astype(jnp.float32), tokens)
    return tokens, lambda rows: dot(rows, queries)


def _residual(queries: Array, tokens: ResidualTokens) -> Callable[[tuple[Array, Array]], Array]:
    """Of numbers of b bits the dimensions go in the order of the bits, first those in the highest bits of each byte: then no entry moves when bytes are taken
    apart."""
    bits, centroids = tokens.bits, tokens.centroids
    if not tokens.product:
        queries, centroids = (array.reshape(len(array), -1, 8 // bits).swapaxes(1, 2).reshape(array.shape) for array in (queries, centroids))

    def left(residuals: Array) -> Array:
        if tokens.product:
            byte = 256 * jnp.arange(residuals.shape[1])[None] + residuals  # rows of the books one after another
            return tokens.weights.reshape(-1, 8 // bits)[byte].reshape(len(residuals), tokens.dim)
        return select(jnp.concatenate([(residuals >> shift) & (2**bits - 1) for shift in range(8 - bits, -1, -bits)], axis=1), tokens.weights)

    def similarity(rows: tuple[Array, Array]) -> Array:
        codes, residuals = rows
        decoded = centroids[codes.astype(jnp.int32)] + left(residuals)  # [t, D]
        if not tokens.normalize:
            return dot(decoded, queries)
        squares = dot(decoded * decoded, jnp.ones((1, tokens.dim)))  # [t, 1]; a sum along the last axis does not vectorise on a CPU
        return dot(decoded, queries) / jnp.maximum(jnp.sqrt(squares), TINY)

    return similarity


def select(buckets: Array, weights: Array) -> Array:
    """weights[buckets] by comparisons, which vectorise where look-ups do not."""
    chosen = jnp.broadcast_to(weights[0], buckets.shape)
    for number in range(1, weights.shape[0]):
        chosen = jnp.where(buckets == number, weights[number], chosen)
    return chosen
