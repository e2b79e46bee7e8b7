"""Attention over packed rows: several histories share a row and see only themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import check
from jaxrec.nn.context import Context
from jaxrec.nn.linear import Linear
from jaxrec.nn.norm import RMSNorm
from jaxrec.nn.positions import Alibi, RelativeBias, Rotary
from jaxrec.nn.weights import HIDDEN, Differential, Entmax, Rectified, Softmax, Threshold, Weighting

QUERY_BLOCK = 64
PLAIN = Rotary()

KeyValues = tuple[jax.Array, jax.Array]
"""Keys [B V G, S, K] and values [B G, S, V K] of S places: texts and heads on one axis, so that a product reads them as they lie and needs no copy."""


Weights = Literal["softmax", "threshold", "threshold_differential", "differential", "rectified", "entmax"]
Positions = Literal["own", "rotary", "alibi", "relative", "none"]


@dataclass(frozen=True)
class AttentionKind:
    """How a model attends: one field of every sequence model.

    Attributes:
      weights: what makes weights of scores, each a class of `jaxrec.nn.weights`: "softmax"; "threshold" (TRA), and "threshold_differential" (TDA) with
        two views; "differential", two softmaxes; "rectified" (ReLA); "entmax".
      positions: "own", those of the model (learned vectors, or its relative bias); "rotary"; "alibi"; "relative", T5's bias; or "none".
      groups: key and value heads that the heads share (GQA; 1 = MQA); 0 = one for each head.
      window: keys that a query may see on each side, itself included; 0 = all.
      rotary: the frequencies, where positions are "rotary".
      scale, cap: of "softmax" alone: what multiplies inner products (0 = K ** -0.5), and the bound of Gemma 2 (0 = none).
      beta, kappa, power: of the threshold's gate, see `Threshold`.
      learn_beta: whether beta is a parameter.
      alpha: of entmax.
    """

    weights: Weights = "softmax"
    positions: Positions = "own"
    groups: int = 0
    window: int = 0
    rotary: Rotary = PLAIN
    scale: float = 0.0
    cap: float = 0.0
    beta: float = 1.0
    kappa: float = 1.0
    power: int = 2
    learn_beta: bool = False
    alpha: float = 1.5

    def __post_init__(self):
        for name, known in (("weights", get_args(Weights)), ("positions", get_args(Positions))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        for name, bound in (("beta", 0), ("kappa", 0), ("power", 0), ("alpha", 1)):
            if not bound < getattr(self, name) < math.inf or (name == "power" and not isinstance(self.power, int)):
                raise ValueError(f"{name}={getattr(self, name)} must be {'a whole number ' if name == 'power' else ''}above {bound}")
        check(self, window=0, groups=0, scale=0, cap=0)
        if self.weights.startswith("threshold") and self.positions == "alibi":
            raise ValueError(
                f"positions='alibi' take more from far keys than the cosines of weights={self.weights!r} hold, at most 1; choose 'rotary' or 'relative'"
            )
        if self.weights != "softmax" and (self.scale or self.cap):
            raise ValueError(f"scale={self.scale} and cap={self.cap} are of softmax, and weights={self.weights!r} has neither; leave them 0")

    @property
    def views(self) -> int:
        """Sets of scores that one set of weights is made of."""
        return 2 if self.weights in ("differential", "threshold_differential") else 1

    def pairs(self, heads: int) -> int:
        """Heads after two views are one: half as many, with values of twice the width, so that all kinds have as many parameters."""
        return max(heads // self.views, 1)

    def weighting(self, heads: int, width: int, value: int) -> Weighting:
        """The spec of the weights of `heads` heads, with keys and values of these widths."""
        match self.weights:
            case "softmax":
                return Softmax(self.scale, self.cap)
            case "rectified":
                return Rectified.spec(value)
            case "entmax":
                return Entmax(self.alpha)
            case "differential":
                return Differential.spec(width, value)
            case "threshold" | "threshold_differential":
                gate = {"beta": self.beta, "kappa": self.kappa, "power": self.power, "learn_beta": self.learn_beta}
                return Threshold.spec(heads, width, value, views=self.views, **gate)

    def bias(self, heads: int, *, causal: bool, own: bool) -> RelativeBias | Alibi | None:
        """The bias of distances, shared by all layers; `own`: whether the model's own positions are one."""
        pairs = self.pairs(heads)
        if self.positions == "relative" or (own and self.positions == "own"):
            return RelativeBias.spec(self.views * pairs, causal=causal)
        return Alibi(pairs, self.views) if self.positions == "alibi" else None


SOFTMAX = AttentionKind()


