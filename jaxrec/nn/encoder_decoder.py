"""Encoder-decoders over text, and encoders alone: what T5 computes.

    params = create(T5().spec(), key)                                                # an EncoderDecoder
    logits = params.logits(params.decode(target, params(ids, mask), mask))           # [B, L, V], under teacher forcing
    params = params.unstacked()                                                      # the form to write with
    logits, cache = params.prefill(ids, mask, slots=N + 1)                           # ragged texts, then a token at a time
    logits, cache = params.step(tokens, cache)

`jaxrec.nn.t5` has the hyper-parameters and the checkpoints, `jaxrec.ops.sampling` the loop that writes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.attention import KeyValues, by_head, hide
from jaxrec.nn.context import Context, packed
from jaxrec.nn.decoder import log_likelihood, through
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import RMSNorm
from jaxrec.nn.positions import RelativeBias
from jaxrec.nn.transformer import Stack, in_turn, split_key


@struct.dataclass
class BiasedStack:
    """The blocks of the encoder or of the decoder, the norm after them, and the bias of distances that they share."""

    blocks: Stack | tuple[Any, ...]  # TransformerBlock or DecoderBlock; a Stack scans them
    norm: RMSNorm
    bias: RelativeBias

    def unstacked(self) -> BiasedStack:
        return dataclasses.replace(self, blocks=self.blocks.unstacked()) if isinstance(self.blocks, Stack) else self

    def context(self, segment: jax.Array, key: jax.Array | None) -> Context:
        """Of rows [B, T], which see later tokens unless this is the decoder."""
        place = jnp.arange(segment.shape[1])
        return packed(segment, causal=self.bias.causal, key=key, bias=self.bias(place, place))


@struct.dataclass
class Cache:
    """What a decoder keeps of B texts; all begin in the first slot, so none needs a place of its own.

    Attributes:
      layers: keys and values of S slots, of each layer.
      remembered: keys and values [B H, R, K] of the R tokens that were read, of each layer.
      hidden: [B, 1, 1, R], the bias that hides their padding.
      place: [] int32, the next slot; the slots from there on are free.
    """

    layers: tuple[KeyValues, ...]
    remembered: tuple[KeyValues, ...]
    hidden: jax.Array
    place: jax.Array


@struct.dataclass
class EncoderDecoder:
    """The parameters of a `T5`, and all that is computed with them."""

    word: Embedding
    encoder: BiasedStack
    decoder: BiasedStack | None  # None: an encoder alone
    output: Embedding | None  # None: the words' table scores, and states are scaled by D ** -0.5
    vocabulary: int = struct.field(pytree_node=False)
    start: int = struct.field(pytree_node=False)
    rate: float = struct.field(pytree_node=False)

    def unstacked(self) -> EncoderDecoder:
        """The same with each layer's arrays on their own: decoding in a loop then copies no weights out of a stack."""
        return dataclasses.replace(self, encoder=self.encoder.unstacked(), decoder=self.decoder and self.decoder.unstacked())

    def __call__(self, ids: jax.Array, mask: jax.Array, types: None = None, key: jax.Array | None = None) -> jax.Array:
        """The encoder's states [B, T, D].

        Args:
          ids: [B, T] int32 tokens.
          mask: [B, T] 1 for a token, 0 for padding.
          types: None; T5 has no token types.
          key: for dropout; None when evaluating.
        """
        if types is not None:
            raise ValueError("token types are given, and T5 has none; leave them out")
        first, rest, last = split_key(key, 3)
        x = dropout(self.word(ids), self.rate, first)
        context, blocks = self.encoder.context((mask > 0).astype(jnp.int32), rest), self.encoder.blocks
        x = blocks(x, context) if isinstance(blocks, Stack) else in_turn(blocks, x, context)
        return dropout(self.encoder.norm(x), self.rate, last)

    def decode(self, target: jax.Array, memory: jax.Array, mask: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The decoder's states [B, L, D] from which each token of the targets is predicted, under teacher forcing.

        Args:
          target: [B, L] int32, padded on the right; what is read is the start token and all but the last of them.
          memory: [B, T, D], the encoder's states.
          mask: [B, T] 1 for a token that was read, 0 for padding.
          key: for dropout; None when evaluating.

        Raises:
          ValueError: this is an encoder alone.
        """
        decoder = self._decoder()
        first, rest, last = split_key(key, 3)
        ids = jnp.concatenate([jnp.full_like(target[:, :1], self.start), target[:, :-1]], axis=1)
        x = dropout(self.word(ids), self.rate, first)[:, None]  # [B, 1, L, D], one output for each text
        context, hidden = decoder.context(jnp.ones_like(ids), rest), hide(mask > 0)[:, None, None, :]
        x = through(decoder.blocks, x, context, memory, hidden)[:, 0]
        return dropout(decoder.norm(x), self.rate, last)

    def logits(self, states: jax.Array) -> jax.Array:
        """The decoder's states [..., D] -> [..., vocabulary] float32."""
        table = (self.output or self.word).table.astype(states.dtype)
        flat = states.reshape(-1, states.shape[-1])
        if self.output is None:
            flat = flat * jnp.asarray(flat.shape[-1] ** -0.5, flat.dtype)
        found = jnp.einsum("nd,vd->nv", flat, table, preferred_element_type=jnp.float32)
        return found[:, : self.vocabulary].reshape(*states.shape[:-1], self.vocabulary)

    def log_likelihood(self, ids: jax.Array, mask: jax.Array, target: jax.Array, key: jax.Array | None = None, *, given: jax.Array | None = None) -> jax.Array:
        """log p of each token of targets [B, L], given the tokens before it and the text ids [B, T]: [B, L] float32, 0 where nothing is asked.

        What is asked is said by `given` [B, L], above 0 for a token; without it, everything but the padding 0.
        """
        reading, writing = split_key(key, 2)
        states = self.decode(target, self(ids, mask, key=reading), mask, writing)
        found = log_likelihood(self.logits, states.reshape(-1, states.shape[-1]), target.reshape(-1)).reshape(target.shape)
        return jnp.where((target if given is None else given) > 0, found, 0.0)

    def prefill(self, ids: jax.Array, mask: jax.Array, *, slots: int) -> tuple[jax.Array, Cache]:
        """Reads texts and makes room for what is written about them.

        Args:
          ids: [B, T] int32, padded on either side.
          mask: [B, T], above 0 where a token is.
          slots: S, for the start token and all that is to follow.

        Returns:
          The logits [B, vocabulary] of the first token, and the cache.

        Raises:
          ValueError: the slots are not enough, or this is an encoder alone.
        """
        if slots < 2:
            raise ValueError(f"slots={slots} leave no room behind the start token; ask for one more than the tokens to write")
        blocks, memory = self._decoder().unstacked().blocks, self(ids, mask)
        remembered = tuple((by_head(k), by_head(v)) for k, v in (layer.cross.remember(memory) for layer in blocks))  # type: ignore[union-attr]
        rows, _, K = remembered[0][0].shape  # texts and heads on one axis
        free = jnp.zeros((rows, slots, K), memory.dtype)
        cache = Cache(((free, free),) * len(remembered), remembered, hide(mask > 0)[:, None, None, :], jnp.zeros((), jnp.int32))
        return self.step(jnp.full(len(ids), self.start, jnp.int32), cache)

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token [B] of each text -> the logits [B, vocabulary] of the next, and the cache.

        The caller keeps count of the slots: those beyond the last would overwrite it.
        """
        decoder = self._decoder().unstacked()
        slot = jnp.arange(cache.layers[0][0].shape[1])
        bias = hide(slot <= cache.place)[None, None, None] + decoder.bias(cache.place[None], slot)  # [1, H, 1, S]
        x, layers = self.word(tokens[:, None]), []
        for layer, own, remembered in zip(decoder.blocks, cache.layers, cache.remembered, strict=True):  # type: ignore[arg-type]
            x, own = layer.step(x, own, cache.place, bias, remembered, cache.hidden)
            layers.append(own)
        return self.logits(decoder.norm(x)[:, 0]), dataclasses.replace(cache, layers=tuple(layers), place=cache.place + 1)

    def _decoder(self) -> BiasedStack:
        if self.decoder is None:
            raise ValueError("this T5 is an encoder alone (decoder_layers=0), and writing needs a decoder; take a model that has one")
        return self.decoder
