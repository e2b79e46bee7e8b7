"""TIGER: generative retrieval with semantic IDs (Rajput et al. 2023, arXiv 2305.05065), configured as in GRID (Ju et al. 2025, arXiv 2507.22224).

An encoder reads the history, each item as its H codes; a decoder writes the codes of the next item:

    loss = - sum_l log p_l(c_l | c_1 .. c_{l-1}, history)

with one softmax per level. What we changed: pre-norm blocks with layer norm in place of T5's; attention is scaled by 1 / sqrt(K); several
examples share a row, and attention is kept within each.
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
from jaxrec.nn.decoder import DecoderBlock
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.positions import Alibi, RelativeBias
from jaxrec.nn.transformer import Stack, TransformerBlock, split_key
from jaxrec.param import Param, normal


@struct.dataclass
class Seq2Seq:
    """The parameters of TIGER."""

    sids: SidArrays
    tokens: SidTokens
    start: jax.Array  # [D]
    encoder: Stack
    encoder_bias: RelativeBias | Alibi | None
    encoder_norm: LayerNorm
    decoder: Stack
    decoder_bias: RelativeBias | Alibi | None
    decoder_norm: LayerNorm


@dataclass(frozen=True)
class TIGER(SidGenerator):
    """Encoder-decoder over semantic IDs. Its rows ask only for the last item of each window: `Sequences(form="last", stride=1)`."""

    form: ClassVar[str] = "last"

    def spec(self) -> Seq2Seq:
        def block() -> TransformerBlock:
            return TransformerBlock.spec(self.dim, self.heads, self.hidden, self.dropout, head=self.head, kind=self.attention)

        decoder = DecoderBlock.spec(self.dim, self.heads, self.hidden, self.dropout, self.head, self.attention)
        tokens = SidTokens.spec(self.sids, self.dim, separators=self.separators, users=self.users)
        return Seq2Seq(
            sids=SidArrays.spec(self.sids),
            tokens=tokens,
            start=Param((self.dim,), ("embed",), normal(1.0)),  # type: ignore[arg-type]
            encoder=Stack.spec(block(), self.layers),
            encoder_bias=self.attention.bias(self.heads, causal=False, own=True),
            encoder_norm=LayerNorm.spec(self.dim),
            decoder=Stack.spec(decoder, self.layers),
            decoder_bias=self.attention.bias(self.heads, causal=True, own=True),
            decoder_norm=LayerNorm.spec(self.dim),
        )

    def loss(self, params: Seq2Seq, batch: Batch, key: jax.Array) -> Loss:
        reading, writing = jax.random.split(key)
        item, weight = self.questions(batch)  # [B, M]
        memory, segment = self.encode(params, batch, reading, self.segments)
        hidden = self.decode(params, item, memory, segment, writing)  # [B, M, H, D]
        codes = jnp.maximum(params.sids.codes[item], 0)  # [B, M, H]
        levels = [cross_entropy(params.tokens.log_probs(level, hidden[:, :, level]), codes[:, :, level], weight) for level in range(codes.shape[-1])]
        return level_losses(levels, weight)

    def questions(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """([B, M] the item asked for in each segment, [B, M] its weight); segment m + 1 is question m."""
        number = jnp.arange(1, self.segments + 1)[None, None]
        asked = jnp.where(batch["segment"][:, :, None] == number, batch["mask"][:, :, None].astype(jnp.float32), 0.0)  # [B, T, M]
        item = jnp.max(jnp.where(asked > 0, batch["target"][:, :, None], 0), axis=1)
        return item, jnp.sum(asked, axis=1)

    def encode(self, params: Seq2Seq, batch: Batch, key: jax.Array | None, segments: int) -> tuple[jax.Array, jax.Array]:
        """(memory [B, S, D], segment [B, S])."""
        x, segment = self.read(params.sids, params.tokens, batch, segments)
        first, rest = split_key(key, 2)
        place = self.places(batch["history"].shape[1], segments)
        context = packed(segment, causal=False, key=rest, bias=distances(params.encoder_bias, place, place))
        return params.encoder_norm(params.encoder(dropout(x, self.dropout, first), context)), segment

    def decode(self, params: Seq2Seq, item: jax.Array, memory: jax.Array, segment: jax.Array, key: jax.Array | None) -> jax.Array:
        """Hidden states [B, M, H, D] before each code of the items asked for [B, M], under teacher forcing."""
        (B, M), H = item.shape, len(self.sids.widths)
        written = params.tokens.items(params.sids.codes[item])[:, :, : H - 1]
        x = jnp.concatenate([jnp.broadcast_to(params.start.reshape(1, 1, 1, -1), (B, M, 1, self.dim)).astype(written.dtype), written], axis=2)
        across = jnp.repeat(jnp.arange(1, M + 1), H)[None, :, None] == segment[:, None]  # [B, M * H, S]
        first, rest = split_key(key, 2)
        place, one = jnp.arange(H), jnp.ones((B * M, H), jnp.int32)
        context = packed(one, causal=True, key=rest, bias=distances(params.decoder_bias, place, place))
        x = dropout(x, self.dropout, first)
        for layer, own in params.decoder.each(context):
            x = layer(x, own, memory, hide(across)[:, None])
        return params.decoder_norm(x)

    def generate(self, params: Seq2Seq, batch: Batch, key: jax.Array | None = None, *, beams: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The `beams` best IDs for each history, (codes [B, K, H], items and log-probs [B, K * per_id]); rows hold one history each."""
        memory, segment = self.encode(params, batch, None, 1)
        hidden = hide(segment > 0)[:, None, None]  # [B, 1, 1, S]
        layers = [layer for layer, _ in params.decoder.each(None)]
        remembered = [layer.cross.remember(memory) for layer in layers]

        def step(level: int, codes: jax.Array | None, cache: tuple | None) -> tuple[jax.Array, tuple]:
            start = jnp.broadcast_to(params.start.reshape(1, 1, -1), (len(memory), 1, self.dim)).astype(memory.dtype)
            x = start if codes is None else params.tokens.code(level - 1, codes)
            place = jnp.asarray(level)
            bias = distances(params.decoder_bias, place[None], jnp.arange(level + 1))
            longer = []
            for number, layer in enumerate(layers):
                x, kept = layer.extend(x, None if cache is None else cache[number], place, bias, remembered[number], hidden)
                longer.append(kept)
            return params.tokens.log_probs(level, params.decoder_norm(x)), tuple(longer)

        return self.search(params.sids.trie, batch, step, beams, key)


def tiny() -> tuple[TIGER, Batch]:
    """A model and a batch small enough for a test."""
    sids, _ = tiny_sids()
    return TIGER(sids=sids, segments=2, dim=16, layers=1, heads=2, head=8, hidden=32, dropout=0.0), tiny_rows("last")
