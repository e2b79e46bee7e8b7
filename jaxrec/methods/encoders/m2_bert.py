"""M2-BERT: one vector for a long text, by long convolutions in place of attention, trained a pair at a time.

    vector(x) = unit(mean over the tokens of M2(x)),   L = mean over pairs (q, d, y) of (<q, d> - y)^2,  y = 1 if d answers q, else 0

Saad-Falcon et al. 2024 (arXiv 2402.07440), whose "orthogonal projection loss" this is, as coded: it asks unrelated texts to be orthogonal, needs no other
rows of a batch, and so trains in batches as small as memory allows. Queries and documents have the same encoder. In the reference's pairs a negative
stands beside every positive; here the positive pairs and the negative pairs are a term each, so both labels weigh the same however many negatives there
are. What we changed: padding is hidden from the convolutions (see `compat`), there are no token types, and pairs may also come from the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import POSITIVE, check
from jaxrec.method import FROM_DATA, Array, Batch, Encoder, Loss, Method, Vectors
from jaxrec.nn.bert import pool
from jaxrec.nn.context import Context
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import dropout
from jaxrec.nn.long_convolution import MonarchGLU, MonarchLayer, MonarchMixer
from jaxrec.nn.norm import LayerNorm, unit
from jaxrec.nn.transformer import Stack, split_key
from jaxrec.ops.contrastive import candidates, contrastive
from jaxrec.param import Tree


@struct.dataclass
class M2Encoder:
    """norm(word + position), dropout, then a stack of Monarch Mixer layers."""

    word: Embedding
    position: Embedding
    norm: LayerNorm
    stack: Stack
    length: int = struct.field(pytree_node=False)
    rate: float = struct.field(pytree_node=False)

    def __call__(self, ids: Array, mask: Array, key: Array | None = None) -> Array:
        """The last layer's states [B, T, D] of word pieces ids [B, T]; those where mask [B, T] is 0 are hidden from the others."""
        tokens = ids.shape[1]
        if tokens > self.length:
            raise ValueError(f"texts of {tokens} tokens are longer than the {self.length} positions of the model; truncate them to {self.length}")
        first, rest = split_key(key, 2)
        x = self.norm(self.word(ids) + self.position(jnp.arange(tokens))[None])
        seen = mask > 0
        return self.stack(dropout(x, self.rate, first), Context(seen.astype(jnp.int32), seen[:, None, None, :], rest))


