"""ReasonedPassages: training queries with the steps of thought that lead to what answers them, for methods that learn to think without words."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact, say
from jaxrec.data.collection import CollectionSource
from jaxrec.data.passages import Gathered, Passages
from jaxrec.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenizedReasoning(Artifact):
    """A training query and its reasoning in one row, `reasoning` [Q, Te] int32, and the last word piece of each step, `step` [Q, Te] bool.

    A row is the query in its frame, as it is alone; then each step and the frame's end, which is marked. Steps that do not fit are cut, and what is left of
    the last one has its end, too. A query without reasoning has no mark.
    """

    source: CollectionSource
    tokenizer: Tokenizer
    query_length: int
    length: int

    def build(self, folder: Path) -> None:
        collection, tokenizer, frame = self.source.get(), self.tokenizer.get(), self.tokenizer.frame()
        texts = collection.queries["train"].texts
        reasoning = collection.reasoning.get("train", [[] for _ in texts])
        room = self.query_length - frame.added("query")
        ids, step = np.full((len(texts), self.length), frame.pad, np.int32), np.zeros((len(texts), self.length), bool)
        cut = 0
        for number, (text, steps) in enumerate(zip(texts, reasoning, strict=True)):
            query, *pieces = [encoding.ids for encoding in tokenizer.encode_batch([frame.query_prompt + text, *steps], add_special_tokens=False)]
            row, ends = [*frame.query, *query[:room], frame.end], []
            for some in pieces:
                if len(row) + 2 > self.length:  # no place for a word piece and its end
                    break
                row += [*some[: self.length - len(row) - 1], frame.end]
                ends.append(len(row) - 1)
            cut += len(row) < frame.added("query") + len(query) + sum(len(some) + 1 for some in pieces)
            ids[number, : len(row)], step[number, ends] = row, True
        say(f"  {step.any(axis=1).sum():,} of {len(texts):,} training queries have reasoning, and {cut:,} do not fit into {self.length} tokens with it")
        np.savez(folder / "reasoning.npz", reasoning=ids, step=step)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        with np.load(folder / "reasoning.npz", allow_pickle=False) as file:
            return dict(file)


@dataclass(frozen=True)
class ReasonedPassages(Passages):
    """`Passages` whose rows have two more fields: `reasoning` [B, Te], the query with its reasoning behind it, and `step` [B, Te], the ends of its steps.

    A query without reasoning has no step. Evaluation reads queries alone.

    Attributes:
      reasoning_length: Te, word pieces of query and reasoning; longer ones are cut.
    """

    reasoning_length: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.reasoning_length < self.query_length + 2:
            raise ValueError(
                f"reasoning_length={self.reasoning_length} has no place for reasoning behind query_length={self.query_length}; "
                f"use {self.query_length + 2} or more"
            )

    @property
    def capacity(self) -> int:
        return super().capacity + self.reasoning_length

    def rows(self) -> dict[str, Any]:
        query, _ = self.pairs()
        tables = TokenizedReasoning(self.source, self.tokenizer, self.query_length, self.reasoning_length).get()
        return super().rows() | {name: Gathered(table, query) for name, table in tables.items()}

    def examples_per_row(self) -> float:
        return super().examples_per_row() + 1

    def smoke(self) -> Passages:
        return dataclasses.replace(super().smoke(), reasoning_length=24)
