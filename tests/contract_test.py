"""The contract of every method: found by directory listing, checked with one compiled step each."""

import dataclasses
import functools
import importlib
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrec.methods
from jaxrec.method import Actor, Encoder, Method
from jaxrec.param import abstract, count, create, flatten, split
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.step import State, update

ROOT = Path(jaxrec.methods.__file__).parent
MODULES = sorted(f"jaxrec.methods.{path.parent.name}.{path.stem}" for path in ROOT.glob("*/*.py") if path.stem != "__init__")
METHODS = [name for name in MODULES if hasattr(importlib.import_module(name), "tiny")]


@functools.cache
def prepared(name):
    """(module, method, batch, params, gradient of the objective, objective) of a method's tiny case."""
    module = importlib.import_module(name)
    method, batch = module.tiny()
    params = create(method.spec(), jax.random.key(0))

    @jax.jit
    def objective(params, batch, key):
        def total(trainable, frozen):
            loss = method.loss(jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None), batch, key)
            return sum(method.coefficients.get(n, 1.0) * s / w for n, (s, w) in loss.terms.items()), loss

        trainable, frozen = split(method.spec(), params)
        return jax.value_and_grad(total, has_aux=True)(trainable, frozen)

    return module, method, batch, params, objective


def trainable(name):
    """`prepared`, of methods that have something to train."""
    if not count(prepared(name)[1].spec(), trainable=True):
        pytest.skip("nothing to train")
    return prepared(name)


def with_junk(batch, seed):
    """The batch with a last row of weight zero, whose contents depend on the seed."""
    if "mask" not in batch:
        return batch
    random = np.random.default_rng(seed)
    junk = {key: random.integers(0, 2, array[:1].shape).astype(array.dtype) for key, array in batch.items()}
    return {key: np.concatenate([array, np.zeros_like(array[:1]) if key == "mask" else junk[key]]) for key, array in batch.items()}


def test_there_are_methods():
    assert {"sasrec", "esasrec", "bert4rec", "hstu"} <= {name.rsplit(".", 1)[-1] for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
class TestContract:
    def test_is_a_hashable_method(self, name):
        _, method, *_ = prepared(name)
        assert isinstance(method, Method)
        assert dataclasses.is_dataclass(method) and hash(method) == hash(dataclasses.replace(method))

    def test_abstract_is_what_create_makes(self, name):
        _, method, _, params, _ = prepared(name)
        wanted = abstract(method.spec())
        assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)
        assert count(method.spec()) == sum(leaf.size for leaf in jax.tree.leaves(params))

    def test_terms_are_finite_and_gradient_reaches_every_trainable_leaf(self, name):
        module, _, batch, params, objective = trainable(name)
        (value, loss), gradient = objective(params, with_junk(batch, seed=1), jax.random.key(1))
        assert np.isfinite(value) and all(np.isfinite(total) and weight > 0 for total, weight in loss.terms.values())
        exceptions = getattr(module, "NO_GRADIENT", ())
        for path, leaf in flatten(gradient).items():
            reached = bool(jnp.any(leaf != 0))
            assert reached != any(part in path for part in exceptions), f"{path}: gradient {'reaches' if reached else 'does not reach'} it"

    def test_rows_of_weight_zero_change_nothing(self, name):
        _, method, batch, params, objective = trainable(name)
        if "mask" not in batch:
            pytest.skip("its examples have no mask")
        values, gradients = [], []
        for seed in (1, 2):
            (value, _), gradient = objective(params, with_junk(batch, seed), jax.random.key(1))
            values.append(value)
            gradients.append(gradient)
        np.testing.assert_allclose(*values, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *gradients)

    def test_one_batch_can_be_overfitted_and_frozen_leaves_stay(self, name):
        _, method, batch, params, _ = trainable(name)
        if isinstance(method, Actor):
            pytest.skip("makes its own batches")
        tx = optax.adam(1e-2)
        learned, frozen = split(method.spec(), params)
        state = State(jnp.asarray(0, jnp.int32), params, tx.init(learned))

        @jax.jit
        def many(state):
            return jax.lax.scan(lambda s, _: update(method, tx, s, batch), state, None, length=150)

        after, metrics = many(state)
        losses = np.asarray(metrics["loss"])
        assert losses[-20:].mean() < 0.5 * losses[:5].mean(), losses[::15]
        for path, leaf in flatten(split(method.spec(), after.params)[1]).items():
            np.testing.assert_array_equal(leaf, flatten(frozen)[path])

    def test_checkpoint_is_bit_exact(self, name, tmp_path):
        _, method, _, params, _ = prepared(name)
        tx = optax.adam(1e-3)
        state = State(jnp.asarray(3, jnp.int32), params, tx.init(split(method.spec(), params)[0]))
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(state, {"data": {"next_index": 7}})
        checkpoints.wait()
        restored, progress = checkpoints.restore(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state))
        checkpoints.close()
        assert progress == {"data": {"next_index": 7}}
        jax.tree.map(np.testing.assert_array_equal, restored, state)

    def test_encodes_one_vector_per_item(self, name):
        _, method, batch, params, _ = prepared(name)
        if not isinstance(method, Encoder) or "history" not in batch:
            pytest.skip("not an encoder of histories")
        vectors = method.encode_item(params, {"item": jnp.arange(1, 6)})
        assert vectors.values.shape[0] == 5 and vectors.mask.shape == vectors.values.shape[:2]

    def test_queries_of_any_number_have_one_program(self, name):
        _, method, batch, params, _ = prepared(name)
        if not isinstance(method, Encoder):
            pytest.skip("not an encoder")
        queries = {key: batch[key] for key in ("query", "history", "segment", "position", "user", "time") if key in batch}
        scope = jax.export.SymbolicScope()
        shapes = {key: jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"b, {rows.shape[1]}", scope=scope), rows.dtype) for key, rows in queries.items()}
        found = jax.eval_shape(method.encode_query, abstract(method.spec()), shapes)
        assert [str(size) for size in (found.values.shape[0], found.mask.shape[0])] == ["b", "b"]
