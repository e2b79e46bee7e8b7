from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kernels import dispatch, shapes
from kernels.softmax_loss import IMPLEMENTATIONS, blocked, log_likelihood, softmax_loss

F32, BF16 = jnp.float32, jnp.bfloat16


def draw(shape: shapes.Softmax, dtype=F32, seed: int = 0):
    """hidden [N, D], table [V, D], target [N], weight [N]; a quarter of the weights is zero."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(shape.tokens, shape.dim)) * 2 / math.sqrt(shape.dim)
    table = rng.normal(size=(shape.rows, shape.dim)) * 2
    target = rng.integers(*shape.valid, shape.tokens)
    weight = rng.uniform(0.5, 2, shape.tokens) * (np.arange(shape.tokens) % 4 != 3)
    return jnp.asarray(hidden, dtype), jnp.asarray(table, dtype), jnp.asarray(target, jnp.int32), jnp.asarray(weight, F32)


def oracle(hidden, table, target, weight, valid):
    """Losses [N], d_hidden, d_table of sum(weight * losses), from the formula, in float64."""
    hidden, table, weight = (np.asarray(x, np.float64) for x in (hidden, table, weight))
    logits = hidden @ table[valid[0] : valid[1]].T
    logits -= logits.max(axis=1, keepdims=True)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one_hot = np.eye(table.shape[0])[target][:, valid[0] : valid[1]]
    losses = np.log(np.exp(logits).sum(axis=1)) - (logits * one_hot).sum(axis=1)
    d_logits = weight[:, None] * (softmax - one_hot)
    d_table = np.zeros_like(table)
    d_table[valid[0] : valid[1]] = d_logits.T @ hidden
    return losses, d_logits @ table[valid[0] : valid[1]], d_table


def assert_near(actual, expected, tolerance: float = 1e-5):
    """No entry is off by more than `tolerance` of the largest one, or of 1, the size of what is summed: sums that cancel have no better entries."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
