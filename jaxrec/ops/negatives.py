"""Negative sampling inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def uniform(key: jax.Array, count: int, items: int) -> jax.Array:
    """[count] int32 item ids, uniform over 1..items, with replacement."""
    return jax.random.randint(key, (count,), 1, items + 1, jnp.int32)


def log_uniform(key: jax.Array, count: int, items: int) -> tuple[jax.Array, jax.Array]:
    """([count] ids, [count] log expected count) with q(r) = log((r + 1) / r) / log(items + 1): a Zipf law for ids sorted by popularity."""
    span = jnp.log(items + 1.0)
    ids = jnp.clip(jnp.exp(jax.random.uniform(key, (count,)) * span).astype(jnp.int32), 1, items)
    rank = ids.astype(jnp.float32)
    return ids, jnp.log(count * jnp.log1p(1 / rank) / span)
