"""Mosaic TPU kernels: an online softmax over tiles of the vocabulary (Milakov and Gimelshein 2018, arXiv:1805.02867).

With the gradient wanted, the forward kernel also accumulates the softmax-weighted sum of the table, as attention does with keys and values, all
but the target's row: its factor, softmax - 1, is small for a token that is all but certain, and would drown in the rounding of the sum to
bfloat16. That sum and the target's row make d_hidden. A second kernel recomputes the logits tile by tile for d_table. Four matrix products in all.

Logits are kept transposed, [vocabulary, tokens]: what belongs to a token is a row vector [1, tokens], and reductions run over sublanes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import dispatch

TOKEN_TILE = 256
VOCABULARY_TILE = 512
EXCLUDED = -1e30  # finite, so that a tile without a valid row leads to no inf - inf; the first valid logit scales its sum by exp(-1e30 - ...) = 0


def losses(hidden: Array, table: Array, target: Array, valid: tuple[int, int]) -> Array:
    """-log softmax(hidden @ table.T)[target] of every token, [N] float32."""
    normaliser, at_target = _forward(_pad(hidden), table, _pad(target)[None, :], valid, with_others=False)
    return (normaliser - at_target)[0, : len(target)]


def losses_and_gradients(hidden: Array, table: Array, target: Array, weight: Array, valid: tuple[int, int]) -> tuple[Array, Array, Array]:
    """The losses [N], and the gradients of sum(weight * losses) to hidden [N, D] and to table [V, D]."""
    tokens = len(target)
    padded, columns = _pad(hidden), _pad(target)[None, :]
    normaliser, at_target, others = _forward(padded, table, columns, valid, with_others=True)
    loss = (normaliser - at_target)[0, :tokens]
    d_table = _d_table(padded, table, columns, _pad(weight)[None, :], normaliser, valid)
    d_hidden = weight[:, None] * (others.T[:tokens] + jnp.expm1(-loss)[:, None] * table[target])
    return loss, d_hidden.astype(hidden.dtype), d_table.astype(table.dtype)


def _pad(x: Array) -> Array:
    """Zeros up to a whole number of token tiles."""
    return jnp.pad(x, [(0, -len(x) % TOKEN_TILE)] + [(0, 0)] * (x.ndim - 1))


def _forward(hidden: Array, table: Array, target: Array, valid: tuple[int, int], with_others: bool) -> list[Array]:
    """log sum exp [1, N] and logit of the target [1, N]; `with_others` also softmax @ table without the target's row, transposed [D, N]."""
    (tokens, dim), rows = hidden.shape, table.shape[0]
    tile = min(rows, VOCABULARY_TILE)
    row_vector = pl.BlockSpec((1, TOKEN_TILE), lambda n, v: (0, n))
    shapes = [jax.ShapeDtypeStruct((1, tokens), jnp.float32)] * 2 + [jax.ShapeDtypeStruct((dim, tokens), jnp.float32)] * with_others
    return pl.pallas_call(
        functools.partial(_forward_kernel, rows=rows, valid=valid),
        grid=(tokens // TOKEN_TILE, pl.cdiv(rows, tile)),
        in_specs=[
            pl.BlockSpec((TOKEN_TILE, dim), lambda n, v: (n, 0)),
            pl.BlockSpec((tile, dim), lambda n, v: (v, 0)),
            row_vector,
        ],
        out_specs=[row_vector] * 2 + [pl.BlockSpec((dim, TOKEN_TILE), lambda n, v: (0, n))] * with_others,
        out_shape=shapes,
        scratch_shapes=[pltpu.VMEM((1, TOKEN_TILE), jnp.float32)] * 2,
        compiler_params=dispatch.tpu_compiler_params("parallel", "arbitrary"),
        cost_estimate=_cost(hidden, table, products=1 + with_others, bytes_read=hidden.nbytes + tokens // TOKEN_TILE * table.nbytes, outputs=shapes),
        interpret=dispatch.interpret(),
        name="softmax_loss_forward",
    )(hidden, table, target)


def _forward_kernel(hidden_ref, table_ref, target_ref, normaliser_ref, at_target_ref, *rest, rows, valid):
    *others_refs, highest_ref, total_ref = rest

    @pl.when(pl.program_id(1) == 0)
    def _():
        highest_ref[...] = jnp.full_like(highest_ref, EXCLUDED)
        total_ref[...] = jnp.zeros_like(total_ref)
        at_target_ref[...] = jnp.zeros_like(at_target_ref)
        for others_ref in others_refs:
            others_ref[...] = jnp.zeros_like(others_ref)

    table, logits, row = _tile_logits(hidden_ref, table_ref, pl.program_id(1), rows, valid)
    highest = jnp.maximum(highest_ref[...], logits.max(axis=0, keepdims=True))  # [1, N]
    exponentials = jnp.exp(logits - highest)  # [V, N]
    shrink = jnp.exp(highest_ref[...] - highest)  # [1, N]: what was summed against the old maximum, against the new
    highest_ref[...] = highest
    total_ref[...] = total_ref[...] * shrink + exponentials.sum(axis=0, keepdims=True)
    is_target = row == target_ref[...]
    at_target_ref[...] += jnp.where(is_target, logits, 0).sum(axis=0, keepdims=True)
    for others_ref in others_refs:  # one or none
        others = jnp.where(is_target, 0, exponentials).astype(table.dtype)
        others_ref[...] = others_ref[...] * shrink + _dot(table, others, (0, 0))

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        normaliser_ref[...] = highest_ref[...] + jnp.log(total_ref[...])
        for others_ref in others_refs:
            others_ref[...] /= total_ref[...]


def _d_table(hidden: Array, table: Array, target: Array, weight: Array, normaliser: Array, valid: tuple[int, int]) -> Array:
    """Gradient to the table, [V, D] float32."""
    (tokens, dim), rows = hidden.shape, table.shape[0]
    tile = min(rows, VOCABULARY_TILE)
    row_vector = pl.BlockSpec((1, TOKEN_TILE), lambda v, n: (0, n))
    shape = jax.ShapeDtypeStruct((rows, dim), jnp.float32)
    return pl.pallas_call(
        functools.partial(_d_table_kernel, rows=rows, valid=valid),
        grid=(pl.cdiv(rows, tile), tokens // TOKEN_TILE),
        in_specs=[
            pl.BlockSpec((TOKEN_TILE, dim), lambda v, n: (n, 0)),
            pl.BlockSpec((tile, dim), lambda v, n: (v, 0)),
            row_vector,
            row_vector,
            row_vector,
        ],
        out_specs=pl.BlockSpec((tile, dim), lambda v, n: (v, 0)),
        out_shape=shape,
        compiler_params=dispatch.tpu_compiler_params("parallel", "arbitrary"),
        cost_estimate=_cost(hidden, table, products=2, bytes_read=table.nbytes + pl.cdiv(rows, tile) * hidden.nbytes, outputs=[shape]),
        interpret=dispatch.interpret(),
        name="softmax_loss_d_table",
    )(hidden, table, target, weight, normaliser)


def _d_table_kernel(hidden_ref, table_ref, target_ref, weight_ref, normaliser_ref, d_table_ref, *, rows, valid):
    @pl.when(pl.program_id(1) == 0)
    def _():
        d_table_ref[...] = jnp.zeros_like(d_table_ref)

    logits, row = _tile_logits(hidden_ref, table_ref, pl.program_id(0), rows, valid)[1:]
    softmax = jnp.exp(logits - normaliser_ref[...])  # [V, N]
    d_logits = jnp.where(row == target_ref[...], softmax - 1, softmax) * weight_ref[...]
    d_table_ref[...] += _dot(d_logits.astype(hidden_ref.dtype), hidden_ref[...], (1, 0))


def _tile_logits(hidden_ref, table_ref, tile, rows, valid) -> tuple[Array, Array, Array]:
    """The tile of the table [V, D], its logits [V, N] with `EXCLUDED` for rows that are not valid, and the number of each row [V, N]."""
    table = table_ref[...]
    first = tile * table.shape[0]
    if rows % table.shape[0]:  # the last tile reaches past the table: whatever lies there must not meet a zero as NaN
        table = jnp.where(first + lax.broadcasted_iota(jnp.int32, table.shape, 0) < rows, table, 0)
    logits = _dot(table, hidden_ref[...], (1, 1))
    row = first + lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    return table, jnp.where((row >= valid[0]) & (row < valid[1]), logits, EXCLUDED), row


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT  # Mosaic knows HIGHEST for float32 only
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _cost(hidden: Array, table: Array, products: int, bytes_read: int, outputs: list[jax.ShapeDtypeStruct]) -> pl.CostEstimate:
    """What the compiler cannot see inside a custom call: its operations and its traffic with HBM."""
    (tokens, dim), rows = hidden.shape, table.shape[0]
    return pl.CostEstimate(
        flops=2 * products * tokens * rows * dim,
        transcendentals=tokens * rows,
        bytes_accessed=bytes_read + sum(4 * output.size for output in outputs),
    )
