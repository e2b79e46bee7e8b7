"""Embedding tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.param import Param, normal

ROWS_MULTIPLE = 128
"""Tables are padded to a multiple of this many rows, so that they divide over a mesh and fill TPU lanes. Padding is never scored."""


@struct.dataclass
class Embedding:
    """A table of vectors; row 0 belongs to padding."""

    table: jax.Array  # [rows rounded up, D]

    @classmethod
    def spec(cls, rows: int, width: int, *, stddev: float | None = None) -> Embedding:
        """Declares `rows` vectors of `width`, normal with standard deviation `stddev` (default width ** -0.5)."""
        padded = -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
        return cls(table=Param((padded, width), ("vocabulary", "embed"), normal(width**-0.5 if stddev is None else stddev)))  # type: ignore[arg-type]

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [...] -> [..., D]."""
        return jnp.take(self.table, ids, axis=0)
