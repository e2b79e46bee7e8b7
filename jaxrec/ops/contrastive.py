"""Losses of retrievers over the documents of a batch: which of them count against which query, and what is asked of their scores."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def candidates(batch: Mapping[str, jax.Array], *, in_batch: bool) -> tuple[jax.Array, jax.Array]:
    """(excluded [B, C] bool, own [B, 1 + S] columns of a row's own documents) among the C = B (1 + S) documents of a batch.

    The first B documents are those relevant to the rows, then come the rows' hard negatives. A row's relevant document is never excluded; other
    columns are if they hold a document that the batch knows to be relevant to the same query, or belong to a row of weight zero.
    """
    query, document = batch["query_row"], batch["document_row"]
    rows = jnp.arange(len(query))
    hard = batch["negative_row"] if "negative_row" in batch else jnp.zeros((len(query), 0), document.dtype)  # [B, S]
    owner = jnp.concatenate([rows, jnp.repeat(rows, hard.shape[1])])  # [C]
    shown = jnp.concatenate([document, hard.reshape(-1)])  # [C]
    same = (query[:, None] == query[None, :]) & (batch["mask"] > 0)[None, :]  # [B, B] rows of one query
    answers = (same[:, :, None] & (document[:, None] == shown[None, :])[None]).any(axis=1)  # [B, C] who is relevant to whom, as far as the batch says
    excluded = answers | (batch["mask"][owner] == 0)[None, :]
    if not in_batch:
        excluded |= owner[None, :] != rows[:, None]
    own = jnp.concatenate([rows[:, None], len(rows) + rows[:, None] * hard.shape[1] + jnp.arange(hard.shape[1])[None, :]], axis=1)
    return excluded.at[rows, rows].set(False), own


def contrastive(scores: jax.Array, excluded: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of -log softmax of a row's own score, the diagonal of [B, C], among those not `excluded` [B, C]."""
    scores = jnp.where(excluded, -jnp.inf, scores)
    return (jnp.where(weight > 0, jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores), 0) * weight).sum(), weight.sum()


def triplet(scores: jax.Array, excluded: jax.Array, weight: jax.Array, margin: float) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the mean over a row's negatives of relu(margin - s+ + s-): 0 once its own score beats each of them by the margin.

    A row's own score s+ is on the diagonal of [B, C], its negatives s- are the others that are not `excluded` [B, C].
    """
    rows = jnp.arange(len(scores))
    negative = (~excluded).at[rows, rows].set(False)
    missing = jnp.where(negative, jax.nn.relu(margin - jnp.diagonal(scores)[:, None] + scores), 0).sum(axis=1)
    return (jnp.where(weight > 0, missing / jnp.maximum(negative.sum(axis=1), 1), 0) * weight).sum(), weight.sum()


def divergence(teacher: jax.Array, scores: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of KL(softmax(teacher) || softmax(scores)) over each row's documents [B, 1 + S]."""
    wanted, given = jax.nn.log_softmax(teacher.astype(jnp.float32), axis=1), jax.nn.log_softmax(scores, axis=1)
    return (jnp.where(weight > 0, (jnp.exp(wanted) * (wanted - given)).sum(axis=1), 0) * weight).sum(), weight.sum()
