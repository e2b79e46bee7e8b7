"""M2-BERT: who sees padding, the squared errors of its pairs in NumPy, and that they decompose where they say so."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.method import Vectors
from jaxrec.methods.encoders.m2_bert import M2BERT, tiny
from jaxrec.nn.norm import unit
from jaxrec.param import abstract, count, create, flatten, unflatten

METHOD, BATCH = tiny()
PARAMS = jax.jit(lambda key: create(METHOD.spec(), key))(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def encode(method, params, document):
    return method.encode_item(params, {"document": document})


@jax.jit
def states(ids, mask):
    return PARAMS["encoder"](ids, mask)


def document_vectors(document, method=METHOD):
    return np.asarray(encode(method, PARAMS, document).values[:, 0])


@dataclass(frozen=True)
class Given(M2BERT):
    """The loss over vectors that are the parameters themselves; a batch's texts are their numbers, [B, 1]."""

    def encode_query(self, params, batch, key=None):
        return self._look_up(params["queries"], batch["query"])

    def encode_item(self, params, batch, key=None):
        return self._look_up(params["documents"], batch["document"])

    def _look_up(self, table, numbers):
        values = unit(table[numbers[:, 0]])[:, None]
        return Vectors(values, jnp.ones(values.shape[:2], bool))


def pairs(rows=4, negatives=2, dim=5):
    """(params, batch) of `Given`: row i asks query i for document i, and its own negatives have numbers of their own."""
    random = np.random.default_rng(0)
    numbers = np.arange(rows + rows * negatives)
    params = {"queries": random.normal(size=(rows, dim)), "documents": random.normal(size=(len(numbers), dim))}
    own = numbers[rows:].reshape(rows, negatives)
    batch = {"query": numbers[:rows, None], "document": numbers[:rows, None], "negative": own[..., None], "mask": np.ones(rows, np.float32)}
    batch |= {"query_row": numbers[:rows], "document_row": numbers[:rows], "negative_row": own}
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), params), jax.tree.map(jnp.asarray, batch)


@functools.partial(jax.jit, static_argnums=0)
def loss(method, params, batch):
    """(terms, their sums' gradients)."""

    def sums(params):
        found = method.loss(params, batch, jax.random.key(0)).terms
        return {name: total for name, (total, _) in found.items()}, found

    gradient, found = jax.jacrev(sums, has_aux=True)(params)
    return found, gradient


def terms(params, batch, **fields):
    return jax.device_get(loss(Given(**fields), params, batch)[0])


def cosines(params):
    queries, documents = (np.asarray(params[name]) / np.linalg.norm(params[name], axis=1, keepdims=True) for name in ("queries", "documents"))
    return queries @ documents.T


def test_a_vector_does_not_depend_on_padding():
    document = np.asarray(BATCH["document"])
    vectors = document_vectors(document)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(document_vectors(document[1:2, :9]), vectors[1:2], atol=1e-5)  # its last three are padding


def test_the_reference_lets_padding_into_the_convolutions():
    document = np.asarray(BATCH["document"])[1:2]  # 9 words
    compat = dataclasses.replace(METHOD, compat=True)
    padded = document_vectors(document[:, :9], compat)
    np.testing.assert_allclose(document_vectors(document, compat), padded, atol=1e-6)  # padded to `length`, whoever asks
    assert np.abs(padded - document_vectors(document[:, :9])).max() > 1e-3
    hidden, seen = states(np.repeat(document, 2, axis=0), np.stack([document[0] != 0, np.ones(12, bool)]))
    assert np.abs(hidden - seen)[:9].max() > 1e-3


def test_order_and_far_tokens_matter():
    document = np.asarray(BATCH["document"])[0]
    other = document.copy()
    other[-1] = 5 + (other[-1] - 4) % 40
    vectors = document_vectors(np.stack([document, other, document[::-1], document]))
    assert np.abs(vectors[1] - vectors[0]).max() > 1e-3 and np.abs(vectors[2] - vectors[0]).max() > 1e-3
    both = states(np.stack([document, other]), np.ones((2, 12), bool))
    assert np.abs(both[0] - both[1]).max(axis=-1).min() > 1e-5  # even the first token has seen the last


def test_the_loss_is_the_squared_error_of_its_pairs():
    params, batch = pairs()
    cosine = cosines(params)  # [4, 12]
    own = np.concatenate([4 + 2 * np.arange(4)[:, None], 5 + 2 * np.arange(4)[:, None]], axis=1)
    got = terms(params, batch, in_batch=False)
    np.testing.assert_allclose(got["positive"], (((np.diagonal(cosine) - 1) ** 2).sum(), 4), rtol=1e-5)
    np.testing.assert_allclose(got["negative"], ((np.take_along_axis(cosine, own, axis=1) ** 2).sum(), 8), rtol=1e-5)
    all_but_own = (cosine**2).sum() - (np.diagonal(cosine) ** 2).sum()
    np.testing.assert_allclose(terms(params, batch)["negative"], (all_but_own, 4 * 11), rtol=1e-5)


