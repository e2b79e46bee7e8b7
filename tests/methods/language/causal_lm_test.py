"""A language model: its loss is the cross-entropy, its diagnostics are what their names say, and it learns what can be learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.item_vectors import GivenVectors, ItemVectorRows
from jaxrec.data.text import SyntheticText, TextRows, Tokens
from jaxrec.evals.attention import attention_shares
from jaxrec.evals.language_modelling import HeldOutText, report, some, table, token_losses
from jaxrec.methods.language.causal_lm import CausalLM, tiny
from jaxrec.nn.attention import AttentionKind
from jaxrec.param import create


def test_the_loss_is_the_cross_entropy_of_the_weighted_targets():
    method, batch = tiny()
    params = create(method.spec(), jax.random.key(0))
    mask = np.zeros((4, 8), np.float32)
    mask[0, 3], mask[2, 5] = 1, 2

    def both(params):
        loss = method.loss(params, {**batch, "mask": mask}, jax.random.key(0))
        log_p = jax.nn.log_softmax(params.logits(params(batch["token"], batch["segment"])))
        return loss.terms["loss"], jnp.take_along_axis(log_p, batch["target"][..., None], axis=-1)[..., 0], method.log_likelihood(params, batch)

    (total, weight), wanted, likelihood = jax.jit(both)(params)
    assert weight == 3
    np.testing.assert_allclose(total, -(wanted[0, 3] + 2 * wanted[2, 5]), rtol=1e-5)
    np.testing.assert_allclose(likelihood, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(token_losses(method, params, batch), -wanted, rtol=1e-4, atol=1e-5)


def test_the_evaluation_reads_every_row_once_and_longer_rows_too():
    method, _ = tiny()
    data = TextRows(Tokens(SyntheticText(words=400)), length=4, batch=2)
    method = dataclasses.replace(method, model=dataclasses.replace(method.model, vocabulary=data.info()["vocabulary"]))
    params = create(method.spec(), jax.random.key(0))
    rows = data.rows("validation", 4, 4)
    assert token_losses(method, params, rows).shape == rows["token"].shape
    assert len(some(rows, 5)["token"]) == 5 and len(some(rows, 0)["token"]) == len(rows["token"])
    values = dict(HeldOutText(rows=0)(method, params, data))
    assert values["validation probability"] == pytest.approx(np.exp(-values["validation loss"]))
    found = report(method, params, data, "test")
    wanted = token_losses(method, params, data.rows("test", 4, 4)).mean()
    assert list(found["loss"]) == [4, 8, 16] and found["loss"][4]["loss"] == pytest.approx(wanted, rel=1e-5)
    text = table("model", found)
    assert f"{found['loss'][8]['loss']:.4f}" in text and "zero weights: 0.0000" in text
    with pytest.raises(ValueError, match="ItemVectorRows has no rows of text"):
        HeldOutText().check(ItemVectorRows(GivenVectors(np.zeros((3, 2), np.float32))))


def test_diagnostics_by_hand():
    method, batch = tiny()
    kind = AttentionKind(weights="threshold", positions="none", beta=0.5)
    params = create(dataclasses.replace(method.model, attention=kind, layers=1).spec(), jax.random.key(0))
    ids = jnp.asarray(np.tile(batch["token"][:1, :1], (2, 8)))  # one token again and again: every score is the same
    shares = jax.jit(attention_shares)(params, ids)
    layer = params.unstacked().rest[0]
    q, k, _ = layer.attention.project(layer.attention_norm(params.embed(ids)))
    score = np.asarray(jnp.einsum("hk,hk->h", q[0, 0], k[0, 0]))
    gate = 0.5 * np.sqrt(2 * np.log(np.arange(1, 9)) / 8)
    passes = score[:, None] > gate[None]  # [H, T]: a row has all of its keys or none
    assert float(shares["dead rows"]) == pytest.approx(1 - passes.mean())
    visible = np.arange(1, 9)
    assert float(shares["zero weights"]) == pytest.approx(((~passes) * visible).sum() / (2 * visible.sum()))
    uniform = np.where(passes, 1 / visible, 0)[:, 2:]
    assert float(shares["first token"]) == pytest.approx(uniform.mean(), abs=1e-6)
    assert float(shares["sink heads"]) == pytest.approx((uniform.mean(1) > 0.3).mean())


def test_keys_outside_a_window_are_no_zeros():
    method, batch = tiny()
    model = dataclasses.replace(method.model, attention=AttentionKind(positions="rotary", window=2), pattern=("local",), layers=1)
    params = create(model.spec(), jax.random.key(0))
    assert float(jax.jit(attention_shares)(params, batch["token"])["zero weights"]) == 0


def test_a_capped_model_is_refused():
    method, _ = tiny()
    with pytest.raises(ValueError, match=r"model.cap=30.0 bounds the logits"):
        CausalLM(dataclasses.replace(method.model, cap=30.0))
