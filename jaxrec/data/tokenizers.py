"""Tokenizers: texts to word pieces, by the `tokenizers` package; and the frame of special tokens around every text."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
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


@dataclass(frozen=True)
class Frame:
    """What stands around the tokens of a text in a row.

    Attributes:
      query, document: the tokens before a query and before a document.
      end: the token behind either.
      pad: the token that fills up rows, and stands for nothing else.
      query_prompt, document_prompt: words that are put before the text and cut into tokens with it.
    """

    query: tuple[int, ...]
    document: tuple[int, ...]
    end: int
    pad: int
    query_prompt: str = ""
    document_prompt: str = ""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Frame:
        """The inverse of `dataclasses.asdict`, also through JSON."""
        tokens = {kind: tuple(said[kind]) for kind in ("query", "document")}
        return cls(**{**said, **tokens})

    def before(self, kind: Kind) -> tuple[int, ...]:
        """The tokens before a text of this kind."""
        return self.query if kind == "query" else self.document

    def prompt(self, kind: Kind) -> str:
        """The words before a text of this kind."""
        return self.query_prompt if kind == "query" else self.document_prompt

    def added(self, kind: Kind) -> int:
        """How many tokens of a row are none of the text and the prompt."""
        return len(self.before(kind)) + 1


def bert_frame(tokenizer: HfTokenizer) -> Frame:
    """[CLS], the mark of the kind, the text, [SEP].

    Raises:
      ValueError: the tokenizer lacks a special token or a mark; names it.
    """
    tokens = (*SPECIAL, *MARKS.values())
    ids = {token: number for token in tokens if (number := tokenizer.token_to_id(token)) is not None}
    if missing := [token for token in tokens if token not in ids]:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}; rows as late interaction reads them need the special tokens of BERT")
    query, document = ((ids["[CLS]"], ids[MARKS[kind]]) for kind in ("query", "document"))
    return Frame(query, document, ids["[SEP]"], ids["[PAD]"])


class Tokenizer(Artifact):
    """`get()` is a `tokenizers.Tokenizer`, `frame()` what stands around a text; that of BERT, unless a subclass has another."""

    def load(self, folder: Path) -> HfTokenizer:
        return open_tokenizer(folder / "tokenizer.json")

    def frame(self) -> Frame:
        """What `tokenize` puts around texts."""
        return bert_frame(self.get())

    def info(self) -> dict[str, Any]:
        """What a method may take from the tokenizer: `tokenizer_info`."""
        return tokenizer_info(self.get(), self.frame())


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
      ValueError: the file is damaged; names it.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(f"{path} is no tokenizer ({error}); take the tokenizer.json that was published with the model") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # a text that holds "[PAD]" speaks of it, and does not end there
    return tokenizer


def tokenizer_info(tokenizer: HfTokenizer, frame: Frame) -> dict[str, Any]:
    """What a method may take from a tokenizer: its `vocabulary` size, and the ids of word pieces: `pad`, `punctuation` (those of one mark each), `added` (those
    that `tokenize` puts around every text); and of one with BERT's special tokens `mask_token`, and `continues` (those that continue a word)."""
    pieces = (tokenizer.token_to_id(mark) for mark in string.punctuation)
    info = {
        # Tokens that were added may lie beyond a language model's table: some share their tokenizer with a model that also sees images.
        "vocabulary": tokenizer.get_vocab_size(with_added_tokens=False),
        "pad": frame.pad,
        "punctuation": tuple(sorted(piece for piece in pieces if piece is not None)),
        "added": tuple(sorted({*frame.query, *frame.document, frame.end})),
    }
    if (mask := tokenizer.token_to_id("[MASK]")) is None:
        return info
    continues = tuple(sorted(piece for text, piece in tokenizer.get_vocab().items() if text.startswith("##")))
    return info | {"vocabulary": tokenizer.get_vocab_size(), "mask_token": mask, "continues": continues}


def tokenize(tokenizer: HfTokenizer, texts: Sequence[str] | Iterable[str], length: int, kind: Kind, frame: Frame | None = None) -> tuple[np.ndarray, int]:
    """([n, length] int32 ids, how many texts were cut): the frame's tokens, prompt and text, its end, then padding. No frame is BERT's."""
    frame = frame or bert_frame(tokenizer)
    room = length - frame.added(kind)
    if room < 1:
        raise ValueError(
            f"length={length} leaves no place for text beside the {frame.added(kind)} special tokens around it; use {frame.added(kind) + 1} or more"
        )
    before, prompt = frame.before(kind), frame.prompt(kind)
    pieces = [encoding.ids for encoding in tokenizer.encode_batch([prompt + text for text in texts], add_special_tokens=False)]
    ids = np.full((len(pieces), length), frame.pad, np.int32)
    for row, some in zip(ids, pieces, strict=True):
        kept = [*before, *some[:room], frame.end]
        row[: len(kept)] = kept
    return ids, sum(len(some) > room for some in pieces)
