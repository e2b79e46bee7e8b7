"""The definition: keeps all similarities, and leaves the derivative to jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def dense(queries: Array, documents: Array, query_mask: Array, document_mask: Array) -> Array:
    """[B, C] float32 scores; keeps [B, C, N, M] similarities."""
    similarity = jnp.einsum("bnd,cmd->bcnm", queries, documents, precision="highest", preferred_element_type=jnp.float32)
    best = jnp.where(document_mask[None, :, None, :], similarity, -jnp.inf).max(axis=-1)  # [B, C, N]
    return jnp.where(query_mask[:, None, :], best, 0).sum(axis=-1)


def ragged(queries: Array, tokens: Array, document: Array, query_mask: Array, documents: int) -> Array:
    """[B, C] float32 scores; keeps [T, B, N] similarities. `document` [T] is each token's row of C = `documents`, C for no document's."""
    similarity = jnp.einsum("td,bnd->tbn", tokens, queries, precision="highest", preferred_element_type=jnp.float32)
    best = jax.ops.segment_max(similarity, document, documents + 1, indices_are_sorted=True)[:documents]  # [C, B, N]
    return jnp.where(query_mask, best, 0).sum(axis=-1).T
