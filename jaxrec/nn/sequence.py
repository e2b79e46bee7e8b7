"""The body that all sequence models share: items (and features) in, hidden states out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.method import Batch
from jaxrec.nn.context import packed
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.features import Feature, FeatureEncoder
from jaxrec.nn.linear import dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.positions import Alibi, RelativeBias
from jaxrec.nn.transformer import Stack


@struct.dataclass
class SequenceEncoder:
    """Embeds a row of packed histories and runs a stack over it.

    x = item vector * sqrt(D) + position vector + user features; dropout; stack; layer norm.
    """

    item: Embedding | None  # None: an item is its features alone
    features: dict[str, FeatureEncoder]  # item features and user features by column name
    position: Embedding | None
    stack: Stack
    norm: LayerNorm
    bias: RelativeBias | Alibi | None  # of distances, for all layers
    user_features: tuple[str, ...] = struct.field(pytree_node=False)
    causal: bool = struct.field(pytree_node=False)
    rate: float = struct.field(pytree_node=False)

    @classmethod
    def spec(
        cls,
        rows: int,
        width: int,
        block: Any,
        *,
        layers: int,
        length: int,
        rate: float,
        causal: bool,
        positions: bool = True,
        ids: bool = True,
        features: tuple[Feature, ...] = (),
        bias: RelativeBias | Alibi | None = None,
        stddev: float | None = None,
    ) -> SequenceEncoder:
        """Declares `layers` of `block` over a table of `rows` vectors if `ids`; `length` positions are learned if `positions`; distances may have a `bias`.
        Item and position vectors begin with standard deviation `stddev`, by default width ** -0.5.

        Raises:
          ValueError: items have neither vectors of their own nor features.
        """
        if not ids and not any(feature.of == "item" for feature in features):
            raise ValueError('ids=False leaves an item only its features, and there are none; set features=(Feature("text", kind="vector"),), or ids=True')
        return cls(
            item=Embedding.spec(rows, width, stddev=stddev) if ids else None,
            features={feature.name: FeatureEncoder.spec(feature, width) for feature in features},
            position=Embedding.spec(length, width, stddev=stddev) if positions else None,
            stack=Stack.spec(block, layers),
            norm=LayerNorm.spec(width),
            bias=bias,
            user_features=tuple(feature.name for feature in features if feature.of == "user"),
            causal=causal,
            rate=rate,
        )

    def vectors(self, ids: jax.Array) -> jax.Array:
        """Item vectors, used at the input and to score: the item's own vector, if it has one, plus its features. ids [...] -> [..., D]."""
        own = [] if self.item is None else [self.item(ids)]
        first, *rest = own + [encoder(ids) for name, encoder in self.features.items() if name not in self.user_features]
        return sum(rest, first)

    def table(self, rows: int) -> jax.Array:
        """[>= rows, D] the vectors of all items, row = id."""
        if self.item is None or len(self.features) > len(self.user_features):
            return self.vectors(jnp.arange(rows))
        return self.item.table

    def __call__(self, batch: Batch, key: jax.Array | None) -> jax.Array:
        """history, segment, position [B, T] (and user, time where used) -> [B, T, D]. Dropout only with a key."""
        history, segment = batch["history"], batch["segment"]
        x = self.vectors(history)
        x = x * jnp.asarray(x.shape[-1] ** 0.5, x.dtype)
        if self.position is not None:
            x = x + self.position(batch["position"])
        for name in self.user_features:
            x = x + self.features[name](batch["user"])
        first, rest = (None, None) if key is None else jax.random.split(key)
        place = jnp.arange(segment.shape[1])
        bias = None if self.bias is None else self.bias(place, place)
        context = packed(segment, causal=self.causal, key=rest, time=batch.get("time"), bias=bias)
        return self.norm(self.stack(dropout(x, self.rate, first), context))


def last_state(hidden: jax.Array, segment: jax.Array) -> jax.Array:
    """[B, D] the state at each row's last token; rows are filled from the left. hidden [B, T, D], segment [B, T]."""
    last = jnp.maximum(jnp.sum(segment > 0, axis=1) - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
