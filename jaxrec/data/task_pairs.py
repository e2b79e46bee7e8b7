"""Task pairs: which of some candidates goes with a context, asked in several tasks. Questions -> word pieces -> rows of a context and a candidate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrec.artifact import Artifact, say
from jaxrec.data.batches import Batches
from jaxrec.data.collection import Collection, CollectionSource
from jaxrec.data.data import Data
from jaxrec.data.tokenizers import Tokenizer, WordPiece, bert_frame

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

SPLITS = ("train", "validation", "test")


class Question(NamedTuple):
    """Which of the candidates goes with this context, in this task? The first; who answers must not know."""

    task: int
    context: str
    candidates: Sequence[str]


@dataclass(frozen=True)
class Tasks:
    """Tasks by name, and their questions in each split, all with as many candidates."""

    names: Sequence[str]
    questions: Mapping[str, Sequence[Question]]

    def __post_init__(self):
        sizes = sorted({len(question.candidates) for questions in self.questions.values() for question in questions})
        if len(sizes) != 1 or sizes[0] < 2:
            raise ValueError(f"questions have {' or '.join(map(str, sizes)) or 'no'} candidates; all need one number of them, 2 or more")
        for split, questions in self.questions.items():
            if missing := sorted(set(range(len(self.names))) - {question.task for question in questions}):
                raise ValueError(f"task {self.names[missing[0]]!r} has no {split} question; choose fewer tasks, or larger ones")


class TaskSource(Artifact):
    """Where questions come from: `get()` is `Tasks`."""

    def read(self) -> Tasks:
        """Reads the raw data. Errors name file and fix."""
        raise TypeError(f"{type(self).__name__} is a source of tasks without a read method")

    def build(self, folder: Path) -> None:
        tasks = self.read()
        say(f"  {len(tasks.names)} tasks, " + ", ".join(f"{len(questions):,} {split} questions" for split, questions in tasks.questions.items()))
        (folder / "tasks.json").write_text(json.dumps(dataclasses.asdict(tasks)), encoding="utf-8")

    def load(self, folder: Path) -> Tasks:
        found = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        return Tasks(found["names"], {split: [Question(*question) for question in questions] for split, questions in found["questions"].items()})


@dataclass(frozen=True)
class TaskTexts(CollectionSource):
    """The training texts of tasks as documents, for a tokenizer to learn from: `WordPiece(TaskTexts(source))`."""

    source: TaskSource

    def read(self) -> Collection:
        questions = self.source.get().questions["train"]
        texts = list(dict.fromkeys(text for question in questions for text in (question.context, *question.candidates)))
        return Collection([str(number) for number in range(len(texts))], [""] * len(texts), texts, {}, {})


@dataclass(frozen=True)
class SyntheticTasks(TaskSource):
    """Made-up words; each task has favourite ones, from which its right candidates are drawn, and the wrong ones from all. The context tells nothing.

    Attributes:
      tasks: how many.
      questions: of each task in each split.
      candidates: of a question.
      words: in all.
      favourites: words of a task.
      seed: of the draws; other seeds have other favourites, of the same words.
    """

    tasks: int = 3
    questions: int = 20
    candidates: int = 4
    words: int = 60
    favourites: int = 10
    seed: int = 0

    def inputs(self) -> dict[str, Any]:
        return {"numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def read(self) -> Tasks:
        random = np.random.default_rng(self.seed)
        words = [f"{'bdfgklmnrs'[number // 5 % 10]}{'aeiou'[number % 5]}{number}" for number in range(self.words)]
        liked = [random.choice(words, self.favourites, replace=False) for _ in range(self.tasks)]

        def some(among: Any) -> str:
            return " ".join(random.choice(among, 3))

        def questions() -> Iterator[Question]:
            for task in np.repeat(np.arange(self.tasks), self.questions).tolist():
                yield Question(task, some(words), [some(liked[task]), *(some(words) for _ in range(self.candidates - 1))])

        return Tasks([f"task {number}" for number in range(self.tasks)], {split: list(questions()) for split in SPLITS})


@dataclass(frozen=True)
class TokenizedTasks(Artifact):
    """The rows of all questions: `text` and `type` [Q, C, T] and `task` [Q], int32, by split."""

    source: TaskSource
    tokenizer: Tokenizer
    length: int

    def build(self, folder: Path) -> None:
        tokenizer = self.tokenizer.get()
        for split, questions in self.source.get().questions.items():
            text, types, cut = tokenize_pairs(tokenizer, questions, self.length)
            if cut:
                say(f"  {cut:,} of {text.shape[0] * text.shape[1]:,} {split} pairs are longer than {self.length} tokens and were cut")
            np.savez(folder / f"{split}.npz", text=text, type=types, task=np.asarray([question.task for question in questions], np.int32))

    def load(self, folder: Path) -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for split in SPLITS:
            with np.load(folder / f"{split}.npz") as file:
                found[split] = dict(file)
        return found


@dataclass(frozen=True)
class TaskPairs(Data):
    """Questions of several tasks, a training row for each candidate.

    A row has `text` [T], a context and a candidate in word pieces, `type` [T], 0 where the context is and 1 where the candidate, `task`, `label`, 1 if the
    candidate is the right one, and `mask`, 1.

    Attributes:
      source: of the tasks.
      tokenizer: of their texts.
      length: tokens T of a row, three special ones included; the end of the context is cut first.
      batch: rows of a training batch, over all processes.
      negatives: wrong candidates of each training question that are trained on, the first ones; 0 = all.
      shots: training questions of each task, the first ones; 0 = all.
      seed: of the shuffles.
    """

    source: TaskSource
    tokenizer: Tokenizer
    length: int = 64
    batch: int = 32
    negatives: int = 0
    shots: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.length < 5 or min(self.negatives, self.shots) < 0:
            raise ValueError(f"length={self.length} must be at least 5, negatives={self.negatives} and shots={self.shots} at least 0")

    @property
    def capacity(self) -> int:
        return self.length

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        """The endless training batches of one process."""
        questions = some(self.questions("train"), self.shots)
        kept = 1 + self.negatives if self.negatives else None
        text, types = (questions[name][:, :kept] for name in ("text", "type"))
        asked, candidates, _ = text.shape
        if self.negatives >= questions["text"].shape[1]:
            raise ValueError(f"negatives={self.negatives} are more than the {candidates - 1} wrong candidates of a question; use 0 for all")
        rows = {
            "text": text.reshape(asked * candidates, -1),
            "type": types.reshape(asked * candidates, -1),
            "task": np.repeat(questions["task"], candidates),
            "label": np.tile((np.arange(candidates) == 0).astype(np.int32), asked),
            "mask": np.ones(asked * candidates, np.float32),
        }
        return Batches(rows, self.batch, self.seed, process, processes)

    def questions(self, split: str) -> dict[str, np.ndarray]:
        """`text` and `type` [Q, C, T] and `task` [Q] of a split, the right candidate first."""
        return TokenizedTasks(self.source, self.tokenizer, self.length).get()[split]

    def info(self) -> dict[str, Any]:
        """What a method may take from the data: `tasks`, how many, and what the tokenizer knows."""
        return {"tasks": len(self.source.get().names), "length": self.length, **self.tokenizer.info()}

    def smoke(self) -> TaskPairs:
        """The same form with a few made-up words."""
        small = SyntheticTasks()
        return dataclasses.replace(self, source=small, tokenizer=WordPiece(TaskTexts(small), size=512), length=16, batch=8, negatives=0, shots=0)


def some(questions: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The first `count` questions of each task, or all if 0."""
    task = questions["task"]
    place = np.zeros(len(task), np.int64)
    for number in np.unique(task):
        place[task == number] = np.arange((task == number).sum())
    return {name: array[place < count] if count else array for name, array in questions.items()}


