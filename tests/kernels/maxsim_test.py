from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kernels import shapes
from kernels.maxsim import IMPLEMENTATIONS, blocked, maxsim, maxsim_ragged
from tests.kernels.maxsim_documents import assert_near, draw, packed, padded

F32, BF16 = jnp.float32, jnp.bfloat16


def oracle(queries, documents, query_mask, document_mask, weight):
    """Scores [B, C] and the gradients of sum(weight * scores) over the finite ones, token by token, in float64."""
    queries, documents = np.asarray(queries, np.float64), np.asarray(documents, np.float64)
    scores = np.full((len(queries), len(documents)), -np.inf)
    d_queries, d_documents = np.zeros_like(queries), np.zeros_like(documents)
    for c, mask in enumerate(np.asarray(document_mask)):
        (own,) = np.nonzero(mask)
        if not len(own):
            continue
        for b, asked in enumerate(np.asarray(query_mask)):
            similarity = queries[b] @ documents[c, own].T  # [N, m]
            scores[b, c] = similarity.max(axis=1)[asked].sum()
            for n in np.flatnonzero(asked):
                best = own[similarity[n].argmax()]
                d_queries[b, n] += weight[b, c] * documents[c, best]
                d_documents[c, best] += weight[b, c] * queries[b, n]
    return scores, d_queries, d_documents


def weighted(function, weight):
    """The finite scores of `function`, weighted and summed, with the scores beside it."""

    def total(*vectors):
        scores = function(*vectors)
        return jnp.where(jnp.isfinite(scores), scores * weight, 0).sum(), scores

    return jax.value_and_grad(total, (0, 1), has_aux=True)


@pytest.fixture(params=[*(name for name in IMPLEMENTATIONS if name != "gpu"), "many blocks"])
def backend(request, monkeypatch):
    """Every implementation but the GPU's, which takes no float32 (maxsim_gpu_test.py), and the blocked one in blocks that do not divide the documents."""
    if request.param != "many blocks":
        return request.param
    monkeypatch.setattr(blocked, "WHOLE_BYTES", 0)
    monkeypatch.setattr(blocked, "BLOCK_BYTES", 12_000)
    monkeypatch.setattr(blocked, "BEST_BYTES", 300)
    jax.clear_caches()  # a trace does not know that a constant has changed
    return "blocked"


