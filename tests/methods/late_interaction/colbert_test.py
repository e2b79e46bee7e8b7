"""ColBERT: what [MASK] sees and who sees it, what is left out, and its losses against their equations in NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.methods.late_interaction import xtr
from jaxrec.methods.late_interaction.colbert import tiny
from jaxrec.param import create, flatten
from jaxrec.sharding import Layout
from jaxrec.train.step import make_runner

METHOD, BATCH = tiny()
PARAMS = create(METHOD.spec(), jax.random.key(0))
QUERY, DOCUMENT = np.asarray(BATCH["query"]), np.asarray(BATCH["document"])
WORDS = 4  # of each query; then padding
PLAIN = {name: array for name, array in BATCH.items() if not name.startswith("negative")}


@functools.partial(jax.jit, static_argnums=0)
def encoded(method, params, query, document):
    return method.encode_query(params, {"query": query}), method.encode_item(params, {"document": document})


@functools.partial(jax.jit, static_argnums=0)
def loss(method, params, batch):
    return method.loss(params, batch, jax.random.key(1))


@functools.partial(jax.jit, static_argnums=0)
def gradient(method, params, batch):
    """(objective, its gradient by name)."""

    def objective(params):
        terms = method.loss(params, batch, jax.random.key(1)).terms
        return sum(total / weight for total, weight in terms.values())

    value, found = jax.value_and_grad(objective)(params)
    return value, flatten(found)


def vectors(query, document=DOCUMENT, method=METHOD):
    return jax.device_get(encoded(method, PARAMS, jnp.asarray(query), jnp.asarray(document)))


def maxsim(queries, documents):
    """[B, C] by the definition."""
    similarity = np.einsum("bnd,cmd->bcnm", queries.values, documents.values)
    best = np.where(documents.mask[None, :, None], similarity, -np.inf).max(axis=-1)
    return np.where(queries.mask[:, None], best, 0).sum(axis=-1)


def all_scores(batch):
    """[B, C] scores of the batch's documents, the hard negatives last."""
    documents = np.concatenate([batch["document"], *np.moveaxis(np.asarray(batch.get("negative", np.zeros((4, 0, 12), int))), 1, 0)])
    return maxsim(*vectors(batch["query"], documents))


def softmax_loss(scores, right, excluded):
    """-log softmax of the right column among those not excluded, by row."""
    kept = np.where(excluded, -np.inf, scores)
    return np.log(np.exp(kept).sum(axis=1)) - scores[np.arange(len(scores)), right]


def with_rows(batch, **rows):
    return {**batch, **{name: jnp.asarray(row, jnp.int32) for name, row in rows.items()}}


def mean(pair):
    return float(pair[0] / pair[1])


def test_mask_tokens_see_the_words_and_are_not_seen():
    query, _ = vectors(QUERY)
    assert query.mask.all() and not (QUERY[:, WORDS:] != METHOD.pad).any()
    np.testing.assert_allclose(np.linalg.norm(query.values, axis=-1), 1, atol=1e-5)
    longer, _ = vectors(np.pad(QUERY, [(0, 0), (0, 3)]))
    np.testing.assert_allclose(longer.values[:, :6], query.values, atol=1e-5)  # neither the words nor the first [MASK]s know how many follow
    other, _ = vectors(QUERY, method=dataclasses.replace(METHOD, mask_token=9))
    np.testing.assert_array_equal(other.values[:, :WORDS], query.values[:, :WORDS])
    assert np.abs(other.values[:, WORDS:] - query.values[:, WORDS:]).max(axis=(1, 2)).min() > 1e-3
    changed = QUERY.copy()
    changed[:, 0] = 47
    assert np.abs(vectors(changed)[0].values[:, WORDS:] - query.values[:, WORDS:]).max(axis=(1, 2)).min() > 1e-4


