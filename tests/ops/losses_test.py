"""Losses against their formulas, and what each is an estimate of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import losses, negatives

RANDOM = np.random.default_rng(0)
HIDDEN, TABLE = RANDOM.normal(size=(5, 8)).astype(np.float32), RANDOM.normal(size=(20, 8)).astype(np.float32)
TARGET = np.array([0, 3, 3, 19, 7])


def full_softmax(hidden=HIDDEN):
    logits = hidden.astype(np.float64) @ TABLE.T
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(TARGET)), TARGET]


def test_sampled_softmax_with_all_items_is_the_full_softmax_values_and_gradients():
    def loss(hidden):
        positive, negative = losses.pair_scores(hidden, TABLE[TARGET], TABLE)
        return losses.sampled_softmax(positive, negative, jnp.arange(20)[None] == TARGET[:, None])

    np.testing.assert_allclose(loss(HIDDEN), full_softmax(), rtol=1e-5)
    logits = HIDDEN @ TABLE.T
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = p @ TABLE - TABLE[TARGET]  # sum_i (p_i - [i = target]) v_i
    np.testing.assert_allclose(jax.grad(lambda h: loss(h).sum())(HIDDEN), wanted, rtol=1e-4, atol=1e-5)


def test_the_corrected_normaliser_is_unbiased():
    """E[exp(loss + s+)] = sum_i exp(s_i): sampled terms, divided by how often they are expected, add up to the whole catalogue."""
    expected = jnp.full(10, losses.log_expected_uniform(10, 20))

    @jax.jit
    def normaliser(key):
        ids = negatives.uniform(key, 10, 20) - 1
        positive, negative = losses.pair_scores(0.3 * HIDDEN, TABLE[TARGET], jnp.asarray(TABLE)[ids])
        hit = ids[None] == TARGET[:, None]
        return [jnp.exp(losses.sampled_softmax(positive, negative, hit, log_expected) + positive) for log_expected in (expected, None)]

    corrected, plain = (np.asarray(values).mean(0) for values in jax.vmap(normaliser)(jax.random.split(jax.random.key(0), 20_000)))
    whole = np.exp(0.3 * HIDDEN @ TABLE.T).sum(-1)
    np.testing.assert_allclose(corrected, whole, rtol=0.02)
    assert (plain < 0.8 * whole).all()


def test_an_accidental_hit_does_not_count():
    positive, negative = jnp.array([1.0]), jnp.array([[1.0, -2.0]])
    hit = jnp.array([[True, False]])
    np.testing.assert_allclose(losses.sampled_softmax(positive, negative, hit), np.log1p(np.exp(-3.0)), rtol=1e-6)
    np.testing.assert_allclose(losses.sampled_softmax(positive, negative, jnp.array([[True, True]])), 0.0, atol=1e-7)


def test_binary_cross_entropy_by_hand():
    got = losses.binary_cross_entropy(jnp.array([0.5]), jnp.array([[-1.0, 2.0]]), jnp.zeros((1, 2), bool))
    wanted = -(np.log(1 / (1 + np.exp(-0.5))) + np.log(1 - 1 / (1 + np.exp(1.0))) + np.log(1 - 1 / (1 + np.exp(-2.0)))) / 3
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_gbce_is_bce_at_zero_and_scales_the_positive_by_the_sampling_rate_at_one():
    assert losses.gbce_beta(10, 101, 0.0) == pytest.approx(1.0)
    assert losses.gbce_beta(10, 101, 1.0) == pytest.approx(0.1)
    assert losses.gbce_beta(10, 101, 0.5) == pytest.approx(0.55)
    with pytest.raises(ValueError, match="negatives=101, items=101"):
        losses.gbce_beta(101, 101, 0.5)
    with pytest.raises(ValueError, match="t=1.5"):
        losses.gbce_beta(10, 101, 1.5)


def test_uniform_negatives_are_items_and_all_of_them():
    ids = np.asarray(negatives.uniform(jax.random.key(0), 20_000, 20))
    counts = np.bincount(ids, minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    assert np.abs(counts[1:] / 1000 - 1).max() < 0.15