@dataclass(frozen=True)
class M2BERT(Method, Encoder):
    """M2-BERT; the defaults are those of the published model with 80 million parameters.

    Attributes:
      vocabulary, pad: word pieces of the tokenizer, and the one that fills up rows.
      length: positions, so the longest text; the filters' time is measured by it.
      dim: width D.
      layers: of the stack.
      hidden: inner width of the gated layers.
      blocks: of their block-diagonal matrices; 1 = dense.
      filter_width, filter_features: of the networks that give the long filters.
      direct: a second long convolution, of the mixer's input.
      mixer_residual: add a mixer's input to its output, which the reference does not.
      dropout: on the embeddings and in the gated layers.
      loss_name: "projection", or "contrastive" (InfoNCE over the cosines), or "mixed": their sum, for the squared error alone saturates early.
      in_batch: the documents of other rows are negatives, too. Without, a row's pairs are its own, so the projection loss does not couple rows, and
        accumulation is exact; it then needs data with negatives: "projection" with `RandomNegatives` is the paper's recipe.
      temperature: cosines are divided by it in InfoNCE.
      compat: as the reference, which pads all texts to `length` and lets the convolutions see the padding.
    """

    vocabulary: int = FROM_DATA
    pad: int = FROM_DATA
    length: int = 2048
    dim: int = 768
    layers: int = 12
    hidden: int = 3072
    blocks: int = 4
    filter_width: int = 128
    filter_features: int = 5
    direct: bool = True
    mixer_residual: bool = False
    dropout: float = 0.1
    loss_name: Literal["projection", "contrastive", "mixed"] = "projection"
    in_batch: bool = True
    temperature: float = 0.05
    compat: bool = False

    def __post_init__(self):
        if self.loss_name not in ("projection", "contrastive", "mixed"):
            raise ValueError(f"loss_name={self.loss_name!r} must be 'projection', 'contrastive' or 'mixed'")
        check(self, length=2, dim=1, layers=1, hidden=1, blocks=1, filter_width=1, filter_features=3, dropout=(0, 1), temperature=POSITIVE)

    @property
    def couples(self) -> bool:  # type: ignore[override]
        """Whether a row's loss depends on other rows."""
        return self.in_batch

    def spec(self) -> Tree:
        layer = MonarchLayer(
            mixer=MonarchMixer.spec(self.dim, self.length, filter_width=self.filter_width, features=self.filter_features, direct=self.direct),
            feed=MonarchGLU.spec(self.dim, self.hidden, self.blocks, self.dropout),
            residual=self.mixer_residual,
        )
        return {
            "encoder": M2Encoder(
                word=Embedding.spec(self.vocabulary, self.dim, stddev=0.02),
                position=Embedding.spec(self.length, self.dim, stddev=0.02),
                norm=LayerNorm.spec(self.dim),
                stack=Stack.spec(layer, self.layers),
                length=self.length,
                rate=self.dropout,
            )
        }

    def encode_query(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """One vector of length 1 for each `query` [B, Tq]."""
        return self._encode(params, batch["query"], key)

    def encode_item(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """One vector of length 1 for each `document` [C, Td]."""
        return self._encode(params, batch["document"], key)

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Terms: "positive" and "negative", the squared errors of the two kinds of pairs; "contrastive"."""
        first, last = split_key(key, 2)
        documents = batch["document"]  # [B, Td]
        if "negative" in batch:
            documents = jnp.concatenate([documents, batch["negative"].reshape(-1, documents.shape[1])])  # [C, Td], C = B (1 + S)
        elif not self.in_batch or len(documents) == 1:
            raise ValueError(
                f"in_batch={self.in_batch}, {len(documents)} rows and no `negative` in the batch leave only positive pairs, which one vector for all texts "
                "satisfies; give Passages negatives= and hard=, or set in_batch=True with a batch of 2 or more"
            )
        queries, found = self.encode_query(params, batch, first), self.encode_item(params, {"document": documents}, last)
        cosines = jnp.einsum("bd,cd->bc", queries.values[:, 0], found.values[:, 0], preferred_element_type=jnp.float32)  # [B, C]
        excluded, _ = candidates(batch, in_batch=self.in_batch)
        rows, weight = jnp.arange(len(cosines)), batch["mask"]
        negative = (~excluded).at[rows, rows].set(False) * weight[:, None]  # [B, C] 1 for a negative pair
        pairs = negative.sum()
        terms = {}
        if self.loss_name != "contrastive":
            terms["positive"] = (jnp.square(jnp.diagonal(cosines) - 1) * weight).sum(), weight.sum()
            # In a batch whose documents all answer all its queries there is no negative pair.
            terms["negative"] = (jnp.square(cosines) * negative).sum(), jnp.maximum(pairs, 1) if self.in_batch else pairs
        if self.loss_name != "projection":
            terms["contrastive"] = contrastive(cosines / self.temperature, excluded, weight)
        hits = jnp.argmax(jnp.where(excluded, -jnp.inf, cosines), axis=1) == rows
        return Loss(terms, {"hits": (jnp.sum(hits * weight), weight.sum()), "positive_share": (weight.sum(), weight.sum() + pairs)})

    def _encode(self, params: Tree, ids: Array, key: Array | None) -> Vectors:
        mask = ids != self.pad
        if not self.compat:
            states = params["encoder"](ids, mask, key)  # [B, T, D]
        else:
            ids = jnp.pad(ids, ((0, 0), (0, max(0, self.length - ids.shape[1]))), constant_values=self.pad)
            mask = ids != self.pad
            states = params["encoder"](ids, jnp.ones_like(mask), key)
        vectors = unit(pool(states, mask, "mean"))[:, None]  # [B, 1, D]
        return Vectors(vectors, jnp.ones(vectors.shape[:2], bool))


def tiny() -> tuple[M2BERT, dict[str, Any]]:
    """A small case for the contract tests."""
    random = jax.random.split(jax.random.key(3), 3)
    query = jax.random.randint(random[0], (4, 6), 5, 48).at[:, 4:].set(0)
    document = jax.random.randint(random[1], (4, 12), 5, 48).at[1, 9:].set(0)
    rows = {"query_row": jnp.arange(4), "document_row": jnp.arange(4) + 10, "negative_row": jnp.arange(4)[:, None] + 20}
    batch = {"query": query, "document": document, **rows, "negative": jax.random.randint(random[2], (4, 1, 12), 5, 48), "mask": jnp.ones(4)}
    method = M2BERT(vocabulary=48, pad=0, length=12, dim=16, layers=2, hidden=32, blocks=2, filter_width=8, dropout=0.0, loss_name="mixed")
    return method, batch
