"""M2-BERT's pretraining: word pieces that were hidden, told from those around them (Devlin et al. 2019, arXiv 1810.04805).

    L = mean over hidden places t of -log softmax(E norm(gelu(W h_t)) + b)[x_t],  E the table of word pieces

Of each text so many word pieces are asked for; of those 80 % are shown as [MASK], 10 % as some other piece, 10 % as they are. The
parameters of the encoder have the names that `M2BERT` gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.method import FROM_DATA, Array, Batch, Loss, Method
from jaxrec.methods.encoders import m2_bert
from jaxrec.methods.encoders.m2_bert import M2BERT
from jaxrec.nn.bert import erf_gelu
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear
from jaxrec.nn.norm import LayerNorm
from jaxrec.param import Tree
from kernels.softmax_loss import softmax_loss


@dataclass(frozen=True)
class M2BERTPretraining(Method):
    """Masked language over the `document`s of a batch.

    Attributes:
      model: whose encoder is trained.
      mask_token: word piece that hides another.
      added: word pieces that stand around every text, which are never hidden.
      mask_share: of a text's word pieces, rounded up; the paper hides 30 %.
    """

    model: M2BERT = field(default_factory=M2BERT)
    mask_token: int = FROM_DATA
    added: tuple[int, ...] = (FROM_DATA,)
    mask_share: float = 0.3

    def __post_init__(self):
        if not 0 < self.mask_share < 1:
            raise ValueError(f"mask_share={self.mask_share} must be between 0 and 1")
        if FROM_DATA not in (self.mask_token, self.model.vocabulary) and not 0 <= self.mask_token < self.model.vocabulary:
            raise ValueError(f"mask_token={self.mask_token} is none of the {self.model.vocabulary} word pieces, numbered from 0; take the tokenizer's own")

    def spec(self) -> Tree:
        bias = Embedding.spec(self.model.vocabulary, 1, stddev=0.0)  # a column of the table of word pieces
        return {**self.model.spec(), "transform": Linear.spec(self.model.dim, self.model.dim), "norm": LayerNorm.spec(self.model.dim), "bias": bias}

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Term: "masked"."""
        hide, encode = jax.random.split(key)
        shown, place, target, asked = self.cloze(batch["document"], hide)
        states = params["encoder"](shown, shown != self.model.pad, encode)  # [B, T, D]
        states = jnp.take_along_axis(states, place[..., None], axis=1)  # [B, K, D]
        states = params["norm"](erf_gelu(params["transform"](states))).reshape(-1, states.shape[-1])
        states = jnp.concatenate([states, jnp.ones_like(states[:, :1])], axis=1)
        table = jnp.concatenate([params["encoder"].word.table, params["bias"].table], axis=1)
        weight = (asked * batch["mask"][:, None]).reshape(-1)
        total = softmax_loss(states, table, target.reshape(-1), weight, valid=(0, self.model.vocabulary))
        return Loss({"masked": (total, weight.sum())})

    def cloze(self, ids: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        """What is shown of texts ids [B, T], and [B, K]: places, the word pieces that stood there, and which of these places are asked for."""
        draw, kind, other = jax.random.split(key, 3)
        real = (ids != self.model.pad) & ~jnp.isin(ids, jnp.asarray(self.added, ids.dtype))  # what stands around every text teaches nothing
        order = jnp.where(real, jax.random.uniform(draw, ids.shape), 2.0)
        places = -int(-self.mask_share * ids.shape[1] // 1)
        _, place = jax.lax.top_k(-order, places)
        asked = jnp.arange(places)[None] < jnp.ceil(self.mask_share * real.sum(axis=1))[:, None]
        target = jnp.take_along_axis(ids, place, axis=1)
        fate = jax.random.uniform(kind, place.shape)
        changed = jnp.where(fate < 0.8, self.mask_token, jax.random.randint(other, place.shape, 0, self.model.vocabulary, ids.dtype))
        changed = jnp.where(asked & (fate < 0.9) & (changed != self.model.pad), changed, target)
        return ids.at[jnp.arange(len(ids))[:, None], place].set(changed), place, target, asked


def tiny() -> tuple[M2BERTPretraining, dict[str, Any]]:
    """A small case for the contract tests."""
    model, batch = m2_bert.tiny()
    return M2BERTPretraining(model=model, mask_token=3, added=(1, 2)), {name: batch[name] for name in ("document", "mask")}
