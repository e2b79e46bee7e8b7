"""KinyaColBERT: a vector for every word, encoded in two tiers: its parts first, then the words of the text.

    word w = [h_stem, mean of h over the parts of w, E_stem],  h = tier 1 over the parts of one word, as a set
    X = unit(W tier 2 over the words)

Nzeyimana and Rubungo 2025 (arXiv 2507.03241), after KinyaBERT (Nzeyimana and Rubungo 2022, arXiv 2203.08459): in a language of rich morphology a
stem and its affixes tell more than pieces that were cut by frequency. The morphological analyser is the tokenizer: one that writes a word as its
stem and then its affixes, and counts every affix among the pieces that continue a word, gives the paper's input; any WordPiece tokenizer is the
fallback, its first piece the stem. What we changed: the parts of a word are told apart by what they are alone (no tag of part of speech, which not
every analyser has), so the mean over them stands in the place of the tags' states; masked words of documents are out of the maximum, where they were
zeros; words to be left out are listed by their stems (`punctuation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxrec.method import FROM_DATA, Array, Batch, Vectors
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.methods.late_interaction.colberter import check_words, continuing
from jaxrec.nn.bert import BERT, check_length
from jaxrec.nn.context import Context, visible
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm, unit
from jaxrec.nn.transformer import Stack, split_key
from jaxrec.param import Tree, normal

MORPHOLOGY = BERT(dim=128, layers=4, heads=4, hidden=512)


@struct.dataclass
class TwoTierEncoder:
    """Both tiers and the projection.

    Attributes:
      part: vectors of the parts of words, M wide.
      morphology: tier 1, attention among the parts of one word.
      stem: further vectors of the first parts, as wide as is left of D beside two of M.
      position: of words.
      sentence: tier 2, attention among words.
      projection: D -> the width of a word's vector.
    """

    part: Embedding
    part_norm: LayerNorm
    morphology: Stack
    stem: Embedding
    position: Embedding
    word_norm: LayerNorm
    sentence: Stack
    projection: Linear
    rate: float = struct.field(pytree_node=False)
    length: int = struct.field(pytree_node=False)  # of the longest text

    def __call__(self, ids: Array, word: Array, key: Array | None = None) -> Array:
        """Parts of words [B, T], and the number of the word that each is of, from 1, 0 = padding, to [B, T, E]; word number w is at w - 1."""
        tokens = ids.shape[1]
        check_length(tokens, self.length)
        first, inner, second, last = split_key(key, 4)
        parts = dropout(self.part_norm(self.part(ids)), self.rate, first)
        parts = self.morphology(parts, Context(word, visible(word, causal=False), inner))  # [B, T, M]
        number = jnp.arange(1, tokens + 1)
        member = word[:, None, :] == number[None, :, None]  # [B, word, part]
        stem = jnp.argmax(member, axis=-1)  # [B, T] place of a word's first part
        mean = member / jnp.maximum(member.sum(axis=-1, keepdims=True), 1)
        words = [jnp.take_along_axis(parts, stem[..., None], axis=1), mean.astype(parts.dtype) @ parts, self.stem(jnp.take_along_axis(ids, stem, axis=1))]
        x = self.word_norm(jnp.concatenate(words, axis=-1) + self.position(jnp.arange(tokens))[None])
        seen = number[None, :] <= word.max(axis=1, keepdims=True)  # [B, T]
        x = self.sentence(dropout(x, self.rate, second), Context(seen.astype(jnp.int32), seen[:, None, None, :], last))
        return unit(self.projection(x))


@dataclass(frozen=True)
class KinyaColBERT(ColBERT):
    """KinyaColBERT; `encoder` is tier 2, over words, and its `length` bounds the tokens of a text. Trained on triples it has `in_batch=False`.

    Attributes:
      morphology: tier 1, over the parts of a word; its positions are not used, for the parts are a set.
      continues: word pieces that continue a word: affixes, or "##" pieces.
    """

    encoder: BERT = field(default_factory=BERT)  # whose position table tier 2 uses
    morphology: BERT = MORPHOLOGY
    continues: tuple[int, ...] = (FROM_DATA,)
    augment: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_words(self)
        if self.encoder.dim <= 2 * self.morphology.dim:
            raise ValueError(f"encoder.dim={self.encoder.dim} holds two vectors of morphology.dim={self.morphology.dim} and a stem's own; make it larger")
        if self.encoder.vocabulary != self.morphology.vocabulary:
            raise ValueError(f"both tiers read the same pieces: vocabulary={self.encoder.vocabulary} and {self.morphology.vocabulary} must be equal")

    def spec(self) -> Tree:
        lower, upper = self.morphology.spec(), self.encoder.spec()
        return TwoTierEncoder(
            part=lower.word,
            part_norm=lower.norm,
            morphology=lower.stack,
            stem=Embedding.spec(self.encoder.vocabulary, self.encoder.dim - 2 * self.morphology.dim, stddev=0.02),
            position=upper.position,
            word_norm=upper.norm,
            sentence=upper.stack,
            projection=Linear.spec(self.encoder.dim, self.dim, axes=("embed", None), bias=False, init=normal(0.02)),
            rate=self.encoder.dropout,
            length=self.encoder.longest,
        )

    def encode_query(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of the words of `query` [B, Tq], the special tokens words among them: [B, Tq, D], from place 0 on."""
        return self._words(params, batch["query"], key)

    def encode_item(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of the words of `document` [C, Td], without those of one skipped part: [C, Td, D]."""
        return self._words(params, batch["document"], key, skipped=self.punctuation if self.skip_punctuation else ())

    def pieces(self, ids: Array, *, document: bool) -> Array:
        """[B, T, T] bool: the parts of the first word, of the second ..."""
        _, word = self._numbered(ids)
        return word[:, None, :] == jnp.arange(1, ids.shape[1] + 1)[None, :, None]

    def _numbered(self, ids: Array) -> tuple[Array, Array]:
        """([B, T] bool: does a part begin a word, [B, T] the number of its word, from 1; 0 of padding)."""
        attended = ids != self.pad
        starts = attended & ~continuing(self, ids).at[:, 0].set(False)
        return starts, jnp.where(attended, jnp.cumsum(starts, axis=1), 0)

    def _words(self, params: Tree, ids: Array, key: Array | None, skipped: tuple[int, ...] = ()) -> Vectors:
        tokens, attended = ids.shape[1], ids != self.pad
        starts, word = self._numbered(ids)
        values = self._encode(params, ids, word, key)  # what the encoder takes beside the ids
        mask = jnp.arange(tokens)[None, :] < word.max(axis=1, keepdims=True)
        if skipped:
            left_out = jnp.isin(ids, jnp.asarray(skipped, ids.dtype)) & starts
            single = ~jnp.pad(attended[:, 1:] & ~starts[:, 1:], [(0, 0), (0, 1)])  # nothing continues it
            rows = jnp.arange(ids.shape[0])[:, None]
            mask &= ~jnp.zeros_like(mask).at[rows, jnp.maximum(word - 1, 0)].max(left_out & single)
        return Vectors(values, mask)


def tiny() -> tuple[KinyaColBERT, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    encoder = method.encoder
    assert isinstance(encoder, BERT)
    small = BERT(vocabulary=encoder.vocabulary, length=12, dim=4, layers=1, heads=2, hidden=8, types=1, dropout=0.0)
    return KinyaColBERT(encoder=encoder, dim=8, pad=0, mask_token=3, punctuation=method.punctuation, morphology=small, continues=tuple(range(20, 40))), batch
