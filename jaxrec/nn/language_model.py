"""Language models: one decoder for Llama, Mistral, Qwen and Gemma, which differ only in hyper-parameters.

    model = LanguageModel(vocabulary=512, dim=64, layers=4, heads=4)
    params = create(model.spec(), key)                       # a Decoder
    logits = params.logits(params(ids, segment))             # whole rows [B, T]
    params = params.unstacked()                              # the form to write with
    logits, cache = params.prefill(ids, segment, slots=200)  # ragged prompts, then a token at a time
    logits, cache = params.step(tokens, cache)

`jaxrec.nn.language_families` reads and writes the checkpoints of these families, `jaxrec.ops.sampling` has the loop that writes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import check
from jaxrec.nn import bert
from jaxrec.nn.attention import Attention, AttentionKind, KeyValues, hide
from jaxrec.nn.context import Context, packed
from jaxrec.nn.decoder import log_likelihood
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import RMSNorm
from jaxrec.nn.positions import Alibi, RelativeBias, Rotary
from jaxrec.nn.transformer import Between, GatedFeedForward, Stack, in_turn, split_key

ACTIVATIONS = bert.ACTIVATIONS | {"silu": jax.nn.silu}

ROTARY = AttentionKind(positions="rotary")


@struct.dataclass
class DecoderLayer:
    """x + attention(norm(x)), then x + feed(norm(x)); Gemma also normalises what each branch gives."""

    attention_norm: RMSNorm
    attention: Attention
    attention_post: RMSNorm | None
    feed_norm: RMSNorm
    feed: GatedFeedForward
    feed_post: RMSNorm | None
    rate: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return self.remember(x, context)[0]

    def remember(self, x: jax.Array, context: Context) -> tuple[jax.Array, KeyValues]:
        """The same, with keys and values for `extend`."""
        mixed, remembered = self.attention.remember(self.attention_norm(x), context)
        return self._branches(x, mixed, context.key), remembered

    def extend(self, x: jax.Array, cache: KeyValues, place: jax.Array, bias: jax.Array) -> tuple[jax.Array, KeyValues]:
        """N more tokens [B, N, D], as `Attention.extend`."""
        mixed, cache = self.attention.extend(self.attention_norm(x), cache, place, bias)
        return self._branches(x, mixed, None), cache

    def _branches(self, x: jax.Array, mixed: jax.Array, key: jax.Array | None) -> jax.Array:
        first, inner, last = split_key(key, 3)
        x = x + dropout(self.attention_post(mixed) if self.attention_post else mixed, self.rate, first)
        fed = self.feed(self.feed_norm(x), self.rate, inner)
        return x + dropout(self.feed_post(fed) if self.feed_post else fed, self.rate, last)


@struct.dataclass
class Cache:
    """What a decoder keeps of B texts. They end at one place: prompts are moved to the right, so that the next token of all goes into the same slot.

    Attributes:
      layers: keys and values of S slots, of each layer.
      seen: [B, S] bool, whether a slot holds a token of the text.
      place: [] int32, the next slot; the slots from there on are free.
    """

    layers: tuple[KeyValues, ...]
    seen: jax.Array
    place: jax.Array


@struct.dataclass
class Decoder:
    """The parameters of a `LanguageModel`, and all that is computed with them.

    Positions count from the begin of a row; layers see distances alone, so texts may be packed into rows, or padded on either side.
    """

    word: Embedding
    stack: Stack | None  # whole repeats of the pattern of layers, scanned; None after `unstacked`
    rest: tuple[DecoderLayer, ...]  # the layers after those
    norm: RMSNorm
    output: Embedding | None  # None: tied to the words
    bias: RelativeBias | Alibi | None  # of distances, for all layers
    vocabulary: int = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)
    scale: float = struct.field(pytree_node=False)
    cap: float = struct.field(pytree_node=False)
    rate: float = struct.field(pytree_node=False)

    @property
    def depth(self) -> int:
        """Layers in all."""
        return len(self.rest) + (self.stack.depth if self.stack else 0)

    def unstacked(self) -> Decoder:
        """The same with each layer's arrays on their own: decoding in a loop then copies no weights out of a stack."""
        return dataclasses.replace(self, stack=None, rest=(*(self.stack.unstacked() if self.stack else ()), *self.rest))

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., D], what goes into the first layer."""
        x = self.word(ids)
        return x * jnp.asarray(self.scale, x.dtype)

    def __call__(
        self,
        ids: jax.Array | None = None,
        segment: jax.Array | None = None,
        *,
        embeddings: jax.Array | None = None,
        context: Context | None = None,
        causal: bool = True,
        key: jax.Array | None = None,
        between: Between | None = None,
        until: int | None = None,
    ) -> jax.Array:
        """The states [B, T, D] of whole rows after the last norm.

        Args:
          ids: [B, T] int32 tokens.
          segment: [B, T] int32, which text a token belongs to; 0 = padding. One text in each row unless given.
          embeddings: [B, T, D] in place of ids; `embed` scales them already.
          context: in place of segment, causal and key, where a method has a mask of its own.
          causal: False reads in both directions, as an encoder.
          key: for dropout; None when evaluating.
          between: run before each layer, with the layer's number from 0.
          until: the states after so many layers instead, without the norm.

        Raises:
          ValueError: rows are longer than the model, or ids and embeddings are both given or neither.
        """
        x = self._inputs(ids, embeddings)
        first, rest = split_key(key, 2)
        if context is None:
            context = self._context(x, segment, causal, rest)
        x = dropout(x, self.rate, first)
        scanned = self.stack.depth if self.stack else 0
        if self.stack is not None:
            x = self.stack(x, context, between=between, until=None if until is None else min(until, scanned))
        last = self.rest if until is None else self.rest[: max(until - scanned, 0)]
        x = in_turn(last, x, context, first=scanned, between=between)
        return self.norm(x) if until is None else x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """States [..., D] -> [..., vocabulary] float32."""
        table = self.table()
        flat = jnp.einsum("nd,vd->nv", hidden.reshape(-1, hidden.shape[-1]), table.astype(hidden.dtype), preferred_element_type=jnp.float32)
        flat = flat[:, : self.vocabulary]
        return (self.cap * jnp.tanh(flat / self.cap) if self.cap else flat).reshape(*hidden.shape[:-1], self.vocabulary)

    def table(self) -> jax.Array:
        """[>= vocabulary, D], the vectors that states are scored with."""
        return (self.output or self.word).table

    def log_likelihood(self, hidden: jax.Array, target: jax.Array) -> jax.Array:
        """log p(target) of states [N, D] and targets [N]: [N] float32; the logits of a few positions at a time, none kept for the gradient."""
        return log_likelihood(self.logits, hidden, target)

    def prefill(self, ids: jax.Array, segment: jax.Array, *, slots: int) -> tuple[jax.Array, Cache]:
        """Reads prompts and makes room for what follows them.

        Args:
          ids: [B, P] int32, padded on either side.
          segment: [B, P], above 0 where a token is.
          slots: S, for prompts and all that is to follow; P < S <= length.

        Returns:
          The logits [B, vocabulary] of the token after each prompt, and the cache.

        Raises:
          ValueError: the slots are not enough, or more than the model has.
        """
        B, P = ids.shape
        if not P < slots <= self.length:
            raise ValueError(f"slots={slots} must be above the prompts' {P} tokens and at most the {self.length} of the model; cut prompts, or write less")
        seen = segment > 0
        trailing = jnp.argmax(seen[:, ::-1], axis=1)  # padding on the right is moved to the left
        source = (jnp.arange(P)[None] - trailing[:, None]) % P
        ids, seen = jnp.take_along_axis(ids, source, axis=1), jnp.take_along_axis(seen, source, axis=1)
        x = self.embed(ids)
        context = self._context(x, seen.astype(jnp.int32), True, None)
        layers = []
        for layer in self.unstacked().rest:
            x, remembered = layer.remember(x, context)
            layers.append(tuple(jnp.pad(each, ((0, 0), (0, slots - P), (0, 0))) for each in remembered))
        cache = Cache(tuple(layers), jnp.pad(seen, ((0, 0), (0, slots - P))), jnp.asarray(P, jnp.int32))
        return self.logits(self.norm(x[:, -1])), cache

    def extend(self, cache: Cache, ids: jax.Array | None = None, *, embeddings: jax.Array | None = None) -> tuple[jax.Array, Cache]:
        """N more tokens [B, N], or their embeddings [B, N, D] -> the states [B, N, D] after the last norm, and the cache with them.

        The caller keeps count of the slots: those beyond the last would overwrite it.
        """
        x = self._inputs(ids, embeddings)
        N, S = x.shape[1], cache.seen.shape[1]
        slot = jnp.arange(S)
        places = cache.place + jnp.arange(N)
        seen = cache.seen | ((slot >= cache.place) & (slot < cache.place + N))[None]
        bias = hide(seen[:, None, None, :] & (slot[None] <= places[:, None])[None, None])  # [B, 1, N, S]
        if self.bias is not None:
            bias = bias + self.bias(places, slot)
        layers = []
        for layer, remembered in zip(self.unstacked().rest, cache.layers, strict=True):
            x, remembered = layer.extend(x, remembered, cache.place, bias)
            layers.append(remembered)
        return self.norm(x), Cache(tuple(layers), seen, cache.place + N)

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """One more token [B] of each text -> the logits [B, vocabulary] of the next, and the cache."""
        hidden, cache = self.extend(cache, tokens[:, None])
        return self.logits(hidden[:, 0]), cache

    def _inputs(self, ids: jax.Array | None, embeddings: jax.Array | None) -> jax.Array:
        if ids is None:
            if embeddings is None:
                raise ValueError("neither ids nor embeddings are given; give one of them")
            return embeddings
        if embeddings is not None:
            raise ValueError("ids and embeddings are both given; give one of them")
        return self.embed(ids)

    def _context(self, x: jax.Array, segment: jax.Array | None, causal: bool, key: jax.Array | None) -> Context:
        B, T, _ = x.shape
        if T > self.length:
            raise ValueError(f"texts of {T} tokens are longer than the {self.length} of the model; cut them to {self.length}")
        place = jnp.arange(T)
        segment = jnp.ones((B, T), jnp.int32) if segment is None else segment
        return packed(segment, causal=causal, key=key, bias=None if self.bias is None else self.bias(place, place))


@dataclass(frozen=True)
class LanguageModel:
    """The hyper-parameters of a decoder. `jaxrec.nn.language_families.from_config` reads those of a published model.

    Attributes:
      vocabulary: tokens.
      dim: width D.
      layers, heads: of the stack.
      head: width K of a head; 0 = dim / heads.
      hidden: inner width of the feed-forward layers.
      length: tokens of the longest text.
      attention: what weighs, groups of heads, rotary frequencies; its window is that of the local layers.
      pattern: what kinds of layers repeat through the depth.
      local_rotary: the frequencies of the local layers; None: the same.
      activation: of the gated feed-forward layers, one of `ACTIVATIONS`.
      qkv_bias, output_bias: whether the maps of attention have biases.
      head_norm: whether queries and keys are normalised.
      post_norm: whether what a branch gives is normalised.
      offset: of every norm's scale.
      epsilon: of every norm.
      scale: of the word vectors.
      cap: of the logits, cap * tanh(logit / cap); 0 = none.
      tied: whether the words' table scores too.
      dropout: on the word vectors and on every residual branch.
    """

    vocabulary: int = 32_000
    dim: int = 512
    layers: int = 8
    heads: int = 8
    head: int = 0
    hidden: int = 1376
    length: int = 2048
    attention: AttentionKind = ROTARY
    pattern: tuple[Literal["global", "local"], ...] = ("global",)
    local_rotary: Rotary | None = None
    activation: str = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    head_norm: bool = False
    post_norm: bool = False
    offset: float = 0.0
    epsilon: float = 1e-6
    scale: float = 1.0
    cap: float = 0.0
    tied: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        check(self, dim=1, layers=1, heads=1, head=0, hidden=1, length=1, epsilon=0, cap=0, dropout=(0, 1))
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if not self.pattern or set(self.pattern) - {"global", "local"}:
            raise ValueError(f"pattern={self.pattern!r} must name the kinds of layers in turn, each 'global' or 'local'")
        if ("local" in self.pattern) != bool(self.attention.window):
            raise ValueError(f"pattern={self.pattern!r} and attention.window={self.attention.window}: local layers need a window, and only they have one")
        if self.attention.positions == "own":
            raise ValueError("attention.positions='own', and a language model has no positions of its own; choose 'rotary', 'alibi', 'relative' or 'none'")

    def spec(self, *, stacked: bool = True) -> Decoder:
        """The parameters; `stacked=False` declares each layer's on their own (`Decoder.unstacked`), the form to generate with."""
        size = len(self.pattern)
        repeats = self.layers // size if stacked else 0
        group = tuple(map(self._layer, range(size)))
        return Decoder(
            word=Embedding.spec(self.vocabulary, self.dim, stddev=0.02),
            stack=Stack.spec(group if size > 1 else group[0], repeats) if repeats else None,
            rest=tuple(map(self._layer, range(repeats * size, self.layers))),
            norm=self._norm(self.dim),
            output=None if self.tied else Embedding.spec(self.vocabulary, self.dim, stddev=0.02),
            bias=self.attention.bias(self.heads, causal=True, own=False),
            vocabulary=self.vocabulary,
            length=self.length,
            scale=self.scale,
            cap=self.cap,
            rate=self.dropout,
        )

    def _layer(self, number: int) -> DecoderLayer:
        kind = self.attention
        if self.pattern[number % len(self.pattern)] == "global":
            kind = dataclasses.replace(kind, window=0)
        elif self.local_rotary is not None:
            kind = dataclasses.replace(kind, rotary=self.local_rotary)
        norm = (lambda width: self._norm(width, axis=None)) if self.head_norm else None
        return DecoderLayer(
            attention_norm=self._norm(self.dim),
            attention=Attention.spec(self.dim, self.heads, self.head, kind, bias=self.qkv_bias, output_bias=self.output_bias, norm=norm),
            attention_post=self._norm(self.dim) if self.post_norm else None,
            feed_norm=self._norm(self.dim),
            feed=GatedFeedForward.spec(self.dim, self.hidden, ACTIVATIONS[self.activation]),
            feed_post=self._norm(self.dim) if self.post_norm else None,
            rate=self.dropout,
        )

    def _norm(self, width: int, axis: Any = "embed") -> RMSNorm:
        return RMSNorm.spec(width, epsilon=self.epsilon, offset=self.offset, axis=axis)
