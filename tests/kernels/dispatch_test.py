"""Kernels in a program for several devices: each computes its rows, and values and gradients are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels import dispatch
from kernels.maxsim import maxsim, maxsim_ragged
from kernels.softmax_loss import log_likelihood, softmax_loss
from kernels.threshold_attention import threshold_attention

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def integers(high, *shape):
    return jnp.asarray(RANDOM.integers(0, high, shape), jnp.int32)


HIDDEN, TABLE, TARGET, WEIGHT = normal(16, 4), normal(9, 4), integers(9, 16), jnp.asarray(RANDOM.random(16), jnp.float32)
QUERIES, DOCUMENTS, OFFSETS = normal(8, 3, 4), normal(5, 6, 4), jnp.asarray([0, 7, 7, 20, 30])
Q, K, V, GATE, SEGMENT = normal(8, 6, 2, 4), normal(8, 6, 1, 4), normal(8, 6, 1, 4), normal(8, 6, 2), jnp.sort(integers(3, 8, 6), axis=1)
CASES = {  # a function of rows, and of what every device needs whole
    "softmax_loss": (lambda hidden, table: softmax_loss(hidden, table, TARGET, WEIGHT, valid=(1, 9)), HIDDEN, TABLE),
    "log_likelihood": (lambda hidden, table: jnp.sin(log_likelihood(hidden, table, TARGET)).sum(), HIDDEN, TABLE),
    "maxsim": (lambda queries, documents: jnp.sin(maxsim(queries, documents)).sum(), QUERIES, DOCUMENTS),
    "maxsim_ragged": (lambda queries, tokens: jnp.sin(maxsim_ragged(queries, tokens, OFFSETS)[:, [0, 2, 3]]).sum(), QUERIES, DOCUMENTS.reshape(30, 4)),
    "threshold_attention": (lambda q, scale: jnp.sin(threshold_attention(q, scale * K, V, GATE, SEGMENT, SEGMENT)).sum(), Q, jnp.ones(())),
}
MESHES = {"8": ((8,), ("data",), ("data",)), "4 x 2": ((4, 2), ("data", "model"), ("data",)), "2 x 4, both": ((2, 4), ("data", "model"), ("data", "model"))}


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize("name", CASES)
def test_several_devices_give_the_values_and_gradients_of_one(name, shape):
    function, rows, whole = CASES[name]
    sizes, names, axes = MESHES[shape]
    mesh = Mesh(np.array(jax.devices()).reshape(sizes), names)

    def spread(rows, whole):
        with dispatch.spread_over(mesh, axes):
            return function(rows, whole)

    wanted = jax.jit(jax.value_and_grad(function, (0, 1)))(rows, whole)
    placed = jax.device_put(rows, NamedSharding(mesh, PartitionSpec(axes))), jax.device_put(whole, NamedSharding(mesh, PartitionSpec()))
    program = jax.jit(jax.value_and_grad(spread, (0, 1))).lower(*placed)
    assert "shard_map" in program.as_text() or "manual_computation" in program.as_text()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), program.compile()(*placed), wanted)


def test_rows_that_do_not_divide_are_computed_by_every_device():
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def spread(hidden):
        with dispatch.spread_over(mesh, ("data",)):
            return log_likelihood(hidden, TABLE, TARGET[:13])

    np.testing.assert_allclose(jax.jit(spread)(HIDDEN[:13]), jax.jit(lambda hidden: log_likelihood(hidden, TABLE, TARGET[:13]))(HIDDEN[:13]), rtol=1e-5)
