"""BERT4Rec: bidirectional encoder trained as a cloze test (Sun et al. 2019, arXiv 1904.06690).

A share of the items is replaced by a mask token and predicted from both sides; to recommend, the mask token is appended to the
history. What we changed: pre-norm blocks; the last item of a history is masked in every `last_share` of the histories, which is the
question asked when recommending; the loss is a choice as in SASRec (the paper's is `loss_name="softmax"`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrec.method import Batch, Loss, Vectors
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.sequence import SequenceEncoder
from jaxrec.nn.transformer import TransformerBlock


@dataclass(frozen=True)
class BERT4Rec(NextItem):
    """A bidirectional pre-norm transformer with one more item: the mask.

    Attributes:
      mask_share: share of the items that are masked.
      last_share: share of the histories of which only the last item is masked.
    """

    mask_share: float = 0.2
    last_share: float = 0.1

    causal: ClassVar[bool] = False
    form: ClassVar[str] = "next"  # the cloze is over the targets

    def block(self) -> TransformerBlock:
        return TransformerBlock.spec(self.dim, self.heads, self.hidden or 4 * self.dim, self.dropout, jax.nn.gelu, kind=self.attention)

    def rows(self) -> int:
        return self.items + 2  # the mask token is id items + 1

    def loss(self, params: SequenceEncoder, batch: Batch, key: jax.Array) -> Loss:
        choose, encode, sample = jax.random.split(key, 3)
        whole, masked = self.cloze(batch, choose)
        history = jnp.where(masked, self.items + 1, whole)
        hidden = params({**batch, "history": history}, encode)
        return self.catalogue_loss(params, hidden, whole, masked, sample)

    def cloze(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(items [B, T], which of them are masked [B, T] bool). Only items whose prediction has weight may be masked.

        The batch holds a history without its last item and, as targets, the same history one step later: the cloze is over the
        targets, whose last item the model would otherwise never see.
        """
        items, segment = batch["target"], batch["segment"]
        following = jnp.pad(segment[:, 1:], ((0, 0), (0, 1)))
        last = segment != following
        each, history = jax.random.split(key)
        anywhere = jax.random.uniform(each, items.shape) < self.mask_share
        draw = jax.random.uniform(history, items.shape)  # one number per history: that of its last token, see `only_last`
        only_last = jax.lax.associative_scan(lambda a, b: jnp.where(b < 0, a, b), jnp.where(last, draw, -1.0), reverse=True, axis=1) < self.last_share
        return items, jnp.where(only_last, last, anywhere) & (batch["mask"] > 0)

    def encode_query(self, params: SequenceEncoder, batch: Batch) -> Vectors:
        return super().encode_query(params, self.appended(batch))

    def appended(self, batch: Batch) -> Batch:
        """The histories with the mask token after the last item; the oldest item makes room where a row is full."""
        history, segment = batch["history"], batch["segment"]
        length = history.shape[1]
        used = jnp.sum(segment > 0, axis=1)  # [B]
        drop = (used == length).astype(jnp.int32)
        source = jnp.minimum(jnp.arange(length)[None] + drop[:, None], length - 1)
        end = (used - drop)[:, None]
        steps = jnp.arange(length)[None]
        shifted = jnp.where(steps < end, jnp.take_along_axis(history, source, axis=1), 0)
        inside = (steps <= end).astype(jnp.int32)
        return {**batch, "history": jnp.where(steps == end, self.items + 1, shifted), "segment": inside, "position": steps * inside}


def tiny() -> tuple[BERT4Rec, Batch]:
    """A model and a batch small enough for a test."""
    return BERT4Rec(items=30, length=8, dim=16, heads=2, dropout=0.0, negatives=16), tiny_batch()
