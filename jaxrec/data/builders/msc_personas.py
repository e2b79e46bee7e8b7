"""Personas of Multi-Session Chat (Xu et al. 2021, arXiv 2107.07567): what two crowd workers said of themselves in a conversation, in short sentences.

They stand in for ConvAI2, whose dialogues Meta-LoRA (arXiv 2410.22264) was tried on: there a task is a persona, and a question is which of twenty
replies is its. Here are no dialogues, so what a speaker says of himself is a reply, and five such sentences are too few for a task. So a task is
speakers who share a trait, a word such as "dog" or "married": it comes back in what they say, as the facts of a persona do in its dialogues.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxrec.artifact import checksum
from jaxrec.data.builders.text_lines import decode, read_bytes
from jaxrec.data.source import locate
from jaxrec.data.task_pairs import SPLITS, Question, Tasks, TaskSource

_FILE = "msc_personas_all.json.gz"
_SPEAKERS = ("Speaker 1", "Speaker 2")
_FOLDS = {"train": range(6), "validation": range(6, 7), "test": range(7, 10)}
"""Of every ten conversations: no sentence of a conversation is in two splits, whoever says it and in whichever task."""

Part = Literal["retrain", "adapt"]


class Turn(NamedTuple):
    """What one of the two says of himself, what the other does, and the first as `plain_text`, sentence by sentence and as a set of words."""

    conversation: int
    own: list[str]
    other: list[str]
    plain: list[str]
    words: set[str]


@dataclasses.dataclass(frozen=True)
class MscPersonas(TaskSource):
    """Questions of which sentence a speaker says, in tasks of speakers with a common trait.

    Folder `msc_personas`: `msc_personas_all.json.gz`, gzipped or not, of which the part "train" is read (the others repeat about a hundred personas each,
    sentence for sentence). Traits are the last words of the sentences that most speakers say: "I have a dog.", "I am married."; in this order, every other one
    is a task to retrain on, and the rest are those to adapt to. Who has several counts for the last of them. For each sentence of a speaker there is a
    question: the context is what his partner says, and the wrong candidates are sentences of the same split by speakers who never say the word.

    Attributes:
      part: "retrain", or "adapt", the tasks that are held out.
      tasks: of each part.
      speakers: of a task at most, the first ones of the file.
      candidates: of a question.
      seed: of the draw of wrong candidates.
      data_dir: the folder; empty: `$JAXREC_DATA_DIR/msc_personas`.

    Raises (when read):
      FileNotFoundError: names the file that is missing.
      ValueError: names file, entry and fix; or too few speakers share a sentence.
    """

    part: Part = "retrain"
    tasks: int = 10
    speakers: int = 100
    candidates: int = 20
    seed: int = 0
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def __post_init__(self):
        if self.part not in ("retrain", "adapt"):
            raise ValueError(f"part={self.part!r} must be 'retrain' or 'adapt'")
        if min(self.tasks, self.speakers) < 1 or self.candidates < 2:
            raise ValueError(f"tasks={self.tasks} and speakers={self.speakers} must be at least 1, and candidates={self.candidates} at least 2")

    def inputs(self) -> dict[str, Any]:
        return {_FILE: checksum(self._path()), "numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def read(self) -> Tasks:
        turns = read_turns(self._path())
        said = Counter(plain for turn in turns for plain in turn.plain)
        common = sorted((plain for plain in said if said[plain] > 1), key=lambda plain: (-said[plain], plain))
        traits = list(dict.fromkeys(plain.split()[-1] for plain in common))[: 2 * self.tasks]
        if len(traits) < 2 * self.tasks:
            raise ValueError(
                f"{self._path()}: sentences that are said twice end in {len(traits)} words; lower tasks={self.tasks} to {len(traits) // 2} or less"
            )
        members: dict[str, list[Turn]] = {trait: [] for trait in traits}
        for turn in turns:
            own = [trait for trait in traits if trait in turn.words]
            if own and turn.other and len(members[own[-1]]) < self.speakers:
                members[own[-1]].append(turn)
        names = traits[("retrain", "adapt").index(self.part) :: 2]
        try:
            return Tasks(names, {split: list(self._questions(turns, {name: members[name] for name in names}, split)) for split in SPLITS})
        except ValueError as error:
            raise ValueError(f"{self._path()}: {error}") from None

    def _questions(self, turns: list[Turn], members: dict[str, list[Turn]], split: str) -> Iterator[Question]:
        """Those of a split, task by task in the order of the file."""
        random = np.random.default_rng((self.seed, SPLITS.index(split)))
        here = [turn for turn in turns if turn.conversation % 10 in _FOLDS[split]]
        for task, (name, group) in enumerate(members.items()):
            asked = [turn for turn in group if turn.conversation % 10 in _FOLDS[split]]
            others = [pair for turn in here if name not in turn.words for pair in zip(turn.own, turn.plain, strict=True)]
            spare = len({plain for _, plain in others}) - max((len(turn.plain) for turn in asked), default=0)
            if asked and self.candidates - 1 > spare:
                raise ValueError(f"candidates={self.candidates} of a question are too many for the {split} split, which has {spare} others; ask for fewer")
            for turn in asked:
                for sentence in turn.own:
                    yield Question(task, " ".join(turn.other), [sentence, *self._wrong(random, others, turn)])

    def _wrong(self, random: np.random.Generator, others: list[tuple[str, str]], turn: Turn) -> list[str]:
        """Different sentences of others that the speaker does not say."""
        found: dict[str, str] = {}
        while len(found) < self.candidates - 1:
            sentence, plain = others[random.integers(len(others))]
            if plain not in turn.plain:
                found.setdefault(plain, sentence)
        return list(found.values())

    def _path(self) -> Path:
        hint = "It is data/msc_personas_all.json of github.com/snap-research/LoCoMo."
        return locate(self.data_dir, (_FILE,), dataset="msc_personas", hint=hint) / _FILE


def plain_text(sentence: str) -> str:
    """A sentence without capitals, punctuation and articles, so that "I am vegan" and "I am a vegan." are one."""
    return " ".join(word for word in re.sub(r"[^a-z0-9 ]", "", sentence.lower()).split() if word not in ("a", "an", "the"))


def read_turns(path: Path) -> list[Turn]:
    """Both speakers of every conversation of the part "train".

    Raises:
      ValueError: the file is no JSON, or an entry lacks a speaker, or a speaker's sentences are no list of texts; names it.
    """
    try:
        parts = json.loads(decode(read_bytes(path), path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); fetch the file again") from None
    if not isinstance(parts, dict) or not isinstance(rows := parts.get("train"), list):
        raise ValueError(f"{path}: must be a JSON object with a list 'train'; fetch the file again")
    turns = []
    for number, row in enumerate(rows):
        for speaker in _SPEAKERS:
            sentences = row.get(speaker) if isinstance(row, dict) else None
            if not isinstance(sentences, list) or not all(isinstance(sentence, str) and plain_text(sentence) for sentence in sentences):
                raise ValueError(f"{path}: train[{number}][{speaker!r}] must be a list of sentences, got {str(sentences)[:80]}; correct or remove the entry")
        for speaker, other in (_SPEAKERS, _SPEAKERS[::-1]):
            plain = [plain_text(sentence) for sentence in row[speaker]]
            turns.append(Turn(number, row[speaker], row[other], plain, set(" ".join(plain).split())))
    return turns