def test_without_augmentation_padding_is_masked():
    query, _ = vectors(QUERY, method=dataclasses.replace(METHOD, augment=False))
    np.testing.assert_array_equal(query.mask, QUERY != METHOD.pad)
    np.testing.assert_allclose(query.values[:, :WORDS], vectors(QUERY)[0].values[:, :WORDS], atol=1e-5)


def test_punctuation_is_encoded_and_then_left_out():
    marked = DOCUMENT.copy()
    marked[:, 3], marked[0, 5], marked[1:, 5] = 40, 41, 39  # 40 and 41 are marks
    query, document = vectors(QUERY, marked)
    np.testing.assert_array_equal(document.mask, (marked != METHOD.pad) & (marked != 40) & (marked != 41))
    other = marked.copy()
    other[:, 3] = 41
    assert np.abs(vectors(QUERY, other)[1].values[:, 0] - document.values[:, 0]).max() > 1e-4  # the others saw the mark
    everything = vectors(QUERY, marked, dataclasses.replace(METHOD, skip_punctuation=False))[1]
    np.testing.assert_array_equal(everything.mask, marked != METHOD.pad)
    np.testing.assert_allclose(everything.values, document.values, atol=1e-6)
    np.testing.assert_array_equal(vectors(np.where(QUERY > 0, 40, 0), marked)[0].mask, query.mask)  # of queries none is left out


def test_padding_a_document_changes_no_score():
    scores = maxsim(*vectors(QUERY))
    np.testing.assert_allclose(maxsim(*vectors(QUERY, DOCUMENT[1:2, :9])), scores[:, 1:2], rtol=1e-5)  # its last three are padding


def test_contrastive_is_the_softmax_over_the_batch():
    found = loss(METHOD, PARAMS, PLAIN)
    scores = all_scores(PLAIN)
    expected = softmax_loss(scores, np.arange(4), np.zeros((4, 4), bool))
    assert mean(found.terms["contrastive"]) == pytest.approx(expected.mean(), rel=1e-5) and set(found.terms) == {"contrastive"}
    assert mean(found.metrics["hits"]) == (scores.argmax(axis=1) == np.arange(4)).mean()