def test_known_answers_and_rows_of_weight_zero_are_no_negatives():
    params, batch = pairs(negatives=0)
    batch = {name: array for name, array in batch.items() if not name.startswith("negative")}
    batch["query_row"] = jnp.asarray([0, 0, 2, 3])  # documents 0 and 1 answer one query
    batch["mask"] = jnp.asarray([1.0, 1, 1, 0])
    square = cosines(params) ** 2
    wanted = square[0, 2] + square[1, 2] + square[2, 0] + square[2, 1]
    np.testing.assert_allclose(terms(params, batch)["negative"], (wanted, 4), rtol=1e-5)
    everything = {**batch, "query_row": jnp.zeros(4, int)}
    assert terms(params, everything)["negative"] == (0, 1)  # nothing is left to push away, and nothing is divided by zero


def test_independent_pairs_decompose():
    """Sums over single rows are those over the batch, value and gradient: accumulation is exact."""
    params, batch = pairs()
    method = Given(in_batch=False)
    whole, gradient = loss(method, params, batch)
    found, gradients = zip(*(loss(method, params, jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch)) for row in range(4)), strict=True)
    jax.tree.map(lambda total, *parts: np.testing.assert_allclose(sum(parts), total, rtol=1e-5), whole, *found)
    jax.tree.map(lambda total, *parts: np.testing.assert_allclose(sum(parts), total, atol=1e-5), gradient, *gradients)
    assert not M2BERT(in_batch=False).couples and M2BERT().couples


def test_no_gradient_where_cosines_are_their_labels():
    params, batch = pairs(rows=2, negatives=1, dim=4)
    params = {"queries": jnp.eye(4)[:2], "documents": jnp.eye(4)[jnp.asarray([0, 1, 2, 3])]}

    found, gradient = loss(Given(), params, batch)
    assert all(total == 0 for total, _ in found.values())
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)
    _, moved = loss(Given(), {**params, "documents": params["documents"] + 0.5}, batch)
    assert all(np.abs(leaf).max() > 0.01 for leaf in jax.tree.leaves(moved))


def test_contrastive_and_mixed_are_infonce_over_the_cosines():
    params, batch = pairs()
    logits = cosines(params) / 0.1
    wanted = (np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)).sum()
    for loss_name, names in (("contrastive", {"contrastive"}), ("mixed", {"positive", "negative", "contrastive"})):
        got = terms(params, batch, loss_name=loss_name, temperature=0.1)
        assert got.keys() == names
        np.testing.assert_allclose(got["contrastive"], (wanted, 4), rtol=1e-5)


def test_the_published_size():
    published = count(M2BERT(vocabulary=30522, pad=0).spec())
    assert abs(published / 80e6 - 1) < 0.02
    assert count(M2BERT(vocabulary=30522, pad=0, mixer_residual=True).spec()) == published
    direct = [name for name in flatten(M2BERT(vocabulary=48, pad=0, direct=False).spec()) if ".direct." in name]
    assert not direct


def test_mixer_residual_changes_the_encoding():
    """The same parameters, with and without."""
    method = dataclasses.replace(METHOD, mixer_residual=True)
    residual = unflatten(abstract(method.spec()), flatten(PARAMS))
    document = BATCH["document"]
    assert np.abs(encode(method, residual, document).values[:, 0] - document_vectors(document)).max() > 1e-2


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match="loss_name='opl' must be 'projection', 'contrastive' or 'mixed'"):
        M2BERT(loss_name="opl")
    for field, value, expected in (
        ("temperature", 0, "above 0"),
        ("length", 1, "at least 2"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("dim", 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=f"^M2BERT: {field}={value} must be {expected}$"):
            M2BERT(**{field: value})
    with pytest.raises(ValueError, match="texts of 13 tokens are longer than the 12 positions of the model; truncate them to 12"):
        METHOD.encode_item(PARAMS, {"document": jnp.ones((1, 13), int)})
    params, batch = pairs()
    alone = {name: array for name, array in batch.items() if not name.startswith("negative")}
    with pytest.raises(ValueError, match="in_batch=False, 4 rows and no `negative` in the batch leave only positive pairs"):
        terms(params, alone, in_batch=False)
    with pytest.raises(ValueError, match="in_batch=True, 1 rows and no `negative`"):
        terms(params, {name: array[:1] for name, array in alone.items()})
