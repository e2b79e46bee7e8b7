"""Blocks of tokens in plain XLA, for any platform: a block's gradients are formed while its logits are still in the cache.

Three matrix products in all, where a backward pass that recomputes the logits needs four, and nothing of size [N, V] is kept.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

LOGITS_BYTES = 12 * 2**20  # of one block; on a Xeon with 48 MiB of L3, 8 to 24 MiB were equally fast within noise, 3 MiB and 48 MiB slower


def block_tokens(tokens: int, dim: int, rows: int) -> int:
    """Tokens in a block: as many as LOGITS_BYTES allow, but at least 2 D, because every block also reads and writes all of d_table [V, D]."""
    most = max(LOGITS_BYTES // (4 * rows), 2 * dim, 1)
    blocks = max(1, -(-tokens // most))
    return max(1, -(-tokens // blocks))  # of even size, so that little is padded


def losses(hidden: Array, table: Array, target: Array, valid: tuple[int, int]) -> Array:
    """-log softmax(hidden @ table.T)[target] of every token, [N] float32."""
    tokens = len(target)
    size = block_tokens(tokens, table.shape[1], table.shape[0])
    loss = lax.map(lambda block: _softmax(block[0], block[1], table, valid)[0], (_split(hidden, size), _split(target, size)))
    return _join(loss, tokens)


def losses_and_gradients(hidden: Array, table: Array, target: Array, weight: Array, valid: tuple[int, int]) -> tuple[Array, Array, Array]:
    """The losses [N], and the gradients of sum(weight * losses) to hidden [N, D] and to table [V, D]."""
    tokens = len(target)
    size = block_tokens(tokens, table.shape[1], table.shape[0])

    def step(d_table, block):
        hidden, target, weight = block  # [K, D], [K], [K]
        loss, exponentials, total = _softmax(hidden, target, table, valid)
        # (softmax - one-hot) total: dividing [K, D] in place of [K, V] spares a pass over the logits; subtracting before any rounding to bfloat16
        # keeps the small gradient of a token whose target is all but certain.
        exponentials = exponentials.at[jnp.arange(size), target].add(-total).astype(table.dtype)
        scale = (weight / total)[:, None]  # [K, 1]
        d_hidden = scale * _dot(exponentials, table, (1, 0))
        return d_table + _dot(exponentials, (scale * hidden).astype(hidden.dtype), (0, 0)), (loss, d_hidden)

    blocks = (_split(hidden, size), _split(target, size), _split(weight, size))
    d_table, (loss, d_hidden) = lax.scan(step, jnp.zeros(table.shape, jnp.float32), blocks)
    return _join(loss, tokens), _join(d_hidden, tokens).astype(hidden.dtype), d_table.astype(table.dtype)


def _softmax(hidden: Array, target: Array, table: Array, valid: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Losses [K], exp(logits - their maximum) [K, V] and its row sums [K]."""
    logits = _dot(hidden, table, (1, 1))  # [K, V]
    at_target = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
    if valid != (0, table.shape[0]):
        row = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where((row >= valid[0]) & (row < valid[1]), logits, -jnp.inf)
    highest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - highest)
    total = exponentials.sum(axis=-1)
    return highest[:, 0] + jnp.log(total) - at_target, exponentials, total


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(left, right, axes, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _split(x: Array, size: int) -> Array:
    """[N, ...] -> [blocks, size, ...], zeros after the last token.

    A block takes every blocks-th token, so a batch that is sharded over devices leaves each of them a share of every block.
    """
    blocks = -(-len(x) // size)
    x = jnp.pad(x, [(0, blocks * size - len(x))] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(size, blocks, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array, tokens: int) -> Array:
    """The inverse of `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:tokens]
