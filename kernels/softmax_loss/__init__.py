"""Softmax cross-entropy over a whole catalogue that never keeps the [N, V] logits.

    loss_n = log sum_v exp(h_n . t_v) - h_n . t_target(n)

A bias is one more column of the table against a column of ones. float32 inputs are multiplied in full float32, bfloat16 ones into float32 sums.

Over several devices call it inside `jax.shard_map`, with tokens sharded and the table whole. Left to the compiler, `blocked` splits its work
evenly but adds up d_table across devices once per block in place of once; a Pallas kernel is not split at all.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

from kernels import dispatch
from kernels.softmax_loss import blocked, reference, tpu

IMPLEMENTATIONS = {"reference": reference, "blocked": blocked, "tpu": tpu}


def softmax_loss(
    hidden: Array, table: Array, target: Array, weight: Array, *, valid: tuple[int, int] | None = None, backend: dispatch.Backend = "auto"
) -> Array:
    """Sum over tokens of weight * -log softmax(hidden @ table.T)[target]: a float32 scalar.

    The weights are known in the forward pass, so the gradients are too, up to one factor: there they are formed and kept, O(N D + V D), in place
    of the logits. Without differentiation they are not formed.

    Args:
      hidden: [N, D] float32 or bfloat16.
      table: [V, D], of the same type.
      target: [N] integer rows of the table. One outside `valid` makes the loss NaN, unless its weight is zero.
      weight: [N]. Where it is zero nothing of the token counts: its hidden state and target may be anything, NaN included.
      valid: rows low to high - 1 of the table are the catalogue; others (padding, rounding) are left out of the softmax. None: all rows.
      backend: "reference" | "blocked" | "tpu", or "auto" for the platform's own.
    """
    valid = _check(hidden, table, target, valid)
    if weight.shape != target.shape:
        raise ValueError(f"weight {weight.shape} must be one number for each target {target.shape}")
    live, inside = weight != 0, _inside(target, valid)
    hidden = jnp.where(live[:, None], hidden, 0)
    weight = jnp.where(live, jnp.where(inside, weight, jnp.nan), 0).astype(jnp.float32)
    own = functools.partial(_weighted_sum, dispatch.choose(backend, IMPLEMENTATIONS), valid)
    return dispatch.by_rows(own, (hidden, table, jnp.where(inside, target, valid[0]), weight), split=(True, False, True, True), total=True)


def log_likelihood(hidden: Array, table: Array, target: Array, *, valid: tuple[int, int] | None = None, backend: dispatch.Backend = "auto") -> Array:
    """log softmax(hidden @ table.T)[target] of every token, [N] float32: for objectives that are no weighted sum of it, and for evaluation.

    The arguments are those of `softmax_loss`; a target outside `valid` has -inf. Any cotangent may come back, so the backward pass computes the
    logits once more; tokens whose cotangent is zero take no part in it.
    """
    valid = _check(hidden, table, target, valid)
    inside = _inside(target, valid)
    own = functools.partial(_losses, dispatch.choose(backend, IMPLEMENTATIONS), valid)
    losses = dispatch.by_rows(own, (hidden, table, jnp.where(inside, target, valid[0])), split=(True, False, True))
    return jnp.where(inside, -losses, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_sum(backend: str, valid: tuple[int, int], hidden: Array, table: Array, target: Array, weight: Array) -> Array:
    return (weight * IMPLEMENTATIONS[backend].losses(hidden, table, target, valid)).sum()


def _weighted_sum_forward(backend, valid, hidden, table, target, weight):
    losses, d_hidden, d_table = IMPLEMENTATIONS[backend].losses_and_gradients(hidden, table, target, weight, valid)
    return (weight * losses).sum(), (d_hidden, d_table, losses)


def _weighted_sum_backward(backend, valid, gradients, cotangent):
    d_hidden, d_table, d_weight = ((cotangent * gradient).astype(gradient.dtype) for gradient in gradients)
    return d_hidden, d_table, None, d_weight


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _losses(backend: str, valid: tuple[int, int], hidden: Array, table: Array, target: Array) -> Array:
    return IMPLEMENTATIONS[backend].losses(hidden, table, target, valid)


def _losses_forward(backend, valid, hidden, table, target):
    return _losses(backend, valid, hidden, table, target), (hidden, table, target)


def _losses_backward(backend, valid, inputs, cotangent):
    hidden, table, target = inputs
    hidden = jnp.where((cotangent != 0)[:, None], hidden, 0)
    _, d_hidden, d_table = IMPLEMENTATIONS[backend].losses_and_gradients(hidden, table, target, cotangent, valid)
    return d_hidden, d_table, None


_losses.defvjp(_losses_forward, _losses_backward)


def _inside(target: Array, valid: tuple[int, int]) -> Array:
    return (target >= valid[0]) & (target < valid[1])


def _check(hidden: Array, table: Array, target: Array, valid: tuple[int, int] | None) -> tuple[int, int]:
    if hidden.ndim != 2 or table.ndim != 2 or hidden.shape[1] != table.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(f"expected hidden [N, D], table [V, D] and target [N], got {hidden.shape}, {table.shape} and {target.shape}; flatten [B, T, D] first")
    if hidden.dtype != table.dtype:
        raise TypeError(f"hidden is {hidden.dtype} and table {table.dtype}; cast one to the other")
    low, high = valid or (0, len(table))
    if not 0 <= low < high <= len(table):
        raise ValueError(f"valid={(low, high)} is no range of rows of a table of {len(table)}; items 1..n of it are (1, n + 1)")
    return int(low), int(high)
