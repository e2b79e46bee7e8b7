"""Transformer blocks, and the stack that scans them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.attention import SOFTMAX, Attention, AttentionKind
from jaxrec.nn.context import Context
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.param import stack

UNROLLED = 4
"""Stacks up to this depth are unrolled: compile time is still small and XLA fuses across layers."""


def split_key(key: jax.Array | None, parts: int) -> list[jax.Array | None]:
    """`parts` independent keys, or Nones when there is no key."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


@struct.dataclass
class FeedForward:
    """activation(x W1 + b1) W2 + b2, position by position."""

    inner: Linear  # D -> hidden
    outer: Linear  # hidden -> D
    activation: Callable[[jax.Array], jax.Array] = struct.field(pytree_node=False, default=jax.nn.relu)

    @classmethod
    def spec(cls, width: int, hidden: int, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu) -> FeedForward:
        return cls(Linear.spec(width, hidden), Linear.spec(hidden, width, axes=("hidden", "embed")), activation)

    def __call__(self, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D], dropout on the inner activations."""
        return self.outer(dropout(self.activation(self.inner(x)), rate, key))


@struct.dataclass
class GatedFeedForward:
    """(activation(x W) * x V) W2: SwiGLU with silu, GeGLU with gelu (Shazeer 2020, arXiv 2002.05202)."""

    gate: Linear  # D -> hidden
    inner: Linear  # D -> hidden
    outer: Linear  # hidden -> D
    activation: Callable[[jax.Array], jax.Array] = struct.field(pytree_node=False, default=jax.nn.silu)

    @classmethod
    def spec(cls, width: int, hidden: int, activation: Callable[[jax.Array], jax.Array] = jax.nn.silu) -> GatedFeedForward:
        gate, inner = (Linear.spec(width, hidden, bias=False) for _ in range(2))
        return cls(gate, inner, Linear.spec(hidden, width, axes=("hidden", "embed"), bias=False), activation)

    def __call__(self, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D], dropout on the inner activations."""
        return self.outer(dropout(self.activation(self.gate(x)) * self.inner(x), rate, key))


@struct.dataclass
class TransformerBlock:
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x)). Dropout on both branches."""

    attention_norm: LayerNorm
    attention: Attention
    feed_norm: LayerNorm
    feed: FeedForward
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(
        cls,
        width: int,
        heads: int,
        hidden: int,
        rate: float,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        head: int = 0,
        kind: AttentionKind = SOFTMAX,
    ) -> TransformerBlock:
        attention, feed = Attention.spec(width, heads, head, kind), FeedForward.spec(width, hidden, activation)
        return cls(LayerNorm.spec(width), attention, LayerNorm.spec(width), feed, rate)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        first, inner, last = split_key(context.key, 3)
        x = x + dropout(self.attention(self.attention_norm(x), context), self.rate, first)
        return x + dropout(self.feed(self.feed_norm(x), self.rate, inner), self.rate, last)


@struct.dataclass
class GatedBlock:
    """LiGR block (Borisyuk et al. 2025, arXiv 2502.03417): each branch enters through a learned gate.

    x + attention(norm(x)) * sigmoid(x W_a), then x + swiglu(norm(x)) * sigmoid(x W_f).
    """

    attention_norm: LayerNorm
    attention: Attention
    attention_gate: Linear  # D -> D
    feed_norm: LayerNorm
    feed: GatedFeedForward
    feed_gate: Linear  # D -> D
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, heads: int, hidden: int, rate: float, kind: AttentionKind = SOFTMAX) -> GatedBlock:
        gates = [Linear.spec(width, width, axes=("embed", None)) for _ in range(2)]
        attention, feed = Attention.spec(width, heads, kind=kind), GatedFeedForward.spec(width, hidden)
        return cls(LayerNorm.spec(width), attention, gates[0], LayerNorm.spec(width), feed, gates[1], rate)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        first, inner, last = split_key(context.key, 3)
        x = x + dropout(self.attention(self.attention_norm(x), context), self.rate, first) * jax.nn.sigmoid(self.attention_gate(x))
        return x + dropout(self.feed(self.feed_norm(x), self.rate, inner), self.rate, last) * jax.nn.sigmoid(self.feed_gate(x))


Between = Callable[[Any, jax.Array, Context], jax.Array]
"""`(layer, x, context) -> x`, run before each layer; `layer` is its number from 0, traced where layers are scanned."""


@struct.dataclass
class Stack:
    """`repeats` copies of a part in sequence, scanned. A tuple of parts is a pattern of layers that repeats as a whole."""

    layers: Any  # the part or parts, every array with a leading [repeats] axis
    repeats: int = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, part: Any, repeats: int) -> Stack:
        return cls(stack(part, repeats), repeats)

    @property
    def depth(self) -> int:
        """Layers in all."""
        return self.repeats * len(self._pattern)

    @property
    def _pattern(self) -> tuple[Any, ...]:
        return self.layers if isinstance(self.layers, tuple) else (self.layers,)

    def __call__(self, x: jax.Array, context: Context, *, between: Between | None = None, until: int | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D].

        Args:
          x: the input.
          context: what every layer receives; its key is folded with the layer's number.
          between: run before each layer.
          until: stop after this many layers (default: all).
        """
        size = len(self._pattern)
        whole, left = divmod(self.depth if until is None else until, size)
        layers = jax.tree.map(lambda leaf: leaf[:whole], self._pattern) if whole < self.repeats else self._pattern

        def step(x: jax.Array, item: tuple[jax.Array, tuple[Any, ...]]) -> tuple[jax.Array, None]:
            return in_turn(item[1], x, context, first=item[0] * size, between=between), None

        x = jax.lax.scan(step, x, (jnp.arange(whole), layers), unroll=max(whole, 1) if whole * size <= UNROLLED else 1)[0]
        return in_turn(self.unstacked()[whole * size :][:left], x, context, first=whole * size, between=between) if left else x

    def unstacked(self) -> tuple[Any, ...]:
        """The layers one by one."""
        return tuple(jax.tree.map(lambda leaf, n=number: leaf[n], part) for number in range(self.repeats) for part in self._pattern)

    def each(self, context: Context | None) -> list[tuple[Any, Context | None]]:
        """The layers one by one, each with its own context, for parts that take more than one input."""
        return [(layer, None if context is None else of_layer(context, number)) for number, layer in enumerate(self.unstacked())]


def in_turn(layers: tuple[Any, ...], x: jax.Array, context: Context, *, first: Any = 0, between: Between | None = None) -> jax.Array:
    """[B, T, D] through layers one after the other; `first` is the number of the first."""
    for number, layer in enumerate(layers):
        own = of_layer(context, first + number)
        if between is not None:
            x = between(first + number, x, own)
        x = layer(x, own)
    return x


def of_layer(context: Context, number: Any) -> Context:
    """The context of a layer: its random key is its own."""
    return context if context.key is None else dataclasses.replace(context, key=jax.random.fold_in(context.key, number))
