"""Passkeys: a key hidden in long text that has nothing to do with it, asked for at the end (Mohtashami and Jaggi 2023, arXiv 2305.16300)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrec.data.batches import Batches
from jaxrec.data.data import Data
from jaxrec.data.text import SPLITS, SyntheticText, Tokens


@dataclass(frozen=True)
class Passkeys(Data):
    """Rows of text with one key each: text ... `mark` key ... text `mark`, and then the key again, which alone is to be predicted.

        mark k1 k2 k3 at a random depth;    mark -> k1,  k1 -> k2,  k2 -> k3 at the end of the row

    Batches hold `token` and `target` (the next one) [B, T] int32, `segment` of ones, and `mask`, 1 where the target is of the answer. What we changed: a mark
    and symbols that no text has stand for the sentences of the paper around its five digits, so that a small model learns the task in minutes.

    Attributes:
      tokens: of the corpus that hides the keys.
      length: tokens T of a training row.
      key: symbols of a key.
      symbols: to draw them from; one may come twice.
      count: training rows, drawn once.
      batch: rows of a batch.
      seed: of the draws and shuffles.
    """

    tokens: Tokens
    length: int = 128
    key: int = 3
    symbols: int = 10
    count: int = 16_384
    batch: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.key < 1 or self.symbols < 2 or self.count < 1:
            raise ValueError(f"key={self.key} and count={self.count} must be at least 1, and symbols={self.symbols} at least 2")
        if self.length < 2 * self.key + 2:
            raise ValueError(f"length={self.length} leaves no text beside a key of {self.key} symbols, its copy and two marks; use {2 * self.key + 2} or more")

    @property
    def capacity(self) -> int:
        return self.length

    @property
    def mark(self) -> int:
        """The token before a key; those of the symbols follow it."""
        return self.tokens.get().tokenizer.get_vocab_size()

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        rows = self.rows("train", self.length, self.count)
        del rows["depth"]
        return Batches(rows, self.batch, self.seed, process, processes)

    def rows(self, split: str, length: int, count: int) -> dict[str, np.ndarray]:
        """The arrays of `count` rows of so many tokens, and `depth` [count], the share of the text before the key.

        Raises:
          ValueError: the split's text is shorter than a row.
        """
        ids, text = self.tokens.get().ids[split], length - 2 * self.key - 1  # of length + 1 tokens with the last target
        if len(ids) < text:
            raise ValueError(f"the {split} text has {len(ids):,} tokens, and a row hides its key in {text:,}; choose a shorter length")
        random = np.random.default_rng((self.seed, SPLITS.index(split), length))
        begin = random.integers(0, len(ids) - text + 1, count)
        before = random.integers(0, text + 1, count)
        key = self.mark + 1 + random.integers(0, self.symbols, (count, self.key))
        place = np.arange(length - self.key)[None]  # of text, mark and key
        at = place - before[:, None]
        own = np.take_along_axis(np.concatenate([np.full((count, 1), self.mark), key], axis=1), np.clip(at, 0, self.key), axis=1)
        hidden = np.where((at >= 0) & (at <= self.key), own, ids[begin[:, None] + np.where(at > self.key, place - self.key - 1, np.minimum(place, text - 1))])
        row = np.concatenate([hidden, np.full((count, 1), self.mark), key], axis=1).astype(np.int32)  # [count, length + 1]
        mask = np.broadcast_to((np.arange(length) >= length - self.key).astype(np.float32), (count, length))
        return {"token": row[:, :-1], "target": row[:, 1:], "segment": np.ones((count, length), np.int32), "mask": mask, "depth": before / text}

    def info(self) -> dict[str, Any]:
        return {"vocabulary": self.mark + 1 + self.symbols, "length": self.length}

    def smoke(self) -> Passkeys:
        """The same form with a few made-up words."""
        return dataclasses.replace(self, tokens=Tokens(SyntheticText()), length=min(self.length, 24), key=min(self.key, 3), count=64, batch=8)
