"""Queries and documents to score, padded and packed, and how near scores must be."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from kernels import shapes


def draw(shape: shapes.MaxSim, dtype=jnp.float32, seed: int = 0):
    """queries [B, N, D], documents [C, M, D], query_mask [B, N], document_mask [C, M]; the last of several documents is empty."""
    rng = np.random.default_rng(seed)
    queries = jnp.asarray(rng.normal(size=(shape.queries, shape.query_tokens, shape.dim)), dtype)
    documents = jnp.asarray(rng.normal(size=(shape.documents, shape.document_tokens, shape.dim)), dtype)
    query_mask = rng.random((shape.queries, shape.query_tokens)) < 0.8
    document_mask = rng.random((shape.documents, shape.document_tokens)) < 0.7
    query_mask[:, 0] = document_mask[:, 0] = True
    document_mask[1:][-1:] = False
    return queries, documents, jnp.asarray(query_mask), jnp.asarray(document_mask)


def packed(documents, document_mask, spare: int = 3):
    """tokens [T + spare, D] and offsets [C + 1] of the unmasked tokens; the spare ones, at the end, are no document's and would win."""
    mask = np.asarray(document_mask)
    loud = jnp.full((spare, documents.shape[-1]), 100, documents.dtype)
    return jnp.concatenate([documents[mask], loud]), jnp.asarray(np.r_[0, np.cumsum(mask.sum(axis=1))], jnp.int32)


def padded(queries, documents, query_mask, document_mask):
    """The same with two more masked tokens a query and five a document, all of them NaN."""
    values = [jnp.pad(array, ((0, 0), (0, more), (0, 0)), constant_values=jnp.nan) for array, more in ((queries, 2), (documents, 5))]
    masks = [jnp.pad(mask, ((0, 0), (0, more))) for mask, more in ((query_mask, 2), (document_mask, 5))]
    return *values, *masks


def assert_near(actual, expected, tolerance: float = 1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=0, atol=tolerance * max(np.abs(expected[finite]).max(initial=0), 1))
