"""Transformer blocks, and the stack that scans them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.attention import Attention, Context
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
class SwiGLU:
    """(silu(x W) * x V) W2 (Shazeer 2020, arXiv 2002.05202)."""

    gate: Linear  # D -> hidden
    inner: Linear  # D -> hidden
    outer: Linear  # hidden -> D

    @classmethod
    def spec(cls, width: int, hidden: int) -> SwiGLU:
        return cls(
            Linear.spec(width, hidden, bias=False), Linear.spec(width, hidden, bias=False), Linear.spec(hidden, width, axes=("hidden", "embed"), bias=False)
        )

    def __call__(self, x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D], dropout on the inner activations."""
        return self.outer(dropout(jax.nn.silu(self.gate(x)) * self.inner(x), rate, key))


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
        cls, width: int, heads: int, hidden: int, rate: float, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu, head: int = 0
    ) -> TransformerBlock:
        return cls(LayerNorm.spec(width), Attention.spec(width, heads, head), LayerNorm.spec(width), FeedForward.spec(width, hidden, activation), rate)

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
    feed: SwiGLU
    feed_gate: Linear  # D -> D
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, width: int, heads: int, hidden: int, rate: float) -> GatedBlock:
        def gate() -> Linear:
            return Linear.spec(width, width, axes=("embed", None))

        return cls(LayerNorm.spec(width), Attention.spec(width, heads), gate(), LayerNorm.spec(width), SwiGLU.spec(width, hidden), gate(), rate)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        first, inner, last = split_key(context.key, 3)
        x = x + dropout(self.attention(self.attention_norm(x), context), self.rate, first) * jax.nn.sigmoid(self.attention_gate(x))
        return x + dropout(self.feed(self.feed_norm(x), self.rate, inner), self.rate, last) * jax.nn.sigmoid(self.feed_gate(x))


@struct.dataclass
class Stack:
    """`repeats` copies of a part in sequence, scanned. The part may itself be a group of layers."""

    layers: Any  # the part, every array with a leading [repeats] axis
    repeats: int = struct.field(pytree_node=False)

    @classmethod
    def spec(cls, part: Any, repeats: int) -> Stack:
        return cls(stack(part, repeats), repeats)

    def __call__(
        self, x: jax.Array, context: Context, *, between: Callable[[jax.Array, jax.Array, Context], jax.Array] | None = None, until: int | None = None
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D].

        Args:
          x: the input.
          context: what every layer receives; its key is folded with the layer's number.
          between: `(layer, x, context) -> x`, run before each layer.
          until: stop after this many layers (default: all).
        """
        repeats = self.repeats if until is None else until
        layers = jax.tree.map(lambda leaf: leaf[:repeats], self.layers) if until is not None else self.layers

        def step(x: jax.Array, item: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
            number, layer = item
            own = context if context.key is None else dataclasses.replace(context, key=jax.random.fold_in(context.key, number))
            if between is not None:
                x = between(number, x, own)
            return layer(x, own), None

        return jax.lax.scan(step, x, (jnp.arange(repeats), layers), unroll=repeats <= UNROLLED)[0]

    def each(self, context: Context | None) -> list[tuple[Any, Context | None]]:
        """The layers one by one, each with its own context, for parts that take more than one input."""
        layers = [jax.tree.map(lambda leaf, n=number: leaf[n], self.layers) for number in range(self.repeats)]
        if context is None or context.key is None:
            return [(layer, context) for layer in layers]
        return [(layer, dataclasses.replace(context, key=jax.random.fold_in(context.key, number))) for number, layer in enumerate(layers)]