class TestEveryBackend:
    @pytest.mark.parametrize("shape", shapes.ODD, ids=str)
    def test_values_and_gradients_are_the_formulas(self, backend, shape):
        inputs = draw(shape)
        loss = functools.partial(softmax_loss, valid=shape.valid, backend=backend)
        value, (d_hidden, d_table, d_weight) = jax.jit(jax.value_and_grad(loss, (0, 1, 3)))(*inputs)
        weight = inputs[3]
        losses, expected_hidden, expected_table = oracle(*inputs, shape.valid)
        assert_near(value, (losses * weight).sum())
        assert_near(d_hidden, expected_hidden)
        assert_near(d_table, expected_table)
        assert_near(d_weight, losses * (np.asarray(weight) != 0))
        assert_near(jax.jit(loss)(*inputs), value)  # the path without gradients

    def test_log_likelihood_takes_any_cotangent(self, backend):
        shape = shapes.ODD[3]
        hidden, table, target, _ = draw(shape)

        def objective(hidden, table):
            values = log_likelihood(hidden, table, target, valid=shape.valid, backend=backend)
            return jnp.tanh(values / 4).sum(), values

        (_, values), (d_hidden, d_table) = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(hidden, table)
        losses, *_ = oracle(hidden, table, target, np.ones(len(target)), shape.valid)
        _, expected_hidden, expected_table = oracle(hidden, table, target, -(1 - np.tanh(losses / 4) ** 2) / 4, shape.valid)
        assert_near(values, -losses)
        assert_near(d_hidden, expected_hidden)
        assert_near(d_table, expected_table)

    def test_finite_differences(self, backend):
        hidden, table, target, weight = draw(shapes.Softmax(3, 4, 6, (1, 5)))
        loss = functools.partial(softmax_loss, target=target, weight=weight, valid=(1, 5), backend=backend)
        check_grads(jax.jit(lambda hidden, table: loss(hidden, table)), (hidden, table), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)

    def test_a_token_of_weight_zero_may_hold_anything(self, backend):
        shape = shapes.ODD[2]
        hidden, table, target, weight = draw(shape)
        off = np.flatnonzero(np.asarray(weight) == 0)
        gradient = jax.jit(jax.value_and_grad(functools.partial(softmax_loss, valid=shape.valid, backend=backend), (0, 1, 3)))
        clean = gradient(hidden, table, target, weight)
        junk = np.resize([np.nan, np.inf, -np.inf, 1e38], (len(off), shape.dim))
        dirty = gradient(hidden.at[off].set(junk), table, target.at[off].set(np.resize([-5, 0, 10**9], len(off))), weight)
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)
        assert not np.any(np.asarray(dirty[1][0])[off])

    def test_a_cotangent_of_zero_keeps_junk_out_of_the_table(self, backend):
        hidden, table, target, weight = draw(shapes.ODD[1])
        hidden = hidden.at[3].set(np.nan)
        d_table = jax.jit(jax.grad(lambda table: jnp.where(weight == 0, 0, log_likelihood(hidden, table, target, backend=backend)).sum()))(table)
        assert np.isfinite(d_table).all()

    def test_rows_outside_valid_take_no_part(self, backend):
        hidden, table, target, weight = draw(shapes.Softmax(9, 6, 700, (1, 690)))
        gradient = jax.jit(jax.value_and_grad(functools.partial(softmax_loss, valid=(1, 690), backend=backend), (0, 1)))
        value, (d_hidden, d_table) = gradient(hidden, table, target, weight)
        loud = table.at[0].set(50.0).at[690:].set(50.0)
        loud_value, (loud_hidden, loud_table) = gradient(hidden, loud, target, weight)
        assert value == loud_value
        np.testing.assert_array_equal(d_hidden, loud_hidden)
        np.testing.assert_array_equal(d_table, loud_table)
        assert not np.any(d_table[0]) and not np.any(d_table[690:])

    def test_a_target_outside_valid_is_loud(self, backend):
        hidden, table, _, _ = draw(shapes.ODD[1])
        for outside in (0, 12, -1, 13):
            target = jnp.full(7, 2).at[4].set(outside)
            assert np.isnan(softmax_loss(hidden, table, target, jnp.ones(7), valid=(1, 12), backend=backend))
            likelihood = log_likelihood(hidden, table, target, valid=(1, 12), backend=backend)
            assert likelihood[4] == -np.inf and np.isfinite(likelihood).sum() == 6

    def test_bfloat16_accumulates_in_float32(self, backend):
        shape = shapes.ODD[3]
        inputs = draw(shape, BF16)
        value, (d_hidden, d_table) = jax.jit(jax.value_and_grad(functools.partial(softmax_loss, valid=shape.valid, backend=backend), (0, 1)))(*inputs)
        losses, expected_hidden, expected_table = oracle(*inputs, shape.valid)  # of the rounded inputs
        assert (value.dtype, d_hidden.dtype, d_table.dtype) == (F32, BF16, BF16)
        assert_near(value, (losses * inputs[3]).sum(), 1e-5)
        assert_near(d_hidden, expected_hidden, 1e-2)
        assert_near(d_table, expected_table, 1e-2)

    def test_a_confident_token_keeps_its_small_gradient_in_bfloat16(self, backend):
        _, table, target, weight = draw(shapes.Softmax(40, 64, 600, (0, 600)), BF16)
        hidden = (table[target] * 0.055).astype(BF16)
        d_hidden, d_table = jax.jit(jax.grad(functools.partial(softmax_loss, backend=backend), (0, 1)))(hidden, table, target, weight)
        losses, expected_hidden, expected_table = oracle(hidden, table, target, weight, (0, 600))
        assert np.median(losses) < 0.05
        for actual, expected in ((d_hidden, expected_hidden), (d_table, expected_table)):
            error = np.linalg.norm(np.asarray(actual, np.float64) - expected, axis=1)
            size = np.linalg.norm(expected, axis=1)
            assert (error <= 0.02 * size)[size > 1e-3].all()

    def test_large_logits_do_not_overflow(self, backend):
        hidden, table, target, weight = draw(shapes.ODD[1])
        value, gradients = jax.jit(jax.value_and_grad(functools.partial(softmax_loss, backend=backend), (0, 1)))(1000 * hidden, table, target, weight)
        losses, *expected = oracle(1000 * hidden, table, target, weight, (0, 13))
        assert_near(value, (losses * weight).sum())
        jax.tree.map(assert_near, gradients, tuple(expected))


