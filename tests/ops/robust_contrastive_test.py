"""Robust InfoNCE: its formula, its two limits, and what each does with a positive that matches badly."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.losses import sampled_softmax
from jaxrec.ops.robust_contrastive import robust_info_nce

RANDOM = np.random.default_rng(0)
POSITIVE, NEGATIVE = -RANDOM.uniform(0, 6, 5).astype(np.float32), -RANDOM.uniform(0, 6, (5, 7)).astype(np.float32)
HIT = np.zeros((5, 7), bool)
HIT[0, 3] = HIT[4] = True


@functools.partial(jax.jit, static_argnames=("density",))
def robust(positive, negative, q, density=1.0, hit=HIT):
    return robust_info_nce(positive, negative, hit, jnp.full(len(positive), q), density)


@functools.partial(jax.jit, static_argnames=("density",))
def slopes(positive, negative, q, hit=HIT, density=1.0):
    """Of the positives and of the negatives."""
    return jax.grad(lambda *scores: robust(*scores, q, density, hit).sum(), (0, 1))(positive, negative)


@pytest.mark.parametrize("q", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_is_the_equation(q, density):
    s, n = POSITIVE.astype(np.float64), NEGATIVE.astype(np.float64)
    total = np.exp(s) + (np.exp(n) * ~HIT).sum(1)
    np.testing.assert_allclose(robust(s, n, q, density), (-np.exp(q * s) + (density * total) ** q) / q, rtol=2e-5, atol=1e-6)


def test_towards_q_0_it_is_info_nce_in_value_and_gradient():
    def info_nce(positive, negative):
        return sampled_softmax(positive, negative, jnp.asarray(HIT))

    wanted = info_nce(POSITIVE, NEGATIVE)
    gradients = jax.jit(jax.grad(lambda *scores: info_nce(*scores).sum(), (0, 1)))(POSITIVE, NEGATIVE)
    for q in (0.0, 1e-5):
        np.testing.assert_allclose(robust(POSITIVE, NEGATIVE, q, 0.3), wanted + np.log(0.3), rtol=2e-4, atol=2e-4)
        for got, gradient in zip(slopes(POSITIVE, NEGATIVE, q), gradients, strict=True):
            np.testing.assert_allclose(got, gradient, atol=2e-4)


def test_q_1_gives_up_on_a_positive_that_matches_badly_and_info_nce_does_not():
    def pull(q, positive):
        return float(slopes(np.array([positive], np.float32), np.array([[-1.0, -2.0]], np.float32), q, np.zeros((1, 2), bool), 0.1)[0][0])

    assert pull(0.0, -1.0) < -0.3 and pull(1.0, -1.0) < -0.3
    assert pull(0.0, -20.0) == pytest.approx(-1, abs=1e-4) and abs(pull(1.0, -20.0)) < 1e-7


def test_far_apart_scores_stay_finite():
    scores, free = (np.array([-1e4], np.float32), np.array([[0.0, -1.0]], np.float32)), np.zeros((1, 2), bool)
    for q in (0.0, 0.1, 1.0):
        assert np.isfinite(robust(*scores, q, hit=free)).all() and all(np.isfinite(slope).all() for slope in slopes(*scores, q, free))
