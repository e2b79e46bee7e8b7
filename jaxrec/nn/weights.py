"""How scores become attention weights: softmax, and the published alternatives to it.

Every kind is a part with the same four steps, so that `Attention` and the decoders know none of them:

    prepare(q, k)          scale or normalise queries and keys, [B, T, V * H, K] and [B, S, V * G, K] of V views
    __call__(scores, bias) scores [B, V * H, T, S] float32 and their bias (hidden keys at `HIDDEN`) to weights [B, H, T, S]
    fused(q, k, v, context)  the same without the matrix of scores, where there is a kernel for it; None where there is not
    finish(mixed)          the weighted values [B, T, H, K], normalised per head if the weights of a row do not sum to one

The views of a two-view kind lie one after the other on the axis of heads.
"""

from __future__ import annotations

import functools
import math
import warnings

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.nn.context import Context
from jaxrec.nn.norm import RMSNorm, unit
from jaxrec.param import Param, constant, normal, zeros
from kernels.threshold_attention import gates, threshold_attention, visible_counts

HIDDEN = -1e30
"""The score of a key that may not be seen; finite, so that a fully hidden block has no NaN."""
BISECTIONS = 24
"""Halvings of the interval of entmax's threshold: its error is then that of float32."""


class Weighting:
    """What the kinds share: one view, inner products over sqrt(K), no kernel of their own, nothing after the sum."""

    views = 1

    def prepare(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        raise TypeError(f"{type(self).__name__} does not say what the weights are")

    def fused(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array | None:
        return None

    def finish(self, mixed: jax.Array) -> jax.Array:
        return mixed


@struct.dataclass
class Softmax(Weighting):
    """softmax(s + bias) (Vaswani et al. 2017, arXiv 1706.03762).

    Attributes:
      scale: of the inner products; 0 = K ** -0.5.
      cap: 0, or the bound of Gemma 2, cap * tanh(s / cap) (arXiv 2408.00118).
    """

    scale: float = struct.field(pytree_node=False, default=0.0)
    cap: float = struct.field(pytree_node=False, default=0.0)

    def prepare(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return q * jnp.asarray(self.scale or q.shape[-1] ** -0.5, q.dtype), k

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        return jax.nn.softmax((self.cap * jnp.tanh(scores / self.cap) if self.cap else scores) + bias, axis=-1)


@struct.dataclass
class Rectified(Weighting):
    """ReLA: relu(s), any sum, and a norm of every head's result (Zhang et al. 2021, arXiv 2104.07012)."""

    norm: RMSNorm

    @classmethod
    def spec(cls, value: int) -> Rectified:
        return cls(RMSNorm.spec(value, axis=None))

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        return jax.nn.relu(scores + bias)

    def finish(self, mixed: jax.Array) -> jax.Array:
        return self.norm(mixed)


@struct.dataclass
class Entmax(Weighting):
    """alpha-entmax: as softmax sums to one, but low scores get exactly zero (Peters et al. 2019, arXiv 1905.05702; alpha = 2 is sparsemax)."""

    alpha: float = struct.field(pytree_node=False, default=1.5)

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        return entmax(scores + bias, self.alpha)


@struct.dataclass
class Differential(Weighting):
    """softmax(s1) - lambda softmax(s2), then a norm per head (Ye et al. 2024, arXiv 2410.05258).

    lambda = exp(<a1, b1>) - exp(<a2, b2>) + start. What we changed: `start` is one number, the paper's for deep layers, not a function of depth.
    """

    norm: RMSNorm
    products: jax.Array  # [2, 2, K]: a1, b1; a2, b2
    start: float = struct.field(pytree_node=False, default=0.8)
    views = 2

    @classmethod
    def spec(cls, width: int, value: int) -> Differential:
        return cls(RMSNorm.spec(value, axis=None), Param((2, 2, width), (None, None, None), normal(0.1), exact=True))  # type: ignore[arg-type]

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        first, second = jnp.split(jax.nn.softmax(scores + bias, axis=-1), 2, axis=1)
        powers = jnp.exp(jnp.sum(self.products[:, 0].astype(jnp.float32) * self.products[:, 1], axis=-1))
        return first - (powers[0] - powers[1] + self.start) * second

    def finish(self, mixed: jax.Array) -> jax.Array:
        return self.norm(mixed) * jnp.asarray(1 - self.start, mixed.dtype)


@struct.dataclass
class Threshold(Weighting):
    """Threshold differential attention: only scores above a gate that grows with the row count, and their excess is the weight (arXiv 2601.12145, 2026).

        a_ij = max(cos(q_i, k_j) - tau_i, 0)^p,   tau_i = beta * sqrt(2 log(n_i / kappa) / K),   n_i keys that row i may see

    One view is TRA; two are TDA, a1 - lambda a2 with a lambda per head. No denominator: an irrelevant row is exactly empty. The norm per head
    follows. What we changed: n_i counts the keys that are really visible, so that padding and packing shift no gate; the mask is applied after the
    power; a learned beta is softplus(b), so above 0.
    """

    norm: RMSNorm
    balance: jax.Array | None  # [H] lambda before the sigmoid; None: one view
    raw_beta: jax.Array | None  # [] beta before the softplus; None: fixed
    width: int = struct.field(pytree_node=False)
    beta: float = struct.field(pytree_node=False, default=1.0)
    kappa: float = struct.field(pytree_node=False, default=1.0)
    power: int = struct.field(pytree_node=False, default=2)

    @classmethod
    def spec(cls, heads: int, width: int, value: int, *, views: int, beta: float, kappa: float, power: int, learn_beta: bool) -> Threshold:
        """Declares the gate of `heads` heads with keys of `width` and values of width `value`."""
        raw = Param((), (), constant(math.log(math.expm1(beta))), exact=True) if learn_beta else None
        balance = Param((heads,), (None,), zeros) if views == 2 else None
        return cls(RMSNorm.spec(value, epsilon=1e-5, axis=None), balance, raw, width, beta, kappa, power)  # type: ignore[arg-type]

    @property
    def views(self) -> int:  # type: ignore[override]
        return 1 if self.balance is None else 2

    def prepare(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        return unit(q), unit(k)

    def gate(self, counts: jax.Array) -> jax.Array:
        """The threshold of rows that see so many keys, float32."""
        beta = self.beta if self.raw_beta is None else jax.nn.softplus(self.raw_beta.astype(jnp.float32))
        return gates(counts, beta, self.kappa, self.width)

    def dead_from(self) -> float:
        """The number of visible keys from which a row's gate is 1 or more, so that no key can pass it ever: kappa exp(K / (2 beta^2))."""
        exponent = self.width / (2 * self.beta**2)
        return self.kappa * math.exp(exponent) if exponent < 700 else math.inf

    def __call__(self, scores: jax.Array, bias: jax.Array) -> jax.Array:
        self.warn_of_dead_rows(scores.shape[-1])
        gate = self.gate(jnp.sum(bias[:, :1] > HIDDEN / 2, axis=-1))[..., None]  # [B, 1, T, 1]
        return self.between(list(jnp.split(jax.nn.relu(scores + bias - gate) ** self.power, self.views, axis=1)), axis=1)

    def fused(self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context) -> jax.Array | None:
        if not context.packed or context.bias is not None:
            return None
        self.warn_of_dead_rows(k.shape[1])
        counts = visible_counts(context.segment, context.segment, context.causal)  # [B, T]
        gate = jnp.broadcast_to(self.gate(counts)[..., None], (*counts.shape, q.shape[2] // self.views))
        views = zip(jnp.split(q, self.views, axis=2), jnp.split(k, self.views, axis=2), strict=True)
        segment, how = context.segment, {"power": self.power, "causal": context.causal}
        return self.between([threshold_attention(own_q, own_k, v, gate, segment, segment, **how) for own_q, own_k in views], axis=2)

    def between(self, views: list[jax.Array], axis: int) -> jax.Array:
        """The first view minus lambda times the second, of weights or of what they mixed; heads lie on `axis`."""
        first, *second = views
        if self.balance is None:
            return first
        balance = jax.nn.sigmoid(self.balance).astype(first.dtype)
        return first - balance.reshape([-1 if place == axis else 1 for place in range(4)]) * second[0]

    def warn_of_dead_rows(self, keys: int) -> None:
        if keys >= self.dead_from():
            warnings.warn(
                f"threshold attention with beta={self.beta}, kappa={self.kappa} and keys of width {self.width}: rows that see {self.dead_from():.0f} "
                f"keys or more are empty for ever, and these rows have {keys}; lower beta, raise kappa, or use wider heads",
                stacklevel=2,
            )

    def finish(self, mixed: jax.Array) -> jax.Array:
        return self.norm(mixed)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def entmax(scores: jax.Array, alpha: float) -> jax.Array:
    """alpha-entmax over the last axis: [(alpha - 1) s - tau]_+ ^ (1 / (alpha - 1)), tau found by bisection so that it sums to one; alpha > 1."""
    if alpha <= 1:
        raise ValueError(f"alpha={alpha} must be above 1; 1 would be softmax")
    scaled = (alpha - 1) * scores.astype(jnp.float32)
    scaled = scaled - jnp.max(scaled, axis=-1, keepdims=True)  # of rows with nothing but hidden keys, too, as softmax does
    high = jnp.zeros_like(scaled[..., :1])  # there the sum is 0
    low = high - 1  # and here the highest score alone gives 1

    def weights(threshold: jax.Array) -> jax.Array:
        return jnp.maximum(scaled - threshold, 0) ** (1 / (alpha - 1))

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(weights(middle), axis=-1, keepdims=True) >= 1
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    found = weights(low)
    return found / jnp.sum(found, axis=-1, keepdims=True)


@entmax.defjvp
def _(alpha: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    found = entmax(primals[0], alpha)
    support = jnp.where(found > 0, jnp.maximum(found, 1e-30) ** (2 - alpha), 0)  # d weight / d score but for the shared threshold
    moved = support * tangents[0]
    return found, moved - support * jnp.sum(moved, axis=-1, keepdims=True) / jnp.sum(support, axis=-1, keepdims=True)