class TestEveryBackend:
    @pytest.mark.parametrize("shape", shapes.ODD_MAXSIM, ids=str)
    def test_values_and_gradients_are_the_formulas(self, backend, shape):
        queries, documents, query_mask, document_mask = draw(shape)
        weight = np.random.default_rng(1).normal(size=(shape.queries, shape.documents))
        expected, d_queries, d_documents = oracle(queries, documents, query_mask, document_mask, weight)
        dense = functools.partial(maxsim, query_mask=query_mask, document_mask=document_mask, backend=backend)
        tokens, offsets = packed(documents, document_mask)
        ragged = functools.partial(maxsim_ragged, offsets=offsets, query_mask=query_mask, backend=backend)

        @jax.jit
        def everything(queries, documents, tokens):
            return weighted(dense, weight)(queries, documents), weighted(ragged, weight)(queries, tokens), dense(queries, documents), ragged(queries, tokens)

        ((_, scores), gradients), ((_, scores_ragged), gradients_ragged), *without_gradients = everything(queries, documents, tokens)
        for actual in (scores, scores_ragged, *without_gradients):
            assert_near(actual, expected)
        for actual, wanted in zip(gradients, (d_queries, d_documents), strict=True):
            assert_near(actual, wanted)
        assert_near(gradients_ragged[0], d_queries)
        assert_near(gradients_ragged[1][:-3], d_documents[np.asarray(document_mask)])
        assert not np.any(gradients_ragged[1][-3:])

    def test_finite_differences(self, backend):
        queries, documents, query_mask, _ = draw(shapes.MaxSim(2, 3, 2, 4, 5))
        score = functools.partial(maxsim, query_mask=query_mask, backend=backend)
        check_grads(jax.jit(lambda q, d: jnp.tanh(score(q, d) / 4)), (queries, documents), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)

    def test_padding_never_changes_a_score(self, backend):
        queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1])
        documents = -jnp.abs(documents) * jnp.sign(queries[:1, :1])  # no similarity to the first token is positive, so zeros would win
        score = jax.jit(functools.partial(maxsim, backend=backend))
        plain = score(queries, documents, query_mask, document_mask)
        only_first = jnp.zeros_like(query_mask).at[:, 0].set(True)
        assert (score(queries, documents, only_first, document_mask)[0, :-1] < 0).all()
        np.testing.assert_allclose(plain, score(*padded(queries, documents, query_mask, document_mask)), rtol=1e-6)

    def test_no_tokens(self, backend):
        queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1])
        score = jax.jit(functools.partial(maxsim, backend=backend))
        empty = score(queries, documents, jnp.zeros_like(query_mask), document_mask)
        np.testing.assert_array_equal(empty, np.where(np.asarray(document_mask).any(axis=1), 0, -np.inf)[None] * np.ones((3, 1)))
        assert (score(queries, documents, query_mask, jnp.zeros_like(document_mask)) == -np.inf).all()
        gradient = jax.grad(lambda q: jnp.where(document_mask.any(axis=1), score(q, documents, query_mask, document_mask), 0).sum())(queries)
        assert np.isfinite(gradient).all()

    def test_padding_of_a_query_may_hold_anything(self, backend):
        queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1])
        query_mask = query_mask.at[:, -1].set(False)
        spoilt = queries.at[:, -1].set(jnp.nan)
        dense = weighted(functools.partial(maxsim, query_mask=query_mask, document_mask=document_mask, backend=backend), 1.0)
        tokens, offsets = packed(documents, document_mask)
        ragged = weighted(functools.partial(maxsim_ragged, offsets=offsets, query_mask=query_mask, backend=backend), 1.0)
        for score, others in ((jax.jit(dense), documents), (jax.jit(ragged), tokens)):
            jax.tree.map(np.testing.assert_array_equal, score(spoilt, others), score(queries, others))

    def test_bfloat16_accumulates_in_float32(self, backend):
        queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[2], BF16)
        weight = np.ones((len(queries), len(documents)))
        expected, d_queries, d_documents = oracle(queries, documents, query_mask, document_mask, weight)  # of the rounded inputs
        dense = functools.partial(maxsim, query_mask=query_mask, document_mask=document_mask, backend=backend)
        (_, scores), gradients = jax.jit(weighted(dense, weight))(queries, documents)
        assert (scores.dtype, *(gradient.dtype for gradient in gradients)) == (F32, BF16, BF16)
        assert_near(scores, expected, 1e-5)
        assert_near(gradients[0], d_queries, 1e-2)
        assert_near(gradients[1], d_documents, 1e-2)


def test_properties_of_the_score():
    queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1])
    score = jax.jit(maxsim)
    plain = score(queries, documents, query_mask, document_mask)
    order = np.random.default_rng(2).permutation(documents.shape[1])
    np.testing.assert_allclose(score(queries, documents[:, order], query_mask, document_mask[:, order]), plain, rtol=1e-6)
    more = document_mask.at[:-1].set(True)
    assert (score(queries, documents, query_mask, more) >= plain).all()  # a further token never lowers a score


def test_no_block_is_as_large_as_the_similarities():
    shape = shapes.IN_BATCH
    vectors = (
        jax.ShapeDtypeStruct((shape.queries, shape.query_tokens, shape.dim), F32),
        jax.ShapeDtypeStruct((shape.documents, shape.document_tokens, shape.dim), F32),
    )

    def temporaries(backend: str) -> int:
        gradient = jax.grad(lambda q, d: maxsim(q, d, backend=backend).sum(), (0, 1))
        return jax.jit(gradient).lower(*vectors).compile().memory_analysis().temp_size_in_bytes

    similarities = 4 * shape.queries * shape.query_tokens * shape.documents * shape.document_tokens
    assert temporaries("blocked") < similarities / 4 < similarities <= temporaries("reference")


