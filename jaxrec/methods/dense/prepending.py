"""Rows of `jaxrec.nn.token_prepending` laid out on the device, from rows of tokens alone, so that a plan is a field of a method and can be trained with.

A block is so many tokens, since an array of tokens does not say where sentences end; and all tokens of a row are its text, the special ones too.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxrec.method import Array
from jaxrec.nn import token_prepending
from jaxrec.nn.token_prepending import PLACEHOLDER, TokenPrepending


def lay_out(options: TokenPrepending, ids: Array, attended: Array, *, block: int) -> token_prepending.Batch:
    """The rows of texts [B, T], padded on either side, in blocks of `block` tokens.

    They hold what `token_prepending.lay_out` would, but front placeholders stand at the end of their N places, so that the text begins at the same
    place in all rows. Layers see distances alone, so nothing is changed by that.
    """
    B, T = ids.shape
    most = -(-T // block) if options.slots > 1 else 1  # blocks of a whole row
    N = min(most, options.slots)
    length = attended.sum(axis=1)[:, None]  # [B, 1]
    count = jnp.minimum(-(-length // block), most)
    joined = jnp.minimum(count, N)
    token = jnp.cumsum(attended, axis=1) - 1  # [B, T] its number in the text
    number = jnp.minimum(token // block, most - 1)
    if most > N:  # neighbours are joined, as evenly as on the host
        bounds = jnp.where(count > N, jnp.arange(1, N)[None] * count // N, jnp.arange(1, N)[None])  # [B, N - 1]
        number = (number[:, :, None] >= bounds[:, None, :]).sum(axis=2)
    begin, step = N * options.front, int(options.own)
    width = begin + options.copies * T + N * step
    place = jnp.where(attended, begin + token + (number + 1) * step, width)  # [B, T]; what is at `width` is dropped
    within = (number[:, None, :] == jnp.arange(N)[None, :, None]) & attended[:, None, :]  # [B, N, T]
    end = jnp.where(within, place[:, None, :], -1).max(axis=2)  # [B, N]
    own = jnp.where(within, place[:, None, :], width + 1).min(axis=2) - 1
    present = jnp.arange(N)[None] < joined
    missing = jnp.full((B, N), width)
    front = jnp.where(present, begin - joined + jnp.arange(N)[None], width) if options.front else missing
    own, end = jnp.where(present, own, width) if options.own else missing, jnp.where(present, end, width)
    row = jnp.arange(B)[:, None]
    laid = jnp.zeros((B, width), ids.dtype).at[row, place].set(ids, mode="drop")
    for placeholder in (front, own):
        laid = laid.at[row, placeholder].set(PLACEHOLDER, mode="drop")
    segment = jnp.zeros((B, width), jnp.int32).at[row, jnp.concatenate([place, front, own], axis=1)].set(1, mode="drop")
    if options.copies == 2:
        place = jnp.where(attended, place + length, width)
        laid, segment = laid.at[row, place].set(ids, mode="drop"), segment.at[row, place].set(1, mode="drop")
    pooled = jnp.where(token == length - 1, place, width) if options.last else place
    pooled = jnp.zeros((B, width), bool).at[row, pooled].set(True, mode="drop")
    return token_prepending.Batch(laid, segment, pooled, front, own, end)  # type: ignore[arg-type]
