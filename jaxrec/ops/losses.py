"""Losses of next-item prediction over a catalogue. Each returns one loss per token; sums and weights are the caller's.

Shapes: hidden [N, D], positive [N, D] vectors of the targets, negative [K, D] vectors shared by all tokens, target [N] and negative
ids [K]. Scores are inner products, computed in the inputs' dtype and accumulated in float32.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def pair_scores(hidden: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([N] score of each token's own target, [N, K] scores of the shared negatives)."""
    own = jnp.sum(hidden.astype(jnp.float32) * positive.astype(jnp.float32), axis=-1)
    return own, jnp.matmul(hidden, negative.T, preferred_element_type=jnp.float32)


def sampled_softmax(positive: jax.Array, negative: jax.Array, hit: jax.Array, log_expected: jax.Array | None = None) -> jax.Array:
    """Softmax cross-entropy against sampled negatives, an estimate of the full softmax.

    -s+ + log(exp(s+) + sum_j exp(s_j - log E_j)), where E_j = K q_j is how often item j is expected among the K negatives; without
    the correction popular items, drawn more often, are pushed down more (Bengio & Senecal 2008; Yi et al. 2019).

    Args:
      positive: [N] scores of the targets.
      negative: [N, K] scores of the negatives.
      hit: [N, K] True where a negative is the target itself, and must not count against it.
      log_expected: [K] log E_j, or None for no correction.
    """
    if log_expected is not None:
        negative = negative - log_expected[None]
    negative = jnp.where(hit, -jnp.inf, negative)
    top = jax.lax.stop_gradient(jnp.maximum(positive, jnp.max(negative, axis=-1)))
    total = jnp.exp(positive - top) + jnp.sum(jnp.exp(negative - top[:, None]), axis=-1)
    return top + jnp.log(total) - positive


def binary_cross_entropy(positive: jax.Array, negative: jax.Array, hit: jax.Array, beta: float = 1.0) -> jax.Array:
    """-(beta * log sigmoid(s+) + sum_j log sigmoid(-s_j)) / (K + 1); beta < 1 gives gBCE.

    With few negatives out of many items plain BCE (beta = 1) is over-confident: its scores estimate no probability. gBCE sets
    beta from the sampling rate (Petrov & Macdonald 2023, arXiv 2308.07192).
    """
    against = jnp.where(hit, 0.0, jax.nn.softplus(negative))
    return (beta * jax.nn.softplus(-positive) + jnp.sum(against, axis=-1)) / (1 + negative.shape[-1])


def gbce_beta(negatives: int, items: int, t: float) -> float:
    """beta = a (t (1 - 1/a) + 1/a), with a = negatives / (items - 1) the sampling rate; t = 0 is BCE, t = 1 full calibration."""
    rate = negatives / max(items - 1, 1)
    if not 0 < rate <= 1 or not 0 <= t <= 1:
        raise ValueError(f"gBCE needs 1 <= negatives < items and 0 <= t <= 1, got negatives={negatives}, items={items}, t={t}")
    return rate * (t * (1 - 1 / rate) + 1 / rate)


def log_expected_uniform(negatives: int, items: int) -> float:
    """log of how often each item is expected among `negatives` uniform draws."""
    return math.log(negatives / items)
