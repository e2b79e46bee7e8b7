"""The step: hand-computed ratios, exact accumulation, and one result on one device, eight devices, jit and pmap."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.method import Loss, Method, Settler
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.param import Param, flatten, zeros
from jaxrec.sharding import FSDP, TABLES, Layout
from jaxrec.train.step import initial_state, is_finite, make_runner, update

MODEL = SASRec(items=50, length=8, dim=16, layers=1, heads=2, dropout=0.0, loss_name="softmax")
NOISY = dataclasses.replace(MODEL, dropout=0.3, loss_name="sampled_softmax", negatives=16)
ONE = Layout(mesh=(("data", 1),))
DAMPED = optax.adam(1e-3, eps=1e-4)  # Adam divides a gradient of almost nothing by itself; this much eps keeps it from blowing up rounding errors
LAYOUTS = {"data": Layout(), "fsdp": Layout(rules=FSDP), "tables": Layout(mesh=(("data", 4), ("model", 2)), rules=TABLES)}


@functools.cache
def batches(count):
    """The first batches of packed rows; sixteen rows have very different numbers of targets."""
    made = Sequences(Synthetic(users=64, items=50), batch=16, length=8, row=24).batches()
    return [made[number] for number in range(count)]


def run(method, layout, count, *, devices=None, per_call=None, tx=None, **options):
    """(parameters by name, losses) after `count` steps, `per_call` of them per dispatch."""
    runner = make_runner(method, tx or optax.adam(1e-3), layout, devices=jax.devices()[:devices], **options)
    state, losses = runner.start(), []
    for begin in range(0, count, per_call or count):
        state, metrics = runner.run(state, batches(count)[begin : begin + (per_call or count)])
        losses.append(np.asarray(metrics["loss"]))
    return flatten(runner.read(state).params), np.concatenate(losses)


def assert_close(a, b, tolerance):
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


@functools.cache
def on_one_device():
    return run(NOISY, ONE, 50, devices=1, tx=DAMPED)


@dataclass(frozen=True)
class TwoTerms(Method):
    """sum_i m_i (x_i - w)^2 / sum_i m_i, and 0.5 * w itself."""

    coefficients: ClassVar[Mapping[str, float]] = {"size": 0.5}

    def spec(self):
        return {"w": Param((), (), zeros), "frozen": Param((2,), (None,), zeros, trainable=False)}

    def loss(self, params, batch, key):
        error = batch["mask"] * (batch["x"] - params["w"]) ** 2
        rows = jnp.asarray(float(len(batch["x"])))
        return Loss({"fit": (error.sum(), batch["mask"].sum()), "size": (params["w"] * rows, rows)}, {"mean x": (batch["x"].sum(), rows)})


def test_the_objective_is_the_sum_of_coefficient_times_sum_over_weight():
    method, tx = TwoTerms(), optax.sgd(0.1)
    state = initial_state(method, tx, jax.random.key(0)).replace(params={"w": jnp.asarray(1.0), "frozen": jnp.asarray([3.0, 4.0])})
    batch = {"x": np.array([2.0, 4.0, 9.0, 1.0], np.float32), "mask": np.array([1.0, 0.5, 0.0, 0.0], np.float32)}
    after, values = jax.jit(functools.partial(update, method, tx))(state, batch)
    fit = (1 * 1 + 0.5 * 9) / 1.5
    gradient = -2 * (1 * 1 + 0.5 * 3) / 1.5 + 0.5
    assert {name: pytest.approx(float(value)) for name, value in values.items()} == {"fit": fit, "size": 1.0, "loss": fit + 0.5, "mean x": 4.0}
    assert after.params["w"] == pytest.approx(1 - 0.1 * gradient) and after.step == 1
    np.testing.assert_array_equal(after.params["frozen"], [3, 4])


def test_a_batch_without_targets_changes_nothing():
    method, tx = MODEL, optax.sgd(0.1)
    state = initial_state(method, tx, jax.random.key(0))
    empty = {**batches(1)[0], "mask": np.zeros_like(batches(1)[0]["mask"])}
    after, values = jax.jit(functools.partial(update, method, tx))(state, empty)
    assert values["loss"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_accumulation_is_exact_though_microbatches_have_different_weights():
    weights = batches(2)[0]["mask"].reshape(4, 4, -1).sum((1, 2))
    assert len(set(weights.tolist())) > 1
    tx = optax.sgd(0.5)  # linear in the gradient, so that the comparison is one of gradients
    whole, losses = run(MODEL, ONE, 2, devices=1, tx=tx)
    parts, part_losses = run(MODEL, ONE, 2, devices=1, tx=tx, accumulate=4)
    assert_close(whole, parts, 1e-6)
    np.testing.assert_allclose(losses, part_losses, rtol=1e-6)
    assert_close(whole, run(MODEL, LAYOUTS["data"], 2, tx=tx, accumulate=2)[0], 1e-6)


@pytest.mark.parametrize("name", LAYOUTS)
def test_eight_devices_train_like_one(name):
    assert jax.config.jax_threefry_partitionable
    params, losses = on_one_device()
    others, other_losses = run(NOISY, LAYOUTS[name], 50, tx=DAMPED)
    assert_close(params, others, 1e-5)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    table = others["item.table"]
    spread = {"data": table.size, "fsdp": table.size // 8, "tables": table.size // 2}
    assert table.addressable_shards[0].data.size == spread[name]


def test_pmap_trains_like_jit():
    params, losses = run(MODEL, Layout(), 3)
    mapped, mapped_losses = run(MODEL, Layout(compile="pmap"), 3)
    assert_close(params, mapped, 1e-5)
    np.testing.assert_allclose(losses, mapped_losses, rtol=1e-5)


def test_several_steps_per_dispatch_are_the_same_steps():
    one_by_one, losses = run(NOISY, ONE, 6, devices=1, per_call=1)
    together, joint_losses = run(NOISY, ONE, 6, devices=1, per_call=3)
    assert_close(one_by_one, together, 1e-6)
    np.testing.assert_allclose(losses, joint_losses, rtol=1e-6)


def test_half_precision_computes_in_bfloat16_and_stores_float32():
    params, losses = run(MODEL, ONE, 3, devices=1)
    half, half_losses = run(MODEL, ONE, 3, devices=1, precision="bfloat16")
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in half.values())
    np.testing.assert_allclose(half_losses, losses, rtol=0.02)
    assert not np.array_equal(half_losses, losses)  # it did compute in another precision
    assert_close(params, half, 3 * 2e-3)  # at most two learning rates apart after each step


@dataclass(frozen=True)
class Reviver(TwoTerms, Settler):
    """Counts the batch, and draws one of its rows, as a revival of dead codes does."""

    def loss(self, params, batch, key):
        return super().loss(params, batch, key).replace(stats={"sum": batch["x"].sum()})

    def settle(self, params, stats, batch, key):
        return {**params, "frozen": jnp.stack([stats["sum"], jax.random.choice(key, batch["x"])])}


def test_a_state_is_finite_if_all_that_training_changes_is():
    state = initial_state(TwoTerms(), optax.adam(1e-3), jax.random.key(0))
    assert is_finite(TwoTerms(), state)
    (adam, rest), params = state.optimizer, state.params
    moment = adam._replace(mu={**adam.mu, "w": jnp.asarray(jnp.nan)})
    assert not is_finite(TwoTerms(), state.replace(optimizer=(moment, rest)))
    assert not is_finite(TwoTerms(), state.replace(params={**params, "w": jnp.asarray(-jnp.inf)}))
    frozen = state.replace(params={**params, "frozen": jnp.asarray([0, -jnp.inf])})
    assert is_finite(TwoTerms(), frozen) and not is_finite(Reviver(), frozen)  # a settler changes those too


def test_settling_sees_the_whole_batch_on_every_device_of_pmap():
    batch = {"x": np.arange(16, dtype=np.float32), "mask": np.ones(16, np.float32)}
    found = []
    for layout in (Layout(), Layout(compile="pmap")):
        runner = make_runner(Reviver(), optax.sgd(0.1), layout)
        state, _ = runner.run(runner.start(), [batch])
        found.append(np.asarray(state.params["frozen"]).reshape(-1, 2))
    assert found[0].shape == (1, 2) and found[0][0, 0] == 120
    np.testing.assert_array_equal(np.broadcast_to(found[0], (8, 2)), found[1])


@pytest.mark.parametrize("layout", [Layout(), Layout(compile="pmap")], ids=["jit", "pmap"])
def test_a_batch_that_does_not_divide_over_the_devices_is_refused(layout):
    runner = make_runner(TwoTerms(), optax.sgd(0.1), layout)
    with pytest.raises(ValueError, match="a batch of 12 rows does not divide over the 8 devices"):
        runner.run(runner.start(), [{"x": np.zeros(12, np.float32), "mask": np.ones(12, np.float32)}])
