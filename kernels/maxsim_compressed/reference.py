"""The definition: all tokens decoded, and MaxSim of them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from kernels.maxsim import owners, reference
from kernels.maxsim_compressed.tokens import TINY, Int8Tokens, ResidualTokens, Tokens


def vectors(tokens: Tokens) -> Array:
    """[T, D] the vectors that tokens stand for; float32 where they are compressed."""
    if isinstance(tokens, Int8Tokens):
        return tokens.codes.astype(jnp.float32) * tokens.scales[:, None]
    if isinstance(tokens, ResidualTokens):
        decoded = tokens.centroids[tokens.codes] + residuals(tokens).reshape(len(tokens), tokens.dim)
        return decoded / jnp.maximum(jnp.linalg.norm(decoded, axis=1, keepdims=True), TINY) if tokens.normalize else decoded
    return tokens


def residuals(tokens: ResidualTokens) -> Array:
    """[T, bytes, 8 / b] what the bytes stand for."""
    if tokens.product:
        return tokens.weights[jnp.arange(tokens.residuals.shape[1])[None], tokens.residuals]
    shifts = jnp.arange(8 - tokens.bits, -1, -tokens.bits, dtype=jnp.uint8)
    return tokens.weights[(tokens.residuals[..., None] >> shifts[None, None, :]) & jnp.uint8(2**tokens.bits - 1)]


def documents_at_once(queries: Array, tokens: Tokens, documents: int) -> int:
    """Of so many documents, those that one call of a scorer is for: all."""
    return documents


def scorer(queries: Array, query_mask: Array, tokens: Tokens, documents: int) -> Callable[[Array], Array]:
    """A function of offsets [C + 1] to the scores [B, C] of the documents there."""
    decoded = vectors(tokens)
    return lambda offsets: reference.ragged(queries.astype(decoded.dtype), decoded, owners(offsets, len(decoded)), query_mask, len(offsets) - 1)
