"""Losses over the documents of a batch, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.contrastive import triplet

SCORES = jnp.array([[0.9, 0.5, 0.8], [0.1, 0.4, 0.3]])  # rows' own on the diagonal, then a hard negative
NONE, ONES = jnp.zeros((2, 3), bool), jnp.ones(2)


@pytest.mark.parametrize(
    ("margin", "excluded", "weight", "expected"),
    [
        (0.2, NONE, ONES, ((0 + 0.1) / 2 + (0 + 0.1) / 2, 2)),
        (0.5, NONE, ONES, ((0.1 + 0.4) / 2 + (0.2 + 0.4) / 2, 2)),
        (0.5, NONE.at[0, 2].set(True), ONES, (0.1 + (0.2 + 0.4) / 2, 2)),  # the mean is over the negatives that are left
        (0.5, NONE, jnp.array([2.0, 0.0]), (2 * (0.1 + 0.4) / 2, 2)),
        (0.1, NONE, ONES, (0, 2)),
        (0.5, ~NONE, ONES, (0, 2)),  # without a negative there is nothing to beat
    ],
)
def test_triplets_want_the_margin(margin, excluded, weight, expected):
    np.testing.assert_allclose(triplet(SCORES, excluded, weight, margin), expected, atol=1e-6)


def test_zero_and_flat_when_the_margin_is_satisfied():
    value, gradient = jax.value_and_grad(lambda scores: triplet(scores, NONE, ONES, 0.05)[0])(SCORES)
    assert value == 0 and not gradient.any()
    gradient = jax.grad(lambda scores: triplet(scores, NONE, ONES, 0.2)[0])(SCORES)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5], [0, -0.5, 0.5]])


def test_rows_of_weight_zero_may_be_anything():
    scores = SCORES.at[1].set(-jnp.inf)
    value, gradient = jax.value_and_grad(lambda scores: triplet(scores, NONE, jnp.array([1.0, 0.0]), 0.5)[0])(scores)
    assert value == pytest.approx(0.25) and np.isfinite(gradient).all()
