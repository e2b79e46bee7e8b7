"""LastToken: whose state is the vector, what the loss is, adapters, and plans of token prepending laid out on the device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.method import FROM_DATA, bind
from jaxrec.methods.dense.last_token import LastToken, last, tiny
from jaxrec.methods.dense.prepending import lay_out
from jaxrec.nn import token_prepending
from jaxrec.nn.lora import LoRA
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.param import count, create, flatten

METHOD, BATCH = tiny()
PARAMS = jax.jit(lambda key: create(METHOD.spec(), key))(jax.random.key(0))
IDS = np.asarray(BATCH["document"])  # [4, 12], the second padded after its ninth token


@functools.partial(jax.jit, static_argnums=0)
def encode(method, params, ids):
    return method.encode_item(params, {"document": ids}).values[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def terms(method, params, batch):
    loss = method.loss(params, batch, jax.random.key(0))
    return loss.terms | loss.metrics


def units(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_a_vector_is_the_state_of_the_last_token_or_the_mean_of_all():
    hidden = np.asarray(jax.jit(lambda decoder, ids: decoder(ids, (ids != 0).astype(jnp.int32)))(PARAMS.base, IDS))
    lengths = (IDS != 0).sum(axis=1)
    np.testing.assert_allclose(encode(METHOD, PARAMS, IDS), units(hidden[np.arange(4), lengths - 1]), rtol=1e-5, atol=1e-6)
    mean = np.stack([row[:length].mean(axis=0) for row, length in zip(hidden, lengths, strict=True)])
    np.testing.assert_allclose(encode(dataclasses.replace(METHOD, pooling="mean"), PARAMS, IDS), units(mean), rtol=1e-4, atol=1e-5)
    assert last(jnp.asarray([[True, True, False], [False, True, True], [False, False, False]])).tolist() == [1, 2, 2]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_on_either_side_changes_nothing(pooling):
    method = dataclasses.replace(METHOD, pooling=pooling)
    vectors = np.asarray(encode(method, PARAMS, IDS))
    for before, after in ((3, 0), (0, 3), (2, 1)):
        np.testing.assert_allclose(encode(method, PARAMS, np.pad(IDS, ((0, 0), (before, after)))), vectors, rtol=1e-4, atol=1e-5)
    assert np.isfinite(encode(method, PARAMS, np.zeros_like(IDS))).all()  # a text of nothing


def test_the_loss_is_infonce_over_the_batch_and_hard_negatives():
    batch = {**BATCH, "query_row": jnp.asarray([0, 1, 0, 3]), "mask": jnp.asarray([1.0, 1, 1, 0])}
    queries = np.asarray(encode(METHOD, PARAMS, BATCH["query"]), np.float64)
    documents = np.asarray(encode(METHOD, PARAMS, np.concatenate([IDS, np.asarray(BATCH["negative"])[:, 0]])), np.float64)
    scores = queries @ documents.T / METHOD.temperature
    left_out = np.zeros((4, 8), bool)
    left_out[:, [3, 7]] = True  # a row of weight zero
    left_out[0, 2] = left_out[2, 0] = True  # one query, two answers
    weights = np.where(left_out, 0, np.exp(scores))
    wanted = [np.log(weights[row].sum()) - scores[row, row] for row in range(3)]
    got = terms(METHOD, PARAMS, batch)
    np.testing.assert_allclose(got["contrastive"], (sum(wanted), 3), rtol=1e-5)
    np.testing.assert_allclose(got["hits"], ((weights[:3].argmax(axis=1) == np.arange(3)).sum(), 3))
    alone = [np.log(np.exp(scores[row, [row, 4 + row]]).sum()) - scores[row, row] for row in range(3)]
    np.testing.assert_allclose(terms(dataclasses.replace(METHOD, in_batch=False), PARAMS, batch)["contrastive"], (sum(alone), 3), rtol=1e-5)
    without = {name: array for name, array in batch.items() if not name.startswith("negative")}
    assert terms(METHOD, PARAMS, without)["contrastive"][0] < got["contrastive"][0]


def test_adapters_learn_while_the_model_is_frozen():
    method = dataclasses.replace(METHOD, lora=LoRA(rank=2, targets=("qkv", "outer")))
    params = jax.jit(lambda key: create(method.spec(), key))(jax.random.key(1))
    assert count(method.spec(), trainable=False) == count(METHOD.encoder.spec())
    assert {name.split(".")[0] for name, leaf in flatten(method.spec()).items() if leaf.trainable} == {"adapters"}
    same = params.replace(base=PARAMS.base)
    np.testing.assert_allclose(encode(method, same, IDS), encode(METHOD, PARAMS, IDS), rtol=1e-5, atol=1e-6)  # B is 0
    moved = same.replace(adapters=jax.tree.map(lambda leaf: leaf + 0.1, same.adapters))
    merged = PARAMS.replace(base=method.lora.merge(PARAMS.base, moved.adapters))
    found = np.asarray(encode(method, moved, IDS))
    np.testing.assert_allclose(found, encode(METHOD, merged, IDS), rtol=1e-4, atol=1e-5)
    assert np.abs(found - encode(METHOD, PARAMS, IDS)).max() > 1e-2


def test_the_scores_of_words_are_kept_and_not_trained():
    leaves = flatten(METHOD.spec())
    assert not leaves["base.output.table"].trainable and leaves["base.word.table"].trainable
    assert {f"base.{name}" for name in flatten(METHOD.encoder.spec())} == set(leaves)  # so that a language model's parameters fit


def test_the_vocabulary_and_padding_come_from_the_data():
    bound = bind(LastToken(plan=TokenPrepending(output_layer=8)), {"vocabulary": 99, "pad": 7})
    assert (bound.encoder.vocabulary, bound.pad) == (99, 7) and LastToken().encoder.vocabulary == FROM_DATA


PLANS = [
    TokenPrepending(plan, start=0, exit=2, output_layer=output, pooling=pooling, max_blocks=blocks)
    for plan, output, pooling, blocks in [
        ("vanilla", 1, "mean", 8),
        ("echo", -2, "mean", 8),
        ("tp", -2, "mean", 8),
        ("tp_sentence", 2, "mean", 8),
        ("htp", -2, "mean", 8),
        ("htp", 2, "last", 2),
        ("htp_omit", 2, "mean", 3),
    ]
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.plan}-{plan.pooling}-{plan.max_blocks}")
def test_a_plan_gives_what_its_rows_laid_out_on_the_host_give(plan):
    texts = [row[row != 0].tolist() for row in IDS] + [[7], [9, 8]]
    model = dataclasses.replace(METHOD.encoder, length=64)
    rows = [token_prepending.lay_out(plan, [[]] * (plan.copies + 1), text, [*range(3, len(text), 3), len(text)], length=64) for text in texts]
    host = token_prepending.batch(plan, rows, width=max(len(row.ids) for row in rows))
    method = dataclasses.replace(METHOD, encoder=model, plan=plan, block=3)
    params = PARAMS.replace(base=dataclasses.replace(PARAMS.base, length=64))
    ids = np.zeros((6, 12), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    ids = np.pad(ids, ((0, 0), (2, 1)))  # texts may be padded on either side
    laid = jax.jit(lambda ids: lay_out(plan, ids, ids != 0, block=3))(ids)
    for row, wanted in zip(zip(*laid, strict=True), zip(*host, strict=True), strict=True):
        held, tokens = np.asarray(row[1]) > 0, wanted[1] > 0
        np.testing.assert_array_equal(np.asarray(row[0])[held], wanted[0][tokens])  # the same row, apart from padding
        np.testing.assert_array_equal(np.asarray(row[2])[held], wanted[2][tokens])
    wanted = jax.jit(lambda decoder, rows: token_prepending.embed(decoder, plan, rows))(params.base, host)
    np.testing.assert_allclose(encode(method, params, ids), wanted, rtol=1e-4, atol=1e-5)


def test_a_plan_can_be_trained_with():
    method = dataclasses.replace(METHOD, encoder=dataclasses.replace(METHOD.encoder, length=64), plan=TokenPrepending("htp", 0, 2, 2), block=4)
    params = PARAMS.replace(base=dataclasses.replace(PARAMS.base, length=64))
    batch = {**BATCH, "document": BATCH["document"].at[3].set(0), "mask": jnp.asarray([1.0, 1, 1, 0])}  # the last row is of nothing
    gradient = jax.jit(jax.grad(lambda params: method.loss(params, batch, jax.random.key(0)).terms["contrastive"][0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)) and np.abs(gradient.base.word.table).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "first"}, "pooling='first' must be 'last' or 'mean'"),
        ({"temperature": 0.0}, "LastToken: temperature=0.0 must be above 0$"),
        ({"block": 0}, "LastToken: block=0 must be at least 1$"),
        ({"lora": LoRA(adapters=2)}, "lora.adapters=2: all rows share one adapter here; set lora.adapters=1"),
        ({"plan": TokenPrepending("prompt_eol")}, "plan='prompt_eol' is a prompt around the text"),
        ({"plan": TokenPrepending(output_layer=-1)}, "plan.output_layer=-1 means that the data knows it; write output_layer=8, the last layer, too"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LastToken(**fields)
    with pytest.raises(ValueError, match="texts of 25 tokens are longer than the 24 of the model; cut them to 24"):
        METHOD.encode_item(PARAMS, {"document": np.ones((1, 25), np.int32)})
