"""Param: promises, the arrays made from them, and trees by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.linear import Linear
from jaxrec.param import Param, abstract, count, create, fingerprint, flatten, freeze, lecun, merge, normal, ones, split, stack, unflatten, zeros

SPEC = {
    "layer": Linear.spec(4, 6),
    "table": Param((8, 4), ("vocabulary", "embed"), normal(0.1)),
    "frozen": Param((3,), (None,), ones, jnp.int32, trainable=False),
}


def test_create_keeps_every_promise():
    params = create(SPEC, jax.random.key(0))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(params).items()} == {
        "layer.kernel": ((4, 6), jnp.float32),
        "layer.bias": ((6,), jnp.float32),
        "table": ((8, 4), jnp.float32),
        "frozen": ((3,), jnp.int32),
    }
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract(SPEC)) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
    np.testing.assert_array_equal(params["frozen"], [1, 1, 1])


def test_a_new_part_changes_no_other_parts_start():
    alone = create({"layer": SPEC["layer"]}, jax.random.key(0))
    np.testing.assert_array_equal(alone["layer"].kernel, create(SPEC, jax.random.key(0))["layer"].kernel)
    twins = create({"a": SPEC["table"], "b": SPEC["table"]}, jax.random.key(0))
    assert not np.array_equal(twins["a"], twins["b"])


def test_stacked_layers_have_their_own_start_and_fan_in():
    stacked = stack(Linear.spec(64, 64), 5)
    assert (stacked.kernel.shape, stacked.kernel.axes) == ((5, 64, 64), ("layers", "embed", "hidden"))
    kernel = create(stacked, jax.random.key(0)).kernel
    np.testing.assert_allclose(jnp.std(kernel, axis=(1, 2)), 64**-0.5, rtol=0.05)  # not (5 * 64) ** -0.5
    assert len(np.unique(np.asarray(kernel)[:, 0, 0])) == 5


def test_lecun_is_scaled_by_the_inputs():
    assert float(jnp.std(lecun()(jax.random.key(0), (100, 400), jnp.float32))) == pytest.approx(0.1, rel=0.02)


def test_split_and_merge_are_inverse():
    params = create(SPEC, jax.random.key(0))
    trainable, frozen = split(SPEC, params)
    assert trainable["frozen"] is None and frozen["table"] is None and frozen["layer"].kernel is None
    jax.tree.map(np.testing.assert_array_equal, merge(trainable, frozen), params)
    assert (count(SPEC), count(SPEC, trainable=True), count(SPEC, trainable=False)) == (65, 62, 3)
    assert count(freeze(SPEC), trainable=True) == 0


def test_flatten_and_unflatten_are_inverse():
    params = create(SPEC, jax.random.key(0))
    back = unflatten(SPEC, flatten(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_unflatten_says_what_does_not_fit():
    leaves = flatten(create(SPEC, jax.random.key(0)))
    with pytest.raises(ValueError, match="parameters are missing: layer.bias, table"):
        unflatten(SPEC, {name: leaf for name, leaf in leaves.items() if name not in ("table", "layer.bias")})
    with pytest.raises(ValueError, match="the model does not have: extra"):
        unflatten(SPEC, {**leaves, "extra": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"parameter table has shape \(4, 8\), the model expects \(8, 4\)"):
        unflatten(SPEC, {**leaves, "table": leaves["table"].T})


def test_axes_are_checked():
    with pytest.raises(ValueError, match=r"Param of shape \(3, 4\) needs 2 axes, got \('embed',\)"):
        Param((3, 4), ("embed",), zeros)
    with pytest.raises(ValueError, match="unknown axis 'embedding'; the axes are batch, vocabulary, embed"):
        Param((3,), ("embedding",), zeros)


def test_a_param_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC["table"].shape = (1,)


def test_a_fingerprint_tells_names_types_shapes_and_bits():
    params = create(SPEC, jax.random.key(0))
    own = fingerprint(params)
    assert own == fingerprint(flatten(params)) == fingerprint(jax.device_get(params)) and len(own) == 16
    others = [
        {**params, "table": params["table"].at[0, 0].add(1e-6)},
        {**params, "table": params["table"].reshape(4, 8)},
        {**params, "frozen": params["frozen"].astype(jnp.float32)},
        {"layer": params["layer"], "tables": params["table"], "frozen": params["frozen"]},
        {**params, "table": params["table"].astype(jnp.bfloat16)},
        {**params, "frozen": jnp.zeros((0,), jnp.int32)},
    ]
    assert len({own, *map(fingerprint, others)}) == 7