def test_the_gradient_never_holds_the_logits():
    shape = shapes.LARGE
    inputs = (
        jax.ShapeDtypeStruct((shape.tokens, shape.dim), F32),
        jax.ShapeDtypeStruct((shape.rows, shape.dim), F32),
        jax.ShapeDtypeStruct((shape.tokens,), jnp.int32),
        jax.ShapeDtypeStruct((shape.tokens,), F32),
    )

    def temporaries(backend: str) -> int:
        gradient = jax.grad(functools.partial(softmax_loss, valid=shape.valid, backend=backend), (0, 1))
        return jax.jit(gradient).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    logits = shape.tokens * shape.rows * 4
    assert temporaries("blocked") < logits / 10 < logits <= temporaries("reference")


def test_without_a_derivative_no_gradient_is_formed():
    hidden, table, target, weight = draw(shapes.ODD[3])
    loss = functools.partial(softmax_loss, backend="blocked")
    assert str(jax.make_jaxpr(loss)(hidden, table, target, weight)).count("dot_general") == 1
    assert str(jax.make_jaxpr(jax.grad(loss))(hidden, table, target, weight)).count("dot_general") == 3


def test_a_block_holds_twice_the_width_of_the_table():
    for shape in (shapes.BEAUTY, shapes.ML_1M, shapes.MILLION, shapes.LARGE, *shapes.ODD):
        tokens = blocked.block_tokens(shape.tokens, shape.dim, shape.rows)
        assert 1 <= tokens <= shape.tokens
        assert tokens * shape.rows * 4 <= max(blocked.LOGITS_BYTES, 8 * shape.dim * shape.rows)
        assert -shape.tokens % tokens < math.ceil(shape.tokens / tokens)  # less than a token of padding for each block


def test_dispatch_follows_the_platform_compiled_for():
    assert dispatch.choose("auto", IMPLEMENTATIONS) == ("tpu" if jax.default_backend() == "tpu" else "blocked")
    with dispatch.compiling_for("tpu"):
        assert dispatch.choose("auto", IMPLEMENTATIONS) == "tpu" and not dispatch.interpret()
        assert dispatch.choose("reference", IMPLEMENTATIONS) == "reference"
    with dispatch.compiling_for("gpu"):
        assert dispatch.choose("auto", IMPLEMENTATIONS) == "blocked" and dispatch.interpret()
    assert dispatch.platform() == jax.default_backend()


def test_errors_say_what_is_wrong():
    hidden, table, target, weight = draw(shapes.ODD[1])
    with pytest.raises(ValueError, match=r"backend='cuda' is not .* use 'auto' or one of \['blocked', 'reference', 'tpu'\]"):
        softmax_loss(hidden, table, target, weight, backend="cuda")
    with pytest.raises(ValueError, match=r"got \(7, 5\), \(13, 4\) and \(7,\); flatten"):
        softmax_loss(hidden, table[:, :4], target, weight)
    with pytest.raises(ValueError, match=r"weight \(6,\) must be one number for each target \(7,\)"):
        softmax_loss(hidden, table, target, weight[:6])
    with pytest.raises(TypeError, match="hidden is bfloat16 and table float32; cast"):
        log_likelihood(hidden.astype(BF16), table, target)
    for valid in ((1, 14), (-1, 3), (5, 5)):
        with pytest.raises(ValueError, match="is no range of rows of a table of 13"):
            softmax_loss(hidden, table, target, weight, valid=valid)
