"""MaxSim with compressed documents, decoded a tile at a time: the decoded tokens are never in memory together.

Scores are those of `kernels.maxsim.maxsim_ragged` with the decoded vectors, to float32 rounding: queries are not rounded and sums are float32. There is no
gradient.
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
from kernels.maxsim_compressed import blocked, reference, tpu
from kernels.maxsim_compressed.tokens import Int8Tokens, ResidualTokens, Tokens, check

__all__ = ["Int8Tokens", "ResidualTokens", "Tokens", "implementation", "maxsim_int8", "maxsim_residual", "without_gradient"]

IMPLEMENTATIONS = {"reference": reference, "blocked": blocked, "tpu": tpu}


def maxsim_int8(queries: Array, codes: Array, scales: Array, offsets: Array, query_mask: Array | None = None, *, backend: dispatch.Backend = "auto") -> Array:
    """[B, C] float32 scores of documents whose token t is scales[t] * codes[t]; -inf of those without tokens.

    Args:
      queries: [B, N, D] float32, bfloat16 or float16.
      codes: [T, D] int8.
      scales: [T] float32.
      offsets: [C + 1] integers that ascend from 0: document c has the tokens offsets[c] to offsets[c + 1] - 1.
      query_mask, backend: as in `kernels.maxsim.maxsim`.

    Raises:
      ValueError: shapes or types that are not as above.
      TypeError: a gradient is asked for.
    """
    return _maxsim(queries, Int8Tokens(codes, scales), offsets, query_mask, backend)


def maxsim_residual(
    queries: Array,
    centroids: Array,
    codes: Array,
    residuals: Array,
    weights: Array,
    offsets: Array,
    query_mask: Array | None = None,
    *,
    normalize: bool = True,
    backend: dispatch.Backend = "auto",
) -> Array:
    """[B, C] float32 scores of documents in ColBERTv2's codec (arXiv 2112.01488): centroids[codes] and b bits for each entry of what is left, by entries or
    as a product code.

    Args:
      queries, offsets, query_mask, backend: as in `maxsim_int8`.
      centroids, codes, residuals, weights, normalize: see `ResidualTokens`.

    Raises:
      ValueError: shapes or types that are not as there, or for backend="tpu" product codes and centroids that do not fit its memory; "auto" takes
        "blocked" for those.
      TypeError: a gradient is asked for.
    """
    return _maxsim(queries, ResidualTokens(centroids, codes, residuals, weights, normalize), offsets, query_mask, backend)


def implementation(backend: str, tokens: Tokens) -> ModuleType:
    """Of `backend`, for these tokens; each has `scorer` and `documents_at_once`."""
    name = dispatch.choose(backend, IMPLEMENTATIONS)
    if name == "tpu" and (why := tpu.refusal(tokens)):
        if backend == "tpu":
            raise ValueError(f"{why}; use backend='blocked'")
        name = "blocked"
    return IMPLEMENTATIONS[name]


def without_gradient(function: Any, what: str) -> Any:
    """`function` of arrays, which raises TypeError where it would be differentiated."""
    wrapped = jax.custom_jvp(function)

    @wrapped.defjvp
    def _(primals, tangents):
        raise TypeError(f"{what} has no gradient; put its arguments in jax.lax.stop_gradient, or train with kernels.maxsim of float vectors")

    return wrapped


def _maxsim(queries: Array, tokens: Tokens, offsets: Array, query_mask: Array | None, backend: str) -> Array:
    queries, tokens, offsets = jax.tree.map(jnp.asarray, (queries, tokens, offsets))
    check(queries, tokens)
    check_offsets(offsets)
    scores = without_gradient(functools.partial(_scores, implementation(backend, tokens)), "MaxSim with compressed documents")
    arguments: Any = (queries, tokens, offsets, mask_of(query_mask, queries, "query_mask"))
    return dispatch.by_rows(scores, arguments, split=(True, False, False, True))


def _scores(kernel: ModuleType, queries: Array, tokens: Tokens, offsets: Array, query_mask: Array) -> Array:
    documents = len(offsets) - 1
    score = kernel.scorer(queries, query_mask, tokens, documents)
    size = max(1, kernel.documents_at_once(queries, tokens, documents))
    if size >= documents:
        scores = score(offsets)
    else:
        blocks = lax.map(lambda first: score(window(offsets, first, size)), size * jnp.arange(-(-documents // size)))  # [n, B, c]
        scores = jnp.moveaxis(blocks, 0, 1).reshape(len(queries), blocks.shape[0] * size)[:, :documents]
    return jnp.where((offsets[1:] > offsets[:-1])[None, :], scores, -jnp.inf)


def window(offsets: Array, first: Array, size: int) -> Array:
    """[size + 1] the offsets of the documents from `first` on; beyond the last they have no tokens."""
    return offsets[jnp.minimum(first + jnp.arange(size + 1), len(offsets) - 1)]
