"""Encoding: whole collections of texts by an `Encoder`, without padding in what comes back."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.artifact import say
from jaxrec.method import Encoder
from jaxrec.ops.padding import padded_length
from jaxrec.param import Tree

SAY_EVERY = 10.0  # seconds between two lines of progress


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """The vectors of n texts, one text after the other.

    Attributes:
      values: [T, D] float32.
      offsets: [n + 1] int64; text i has `values[offsets[i]:offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> np.ndarray:
        """[m, D]"""
        return self.values[self.offsets[text] : self.offsets[text + 1]]

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """[n, M, D] and [n, M] bool, M the longest text's number of vectors."""
        lengths = np.diff(self.offsets)
        mask = np.arange(lengths.max(initial=1))[None, :] < lengths[:, None]
        values = np.zeros((*mask.shape, self.values.shape[1]), np.float32)
        values[mask] = self.values
        return values, mask


def encode(system: Encoder, params: Tree, tokens: np.ndarray, kind: Literal["query", "document"], *, pad: int, batch: int = 64) -> TokenVectors:
    """Encodes texts [n, T] int32 of word pieces, `pad` at their ends.

    Documents are encoded shortest first, so that neighbours need the same padding; queries as long as they are, for their padding may be filled up.
    """
    params = jax.device_put(params)
    places = np.arange(1, tokens.shape[1] + 1)
    lengths = np.where(tokens != pad, places, 0).max(axis=1, initial=0) if kind == "document" else np.full(len(tokens), tokens.shape[1])
    order = np.argsort(lengths, kind="stable")
    found: list[Any] = [None] * len(tokens)
    began = said = time.perf_counter()
    for low in range(0, len(order), batch):
        rows = order[low : low + batch]
        width = min(padded_length(int(lengths[rows[-1]])), tokens.shape[1])
        ids = np.full((min(batch, len(tokens)), width), pad, np.int32)
        ids[: len(rows)] = tokens[rows, :width]
        values, mask = jax.device_get(_encode(system, kind, params, ids))
        for row, some, kept in zip(rows, values, mask, strict=False):  # the last batch is filled up
            found[row] = some[kept]
        if (now := time.perf_counter()) - said > SAY_EVERY:
            said, done = now, low + len(rows)
            say(f"  encoded {done:,} of {len(order):,} {'queries' if kind == 'query' else 'documents'}, {done / (now - began):,.0f} a second")
    return TokenVectors(np.concatenate(found), np.r_[0, np.cumsum([len(some) for some in found])])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(system: Encoder, kind: str, params: Tree, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 products to tf32 or bfloat16
        vectors = system.encode_query(params, {"query": ids}) if kind == "query" else system.encode_item(params, {"document": ids})
    return vectors.values.astype(jnp.float32), vectors.mask
