"""Robust InfoNCE: a contrastive loss that trusts each positive as far as it is told to (Chuang et al. 2022, arXiv 2201.04309)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

LEAST = 1e-6  # of q: below it the loss is its limit, and the quotient would lose its digits


def robust_info_nce(positive: jax.Array, negative: jax.Array, hit: jax.Array, q: jax.Array, density: float = 1.0) -> jax.Array:
    """(-e^(q s+) + (lambda (e^(s+) + sum_j e^(s_j)))^q) / q, one loss per example.

    q to 0 is InfoNCE + log(lambda), whose pull on a positive grows with its distance: every positive is right. q = 1 is -e^(s+) + lambda (e^(s+) +
    sum_j e^(s_j)), which gives up on a positive that matches badly: its gradient vanishes with e^(s+). With q > 0 a constant added to all scores
    scales the loss, so shift them to a largest possible score of 0.

    Args:
      positive: [N] scores s+ of the positives.
      negative: [N, K] scores of the negatives.
      hit: [N, K] True where a negative is the positive itself, and must not count.
      q: [N] within 0..1.
      density: lambda, above 0; below 1 if q is large: for q = 1 and lambda = 1 the positive's two parts cancel, and nothing pulls at it.

    Returns:
      [N] float32.
    """
    scores = jnp.concatenate([positive[:, None], jnp.where(hit, -jnp.inf, negative)], axis=1).astype(jnp.float32)
    total = jax.nn.logsumexp(scores, axis=1) + math.log(density)
    q = jnp.maximum(q, LEAST)
    return -jnp.exp(q * total) * jnp.expm1(q * (positive - total)) / q  # the powers' difference without cancellation