def tokenize_pairs(tokenizer: HfTokenizer, questions: Sequence[Question], length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """([Q, C, length] int32 ids, [Q, C, length] int32 types, how many pairs were cut): [CLS] context [SEP] candidate [SEP], then padding."""
    frame = bert_frame(tokenizer)
    start, end, pad = frame.query[0], frame.end, frame.pad
    asked, candidates = len(questions), len(questions[0].candidates)
    contexts = [encoding.ids for encoding in tokenizer.encode_batch([question.context for question in questions], add_special_tokens=False)]
    flat = [candidate for question in questions for candidate in question.candidates]
    seconds = [encoding.ids for encoding in tokenizer.encode_batch(flat, add_special_tokens=False)]
    ids, types, cut = np.full((asked * candidates, length), pad, np.int32), np.zeros((asked * candidates, length), np.int32), 0
    for row, pieces in enumerate(seconds):
        context, second = contexts[row // candidates], pieces[: length - 3]
        first = context[: length - 3 - len(second)]
        pair = [start, *first, end, *second, end]
        ids[row, : len(pair)] = pair
        types[row, len(first) + 2 : len(pair)] = 1
        cut += len(first) + len(second) < len(context) + len(pieces)
    return ids.reshape(asked, candidates, length), types.reshape(asked, candidates, length), cut
