"""XTR: its score against the paper's equation, in values, gradients and memory."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.method import Vectors
from jaxrec.methods.late_interaction.xtr import retrieval_scores, tiny
from jaxrec.param import create
from kernels.maxsim import maxsim


def some(seed, count, tokens, dim=8, shortest=1):
    """Positive and negative vectors of length 1, and a mask that leaves `shortest` tokens at least."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, tokens, dim)).astype(np.float32)
    mask = np.arange(tokens)[None] < random.integers(shortest, tokens + 1, size=(count, 1))
    return Vectors(values / np.linalg.norm(values, axis=-1, keepdims=True), mask)


QUERIES, DOCUMENTS = some(0, 12, 5), some(1, 6, 7)  # 12 queries: three turns of four


def by_definition(queries, documents, k):
    """The equation, query by query, token by token."""
    scores = np.zeros((len(queries.values), len(documents.values)))
    tokens = [(c, m) for c, m in np.argwhere(documents.mask)]
    for b, query in enumerate(queries.values):
        total, found = np.zeros(len(documents.values)), np.zeros(len(documents.values))
        for vector in query[queries.mask[b]]:
            similarity = np.array([vector @ documents.values[c, m] for c, m in tokens])
            retrieved = np.argsort(-similarity)[:k]
            for c in {tokens[j][0] for j in retrieved}:
                total[c] += max(similarity[j] for j in retrieved if tokens[j][0] == c)
                found[c] += 1
        scores[b] = total / np.maximum(found, 1)
    return scores


@functools.partial(jax.jit, static_argnums=2)
def scores_and_gradient(queries, documents, k, weight):
    def total(queries, documents):
        scores = retrieval_scores(queries, documents, k)
        return (scores * weight).sum(), scores

    (_, scores), (d_queries, d_documents) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True, allow_int=True)(queries, documents)
    return scores, d_queries.values, d_documents.values


WEIGHT = np.random.default_rng(2).normal(size=(12, 6)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4, 15])
def test_it_is_the_equation(k):
    scores = retrieval_scores(QUERIES, DOCUMENTS, k)
    np.testing.assert_allclose(scores, by_definition(QUERIES, DOCUMENTS, k), atol=1e-5)


def test_with_everything_retrieved_it_is_mean_maxsim():
    scores, d_queries, d_documents = scores_and_gradient(QUERIES, DOCUMENTS, 1000, WEIGHT)
    tokens = QUERIES.mask.sum(axis=1)[:, None]

    def mean_maxsim(queries, documents):
        return (maxsim(queries, documents, QUERIES.mask, DOCUMENTS.mask) / tokens * WEIGHT).sum()

    np.testing.assert_allclose(scores, maxsim(QUERIES.values, DOCUMENTS.values, QUERIES.mask, DOCUMENTS.mask) / tokens, atol=1e-5)
    expected = jax.jit(jax.grad(mean_maxsim, argnums=(0, 1)))(QUERIES.values, DOCUMENTS.values)
    for found, wanted in zip((d_queries, d_documents), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_gradient_is_that_of_the_retrieved_tokens():
    scores, d_queries, _ = scores_and_gradient(QUERIES, DOCUMENTS, 4, WEIGHT)
    random = np.random.default_rng(3)
    step = 1e-3 * random.normal(size=QUERIES.values.shape).astype(np.float32)
    ahead, behind = (by_definition(Vectors(QUERIES.values + sign * step, QUERIES.mask), DOCUMENTS, 4) for sign in (1, -1))
    steady = np.abs(ahead - behind) < 0.1  # elsewhere a token came in or went out between the two
    assert steady.mean() > 0.9
    kept = scores_and_gradient(QUERIES, DOCUMENTS, 4, (WEIGHT * steady).astype(np.float32))[1]
    assert np.vdot(kept, step) == pytest.approx(((ahead - behind) / 2 * WEIGHT * steady).sum(), rel=1e-2)
    assert np.isfinite(d_queries).all()


def test_a_document_without_retrieved_tokens_scores_0_and_gets_no_gradient():
    near = Vectors(np.broadcast_to(QUERIES.values[:1, :1], (1, 9, 8)), np.ones((1, 9), bool))  # nine tokens like the query's first
    documents = jax.tree.map(lambda a, b: np.concatenate([a[:, :7], b[:2]]), near, DOCUMENTS)
    query = jax.tree.map(lambda leaf: leaf[:1, :1], QUERIES)
    scores, _, d_documents = scores_and_gradient(query, documents, 7, np.ones((1, 3), np.float32))
    np.testing.assert_allclose(scores, [[1, 0, 0]], atol=1e-6)
    assert d_documents[0].any() and not d_documents[1:].any()


def test_padding_of_a_document_is_never_retrieved():
    wide = jax.tree.map(lambda leaf: np.pad(leaf, [(0, 0), (0, 4)] + [(0, 0)] * (leaf.ndim - 2)), DOCUMENTS)
    for k in (4, 1000):
        np.testing.assert_allclose(retrieval_scores(QUERIES, wide, k), retrieval_scores(QUERIES, DOCUMENTS, k), atol=1e-6)


def test_memory_does_not_grow_with_the_queries():
    documents = some(5, 64, 64, dim=16)

    def needed(count):
        arguments = some(4, count, 32, dim=16), documents, 100, np.ones((count, 64), np.float32)
        return scores_and_gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert needed(128) - needed(64) < 0.05 * (4 * 64 * 32 * 64 * 64)  # bytes of 64 queries' similarities


def test_documents_of_rows_of_weight_zero_are_not_retrieved():
    method, batch = tiny()
    method = dataclasses.replace(method, retrieved=5)
    params = create(method.spec(), jax.random.key(0))
    loss = jax.jit(lambda batch: method.loss(params, batch, jax.random.key(1)).terms["contrastive"])
    weightless = {**batch, "mask": jnp.asarray([1.0, 1.0, 1.0, 0.0])}
    likely = {**weightless, "document": batch["document"].at[3, :6].set(batch["query"][0])}
    assert loss(weightless) == loss(likely) != loss({**likely, "mask": jnp.ones(4)})


def test_errors():
    with pytest.raises(ValueError, match="retrieved=0 must be at least 1"):
        dataclasses.replace(tiny()[0], retrieved=0)
