"""ColBERT: contextual vectors of all tokens, compared by MaxSim.

    s(q, d) = sum over tokens i of q of max over tokens j of d of <q_i, d_j>,  each vector = unit(W BERT(text))

Khattab and Zaharia 2020 (arXiv 2004.12832); Santhanam et al. 2022 (ColBERTv2, arXiv 2112.01488) for distillation from a teacher's scores. A
query is filled up with [MASK] tokens, which see the words, are not seen by them, and are scored like them (query augmentation); single punctuation
marks of a document are encoded and then left out. What we changed: other documents of the batch that are known to answer a query, or are the same
document, are no negatives of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import POSITIVE, check
from jaxrec.method import FROM_DATA, Array, Batch, Encoder, Loss, Method, Vectors
from jaxrec.nn.bert import BERT, BidirectionalEncoder, PostNormEncoder
from jaxrec.nn.linear import Linear
from jaxrec.nn.modernbert import PreNormEncoder
from jaxrec.nn.norm import unit
from jaxrec.nn.transformer import split_key
from jaxrec.ops.contrastive import candidates, contrastive, divergence
from jaxrec.param import Tree, normal
from kernels.maxsim import maxsim


@struct.dataclass
class TokenEncoder:
    """unit(W BERT(ids)): a vector of length 1 for every token."""

    bert: PostNormEncoder | PreNormEncoder
    projection: Linear

    def __call__(self, ids: Array, attended: Array, key: Array | None = None) -> Array:
        """[B, T] word pieces, of which those `attended` [B, T] can be seen, to [B, T, D]."""
        return unit(self.projection(self.bert(ids, attended, key=key)))


@dataclass(frozen=True)
class ColBERT(Method, Encoder):
    """ColBERT and ColBERTv2; which of them is a question of the data (hard negatives, a teacher's scores).

    Attributes:
      encoder: the `BERT` or `ModernBERT` beneath.
      dim: width D of a token's vector.
      pad, mask_token, punctuation: word pieces of the tokenizer.
      augment: fill queries up with [MASK].
      skip_punctuation: leave single punctuation marks of documents out.
      temperature: scores are divided by it in the loss.
      in_batch: documents of other rows are negatives too; without it only a row's own (the pairwise loss of the first paper).
      chunk: texts encoded at a time, their activations computed again in the backward pass (gradient caching, Gao et al. 2021, arXiv
        2101.06983): a batch larger than memory, with the same gradient. 0 = all at once.
    """

    encoder: BidirectionalEncoder = field(default_factory=BERT)
    dim: int = 128
    pad: int = FROM_DATA
    mask_token: int = FROM_DATA
    punctuation: tuple[int, ...] = (FROM_DATA,)
    augment: bool = True
    skip_punctuation: bool = True
    temperature: float = 1.0
    in_batch: bool = True
    chunk: int = 0

    couples: ClassVar[bool] = True

    def __post_init__(self):
        check(self, dim=1, temperature=POSITIVE, chunk=0)

    def spec(self) -> Tree:
        projection = Linear.spec(self.encoder.dim, self.dim, axes=("embed", None), bias=False, init=normal(0.02))
        return TokenEncoder(bert=self.encoder.spec(), projection=projection)  # type: ignore[arg-type]

    def encode_query(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of `query` [B, Tq]."""
        ids = batch["query"]
        attended = ids != self.pad
        if not self.augment:
            return Vectors(self._encode(params, ids, attended, key), attended)
        return Vectors(self._encode(params, jnp.where(attended, ids, self.mask_token), attended, key), jnp.ones_like(attended))

    def encode_item(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of `document` [C, Td]."""
        ids = batch["document"]
        attended = ids != self.pad
        kept = attended & ~jnp.isin(ids, jnp.asarray(self.punctuation, ids.dtype)) if self.skip_punctuation and self.punctuation else attended
        return Vectors(self._encode(params, ids, attended, key), kept)

    def similarity(self, queries: Vectors, documents: Vectors) -> Array:
        """Scores in training, [B, C]."""
        return maxsim(queries.values, documents.values, queries.mask, documents.mask)

    def pieces(self, ids: Array, *, document: bool) -> Array:
        """[B, V, T] bool: the word pieces of queries or documents [B, T] that each of their V vectors stands for."""
        return jnp.broadcast_to(jnp.eye(ids.shape[1], dtype=bool), (*ids.shape, ids.shape[1]))

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Terms: "contrastive", over the batch; "distillation", where it holds `teacher` [B, 1 + S], scores of a row's own documents, relevant one first."""
        if not self.in_batch and "negative" not in batch:
            raise ValueError(
                f"{type(self).__name__}: in_batch=False and no `negative` in the batch leave nothing to tell the relevant document from; give Passages "
                "negatives= and hard=, or set in_batch=True (for --smoke, which has no hard negatives, in Experiment.smoke)"
            )
        first, last = split_key(key, 2)
        documents = batch["document"]  # [B, Td]
        if "negative" in batch:
            documents = jnp.concatenate([documents, batch["negative"].reshape(-1, documents.shape[1])])  # [C, Td], C = B (1 + S)
        queries, found = self.encode_query(params, batch, first), self.encode_item(params, {"document": documents}, last)
        scores = self.similarity(queries, found) / self.temperature  # [B, C]
        excluded, own = candidates(batch, in_batch=self.in_batch)
        terms, weight = {}, batch["mask"]
        if "teacher" in batch:
            terms["distillation"] = divergence(batch["teacher"], jnp.take_along_axis(scores, own, axis=1), weight)
            excluded = excluded.at[jnp.arange(len(own))[:, None], own[:, 1:]].set(True)  # the teacher has spoken about them
        if self.in_batch or "teacher" not in batch:
            terms["contrastive"] = self.ranking(scores, excluded, weight)
        hits = jnp.argmax(jnp.where(excluded, -jnp.inf, scores), axis=1) == jnp.arange(len(scores))
        return Loss(terms, {"hits": (jnp.sum(hits * weight), weight.sum())})

    def ranking(self, scores: Array, excluded: Array, weight: Array) -> tuple[Array, Array]:
        """(sum, weight) of what is asked of the scores [B, C] of a row's own document, on the diagonal, and those not `excluded` [B, C]."""
        return contrastive(scores, excluded, weight)

    def _encode(self, params: Tree, ids: Array, attended: Array, key: Array | None) -> Array:
        if not self.chunk or len(ids) <= self.chunk:
            return params(ids, attended, key)
        if len(ids) % self.chunk:
            raise ValueError(f"chunk={self.chunk} does not divide the {len(ids)} texts of a batch; choose a divisor")
        parts = len(ids) // self.chunk
        keys = None if key is None else jax.random.split(key, parts)
        # Texts are dealt out in turn, so that every chunk has its share of each device's.
        pieces = (jnp.moveaxis(leaf.reshape(self.chunk, parts, -1), 1, 0) for leaf in (ids, attended))
        encoded = jax.lax.map(jax.checkpoint(lambda piece: params(*piece)), (*pieces, keys))
        return jnp.moveaxis(encoded, 0, 1).reshape(-1, *encoded.shape[2:])


def tiny() -> tuple[ColBERT, dict[str, Any]]:
    """A small case for the contract tests."""
    random = jax.random.split(jax.random.key(3), 3)
    encoder = BERT(vocabulary=48, length=12, dim=16, layers=1, heads=2, hidden=32, types=1, dropout=0.0)
    query = jax.random.randint(random[0], (4, 6), 5, 40).at[:, 4:].set(0)
    document = jax.random.randint(random[1], (4, 12), 5, 48).at[1, 9:].set(0)
    rows = {"query_row": jnp.arange(4), "document_row": jnp.arange(4) + 10, "negative_row": jnp.arange(4)[:, None] + 20}
    batch = {"query": query, "document": document, **rows, "negative": jax.random.randint(random[2], (4, 1, 12), 5, 48), "mask": jnp.ones(4)}
    return ColBERT(encoder=encoder, dim=8, pad=0, mask_token=3, punctuation=(40, 41)), batch
