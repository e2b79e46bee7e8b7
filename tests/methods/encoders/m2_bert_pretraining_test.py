"""M2-BERT's pretraining: what is hidden of a text, and the loss against its equation in NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxrec.methods.encoders.m2_bert import M2BERT
from jaxrec.methods.encoders.m2_bert_pretraining import M2BERTPretraining, tiny
from jaxrec.nn.bert import erf_gelu
from jaxrec.param import create, flatten

METHOD, BATCH = tiny()


def test_a_share_of_each_text_is_asked_for_and_mostly_hidden():
    ids = np.random.default_rng(0).integers(5, 48, (200, 50))
    ids[100:, 30:] = 0  # 30 words, then padding
    method = dataclasses.replace(METHOD, mask_share=0.31)
    shown, place, target, asked = map(np.asarray, jax.jit(method.cloze)(jnp.asarray(ids), jax.random.key(0)))
    assert place.shape == (200, 16)
    np.testing.assert_array_equal(asked.sum(axis=1), [16] * 100 + [10] * 100)  # 15.5 and 9.3, rounded up
    np.testing.assert_array_equal(target, np.take_along_axis(ids, place, axis=1))
    assert all(len(set(row[some])) == some.sum() for row, some in zip(place, asked, strict=True)) and (target[asked] != 0).all()
    hidden = np.zeros(ids.shape, bool)
    for row in range(200):
        hidden[row, place[row][asked[row]]] = True
    np.testing.assert_array_equal(shown[~hidden], ids[~hidden])
    assert ((shown == 0) == (ids == 0)).all()  # padding stays, and there is no more of it
    # Of 2,600 places: three standard deviations of a share of .8 are .024, of .1 are .018; another piece may be the same one, or padding.
    assert abs((shown[hidden] == 3).mean() - 0.8) < 0.03 and abs((shown[hidden] == ids[hidden]).mean() - 0.1) < 0.025
    again, *_ = jax.jit(method.cloze)(jnp.asarray(ids), jax.random.key(1))
    assert (np.asarray(again) != shown).any()


def test_what_stands_around_every_text_is_never_hidden():
    ids = np.random.default_rng(0).integers(5, 48, (50, 12))
    ids[:, 0], ids[:, -1] = METHOD.added
    shown, place, _, asked = map(np.asarray, jax.jit(METHOD.cloze)(jnp.asarray(ids), jax.random.key(0)))
    assert not np.isin(place[asked], [0, 11]).any()
    np.testing.assert_array_equal(shown[:, [0, -1]], ids[:, [0, -1]])


def test_the_loss_is_the_cross_entropy_of_what_was_hidden():
    params = jax.jit(lambda key: create(METHOD.spec(), key))(jax.random.key(0))
    params["bias"] = params["bias"].replace(table=jax.random.normal(jax.random.key(1), params["bias"].table.shape))
    key = jax.random.key(2)

    @jax.jit
    def both(params):
        shown, place, target, asked = METHOD.cloze(BATCH["document"], jax.random.split(key)[0])
        states = params["norm"](erf_gelu(params["transform"](params["encoder"](shown, shown != 0))))
        return METHOD.loss(params, BATCH, key).terms["masked"], states, place, target, asked

    (total, weight), states, place, target, asked = jax.device_get(both(params))
    logits = states @ np.asarray(params["encoder"].word.table)[:48].T + np.asarray(params["bias"].table)[:48, 0]
    rows, columns = np.nonzero(asked)
    wanted = -scipy.special.log_softmax(logits, axis=-1)[rows, place[rows, columns], target[rows, columns]]
    assert weight == len(wanted) == 4 + 3 + 4 + 4  # of 12, 9, 12 and 12 words
    np.testing.assert_allclose(total, wanted.sum(), rtol=1e-4)


def test_the_encoder_has_the_names_of_the_retriever():
    pretrained, retriever = flatten(METHOD.spec()), flatten(METHOD.model.spec())
    assert {name for name in pretrained if name.startswith("encoder.")} == retriever.keys()


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="mask_share=1.0 must be between 0 and 1"):
        M2BERTPretraining(mask_share=1.0)
    with pytest.raises(ValueError, match="mask_token=48 is none of the 48 word pieces, numbered from 0; take the tokenizer's own"):
        M2BERTPretraining(M2BERT(vocabulary=48), mask_token=48)
