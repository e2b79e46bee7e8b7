"""Meta-LoRA: its linear theory recovered by gradient descent, and the classifier's three problems."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import meta_lora_linear as linear
from jaxrec.methods.adaptation.meta_lora import tiny
from jaxrec.param import create, flatten, split
from jaxrec.train.step import initial_state, update

D = 10
METHOD, BATCH = tiny()
STANDARD = dataclasses.replace(METHOD, lora=None)

predict = functools.partial(jax.jit, static_argnums=0)(lambda method, params, batch: method.predict(params, batch))


@functools.cache
def retrained(count, k):
    """(tasks, A, U, loss) of a problem with `count` tasks."""
    drawn = linear.tasks(D, count, k, seed=1)
    return drawn, *(np.asarray(found, np.float64) for found in linear.retrain(jnp.asarray(drawn.maps, jnp.float32), jax.random.key(2), k=k, steps=8000))


# --- The linear theory -------------------------------------------------------------------------------------------------------------------


def test_three_tasks_identify_the_core():
    drawn, base, factors, loss = retrained(3, 1)
    assert loss < 1e-8 and np.linalg.norm(base - drawn.core) < 1e-2 * np.linalg.norm(drawn.core)
    np.testing.assert_allclose(factors @ factors.swapaxes(1, 2), drawn.maps - drawn.core, atol=1e-3)
    pooled = np.linalg.norm(linear.standard(drawn.maps) - drawn.core)  # standard retraining does not find it
    assert pooled > 0.05 * np.linalg.norm(drawn.core)


def test_standard_retraining_is_pooled_least_squares():
    drawn = linear.tasks(D, 3, 1, seed=1)
    x = np.random.default_rng(0).normal(size=(40, D))
    stacked = np.linalg.lstsq(np.tile(x, (3, 1)), np.concatenate([x @ task.T for task in drawn.maps]), rcond=None)[0].T
    np.testing.assert_allclose(linear.standard(drawn.maps), stacked, atol=1e-10)


@pytest.mark.parametrize(("count", "k"), [(3, 1), (2, 1)])
def test_ranks_of_what_is_left_to_adapt(count, k):
    drawn, base, _, loss = retrained(count, k)
    assert loss < 1e-8
    assert linear.rank(drawn.new - linear.standard(drawn.maps)) == k * (count + 1)
    if count > 2:
        assert linear.rank(drawn.new - base) == k and linear.excess(base, drawn.new, k) < 1e-6
    else:
        assert np.linalg.norm(base - drawn.core) > 1e-2 and linear.rank(base - drawn.core) == 2 * k  # E is not 0
        assert linear.excess(base, drawn.new, 3 * k) < 1e-6 < 1e-4 < linear.excess(base, drawn.new, k)


def test_more_samples_help_only_after_meta_training():
    drawn, base, *_ = retrained(3, 1)
    samples = [100, 1000, 10_000]
    left = {
        name: [np.mean([linear.fitted_excess(found, drawn.new, 1, n, seed) for seed in range(5)]) for n in samples]
        for name, found in (("meta", base), ("standard", linear.standard(drawn.maps)))
    }
    slope = np.polyfit(np.log(samples), np.log(left["meta"]), 1)[0]
    assert -1.2 < slope < -0.8  # O(k d / n)
    plateau = linear.excess(linear.standard(drawn.maps), drawn.new, 1)
    assert left["standard"][-1] == pytest.approx(plateau, rel=0.01) and plateau > 1000 * left["meta"][-1]


def test_rotating_factors_changes_nothing_and_the_slopes_are_the_equations():
    random = np.random.default_rng(0)
    base, factors = jnp.asarray(random.normal(size=(D, D)), jnp.float32), jnp.asarray(random.normal(size=(3, D, 2)), jnp.float32)
    maps = jnp.asarray(linear.tasks(D, 3, 2, seed=0).maps, jnp.float32)
    turn = jnp.asarray(np.linalg.qr(random.normal(size=(2, 2)))[0], jnp.float32)
    np.testing.assert_allclose(linear.objective(base, factors @ turn, maps), linear.objective(base, factors, maps), rtol=1e-5)
    left = np.asarray(linear.residuals(base, factors, maps))
    slopes = jax.grad(linear.objective, argnums=(0, 1))(base, factors, maps)
    np.testing.assert_allclose(slopes[0], 2 * left.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slopes[1], 2 * (left + left.swapaxes(1, 2)) @ np.asarray(factors), rtol=1e-4, atol=1e-3)


def test_two_tasks_have_no_bad_minimum():
    maps = jnp.asarray(linear.tasks(D, 2, 1, seed=3).maps, jnp.float32)
    _, _, losses = jax.vmap(lambda key: linear.retrain(maps, key, k=1, steps=6000))(jax.random.split(jax.random.key(0), 50))
    assert np.asarray(losses).max() < 1e-6 * float(jnp.sum(maps**2))


# --- The classifier ----------------------------------------------------------------------------------------------------------------------


def disturbed(params, seed=0):
    noise = np.random.default_rng(seed)
    return params.replace(adapters=jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * noise.normal(size=leaf.shape), jnp.float32), params.adapters))


def test_every_row_goes_through_its_own_task():
    params = disturbed(create(METHOD.spec(), jax.random.key(0)))
    found = np.asarray(predict(METHOD, params, BATCH))
    lora = dataclasses.replace(METHOD.lora, adapters=3)
    states = jax.jit(lambda base: base(BATCH["text"], BATCH["text"] != 0, BATCH["type"])[:, 0])
    head = jax.device_get(params.head)
    for task in range(3):
        wanted = np.asarray(states(lora.merge(params.base, params.adapters, task))) @ head.kernel[task] + head.bias[task]
        rows = np.asarray(BATCH["task"]) == task
        np.testing.assert_allclose(found[rows], wanted[rows], rtol=1e-4, atol=1e-5)


def test_loss_is_binary_cross_entropy():
    params = disturbed(create(METHOD.spec(), jax.random.key(0)))
    mask = jnp.array([1.0, 1, 0.5, 1, 0, 1])
    loss = METHOD.loss(params, BATCH | {"mask": mask}, jax.random.key(0))
    logits, label = np.asarray(predict(METHOD, params, BATCH), np.float64), np.asarray(BATCH["label"])
    likely = np.where(label == 1, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))
    assert float(loss.terms["classification"][0]) == pytest.approx(-(np.log(likely) * np.asarray(mask)).sum(), rel=1e-4)
    assert float(loss.metrics["accuracy"][0]) == pytest.approx(((likely > 0.5) * np.asarray(mask)).sum()) and float(loss.terms["classification"][1]) == 4.5


def test_an_untrained_adapter_is_the_standard_model():
    params = create(METHOD.spec(), jax.random.key(0))
    alone = create(STANDARD.spec(), jax.random.key(1)).replace(base=params.base)
    heads = params.head.replace(kernel=jnp.tile(alone.head.kernel, (3, 1)))
    np.testing.assert_array_equal(predict(METHOD, params.replace(head=heads), BATCH), predict(STANDARD, alone, BATCH))
    assert alone.adapters == {} and alone.head.kernel.shape == (1, 16)


def test_only_the_tasks_of_a_batch_learn_and_adapting_leaves_the_base():
    tx = optax.sgd(0.5)
    for method in (METHOD, dataclasses.replace(METHOD, adapt=True)):
        state = initial_state(method, tx, jax.random.key(0))
        batch = BATCH | {"task": jnp.array([0, 2, 0, 2, 0, 2])}
        step = jax.jit(functools.partial(update, method, tx))
        after = step(step(state, batch)[0], batch)[0].params
        before = jax.device_get(flatten(state.params))
        for name, leaf in jax.device_get(flatten(after)).items():
            changed = leaf != before[name]
            if name.startswith("adapters."):
                assert changed[:, 0].any() and changed[:, 2].any() and not changed[:, 1].any(), name  # [layers, tasks, ...]
            elif name.startswith("head."):
                assert changed[0].any() and changed[2].any() and not changed[1].any(), name
            else:
                assert changed.any() != method.adapt, name
    frozen = flatten(split(dataclasses.replace(METHOD, adapt=True).spec(), after)[1])
    assert all((leaf is not None) == name.startswith("base.") for name, leaf in frozen.items())


def test_no_tasks_are_refused():
    with pytest.raises(ValueError, match="^MetaLoRA: tasks=0 must be at least 1$"):
        dataclasses.replace(METHOD, tasks=0)