def test_hard_negatives_of_all_rows_are_candidates():
    expected = softmax_loss(all_scores(BATCH), np.arange(4), np.zeros((4, 8), bool))
    assert mean(loss(METHOD, PARAMS, BATCH).terms["contrastive"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_what_answers_the_query_is_no_negative():
    # Rows 1 and 2 ask one query, rows 0 and 3 have one document, and row 0's hard negative is row 1's document.
    batch = with_rows(BATCH, query_row=[0, 1, 1, 2], document_row=[10, 11, 12, 10], negative_row=[[11], [21], [22], [23]])
    excluded = np.zeros((4, 8), bool)
    excluded[1, 2] = excluded[2, 1] = excluded[0, 3] = excluded[3, 0] = excluded[1, 4] = True
    excluded[2, 4] = True  # it answers row 2's query as well, as row 1 says
    expected = softmax_loss(all_scores(batch), np.arange(4), excluded)
    assert mean(loss(METHOD, PARAMS, batch).terms["contrastive"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_without_in_batch_negatives_it_is_the_pairwise_loss():
    scores = all_scores(BATCH)
    expected = np.log1p(np.exp(scores[np.arange(4), 4 + np.arange(4)] - np.diagonal(scores)))
    found = loss(dataclasses.replace(METHOD, in_batch=False), PARAMS, BATCH)
    assert mean(found.terms["contrastive"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_distillation_is_the_divergence_from_the_teacher():
    scores = all_scores(BATCH)
    own = np.stack([np.diagonal(scores), scores[np.arange(4), 4 + np.arange(4)]], axis=1)
    same = loss(METHOD, PARAMS, {**BATCH, "teacher": jnp.asarray(own, jnp.float32)})
    assert mean(same.terms["distillation"]) == pytest.approx(0, abs=1e-6)
    teacher = np.array([[3, 1], [0, 2], [1, 1], [-5, 5]], np.float32)
    found = loss(METHOD, PARAMS, {**BATCH, "teacher": jnp.asarray(teacher)})
    wanted, given = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (teacher.astype(np.float64), own))
    assert mean(found.terms["distillation"]) == pytest.approx((wanted * np.log(wanted / given)).sum(axis=1).mean(), rel=1e-5)
    excluded = np.zeros((4, 8), bool)
    excluded[np.arange(4), 4 + np.arange(4)] = True  # the teacher has spoken about a row's own negatives
    expected = softmax_loss(scores, np.arange(4), excluded)
    assert mean(found.terms["contrastive"]) == pytest.approx(expected.mean(), rel=1e-5)


def test_rows_weigh_what_their_mask_says():
    weight = np.array([1, 0.5, 0, 2], np.float32)
    excluded = np.zeros((4, 8), bool)
    excluded[:, [2, 6]] = True  # a row of weight zero lends nobody its documents
    excluded[2, 2] = False
    by_row = softmax_loss(all_scores(BATCH), np.arange(4), excluded)
    found = loss(METHOD, PARAMS, {**BATCH, "mask": jnp.asarray(weight)})
    assert mean(found.terms["contrastive"]) == pytest.approx((weight * by_row).sum() / weight.sum(), rel=1e-5)


@functools.cache
def whole_gradient():
    return jax.device_get(gradient(METHOD, PARAMS, BATCH))


def test_gradient_reaches_the_mask_token():
    assert not (QUERY == METHOD.mask_token).any() and not (DOCUMENT == METHOD.mask_token).any()
    assert np.abs(whole_gradient()[1]["bert.word.table"][METHOD.mask_token]).max() > 1e-6


def test_chunks_give_the_same_loss_and_gradient():
    value, found = jax.device_get(gradient(dataclasses.replace(METHOD, chunk=2), PARAMS, BATCH))
    expected_value, expected = whole_gradient()
    assert value == pytest.approx(float(expected_value), rel=1e-6)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("in_batch", [True, False])
def test_an_empty_row_of_weight_zero_leaves_the_gradient_finite(in_batch):
    method = dataclasses.replace(METHOD, in_batch=in_batch)
    empty = {name: jnp.zeros_like(array[:1]) for name, array in BATCH.items()}
    batch = {name: jnp.concatenate([array[:3], empty[name]]) for name, array in BATCH.items()}
    value, found = gradient(method, PARAMS, batch)
    assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in found.values())


@pytest.mark.parametrize("method", [METHOD, xtr.tiny()[0]], ids=["ColBERT", "XTR"])
def test_eight_devices_train_like_one(method):
    batch = {name: np.concatenate([array, array[::-1] + (100 if name.endswith("row") else 0)]) for name, array in BATCH.items()}
    results = []
    for layout, devices in ((Layout(mesh=(("data", 1),)), 1), (Layout(), 8)):
        runner = make_runner(method, optax.sgd(0.5), layout, devices=jax.devices()[:devices])
        state, metrics = runner.run(runner.start(), [batch])
        results.append((flatten(runner.read(state).params), float(metrics["loss"][0])))
    (one, value), (eight, other) = results
    assert value == pytest.approx(other, rel=1e-5)
    for name, leaf in one.items():
        np.testing.assert_allclose(eight[name], leaf, rtol=0, atol=1e-5, err_msg=name)


def test_errors():
    for field, value, expected in (
        ("temperature", 0.0, "above 0"),
        ("temperature", np.nan, "above 0"),
        ("chunk", -1, "at least 0"),
        ("dim", 0.5, "a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=f"{field}={value} must be {expected}$"):
            dataclasses.replace(METHOD, **{field: value})
    with pytest.raises(ValueError, match="chunk=3 does not divide the 4 texts of a batch; choose a divisor"):
        jax.eval_shape(dataclasses.replace(METHOD, chunk=3).encode_query, PARAMS, {"query": BATCH["query"]})
