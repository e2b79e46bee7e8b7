"""ColBERTer: a vector for every whole word instead of every word piece, learned stop-words, and one vector for the whole text beside them.

    s(q, d) = a <q_0, d_0> + (1 - a) * sum over words i of q of max over words j of d of <q_i, r_j d_j>,  a = sigmoid(gamma)

Hofstätter et al. 2022 (arXiv 2203.13088). A word's vector is the mean of the vectors of all its pieces, wherever the word stands in the text; r_j =
relu(<d_j, w> + b) is its gate, pushed towards 0 by its own term of the loss, and a word with gate 0 is not stored. What we changed: words are
compared as they are written, not by their stems; a word with gate 0 is out of the maximum in training as it is in the index; without a teacher's
scores both scores are trained by softmax over the batch in place of MarginMSE.

The sum of two scores is one MaxSim. Vectors are laid out in blocks, `[words | whole | is whole | is word]`:

    query  word i: [(1 - a) q_i, 0, -L, 0]    whole: [0, a q_0, 0, -L]
    document    j: [r_j d_j,     0,  0, 1]    whole: [0,   d_0, 1,  0]

so a word meets a word and the whole the whole with the right inner product, exactly (their products with L are 0), and a word meets the whole with -L,
which no maximum takes as long as all real inner products are above it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.limits import check
from jaxrec.method import FROM_DATA, Array, Batch, Loss, Vectors
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import PostNormEncoder
from jaxrec.nn.linear import Linear
from jaxrec.nn.transformer import split_key
from jaxrec.ops.contrastive import candidates, contrastive
from jaxrec.param import Param, Tree, lecun, normal, ones, zeros

APART = 1e4
"""L. float16 holds it, and vectors would need to be longer than 100 for an inner product below -L."""
PREFIX = 2
"""[CLS] and the mark come before a text, [SEP] after it; they are no words."""


@struct.dataclass
class WordEncoder:
    """W BERT(ids): a vector for every word piece, and another one for the whole text from its [CLS].

    Attributes:
      bert: the encoder.
      words, whole: their projections.
      gate: a word's vector -> how much it counts; None without stop-words.
      fusion: [] gamma, which weighs the two scores.
    """

    bert: PostNormEncoder
    words: Linear
    whole: Linear
    gate: Linear | None
    fusion: Array

    def __call__(self, ids: Array, attended: Array, key: Array | None = None) -> Array:
        """[B, T] word pieces, of which those `attended` [B, T] can be seen, to [B, T, Dw + Dc]: the whole text's vector is beside that of its [CLS]."""
        states = self.bert(ids, attended, key=key)
        whole = jnp.pad(self.whole(states[:, :1]), [(0, 0), (0, ids.shape[1] - 1), (0, 0)])
        return jnp.concatenate([self.words(states), whole], axis=-1)


@struct.dataclass
class Parts:
    """What is known of texts before the scores are joined.

    Attributes:
      whole: [B, Dc] a vector for each text.
      words: [B, T, Dw] a vector for each different word, at the place of its first piece; a document's are gated.
      mask: [B, T] bool, where there is one.
      gate: [B, T] of documents' words, also those that are 0; else 1.
      pieces, distinct: [B] int32 vectors that ColBERT would keep, and different words.
    """

    whole: Array
    words: Array
    mask: Array
    gate: Array
    pieces: Array
    distinct: Array


