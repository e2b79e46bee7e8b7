"""MaxSim, the score of late interaction (Khattab and Zaharia 2020, arXiv 2004.12832), without the matrix of similarities.

    score(Q, D) = sum over query tokens i of max over document tokens j of <q_i, d_j>

Masked document tokens are -inf before the maximum: zeros in their place would win wherever every real similarity is negative, and the score of a
document would depend on how far its batch was padded. A document without tokens scores -inf, a query without tokens 0.

float32 inputs are multiplied in full float32, bfloat16 and float16 ones into float32 sums. Gradients keep one row number for each query token and
document, and nothing else of the similarities. Of tokens that are equally good the first one receives the gradient.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kernels import dispatch
from kernels.maxsim import blocked, reference

IMPLEMENTATIONS = ("reference", "blocked", "tpu", "gpu")


def maxsim(
    queries: Array, documents: Array, query_mask: Array | None = None, document_mask: Array | None = None, *, backend: dispatch.Backend = "auto"
) -> Array:
    """Scores of every document for every query, [B, C] float32. Differentiable in queries and documents.

    Args:
      queries: [B, N, D] float32, bfloat16 or float16.
      documents: [C, M, D], of the same type.
      query_mask: [B, N] bool, False where a token is padding; None: no padding.
      document_mask: [C, M] bool, likewise.
      backend: "reference" | "blocked" | "tpu" | "gpu", or "auto": "tpu" on TPUs and "blocked" elsewhere, on GPUs too, where "gpu" (Hopper, bfloat16 and
        float16; "blocked" for float32) was not timed yet.

    Raises:
      ValueError, TypeError: shapes or types that are not as above.
    """
    _check(queries, documents, ("documents", "[C, M, D]", 3))
    query_mask = mask_of(query_mask, queries, "query_mask")
    queries = jnp.where(query_mask[..., None], queries, 0)  # whatever padding holds: its gradient is multiplied by 0, and 0 * NaN is NaN
    document_mask = mask_of(document_mask, documents, "document_mask")
    exists = document_mask.any(axis=1)
    if _hollow(queries, documents):
        return _of_nothing(exists, queries)
    name = dispatch.choose(backend, IMPLEMENTATIONS)
    if name == "reference":  # jax's derivative, too
        scores: Any = reference.dense(queries, documents, query_mask, document_mask)
    else:
        own = functools.partial(_dense, name)
        scores = dispatch.by_rows(own, (queries, documents, query_mask, document_mask), split=(True, False, True, False))
    return jnp.where(exists[None, :], scores, -jnp.inf)


def maxsim_ragged(queries: Array, tokens: Array, offsets: Array, query_mask: Array | None = None, *, backend: dispatch.Backend = "auto") -> Array:
    """As `maxsim`, of documents that lie one after the other without padding: document c has `tokens[offsets[c]:offsets[c + 1]]`.

    Args:
      queries: [B, N, D].
      tokens: [T, D], of the same type. Those from `offsets[-1]` on belong to no document.
      offsets: [C + 1] integers that ascend from 0.
      query_mask, backend: as in `maxsim`.
    """
    _check(queries, tokens, ("tokens", "[T, D]", 2))
    check_offsets(offsets)
    query_mask = mask_of(query_mask, queries, "query_mask")
    queries = jnp.where(query_mask[..., None], queries, 0)
    exists = offsets[1:] > offsets[:-1]
    if _hollow(queries, tokens) or len(offsets) == 1:
        return _of_nothing(exists, queries)
    owner = owners(offsets, len(tokens))
    name, documents = dispatch.choose(backend, IMPLEMENTATIONS), len(offsets) - 1
    if name == "reference":
        scores: Any = reference.ragged(queries, tokens, owner, query_mask, documents)
    else:
        scores = dispatch.by_rows(functools.partial(_ragged, name, documents), (queries, tokens, owner, query_mask), split=(True, False, False, True))
    return jnp.where(exists[None, :], scores, -jnp.inf)


def _implementation(name: str) -> ModuleType:
    """The module of that name, imported when it is first asked for: Pallas for GPUs alone takes a third of a second."""
    return importlib.import_module(f"{__name__}.{name}")


def _hollow(*arrays: Array) -> bool:
    """Whether an axis is empty; one whose size is a symbol is not."""
    return any(isinstance(size, int) and not size for array in arrays for size in array.shape)


def _of_nothing(exists: Array, queries: Array) -> Array:
    """Scores [B, C] where there is nothing to multiply: 0, and -inf of documents that do not exist [C]."""
    return jnp.broadcast_to(jnp.where(exists[None, :], 0.0, -jnp.inf), (queries.shape[0], exists.shape[0]))


def owners(offsets: Array, tokens: int) -> Array:
    """[T] int32 the document of each of so many tokens, C for none's; `offsets` [C + 1] as in `maxsim_ragged`."""
    starts = jnp.zeros(tokens, jnp.int32).at[offsets].add(1, mode="drop", indices_are_sorted=True)
    return jnp.cumsum(starts) - 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense(backend: str, queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> Array:
    return _implementation(backend).dense(queries, documents, query_mask, document_mask)


def _dense_forward(backend, queries, documents, query_mask, document_mask):
    implementation = _implementation(backend)
    scores, places = getattr(implementation, "dense_places", blocked.dense_places)(queries, documents, query_mask, document_mask)
    return scores, (places, queries, documents, query_mask, document_mask)


def _dense_backward(backend, kept, cotangent):
    places, queries, documents, query_mask, document_mask = kept
    cotangent = jnp.where(document_mask.any(axis=1), cotangent, 0)
    d_queries, d_tokens = blocked.gradients(cotangent, places, queries, documents.reshape(-1, documents.shape[-1]), query_mask)
    return d_queries.astype(queries.dtype), d_tokens.reshape(documents.shape).astype(documents.dtype), None, None


_dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ragged(backend: str, documents: int, queries: Array, tokens: Array, owner: Array, query_mask: Array) -> Array:
    return _implementation(backend).ragged(queries, tokens, owner, query_mask, documents)


def _ragged_forward(backend, documents, queries, tokens, owner, query_mask):
    implementation = _implementation(backend)
    scores, places = getattr(implementation, "ragged_places", blocked.ragged_places)(queries, tokens, owner, query_mask, documents)
    return scores, (places, queries, tokens, owner, query_mask)


def _ragged_backward(backend, documents, kept, cotangent):
    places, queries, tokens, owner, query_mask = kept
    exists = jnp.zeros(documents, bool).at[owner].set(True, mode="drop", indices_are_sorted=True)
    d_queries, d_tokens = blocked.gradients(jnp.where(exists, cotangent, 0), places, queries, tokens, query_mask)
    return d_queries.astype(queries.dtype), d_tokens.astype(tokens.dtype), None, None


_ragged.defvjp(_ragged_forward, _ragged_backward)


def mask_of(mask: Array | None, vectors: Array, what: str) -> Array:
    """[B, N] booleans for vectors [B, N, D]: `mask`, or True where it is None. Raises ValueError for another shape."""
    if mask is None:
        return jnp.ones(vectors.shape[:2], bool)
    if mask.shape != vectors.shape[:2]:
        raise ValueError(f"{what} {mask.shape} must have one entry for each token of {vectors.shape[:2]}")
    return mask.astype(bool)


def check_offsets(offsets: Array) -> None:
    """Raises ValueError unless there are C + 1 integers."""
    if offsets.ndim != 1 or len(offsets) < 1 or not jnp.issubdtype(offsets.dtype, jnp.integer):
        raise ValueError(f"offsets must be C + 1 integers, got {offsets.dtype} of shape {offsets.shape}")


def _check(queries: Array, others: Array, form: tuple[str, str, int]) -> None:
    what, shape, axes = form
    if queries.ndim != 3 or others.ndim != axes or queries.shape[-1] != others.shape[-1]:
        raise ValueError(f"expected queries [B, N, D] and {what} {shape} of one width D, got {queries.shape} and {others.shape}")
    if queries.dtype != others.dtype:
        raise TypeError(f"queries are {queries.dtype} and {what} {others.dtype}; cast one to the other")