def test_of_equal_tokens_the_first_receives_the_gradient():
    queries, documents = jnp.ones((1, 2, 3)), jnp.ones((1, 4, 3))
    gradient = jax.grad(lambda d: maxsim(queries, d, backend="blocked").sum())(documents)
    np.testing.assert_array_equal(gradient[0, :, 0], [2, 0, 0, 0])
    offsets = jnp.array([0, 0, 4])
    gradient = jax.grad(lambda t: jnp.where(jnp.arange(2)[None] == 1, maxsim_ragged(queries, t, offsets, backend="blocked"), 0).sum())(documents[0])
    np.testing.assert_array_equal(gradient[:, 0], [2, 0, 0, 0])


def test_errors_say_what_is_wrong():
    queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1])
    with pytest.raises(ValueError, match=r"backend='cuda' is not .* use 'auto' or one of"):
        maxsim(queries, documents, backend="cuda")
    with pytest.raises(ValueError, match=r"expected queries \[B, N, D\] and documents \[C, M, D\] of one width D, got \(3, 5, 8\) and \(7, 11, 7\)"):
        maxsim(queries, documents[..., :7])
    with pytest.raises(ValueError, match=r"query_mask \(3, 4\) must have one entry for each token of \(3, 5\)"):
        maxsim(queries, documents, query_mask[:, :4])
    with pytest.raises(ValueError, match=r"offsets must be C \+ 1 integers, got float32 of shape \(2,\)"):
        maxsim_ragged(queries, documents[0], jnp.zeros(2))
    with pytest.raises(TypeError, match="queries are bfloat16 and documents float32; cast"):
        maxsim(queries.astype(BF16), documents)


def test_the_tpu_kernels_have_no_races(monkeypatch, capfd):
    from jax.experimental.pallas import tpu as pltpu

    from kernels import dispatch

    monkeypatch.setattr(dispatch, "interpret", lambda: pltpu.InterpretParams(detect_races=True))  # simulates memories and copies between them
    queries, documents, query_mask, document_mask = draw(shapes.MaxSim(2, 5, 9, 60, 8))
    tokens, offsets = packed(documents, document_mask)
    tokens = jnp.concatenate([tokens, jnp.full((700, 8), 50.0)])  # more than one tile
    offsets = offsets.at[-2:].set(len(tokens) - 5)  # one document of several tiles
    scores = jax.jit(functools.partial(maxsim_ragged, backend="tpu"))(queries, tokens, offsets, query_mask)
    np.testing.assert_allclose(scores, maxsim_ragged(queries, tokens, offsets, query_mask, backend="reference"), rtol=1e-5)
    dense = jax.jit(functools.partial(maxsim, backend="tpu"))(queries, documents, query_mask, document_mask)
    np.testing.assert_allclose(dense, maxsim(queries, documents, query_mask, document_mask, backend="reference"), rtol=1e-5, atol=1e-5)
    assert "race" not in "".join(capfd.readouterr()).lower()


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize(("B", "N", "C", "M", "D"), [(2, 4, 3, 0, 8), (2, 4, 0, 5, 8), (0, 4, 3, 5, 8), (2, 0, 3, 5, 8), (2, 4, 3, 5, 0)])
def test_an_empty_axis_is_no_error(backend, B, N, C, M, D):
    queries, documents = jnp.ones((B, N, D)), jnp.ones((C, M, D))
    offsets = jnp.arange(C + 1) * M
    for score, others in ((maxsim, (documents,)), (maxsim_ragged, (documents.reshape(C * M, D), offsets))):
        scores = score(queries, *others, backend=backend)
        np.testing.assert_array_equal(scores, np.full((B, C), 0.0 if M else -np.inf))
        gradient = jax.grad(lambda q, d, score=score, rest=others[1:]: jnp.where(jnp.isfinite(s := score(q, d, *rest, backend=backend)), s, 0).sum(), (0, 1))
        for given, found in zip((queries, others[0]), gradient(queries, others[0]), strict=True):
            assert found.shape == given.shape and not found.any()
