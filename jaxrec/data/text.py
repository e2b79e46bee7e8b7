"""Text to model: a corpus, its tokens, and rows of them to train a language model on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.artifact import Artifact, say
from jaxrec.data.batches import Batches
from jaxrec.data.data import Data

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

SPLITS = ("train", "validation", "test")
UNKNOWN = "\ufffd"
"""Stands for the characters that training has not seen."""


class TextSource(Artifact):
    """A corpus: `get()` is the text of each split by name."""

    def read(self) -> dict[str, str]:
        """Reads the raw text, split. Errors name file and fix."""
        raise TypeError(f"{type(self).__name__} is a source without a read method")

    def build(self, folder: Path) -> None:
        for split, text in self.read().items():
            (folder / f"{split}.txt").write_text(text, encoding="utf-8", newline="")

    def load(self, folder: Path) -> dict[str, str]:
        return {split: (folder / f"{split}.txt").read_bytes().decode() for split in SPLITS}


@dataclass(frozen=True)
class SyntheticText(TextSource):
    """Made-up words in a made-up order, for tests and `--smoke`.

    Attributes:
      words: of the training text; the other splits have a tenth of it.
      seed: of the draw.
    """

    words: int = 4000
    seed: int = 0

    def read(self) -> dict[str, str]:
        random = np.random.default_rng(self.seed)
        known = ["".join(random.choice(list("aeiou bdgklmnprst"), random.integers(2, 7))) for _ in range(60)]
        counts = {"train": self.words, "validation": self.words // 10, "test": self.words // 10}
        return {split: " ".join(random.choice(known, count)) for split, count in counts.items()}


@dataclass(frozen=True)
class Tokens(Artifact):
    """The tokens of a corpus: `get()` is a `TokenizedText`.

    Attributes:
      source: whose text.
      pieces: of a byte-level BPE learned from the training text; 0 = its characters.
    """

    source: TextSource
    pieces: int = 0

    def __post_init__(self):
        if self.pieces and self.pieces < 257:
            raise ValueError(f"pieces={self.pieces} cannot hold the 256 bytes; use 257 or more, or 0 for characters")

    def build(self, folder: Path) -> None:
        texts = self.source.get()
        tokenizer = train_tokenizer(texts["train"], self.pieces)
        tokenizer.save(str(folder / "tokenizer.json"))
        for split, text in texts.items():
            ids = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
            np.save(folder / f"{split}.npy", ids)
            say(f"  {split}: {len(text):,} characters, {len(ids):,} tokens")

    def load(self, folder: Path) -> TokenizedText:
        from tokenizers import Tokenizer

        ids = {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}
        return TokenizedText(Tokenizer.from_file(str(folder / "tokenizer.json")), ids)


@dataclass(frozen=True)
class TokenizedText:
    """A corpus in tokens.

    Attributes:
      tokenizer: token 0 is what it does not know.
      ids: [N] int32 of each split.
    """

    tokenizer: HfTokenizer
    ids: dict[str, np.ndarray]


@dataclass(frozen=True)
class TextRows(Data):
    """Rows of consecutive tokens, `token` and `target` (the next one) [B, T] int32, with `mask` and `segment` of ones.

    Attributes:
      tokens: of the corpus.
      length: tokens T of a row.
      stride: between the starts of training rows; 0 = T. A smaller one makes the same tokens be read in more contexts.
      batch: rows of a batch.
      seed: of the shuffles.
    """

    tokens: Tokens
    length: int = 256
    stride: int = 0
    batch: int = 16
    seed: int = 0

    def __post_init__(self):
        if self.length < 1 or self.stride < 0:
            raise ValueError(f"length={self.length} must be at least 1 and stride={self.stride} at least 0")

    @property
    def capacity(self) -> int:
        return self.length

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        return Batches(self.rows("train", self.length, self.stride or self.length), self.batch, self.seed, process, processes)

    def rows(self, split: str, length: int, stride: int) -> dict[str, np.ndarray]:
        """[rows, length] each, views of the split's tokens.

        Raises:
          ValueError: the split has no `length + 1` tokens.
        """
        ids = self.tokens.get().ids[split]
        if len(ids) <= length:
            raise ValueError(f"the {split} text has {len(ids):,} tokens, and a row needs {length + 1:,}; choose length below {len(ids):,}")
        windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)[::stride]
        ones = {name: np.broadcast_to(np.ones((), dtype), (len(windows), length)) for name, dtype in (("segment", np.int32), ("mask", np.float32))}
        return {"token": windows[:, :-1], "target": windows[:, 1:], **ones}

    def info(self) -> dict[str, Any]:
        return {"vocabulary": self.tokens.get().tokenizer.get_vocab_size(), "length": self.length}

    def smoke(self) -> TextRows:
        """The same form with a few made-up words."""
        return dataclasses.replace(self, tokens=Tokens(SyntheticText()), length=min(self.length, 32), stride=0, batch=8)


def train_tokenizer(text: str, pieces: int) -> HfTokenizer:
    """Byte-level BPE of so many pieces learned from a text (Sennrich et al. 2016, arXiv 1508.07909), or its characters if 0."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if pieces:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=pieces, special_tokens=[UNKNOWN], initial_alphabet=alphabet, show_progress=False))
        return tokenizer
    characters = [UNKNOWN, *sorted(set(text) - {UNKNOWN})]
    tokenizer = Tokenizer(models.WordLevel({character: number for number, character in enumerate(characters)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")  # . would leave out line ends
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
