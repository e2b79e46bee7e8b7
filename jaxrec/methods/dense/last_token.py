"""LastToken: a language model's state at the last token of a text, as the one vector that finds it and is found by it.

    vector(x) = unit(h_T(x)),   L = - log of exp(<q, d> / tau) over the sum of exp(<q, d'> / tau) for d' in the batch

As in RepLLaMA (Ma et al. 2023, arXiv 2310.08319) and E5-Mistral (Wang et al. 2024, arXiv 2401.00368): queries and documents have one encoder, negatives
are a row's own hard ones and the documents of the other rows, and a large model is trained by adapters while it is frozen itself. A row ends with a
token that every text ends with, so that there is one state which may sum the text up. What we changed: other documents that the batch knows to
answer a query, or are the same document, are no negatives of it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import POSITIVE, check
from jaxrec.method import FROM_DATA, Array, Batch, Encoder, Loss, Method, Vectors
from jaxrec.methods.dense.prepending import lay_out
from jaxrec.nn import token_prepending
from jaxrec.nn.bert import pool
from jaxrec.nn.language_model import Decoder, LanguageModel
from jaxrec.nn.lora import Adapters, LoRA
from jaxrec.nn.norm import unit
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.nn.transformer import split_key
from jaxrec.ops.contrastive import candidates, contrastive
from jaxrec.param import Tree, freeze


@struct.dataclass
class AdaptedDecoder:
    """A decoder, frozen where it has adapters."""

    base: Decoder
    adapters: Adapters  # none without LoRA
    lora: LoRA | None = struct.field(pytree_node=False)

    @property
    def decoder(self) -> Decoder:
        """What reads texts."""
        return self.base if self.lora is None else self.lora.attach(self.base, self.adapters)


@dataclass(frozen=True)
class LastToken(Method, Encoder):
    """A single-vector retriever on a causal language model.

    Attributes:
      encoder: the language model. Its parameters may come from `Experiment.init_from={"base": ...}`.
      pad: the token that fills up rows, on either side.
      lora: the adapters that are trained in place of the model; None: the model itself is.
      pooling: a text's vector is the state of its last token, or the mean of all its states.
      temperature: cosines are divided by it in the loss.
      in_batch: documents of other rows are negatives too; without it only a row's own.
      plan: placeholders in the row, through which early tokens see later ones (`jaxrec.nn.token_prepending`; HTP and others), and its own pooling in place of
        `pooling`; None: the text alone.
      block: tokens of a block of `plan`.
    """

    encoder: LanguageModel = field(default_factory=lambda: LanguageModel(vocabulary=FROM_DATA))
    pad: int = FROM_DATA
    lora: LoRA | None = None
    pooling: Literal["last", "mean"] = "last"
    temperature: float = 0.02
    in_batch: bool = True
    plan: TokenPrepending | None = None
    block: int = 16

    couples: ClassVar[bool] = True

    def __post_init__(self):
        if self.pooling not in ("last", "mean"):
            raise ValueError(f"pooling={self.pooling!r} must be 'last' or 'mean'")
        check(self, temperature=POSITIVE, block=1)
        if self.lora is not None:
            self.lora.check_shared()
        if self.plan is not None and self.plan.plan == "prompt_eol":
            raise ValueError("plan='prompt_eol' is a prompt around the text, and rows of Passages have none; leave plan=None, which takes the last token")

        if self.plan is not None and self.plan.output_layer == FROM_DATA:
            raise ValueError(f"plan.output_layer={FROM_DATA} means that the data knows it; write output_layer={self.encoder.layers}, the last layer, too")

    @property
    def scores_words(self) -> bool:
        """Whether the model's own scores of words are used, and so learn."""
        return False

    def spec(self) -> Tree:
        base = self.encoder.spec()
        if self.lora is not None:
            return AdaptedDecoder(base=freeze(base), adapters=self.lora.spec(base), lora=self.lora)
        if not self.scores_words and base.output is not None:
            base = dataclasses.replace(base, output=freeze(base.output))  # kept, so that a language model's parameters fit
        return AdaptedDecoder(base=base, adapters={}, lora=None)

    def encode_query(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """One vector of length 1 for each `query` [B, Tq]."""
        return self._encode(params, batch["query"], key)

    def encode_item(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """One vector of length 1 for each `document` [C, Td]."""
        return self._encode(params, batch["document"], key)

    def states(self, decoder: Decoder, ids: Array, key: Array | None = None) -> Array:
        """The states [B, K, D] whose mean is a text's vector before it is made a unit, of tokens [B, T]; here K = 1."""
        attended = ids != self.pad
        if self.plan is not None:
            rows = lay_out(self.plan, ids, attended, block=self.block)
            until = self.plan.until(decoder.depth)
            x = token_prepending.inputs(decoder, rows.ids)
            hidden = token_prepending.states(decoder, rows, x, start=self.plan.start, exit=self.plan.exit, until=until, key=key)
            return pool(hidden, jnp.asarray(rows.pooled), "mean")[:, None]
        hidden = decoder(ids, attended.astype(jnp.int32), key=key)
        if self.pooling == "mean":
            return pool(hidden, attended, "mean")[:, None]
        return jnp.take_along_axis(hidden, last(attended)[:, None, None], axis=1)

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Term: "contrastive", InfoNCE over the documents of the batch."""
        queries, documents, excluded = self.compared(params.decoder, batch, key)
        return self.ranked(vector(queries), documents, excluded, batch["mask"])

    def compared(self, decoder: Decoder, batch: Batch, key: Array | None) -> tuple[Array, Array, Array]:
        """States [B, K, D] of the queries, vectors [C, D] of all documents of the batch, C = B (1 + S), and which are no negatives of which [B, C]."""
        first, rest = split_key(key, 2)
        documents = batch["document"]  # [B, Td]
        if "negative" in batch:
            documents = jnp.concatenate([documents, batch["negative"].reshape(-1, documents.shape[1])])  # [C, Td]
        excluded, _ = candidates(batch, in_batch=self.in_batch)
        return self.states(decoder, batch["query"], first), vector(self.states(decoder, documents, rest)), excluded

    def ranked(self, queries: Array, documents: Array, excluded: Array, weight: Array) -> Loss:
        """The contrastive term of vectors [B, D] and [C, D], and how often a row's own document is first."""
        cosines = similarity(queries, documents)  # [B, C]
        hits = jnp.argmax(jnp.where(excluded, -jnp.inf, cosines), axis=1) == jnp.arange(len(cosines))
        return Loss({"contrastive": contrastive(cosines / self.temperature, excluded, weight)}, {"hits": (jnp.sum(hits * weight), weight.sum())})

    def _encode(self, params: Tree, ids: Array, key: Array | None) -> Vectors:
        values = vector(self.states(params.decoder, ids, key))[:, None]  # [B, 1, D]
        return Vectors(values, jnp.ones(values.shape[:2], bool))


def vector(states: Array) -> Array:
    """The mean of [B, K, D], at length 1: [B, D]."""
    return unit(states.mean(axis=1))


def similarity(queries: Array, documents: Array) -> Array:
    """Inner products [..., C] float32 of [..., D] and [C, D]."""
    return jnp.einsum("...d,cd->...c", queries, documents, preferred_element_type=jnp.float32)


def last(attended: Array) -> Array:
    """The place [B] of the last True of [B, T] bool; T - 1 where there is none."""
    return attended.shape[1] - 1 - jnp.argmax(attended[:, ::-1], axis=1)


def tiny() -> tuple[LastToken, dict[str, Any]]:
    """A small case for the contract tests."""
    random = jax.random.split(jax.random.key(3), 3)
    query = jax.random.randint(random[0], (4, 6), 5, 48).at[:, 4:].set(0)
    document = jax.random.randint(random[1], (4, 12), 5, 48).at[1, 9:].set(0)
    rows = {"query_row": jnp.arange(4), "document_row": jnp.arange(4) + 10, "negative_row": jnp.arange(4)[:, None] + 20}
    batch = {"query": query, "document": document, **rows, "negative": jax.random.randint(random[2], (4, 1, 12), 5, 48), "mask": jnp.ones(4)}
    return LastToken(encoder=LanguageModel(vocabulary=48, dim=16, layers=2, heads=2, hidden=32, length=24), pad=0, temperature=0.1), batch
