"""Decoder blocks: self-attention over what was written, cross-attention to what was read, and a cache to write one token at a time."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.attention import SOFTMAX, AttentionKind, CrossAttention, KeyValues, hide, scores, values
from jaxrec.nn.context import Context
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import LayerNorm, RMSNorm
from jaxrec.nn.transformer import UNROLLED, Stack, TransformerBlock, of_layer, split_key

SCORED = 128
"""States whose logits `log_likelihood` holds at once."""
Cache = tuple[jax.Array, jax.Array]
"""Keys and values [B, K, t, H, k] of the t tokens that each of K beams has written."""


@struct.dataclass
class DecoderBlock:
    """Pre-norm: x + self-attention, x + cross-attention to the memory, x + feed-forward, each of a norm of x and with dropout."""

    block: TransformerBlock
    cross_norm: LayerNorm | RMSNorm
    cross: CrossAttention

    @classmethod
    def spec(cls, width: int, heads: int, hidden: int, rate: float, head: int = 0, kind: AttentionKind = SOFTMAX) -> DecoderBlock:
        return cls(TransformerBlock.spec(width, heads, hidden, rate, head=head, kind=kind), LayerNorm.spec(width), CrossAttention.spec(width, heads, head))

    def __call__(self, x: jax.Array, context: Context, memory: jax.Array, bias: jax.Array) -> jax.Array:
        """Many short outputs at once: x [B, M, L, D], each of the M attending within itself, and to memory [B, S, D] under bias [B, 1, M * L, S].

        `context` is that of the [B * M, L] outputs.
        """
        B, M, L, D = x.shape
        block, rate = self.block, self.block.rate
        first, across, inner, last = split_key(context.key, 4)
        own = block.attention(block.attention_norm(x).reshape(B * M, L, D), context).reshape(x.shape)
        x = (x + dropout(own, rate, first)).reshape(B, M * L, D)
        x = x + dropout(self.cross(self.cross_norm(x), self.cross.remember(memory), bias), rate, across)
        x = x + dropout(block.feed(block.feed_norm(x), rate, inner), rate, last)
        return x.reshape(B, M, L, D)

    def step(self, x: jax.Array, cache: KeyValues, place: jax.Array, bias: jax.Array, remembered: KeyValues, hidden: jax.Array) -> tuple[jax.Array, KeyValues]:
        """N more tokens of each text: x [B, N, D], written into a cache that has room for all that follows, as `Attention.extend`.

        The memory's keys and values as `CrossAttention.recall` reads them, and its bias [B, 1, 1, S].
        """
        own, cache = self.block.attention.extend(self.block.attention_norm(x), cache, place, bias)
        x = x + own
        x = x + self.cross.recall(self.cross_norm(x), remembered, hidden)
        return x + self.block.feed(self.block.feed_norm(x), 0.0, None), cache

    def extend(
        self, x: jax.Array, cache: Cache | None, place: jax.Array, bias: jax.Array | None, remembered: Cache, hidden: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """One more token of each beam: x [B, K, D], with its self-attention as `extend`'s; the memory's keys and values, and its bias [B, 1, 1, S]."""
        x, cache = extend(self.block, x, cache, place, bias)
        x = x + self.cross(self.cross_norm(x), remembered, hidden)
        return x + self.block.feed(self.block.feed_norm(x), 0.0, None), cache


def through(blocks: Stack | tuple[DecoderBlock, ...], x: jax.Array, context: Context, memory: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, M, L, D] through decoder blocks, which a `Stack` scans; the arguments are those of a block."""

    def one(x: jax.Array, layer: tuple[jax.Array | int, DecoderBlock]) -> tuple[jax.Array, None]:
        return layer[1](x, of_layer(context, layer[0]), memory, bias), None

    if isinstance(blocks, Stack):
        return jax.lax.scan(one, x, (jnp.arange(blocks.repeats), blocks.layers), unroll=blocks.repeats if blocks.repeats <= UNROLLED else 1)[0]
    for layer in enumerate(blocks):
        x, _ = one(x, layer)
    return x


def log_likelihood(score: Callable[[jax.Array], jax.Array], states: jax.Array, target: jax.Array, *, at_once: int = SCORED) -> jax.Array:
    """log p(target) of states [N, D] and targets [N]: [N] float32; the logits `score` gives of `at_once` states at a time, none kept for the gradient."""

    @jax.checkpoint
    def one(item: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = score(item[0])
        return logits[item[1]] - jax.nn.logsumexp(logits)

    return jax.lax.map(one, (states, target), batch_size=min(at_once, len(target)))


def extend(
    block: TransformerBlock,
    x: jax.Array,
    cache: Cache | None,
    place: jax.Array,
    bias: jax.Array | None,
    memory: Cache | None = None,
    hidden: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """x + self-attention for one more token of each beam, and the longer cache.

    Args:
      block: whose attention it is.
      x: [B, K, D].
      cache: of the tokens before, None for the first.
      place: [] of the token in its row, memory included.
      bias: [1, H, 1, s + t + 1] of positions, or None.
      memory: keys and values [B, s, G, k] that all beams share (the prompt), before their own.
      hidden: [B, 1, 1, s] bias that hides what the prompt does not have.
    """
    attention = block.attention
    q, k, v = attention.project(block.attention_norm(x), jnp.broadcast_to(place, x.shape[1]))  # [B, K, H, k]
    own = (k[:, :, None], v[:, :, None])
    cache = own if cache is None else (jnp.concatenate([cache[0], own[0]], 2), jnp.concatenate([cache[1], own[1]], 2))
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    found = jnp.einsum("bngrk,bntgk->bgrnt", grouped, cache[0], preferred_element_type=jnp.float32)
    found = found.reshape(found.shape[0], -1, *found.shape[3:])  # [B, H, K, t + 1]
    allowed = jnp.zeros((1, 1, 1, found.shape[-1]))
    shared = 0
    if memory is not None:  # the prompt is scored once for all beams, and never copied to them
        shared = memory[0].shape[1]
        found = jnp.concatenate([scores(q, memory[0]), found], -1)
        before = jnp.zeros((1, 1, 1, shared)) if hidden is None else hidden
        allowed = jnp.concatenate([before, jnp.broadcast_to(allowed, (*before.shape[:-1], allowed.shape[-1]))], -1)
    if attention.window:
        allowed += hide(place - jnp.arange(found.shape[-1]) < attention.window)[None, None, None]
    weights = attention.weights(found, allowed if bias is None else allowed + bias).astype(v.dtype)  # [B, H, K, s + t + 1]
    grouped = weights[..., shared:].reshape(weights.shape[0], v.shape[2], -1, weights.shape[2], cache[1].shape[2])
    mixed = jnp.einsum("bgrnt,bntgk->bngrk", grouped, cache[1])
    mixed = mixed.reshape(*mixed.shape[:2], -1, mixed.shape[-1])
    if memory is not None:
        mixed = mixed + values(weights[..., :shared], memory[1])
    return x + attention.close(mixed), cache