@dataclass(frozen=True)
class ColBERTer(ColBERT):
    """ColBERTer; `dim` = 32, 16, 8 or 1 is the width Dw of a word's vector. Queries are not filled up with [MASK].

    Attributes:
      whole: width Dc of the whole text's vector.
      continues: word pieces that continue a word.
      stopwords: learn which words to leave out.
      whole_weight, gate_weight: of the whole text's own loss and of the mean gate; the paper's 0.1 and 0.75, without stop-words 0.5 and none.
    """

    dim: int = 32
    augment: bool = False
    whole: int = 128
    continues: tuple[int, ...] = (FROM_DATA,)
    stopwords: bool = True
    whole_weight: float = 0.1
    gate_weight: float = 0.75

    def __post_init__(self):
        super().__post_init__()
        check_words(self)
        check(self, whole=1, whole_weight=0, gate_weight=0)

    @property
    def coefficients(self) -> Mapping[str, float]:  # type: ignore[override] - they are fields
        return {"whole": self.whole_weight, "gate": self.gate_weight}

    def spec(self) -> Tree:
        init = normal(0.02)
        words = Linear.spec(self.encoder.dim, self.dim, axes=("embed", None), bias=False, init=init)
        whole = Linear.spec(self.encoder.dim, self.whole, axes=("embed", None), bias=False, init=init)
        gate = Linear(kernel=Param((self.dim, 1), (None, None), lecun()), bias=Param((1,), (None,), ones)) if self.stopwords else None  # type: ignore[arg-type]
        return WordEncoder(self.encoder.spec(), words, whole, gate, Param((), (), zeros))  # type: ignore[arg-type]

    def encode_query(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of `query` [B, Tq]: [B, 1 + Tq, Dw + Dc + 2], the whole text's first."""
        return joined_query(self.query_parts(params, batch, key), params.fusion)

    def encode_item(self, params: Tree, batch: Batch, key: Array | None = None) -> Vectors:
        """Vectors of `document` [C, Td]: [C, 1 + Td, Dw + Dc + 2], the whole text's first."""
        return joined_document(self.document_parts(params, batch, key))

    def pieces(self, ids: Array, *, document: bool) -> Array:
        """[B, 1 + T, T] bool: [CLS] of the whole text's vector, and all pieces of a word, wherever it stands, of that at its first piece."""
        same, first = same_word(ids, self._kept(ids, document), continuing(self, ids))
        whole = jnp.zeros_like(same[:, :1]).at[:, :, 0].set(True)
        return jnp.concatenate([whole, same & first[..., None]], axis=1)

    def query_parts(self, params: Tree, batch: Batch, key: Array | None = None) -> Parts:
        return self._parts(params, batch["query"], key, document=False)

    def document_parts(self, params: Tree, batch: Batch, key: Array | None = None) -> Parts:
        """With gates: a word whose gate is 0 is masked. Single punctuation marks are no words, if `skip_punctuation`."""
        parts = self._parts(params, batch["document"], key, document=True)
        if params.gate is None:
            return parts
        gate = jax.nn.relu(params.gate(parts.words))  # [C, T, 1]
        return parts.replace(words=gate * parts.words, mask=parts.mask & (gate[..., 0] > 0), gate=gate[..., 0] * parts.mask)  # type: ignore[attr-defined]

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """Terms: "fused" and "whole", of the joined score and of the whole texts' alone: MarginMSE where the batch holds `teacher` [B, 1 + S], scores of a
        row's own documents, relevant one first, else the softmax over the batch; "gate", the mean gate of the documents' words.

        The metrics "words / pieces" and "stored / words" say which share of the vectors each reduction keeps.
        """
        first, last = split_key(key, 2)
        documents, weight = batch["document"], batch["mask"]
        if "negative" in batch:
            documents = jnp.concatenate([documents, batch["negative"].reshape(-1, documents.shape[1])])  # [C, Td], C = B (1 + S)
        queries, found = self.query_parts(params, batch, first), self.document_parts(params, {"document": documents}, last)
        fused = self.similarity(joined_query(queries, params.fusion), joined_document(found))  # [B, C]
        excluded, own = candidates(batch, in_batch=self.in_batch)
        terms = {}
        for name, scores in {"fused": fused, "whole": queries.whole @ found.whole.T}.items():
            scores = scores.astype(jnp.float32) / self.temperature
            if "teacher" in batch:
                terms[name] = margin_mse(batch["teacher"], jnp.take_along_axis(scores, own, axis=1), weight)
            else:
                terms[name] = contrastive(scores, excluded, weight)
        counts = jnp.concatenate([weight, jnp.repeat(weight, len(documents) // len(weight) - 1)])  # [C]
        words = (counts * found.distinct).sum()
        if self.stopwords:
            terms["gate"] = (counts * found.gate.astype(jnp.float32).sum(axis=1)).sum(), words
        hits = jnp.argmax(jnp.where(excluded, -jnp.inf, fused), axis=1) == jnp.arange(len(fused))
        metrics = {
            "hits": (jnp.sum(hits * weight), weight.sum()),
            "words / pieces": (words, (counts * found.pieces).sum()),
            "stored / words": ((counts * found.mask.sum(axis=1)).sum(), words),
        }
        return Loss(terms, metrics)

    def _parts(self, params: Tree, ids: Array, key: Array | None, *, document: bool) -> Parts:
        """Parts of texts [B, T], ungated."""
        attended = ids != self.pad
        encoded = self._encode(params, ids, attended, key)  # [B, T, Dw + Dc]
        text, kept = in_text(attended), self._kept(ids, document)
        same, is_first = same_word(ids, kept, continuing(self, ids))
        share = same / jnp.maximum(same.sum(axis=-1, keepdims=True), 1)  # [B, T, T]
        words = share.astype(encoded.dtype) @ encoded[..., : self.dim]
        special = attended.sum(axis=1, dtype=jnp.int32) - text.sum(axis=1, dtype=jnp.int32)  # ColBERT keeps [CLS], the mark and [SEP]
        pieces = kept.sum(axis=1, dtype=jnp.int32) + special
        return Parts(encoded[:, 0, self.dim :], words, is_first, is_first.astype(encoded.dtype), pieces, is_first.sum(axis=1, dtype=jnp.int32))

    def _kept(self, ids: Array, document: bool) -> Array:
        """Which of the word pieces [B, T] are of words, bool."""
        text = in_text(ids != self.pad)
        return text & ~jnp.isin(ids, jnp.asarray(self.punctuation, ids.dtype)) if document and self.skip_punctuation and self.punctuation else text


def joined_query(parts: Parts, fusion: Array) -> Vectors:
    """One MaxSim's vectors of queries, [B, 1 + T, Dw + Dc + 2]."""
    share = jax.nn.sigmoid(fusion)
    return _joined(parts.replace(words=(1 - share) * parts.words, whole=share * parts.whole), (0.0, -APART), (-APART, 0.0))  # type: ignore[attr-defined]


def joined_document(parts: Parts) -> Vectors:
    """One MaxSim's vectors of documents, [C, 1 + T, Dw + Dc + 2]. A document without a word left keeps a zero vector, so that its words score 0."""
    none = ~parts.mask.any(axis=1, keepdims=True) & (jnp.arange(parts.mask.shape[1]) == 0)[None, :]
    words = jnp.where(parts.mask[..., None], parts.words, 0)
    return _joined(parts.replace(words=words, mask=parts.mask | none), (1.0, 0.0), (0.0, 1.0))  # type: ignore[attr-defined]


def _joined(parts: Parts, whole_ends: tuple[float, float], word_ends: tuple[float, float]) -> Vectors:
    (dim, width), dtype = (parts.words.shape[-1], parts.whole.shape[-1]), parts.words.dtype
    whole = jnp.pad(parts.whole, [(0, 0), (dim, 2)]).at[:, -2:].set(jnp.asarray(whole_ends, dtype))
    words = jnp.pad(parts.words, [(0, 0), (0, 0), (0, width + 2)]).at[..., -2:].set(jnp.asarray(word_ends, dtype))
    return Vectors(jnp.concatenate([whole[:, None], words], axis=1), jnp.pad(parts.mask, [(0, 0), (1, 0)], constant_values=True))


def margin_mse(teacher: Array, scores: Array, weight: Array) -> tuple[Array, Array]:
    """(sum, weight) of the mean over a row's negatives of ((s_0 - s_j) - (t_0 - t_j))^2, scores [B, 1 + S] with the relevant document first.

    Hofstätter et al. 2020 (arXiv 2010.02666).
    """
    if scores.shape[1] < 2:
        raise ValueError("MarginMSE compares a row's relevant document with its hard negatives, and the batch has none; set data.hard")
    wrong = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:]).astype(scores.dtype)
    return (jnp.where(weight > 0, jnp.square(wrong).mean(axis=1), 0) * weight).sum(), weight.sum()


# --- words ------------------------------------------------------------------------------------------------------------------------


def check_words(method: Any) -> None:
    """Raises ValueError for a method of whole words whose queries are to be filled up with [MASK], which is no word."""
    if method.augment:
        raise ValueError(f"{type(method).__name__} has a vector for each word, and [MASK] is none; set augment=False")


def continuing(method: Any, ids: Array) -> Array:
    """Which of the word pieces continue a word, by the method's `continues`; bool of the shape of `ids`."""
    return jnp.asarray(_table(method.continues, method.encoder.vocabulary))[ids]


@functools.lru_cache(maxsize=8)
def _table(pieces: tuple[int, ...], vocabulary: int) -> np.ndarray:
    table = np.zeros(vocabulary, bool)
    table[list(pieces)] = True
    return table


def in_text(attended: Array) -> Array:
    """Which tokens are of the text itself: [CLS] and the mark stand before it, [SEP] after it. [B, T] bool -> [B, T] bool."""
    return (attended & jnp.pad(attended[:, 1:], [(0, 0), (0, 1)])).at[:, :PREFIX].set(False)


def same_word(ids: Array, kept: Array, continued: Array) -> tuple[Array, Array]:
    """([B, T, T] bool: are these two pieces of the same word, [B, T] bool: is it the first piece of a word that did not occur before).

    Words are equal if their pieces are: two 32-bit polynomial hashes of them are compared, which are equal by chance once in 2^64 pairs.

    Args:
      ids: [B, T] word pieces.
      kept: [B, T] bool; other pieces are of no word.
      continued: [B, T] bool, whether a piece goes on with the word of the piece before.
    """
    starts = kept & ~(continued & jnp.pad(kept[:, :-1], [(0, 0), (1, 0)]))
    number = jnp.cumsum(starts, axis=1)  # [B, T] of its word, from 1
    place = jnp.arange(ids.shape[1])
    offset = place[None, :] - jax.lax.cummax(jnp.where(starts, place[None, :], 0), axis=1)
    one_word = (number[:, :, None] == number[:, None, :]) & kept[:, None, :]  # [B, T, T]
    hashes = []
    for odd in (0x9E3779B1, 0x85EBCA77):
        powers = jnp.asarray(np.cumprod(np.full(ids.shape[1], odd, np.uint32), dtype=np.uint32))  # modulo 2^32
        term = (ids.astype(jnp.uint32) + 1) * powers[offset]
        hashes.append(jnp.where(one_word, term[:, None, :], 0).sum(axis=-1, dtype=jnp.uint32))  # [B, T]
    equal = functools.reduce(jnp.logical_and, (h[:, :, None] == h[:, None, :] for h in hashes))
    same = equal & kept[:, :, None] & kept[:, None, :]
    before = (same & starts[:, None, :] & (place[None, :] < place[:, None])[None]).any(axis=-1)
    return same, starts & ~before


def tiny() -> tuple[ColBERTer, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    return ColBERTer(encoder=method.encoder, dim=8, whole=8, pad=0, mask_token=3, punctuation=method.punctuation, continues=tuple(range(20, 40))), batch
