"""The k best documents by MaxSim, found as they stream by: beside inputs and answer there is never more than the scores of a block.

On a TPU the loop over blocks is around the kernel that scores one: [B, block] scores go to HBM and back, which is nothing beside the tokens.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kernels import dispatch
from kernels.maxsim import check_offsets, mask_of
from kernels.maxsim_compressed import Tokens, implementation, window, without_gradient
from kernels.maxsim_compressed.tokens import check

HOLLOW = jnp.finfo(jnp.float32).min  # the score of a document without tokens while others are sought: above that of no document at all
NOTHING = -1


def maxsim_topk(
    queries: Array, tokens: Tokens, offsets: Array, k: int, query_mask: Array | None = None, *, backend: dispatch.Backend = "auto"
) -> tuple[Array, Array]:
    """(scores [B, k] float32, rows [B, k] int32) of the documents of the largest MaxSim, best first, equal scores by the lower row.

    Documents without tokens come last, with score -inf, and where there are fewer than k the row ends in -1 with -inf. There is no gradient.

    Args:
      queries: [B, N, D] float32, bfloat16 or float16.
      tokens: [T, D] of the same type, or `Int8Tokens`, or `ResidualTokens`.
      offsets: [C + 1] integers that ascend from 0: document c has the tokens offsets[c] to offsets[c + 1] - 1.
      k: 1 or more.
      query_mask, backend: as in `kernels.maxsim.maxsim`.

    Raises:
      ValueError: shapes, types or k that are not as above.
      TypeError: a gradient is asked for.
    """
    queries, tokens, offsets = jax.tree.map(jnp.asarray, (queries, tokens, offsets))
    check(queries, tokens)
    check_offsets(offsets)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k={k!r} is no number of documents; use an int of at least 1")
    find = without_gradient(functools.partial(_topk, implementation(backend, tokens), k), "maxsim_topk")
    arguments: Any = (queries, tokens, offsets, mask_of(query_mask, queries, "query_mask"))
    found: Any = dispatch.by_rows(find, arguments, split=(True, False, False, True))
    return found


def _topk(kernel: ModuleType, k: int, queries: Array, tokens: Tokens, offsets: Array, query_mask: Array) -> tuple[Array, Array]:
    documents = len(offsets) - 1
    size = max(1, kernel.documents_at_once(queries, tokens, documents))
    score = kernel.scorer(queries, query_mask, tokens, documents)

    def merge(best: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        some, row = window(offsets, first, size), first + jnp.arange(size, dtype=jnp.int32)
        scores = jnp.where((some[1:] > some[:-1])[None], score(some), HOLLOW)
        scores = jnp.where((row < documents)[None], scores, -jnp.inf)
        scores = jnp.concatenate([best[0], scores], axis=1)  # those found before have lower rows, and top_k takes the first of equal ones
        rows = jnp.concatenate([best[1], jnp.broadcast_to(row, (len(queries), size))], axis=1)
        scores, place = lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(rows, place, axis=1)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), NOTHING, jnp.int32)
    (scores, rows), _ = lax.scan(merge, nothing, size * jnp.arange(-(-documents // size), dtype=jnp.int32))
    rows = jnp.where(scores == -jnp.inf, NOTHING, rows)
    return jnp.where(scores == HOLLOW, -jnp.inf, scores), rows
