"""Negative sampling inside the compiled step."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def uniform(key: jax.Array, count: int, items: int) -> jax.Array:
    """[count] int32 item ids, uniform over 1..items, with replacement."""
    return jax.random.randint(key, (count,), 1, items + 1, jnp.int32)
