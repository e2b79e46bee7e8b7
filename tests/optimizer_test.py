"""Optimizer: schedules in fractions of the run, decay of matrices only, and Adam as its papers state it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.nn.linear import Linear
from jaxrec.optimizer import Adam
from jaxrec.param import create, flatten, split, stack


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 100, 5000])
def test_the_schedule_is_the_same_curve_for_any_number_of_steps(steps, decay):
    adam = Adam(peak=0.01, warmup=0.2, decay=decay, final=0.1)
    schedule = adam.schedule(steps)
    assert schedule(0) == 0
    assert schedule(steps // 10) == pytest.approx(0.005)  # half way up
    assert schedule(steps // 5) == pytest.approx(0.01)
    half_way_down = {"constant": 0.01, "linear": 0.0055, "cosine": 0.0055}[decay]
    assert schedule(steps // 5 + steps * 4 // 10) == pytest.approx(half_way_down)
    assert schedule(steps) == pytest.approx(0.01 if decay == "constant" else 0.001)


def test_without_warm_up_it_starts_at_the_peak():
    assert Adam(peak=0.01, warmup=1.0).schedule(100)(50) == pytest.approx(0.005)
    assert Adam(peak=0.01, warmup=0).schedule(100)(0) == pytest.approx(0.01)
    assert Adam(peak=0.01, warmup=0.02).schedule(4)(0) == pytest.approx(0.01)  # 2 % of four steps is none


def test_the_first_steps_are_those_of_the_paper():
    tx = Adam(peak=0.1, warmup=0, b1=0.9, b2=0.98).build(10)
    weights, gradients = jnp.asarray([1.0, -2.0]), [np.array([0.5, 3.0]), np.array([-1.0, 2.0])]
    state, m, v, expected = tx.init(weights), np.zeros(2), np.zeros(2), np.array([1.0, -2.0])
    for t, g in enumerate(gradients, 1):
        changes, state = tx.update(jnp.asarray(g, jnp.float32), state, weights)
        weights = optax.apply_updates(weights, changes)
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
        expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.98**t)) + 1e-8)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_clipping_bounds_the_norm_of_the_gradient():
    gradient = {"a": jnp.asarray([3.0, 4.0])}
    by_clip = [Adam(warmup=0, clip=clip).build(10).update(gradient, Adam(warmup=0, clip=clip).build(10).init(gradient), gradient)[1] for clip in (0.0, 1.0)]
    moments = [optax.tree_utils.tree_get(state, "mu")["a"] for state in by_clip]
    np.testing.assert_allclose(moments[1], moments[0] / 5, rtol=1e-6)


def test_only_matrices_decay_stacked_or_not():
    spec = {"one": Linear.spec(3, 3), "many": stack(Linear.spec(3, 3), 2)}
    params = jax.tree.map(jnp.ones_like, split(spec, create(spec, jax.random.key(0)))[0])
    tx = Adam(peak=0.1, warmup=0, weight_decay=0.5).build(10, spec)
    changes, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    for name, change in flatten(changes).items():
        np.testing.assert_allclose(change, -0.05 if name.endswith("kernel") else 0, err_msg=name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak": 0.0}, "peak=0.0 must be above 0"),
        ({"peak": float("nan")}, "peak=nan must be above 0"),
        ({"warmup": 20}, "warmup=20 must be from 0 to 1"),
        ({"b1": 1.0, "b2": -0.5}, "b1=1.0 must be at least 0 and below 1; b2=-0.5 must"),
        ({"weight_decay": -1.0, "clip": -1.0, "final": -1.0}, "final=-1.0 must be at least 0; weight_decay=-1.0 must be at least 0; clip=-1.0"),
        ({"decay": "cosin"}, "decay='cosin' must be one of constant, linear, cosine"),
    ],
)
def test_errors(fields, message):
    with pytest.raises(ValueError, match=message):
        Adam(**fields)