@struct.dataclass
class Attention:
    """Multi-head self-attention: weights of q k^T, times v, heads concatenated, then one linear map.

    By default scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762). A key bias has no gradient (softmax is blind to it).
    """

    qkv: Linear  # D -> V H K queries, V G K keys, V G K values, of V views
    output: Linear  # H V K -> D
    heads: int = struct.field(pytree_node=False)
    weights: Weighting = struct.field(default_factory=Softmax)
    query_norm: RMSNorm | None = None  # over K
    key_norm: RMSNorm | None = None
    rotary: Rotary | None = struct.field(pytree_node=False, default=None)
    groups: int = struct.field(pytree_node=False, default=0)  # 0 = heads
    window: int = struct.field(pytree_node=False, default=0)

    @classmethod
    def spec(
        cls,
        width: int,
        heads: int,
        head: int = 0,
        kind: AttentionKind = SOFTMAX,
        *,
        bias: bool = False,
        output_bias: bool = True,
        norm: Callable[[int], RMSNorm] | None = None,
    ) -> Attention:
        """Declares `heads` heads of width `head`; 0 = width / heads. Two views make one head of two, so half of them are left.

        `bias` is that of q, k and v; `norm` declares a norm of the given width for queries and for keys.
        """
        inner = heads * head or width
        check_heads(inner, heads)
        if (heads > 1 and heads % kind.views) or kind.groups % kind.views:
            raise ValueError(f"weights={kind.weights!r} make one head of {kind.views}; heads={heads} and groups={kind.groups} must be even")
        pairs = kind.pairs(heads)
        groups = kind.pairs(kind.groups) if kind.groups else pairs
        if pairs % groups or inner % (pairs * kind.views):
            raise ValueError(f"groups={kind.groups} must divide heads={heads}, and {kind.views} views must divide {inner}; choose a divisor")
        value = inner // pairs
        return cls(
            qkv=Linear.spec(width, inner + 2 * groups * value, axes=("embed", "heads"), bias=bias),
            output=Linear.spec(inner, width, axes=("heads", "embed"), bias=output_bias),
            heads=pairs,
            weights=kind.weighting(pairs, value // kind.views, value),
            query_norm=norm(value // kind.views) if norm else None,
            key_norm=norm(value // kind.views) if norm else None,
            rotary=kind.rotary if kind.positions == "rotary" else None,
            groups=groups if groups != pairs else 0,
            window=kind.window,
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        return self.remember(x, context)[0]

    def remember(self, x: jax.Array, context: Context) -> tuple[jax.Array, KeyValues]:
        """[B, T, D] -> [B, T, D], and the keys and values that `extend` goes on from."""
        q, k, v = self.project(x)
        mixed = None if self.window else self.weights.fused(q, k, v, context)
        if mixed is None:
            mixed = self.mix(q, k, v, self.hide_far(hide(context.mask), context), causal=context.causal)
        return self.close(mixed), (by_head(k), by_head(v))

    def extend(self, x: jax.Array, cache: KeyValues, place: jax.Array, bias: jax.Array) -> tuple[jax.Array, KeyValues]:
        """N more tokens [B, N, D] at places `place`, place + 1, ... of a cache of S, under bias [B, 1 or V H, N, S] -> [B, N, D] and the cache with them.

        The cache is written in place where the caller gives it up (donates it, or carries it through a loop).
        """
        B, N, _ = x.shape
        places = place + jnp.arange(N)
        q, k, v = self.project(x, places)
        keys, values = (jax.lax.dynamic_update_slice(whole, by_head(new).astype(whole.dtype), (0, place, 0)) for whole, new in zip(cache, (k, v), strict=True))
        grouped = by_head(q).reshape(keys.shape[0], -1, q.shape[-1])  # [B V G, R N, K], R heads to a group
        found = jnp.einsum("gqk,gsk->gqs", grouped, keys, preferred_element_type=jnp.float32).reshape(B, -1, N, keys.shape[1])
        if self.window:
            bias = bias + hide(places[:, None] - jnp.arange(keys.shape[1])[None] < self.window)[None, None]
        weights = self.weights(found, bias).astype(v.dtype).reshape(values.shape[0], -1, values.shape[1])  # [B G, R N, S]
        mixed = jnp.einsum("gqs,gsk->gqk", weights, values).reshape(B, self.heads, N, -1)
        return self.close(jnp.swapaxes(mixed, 1, 2)), (keys, values)

    def project(self, x: jax.Array, place: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] at places [T] or [B, T] (0, 1, ... unless given) -> q [B, T, V H, K], k [B, T, V G, K], v [B, T, G, V K], ready for scores."""
        H, G, views = self.heads, self.groups or self.heads, self.weights.views
        both = self.qkv(x)
        value = both.shape[-1] // (H + 2 * G)
        q, k, v = jnp.split(both, [H * value, (H + G) * value], axis=-1)
        q, k, v = split_heads(q, views * H), split_heads(k, views * G), split_heads(v, G)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is not None:
            place = jnp.arange(x.shape[1]) if place is None else place
            q, k = self.rotary(q, place), self.rotary(k, place)
        return *self.weights.prepare(q, k), v

    def mix(self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *, causal: bool = False) -> jax.Array:
        """What `project` gave, q of [B, T] against k and v of [B, S] under bias [B, V H or 1, T, S] -> [B, T, H, V K]."""
        return weigh(self.weights, q, k, v, bias, causal=causal, window=self.window)

    def close(self, mixed: jax.Array) -> jax.Array:
        """[B, T, H, V K] -> [B, T, D]."""
        return self.output(merge_heads(self.weights.finish(mixed)))

    def hide_far(self, bias: jax.Array, context: Context) -> jax.Array:
        """The bias with relative positions, and with what lies outside the window hidden."""
        if context.bias is not None:
            bias = bias + context.bias
        if self.window:
            steps = jnp.arange(bias.shape[-1])
            bias = bias + hide(jnp.abs(steps[:, None] - steps[None]) < self.window)[None, None]
        return bias


@struct.dataclass
class CrossAttention:
    """Multi-head attention from one sequence to another, the memory."""

    query: Linear  # D -> H * K
    memory: Linear  # D -> 2 * H * K
    output: Linear  # H * K -> D
    heads: int = struct.field(pytree_node=False)
    weights: Softmax = struct.field(default_factory=Softmax)

    @classmethod
    def spec(cls, width: int, heads: int, head: int = 0, *, scale: float = 0.0, output_bias: bool = True) -> CrossAttention:
        """Declares `heads` heads of width `head`; 0 = width / heads. `scale` multiplies inner products; 0 = head ** -0.5."""
        inner = heads * head or width
        check_heads(inner, heads)
        return cls(
            query=Linear.spec(width, inner, axes=("embed", "heads"), bias=False),
            memory=Linear.spec(width, 2 * inner, axes=("embed", "heads"), bias=False),
            output=Linear.spec(inner, width, axes=("heads", "embed"), bias=output_bias),
            heads=heads,
            weights=Softmax(scale),
        )

    def remember(self, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Memory [B, S, D] -> its keys and values [B, S, H, K], to be made once for all queries."""
        k, v = (split_heads(part, self.heads) for part in jnp.split(self.memory(memory), 2, axis=-1))
        return k, v

    def __call__(self, x: jax.Array, remembered: tuple[jax.Array, jax.Array], bias: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]; bias [B, 1, T, S] hides what a query may not see."""
        k, v = remembered
        q, k = self.weights.prepare(split_heads(self.query(x), self.heads), k)
        return self.output(merge_heads(weigh(self.weights, q, k, v, bias)))

    def recall(self, x: jax.Array, remembered: KeyValues, bias: jax.Array) -> jax.Array:
        """The same with keys and values `by_head`, which a loop that writes one token at a time reads as they lie."""
        (B, T, _), (k, v) = x.shape, remembered
        q, k = self.weights.prepare(split_heads(self.query(x), self.heads), k)
        found = jnp.einsum("gqk,gsk->gqs", by_head(q), k, preferred_element_type=jnp.float32).reshape(B, self.heads, T, -1)
        weights = self.weights(found, bias).astype(v.dtype).reshape(v.shape[0], T, -1)
        mixed = jnp.einsum("gqs,gsk->gqk", weights, v).reshape(B, self.heads, T, -1)
        return self.output(merge_heads(jnp.swapaxes(mixed, 1, 2)))


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[..., H * K] -> [..., H, K]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: jax.Array) -> jax.Array:
    """[..., H, K] -> [..., H * K]."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def by_head(x: jax.Array) -> jax.Array:
    """[B, T, H, K] -> [B H, T, K]."""
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def hide(mask: jax.Array) -> jax.Array:
    """A mask as a bias: 0 where it is True, so low elsewhere that nothing is left after the softmax."""
    return jnp.where(mask, 0.0, HIDDEN)


def weigh(weights: Weighting, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *, causal: bool = False, window: int = 0) -> jax.Array:
    """weights(q k^T + bias) v, of [B, T, V H, K], [B, S, V G, K] and [B, S, G, V K]; scores and weights in float32.

    Causal queries go in blocks, and a block is multiplied only with the keys up to its end (and from the window's begin): nearly half of the
    products of a long row would be masked.
    """
    T = q.shape[1]
    mixed = []
    for low in range(0, T, QUERY_BLOCK if causal else T):
        high = min(low + QUERY_BLOCK, T) if causal else T
        seen = slice(max(0, low + 1 - window) if window else 0, high) if causal else slice(None)
        own = weights(scores(q[:, low:high], k[:, seen]), bias[:, :, low:high, seen])
        mixed.append(values(own.astype(v.dtype), v[:, seen]))
    return jnp.concatenate(mixed, axis=1)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Inner products [B, H, T, S] float32 of queries [B, T, H, K] and keys [B, S, G, K], where G divides H."""
    if q.shape[2] == k.shape[2]:
        return jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    found = jnp.einsum("btgrk,bsgk->bgrts", grouped, k, preferred_element_type=jnp.float32)
    return found.reshape(found.shape[0], -1, *found.shape[3:])


def values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Sums [B, T, H, K] of values [B, S, G, K] under weights [B, H, T, S]."""
    if weights.shape[1] == v.shape[2]:
        return jnp.einsum("bhts,bshk->bthk", weights, v)
    grouped = weights.reshape(weights.shape[0], v.shape[2], -1, *weights.shape[2:])
    found = jnp.einsum("bgrts,bsgk->btgrk", grouped, v)
    return found.reshape(*found.shape[:2], -1, found.shape[-1])


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide dim={width}; choose a divisor")
