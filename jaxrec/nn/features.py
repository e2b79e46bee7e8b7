"""Side features of items and users: one part through which they enter every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.method import FROM_DATA
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear
from jaxrec.param import Param, zeros


@dataclass(frozen=True)
class Feature:
    """One column of the items or users that a model uses.

    Attributes:
      name: the column.
      of: whose column it is.
      kind: "categorical" (codes 1..size, several per row allowed, 0 = none), "numeric" or "vector" (a text embedding, say).
      rows: rows of the column's table, padding included.
      width: columns of the table: codes per row, or the vector's length.
      size: number of distinct codes (categorical only).
    """

    name: str
    of: Literal["item", "user"] = "item"
    kind: Literal["categorical", "numeric", "vector"] = "categorical"
    rows: int = FROM_DATA
    width: int = FROM_DATA
    size: int = FROM_DATA


@struct.dataclass
class FeatureEncoder:
    """Maps rows of one frozen column to the model's width: mean of code embeddings, or a linear map of numbers."""

    table: jax.Array  # [rows, width], not trainable: filled from Experiment.tables
    codes: Embedding | None
    projection: Linear | None

    @classmethod
    def spec(cls, feature: Feature, width: int) -> FeatureEncoder:
        categorical = feature.kind == "categorical"
        dtype = jnp.int32 if categorical else jnp.float32
        table = Param((feature.rows, feature.width), (None, "feature"), zeros, dtype, trainable=False)
        codes = Embedding.spec(feature.size + 1, width) if categorical else None
        return cls(table, codes, None if categorical else Linear.spec(feature.width, width, axes=("feature", "embed"), bias=False))  # type: ignore[arg-type]

    def __call__(self, ids: jax.Array) -> jax.Array:
        """ids [...] of rows -> [..., D]."""
        rows = jnp.take(self.table, ids, axis=0, mode="fill", fill_value=0)  # [..., width]; an id beyond it (BERT4Rec's mask) has none
        if self.projection is not None:
            return self.projection(rows.astype(self.projection.kernel.dtype))
        assert self.codes is not None
        present = (rows > 0)[..., None]
        total = jnp.sum(jnp.where(present, self.codes(rows), 0), axis=-2)
        return total / jnp.maximum(jnp.sum(present, axis=-2), 1).astype(total.dtype)
