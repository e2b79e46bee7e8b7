"""TIGER without an encoder: a causal transformer over the history's semantic IDs as one stream of tokens (GRID, Ju et al. 2025, arXiv 2507.22224).

Each code is predicted from all codes before it, so one pass over a history trains every next item. What we changed: pre-norm blocks; T5's
relative positions; several histories share a row, and attention is kept within each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.method import Batch, Loss
from jaxrec.methods.generative.sid_generator import SidArrays, SidGenerator, SidTokens, cross_entropy, distances, level_losses, tiny_rows, tiny_sids
from jaxrec.nn.attention import hide
from jaxrec.nn.context import packed
from jaxrec.nn.decoder import extend
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.positions import Alibi, RelativeBias
from jaxrec.nn.transformer import Stack, TransformerBlock, split_key


@struct.dataclass
class Stream:
    """The parameters of TIGERDecoder."""

    sids: SidArrays
    tokens: SidTokens
    stack: Stack
    bias: RelativeBias | Alibi | None
    norm: LayerNorm


@dataclass(frozen=True)
class TIGERDecoder(SidGenerator):
    """A decoder-only TIGER. Its rows hold whole histories: `Sequences(form="stream")`."""

    form: ClassVar[str] = "stream"

    def spec(self) -> Stream:
        block = TransformerBlock.spec(self.dim, self.heads, self.hidden, self.dropout, head=self.head, kind=self.attention)
        return Stream(
            sids=SidArrays.spec(self.sids),
            tokens=SidTokens.spec(self.sids, self.dim, separators=self.separators, users=self.users),
            stack=Stack.spec(block, self.layers),
            bias=self.attention.bias(self.heads, causal=True, own=True),
            norm=LayerNorm.spec(self.dim),
        )

    def loss(self, params: Stream, batch: Batch, key: jax.Array) -> Loss:
        hidden = self.states(params, batch, key, self.segments)[0]  # [B, S, D]
        B, T = batch["history"].shape
        hidden = hidden[:, -T * self.tokens_per_item :].reshape(B, T, self.tokens_per_item, self.dim)
        codes = jnp.maximum(params.sids.codes[batch["history"]], 0)[:, 1:]  # [B, T - 1, H]: of each item but the first, which no token precedes
        weight = batch["mask"][:, :-1].astype(jnp.float32)
        before = [hidden[:, :-1, -1], *(hidden[:, 1:, level] for level in range(codes.shape[-1] - 1))]  # the token before each level's code
        levels = [cross_entropy(params.tokens.log_probs(level, state), codes[..., level], weight) for level, state in enumerate(before)]
        return level_losses(levels, weight)

    def states(self, params: Stream, batch: Batch, key: jax.Array | None, segments: int) -> tuple[jax.Array, jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """(hidden states [B, S, D], segment [B, S], keys and values of each layer [B, S, H, K])."""
        x, segment = self.read(params.sids, params.tokens, batch, segments)
        first, rest = split_key(key, 2)
        place = self.places(batch["history"].shape[1], segments)
        context = packed(segment, causal=True, key=rest, bias=distances(params.bias, place, place))
        x, remembered = dropout(x, self.dropout, first), []
        for layer, own in params.stack.each(context):
            remembered.append(layer.attention.project(layer.attention_norm(x))[1:])  # the block makes the same product: compiled, it is made once
            x = layer(x, own)
        return params.norm(x), segment, remembered

    def generate(self, params: Stream, batch: Batch, key: jax.Array | None = None, *, beams: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The `beams` best IDs for each history, (codes [B, K, H], items and log-probs [B, K * per_id]); rows hold one history each."""
        states, segment, remembered = self.states(params, right_aligned(batch), None, 1)
        hidden, prompt = hide(segment > 0)[:, None, None], self.places(batch["history"].shape[1], 1)
        layers = [layer for layer, _ in params.stack.each(None)]

        def step(level: int, codes: jax.Array | None, cache: tuple | None) -> tuple[jax.Array, tuple | None]:
            if codes is None:
                return params.tokens.log_probs(level, states[:, -1:]), None
            x, longer = params.tokens.code(level - 1, codes), []
            place = jnp.concatenate([prompt, prompt[-1] + 1 + jnp.arange(level)])
            bias = distances(params.bias, place[-1:], place)
            last = jnp.asarray(len(place) - 1)  # places in the row, which rotary positions count, differ from `place` by the user tokens
            for number, layer in enumerate(layers):
                x, kept = extend(layer, x, None if cache is None else cache[number], last, bias, remembered[number], hidden)
                x = x + layer.feed(layer.feed_norm(x), 0.0, None)
                longer.append(kept)
            return params.tokens.log_probs(level, params.norm(x)), tuple(longer)

        return self.search(params.sids.trie, batch, step, beams, key)


def right_aligned(batch: Batch) -> Batch:
    """Rows of one history each with the history at the end of the row, so that what is written next follows it in all of them."""
    length = batch["history"].shape[1]
    used = jnp.sum(batch["segment"] > 0, axis=1, keepdims=True)
    source = jnp.arange(length)[None] - (length - used)  # [B, T]
    rows = {name: batch[name] for name in ("history", "segment", "user") if name in batch}
    return {**batch, **{name: jnp.where(source >= 0, jnp.take_along_axis(row, jnp.maximum(source, 0), axis=1), 0) for name, row in rows.items()}}


def tiny() -> tuple[TIGERDecoder, Batch]:
    """A model and a batch small enough for a test."""
    sids, _ = tiny_sids()
    return TIGERDecoder(sids=sids, segments=2, dim=16, layers=1, heads=2, head=8, hidden=32, dropout=0.0), tiny_rows("stream")
