"""What the sequential recommenders share: a `SequenceEncoder`, a loss over the catalogue, and vectors to search with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.limits import SHARE, check
from jaxrec.method import FROM_DATA, Batch, Encoder, Loss, Method, Vectors
from jaxrec.nn.attention import SOFTMAX, AttentionKind
from jaxrec.nn.features import Feature
from jaxrec.nn.norm import unit
from jaxrec.nn.sequence import SequenceEncoder, last_state
from jaxrec.ops import losses, negatives
from kernels.softmax_loss import softmax_loss

LossName = Literal["softmax", "sampled_softmax", "bce", "gbce"]


@dataclass(frozen=True)
class NextItem(Method, Encoder):
    """A sequence model trained to predict each next item. Subclasses say what a block is.

    Attributes:
      items: catalogue size; ids are 1..items.
      length: longest history that the model sees.
      dim: width D of the model.
      layers, heads: of the stack.
      hidden: inner width of the feed-forward layers; 0 = `dim`.
      dropout: rate on embeddings and on every residual branch.
      loss_name: "softmax" over the whole catalogue, "sampled_softmax", "bce" or "gbce" against `negatives` sampled ones.
      negatives: sampled uniformly, shared by all tokens of a batch.
      correction: logQ correction of the sampled softmax.
      gbce_t: calibration of gBCE, 0..1.
      features: side features of items and users.
      ids: whether items have learned vectors of their own; without them an item is its features alone (a projected text vector, say).
      attention: its kind, and that of positions.
      stddev: of item and position vectors at the start; 0 = dim ** -0.5. Vectors of items that training seldom sees stay as small as they began.
      temperature: 0 scores by inner products. Above 0 scores are cosines, and a loss sees them divided by it.
    """

    items: int = FROM_DATA
    length: int = FROM_DATA
    dim: int = 64
    layers: int = 2
    heads: int = 1
    hidden: int = 0
    dropout: float = 0.5
    loss_name: LossName = "sampled_softmax"
    negatives: int = 512
    correction: bool = True
    gbce_t: float = 0.75
    features: tuple[Feature, ...] = ()
    ids: bool = True
    temperature: float = 0.0
    attention: AttentionKind = SOFTMAX
    stddev: float = 0.0

    causal: ClassVar[bool] = True
    positions: ClassVar[bool] = True

    def __post_init__(self):
        known = {name: 1 for name in ("items", "length") if getattr(self, name) != FROM_DATA}
        known |= {"dim": 1, "layers": 1, "heads": 1, "hidden": 0, "negatives": int(self.loss_name != "softmax")}
        check(self, **known, dropout=(0, 1), gbce_t=SHARE, temperature=0, stddev=0)
        if self.loss_name not in get_args(LossName):
            raise ValueError(f"{type(self).__name__}: loss_name={self.loss_name!r} must be one of {', '.join(get_args(LossName))}")

    def block(self) -> Any:
        """The spec of one layer."""
        raise TypeError(f"{type(self).__name__} does not say what a block is")

    def rows(self) -> int:
        """Rows of the item table: padding, the items, and what a subclass adds."""
        return self.items + 1

    def spec(self) -> SequenceEncoder:
        return SequenceEncoder.spec(
            self.rows(),
            self.dim,
            self.block(),
            layers=self.layers,
            length=self.length,
            rate=self.dropout,
            causal=self.causal,
            positions=self.positions and self.attention.positions == "own",
            bias=self.attention.bias(self.heads, causal=self.causal, own=False),
            ids=self.ids,
            features=self.features,
            stddev=self.stddev or None,
        )

    def compared(self, vectors: jax.Array) -> jax.Array:
        """Vectors as their inner products score them: of unit length where scores are cosines. [..., D] -> [..., D]."""
        return unit(vectors) if self.temperature else vectors

    def loss(self, params: SequenceEncoder, batch: Batch, key: jax.Array) -> Loss:
        encode, sample = jax.random.split(key)
        hidden = params(batch, encode)
        return self.catalogue_loss(params, hidden, batch["target"], batch["mask"], sample)

    def catalogue_loss(self, params: SequenceEncoder, hidden: jax.Array, target: jax.Array, mask: jax.Array, key: jax.Array) -> Loss:
        """The chosen loss of hidden states [B, T, D] against targets [B, T] with weights `mask` [B, T]."""
        hidden = self.compared(hidden.reshape(-1, hidden.shape[-1])) / (self.temperature or 1)  # [N, D]
        target, weight = target.reshape(-1), mask.reshape(-1).astype(jnp.float32)
        if self.loss_name == "softmax":
            table = self.compared(params.table(self.rows()))
            total = softmax_loss(hidden, table, target, weight, valid=(1, self.items + 1))
            return Loss(terms={"loss": (total, jnp.sum(weight))})
        sampled = negatives.uniform(key, self.negatives, self.items)  # [K]
        positive, negative = losses.pair_scores(hidden, self.compared(params.vectors(target)), self.compared(params.vectors(sampled)))
        hit = sampled[None] == target[:, None]
        if self.loss_name == "sampled_softmax":
            expected = jnp.full(self.negatives, losses.log_expected_uniform(self.negatives, self.items)) if self.correction else None
            each = losses.sampled_softmax(positive, negative, hit, expected)
        else:
            beta = losses.gbce_beta(self.negatives, self.items, self.gbce_t) if self.loss_name == "gbce" else 1.0
            each = losses.binary_cross_entropy(positive, negative, hit, beta)
        return Loss(terms={"loss": (jnp.sum(each * weight), jnp.sum(weight))})

    def encode_query(self, params: SequenceEncoder, batch: Batch) -> Vectors:
        state = last_state(params(batch, None), batch["segment"])
        return Vectors(self.compared(state)[:, None], jnp.ones((state.shape[0], 1), bool))

    def encode_item(self, params: SequenceEncoder, batch: Batch) -> Vectors:
        vectors = params.vectors(batch["item"])
        return Vectors(self.compared(vectors)[:, None], jnp.ones((vectors.shape[0], 1), bool))


def tiny_batch(items: int = 30, length: int = 8, rows: int = 4) -> dict[str, np.ndarray]:
    """A batch of `rows` packed rows with two histories each, for the tests of every sequence model."""
    random = np.random.default_rng(0)
    first = length // 2 + 1
    segment = np.array([[1] * first + [2] * (length - first)] * rows, np.int32)
    position = np.r_[np.arange(first), np.arange(length - first)].astype(np.int32)
    history = random.integers(1, items + 1, (rows, length)).astype(np.int32)
    target = np.roll(history, -1, axis=1)
    target[:, [first - 1, -1]] = random.integers(1, items + 1, (rows, 2))
    return {
        "history": history,
        "target": target,
        "mask": np.ones((rows, length), np.float32),
        "segment": segment,
        "position": np.broadcast_to(position, (rows, length)).copy(),
        "user": np.zeros((rows, length), np.int32),
        "time": np.sort(random.integers(0, 10**6, (rows, length)), axis=1).astype(np.int32),
    }
