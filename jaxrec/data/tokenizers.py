"""Tokenizers: texts to word pieces, by the `tokenizers` package; and the marks that late interaction puts before them."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.data.collection import CollectionSource

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MARKS = {"query": "[unused0]", "document": "[unused1]"}
"""The word piece that tells the encoder what it reads; BERT's vocabularies hold these two and no text does."""

Kind = Literal["query", "document"]


class Tokenizer(Artifact):
    """Word pieces with the special tokens and marks of BERT: `get()` is a `tokenizers.Tokenizer`."""

    def load(self, folder: Path) -> HfTokenizer:
        return open_tokenizer(folder / "tokenizer.json")


@dataclass(frozen=True)
class WordPiece(Tokenizer):
    """Lower-case word pieces (Schuster and Nakajima 2012; as in BERT), learned from the documents and training queries of a collection.

    Attributes:
      source: whose texts.
      size: of the vocabulary; fewer where the texts have fewer pieces.
      cased: keep upper case and accents.
    """

    source: CollectionSource
    size: int = 4096
    cased: bool = False

    def __post_init__(self):
        if self.size < 256:
            raise ValueError(f"size={self.size} cannot hold the letters of a text; use 256 or more")

    def build(self, folder: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        collection = self.source.get()
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not self.cased)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=self.size, special_tokens=[*SPECIAL, *MARKS.values()], show_progress=False)
        queries = collection.queries["train"].texts if "train" in collection.queries else []
        tokenizer.train_from_iterator([*collection.passages(), *queries], trainer)
        tokenizer.save(str(folder / "tokenizer.json"))


def open_tokenizer(path: Path) -> HfTokenizer:
    """The tokenizer of a `tokenizer.json`, without padding or truncation of its own.

    Raises:
      ValueError: the file is damaged, or lacks a special token; names it.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"{path} is no tokenizer ({error}); take the tokenizer.json that was published with the model") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if missing := [token for token in (*SPECIAL, *MARKS.values()) if tokenizer.token_to_id(token) is None]:
        raise ValueError(f"{path} has no {', '.join(missing)}; late interaction needs the special tokens of BERT")
    return tokenizer


def tokenizer_info(tokenizer: HfTokenizer) -> dict[str, Any]:
    """What a method may take from a tokenizer: its `vocabulary` size, and the ids of word pieces: `pad`, `mask_token`, `punctuation` (those of one mark
    each), `continues` (those that continue a word) and `added` (those that `tokenize` puts around every text)."""
    around = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", *MARKS.values()))
    pieces = (tokenizer.token_to_id(mark) for mark in string.punctuation)
    return {
        "vocabulary": tokenizer.get_vocab_size(),
        "pad": tokenizer.token_to_id("[PAD]"),
        "mask_token": tokenizer.token_to_id("[MASK]"),
        "punctuation": tuple(sorted(piece for piece in pieces if piece is not None)),
        "added": tuple(sorted(piece for piece in around if piece is not None)),
        "continues": tuple(sorted(piece for text, piece in tokenizer.get_vocab().items() if text.startswith("##"))),
    }


def tokenize(tokenizer: HfTokenizer, texts: Sequence[str] | Iterable[str], length: int, kind: Kind) -> tuple[np.ndarray, int]:
    """([n, length] int32 ids, how many texts were cut): [CLS], the mark of `kind`, the text's word pieces, [SEP], then padding."""
    if length < 4:
        raise ValueError(f"length={length} leaves no place for text beside [CLS], the mark and [SEP]; use 4 or more")
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    start, mark, end, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", MARKS[kind], "[SEP]", "[PAD]"))
    ids = np.full((len(pieces), length), pad, np.int32)
    for row, some in zip(ids, pieces, strict=True):
        kept = [start, mark, *some[: length - 3], end]
        row[: len(kept)] = kept
    return ids, sum(len(some) > length - 3 for some in pieces)
