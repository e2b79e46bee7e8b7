"""Choosing among candidates: how often the right one scores highest, task by task."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxrec.data.task_pairs import SPLITS, TaskPairs, some
from jaxrec.experiment import Evaluator

ROWS = 256
"""Candidates that are scored at once."""


def right(scores: np.ndarray) -> np.ndarray:
    """Scores [Q, C], those of the right candidates first -> [Q] float64: 1 where it is the highest, 0 where it is not, 1 / n where n candidates share it.

    So a model that scores all alike is right in 1 of C cases, as one that guesses is.
    """
    highest = scores == scores.max(axis=1, keepdims=True)
    return highest[:, 0] / np.maximum(highest.sum(axis=1), 1)  # NaN is never the highest


@dataclass(frozen=True)
class CandidateChoice(Evaluator):
    """Mean over tasks of the share of questions whose right candidate scores highest, and its standard deviation over tasks.

    Attributes:
      split: whose questions.
      questions: of each task, the first ones; 0 = all.
    """

    split: str = "validation"
    questions: int = 0

    def check(self, data: Any) -> None:
        if not isinstance(data, TaskPairs):
            raise ValueError(f"{type(data).__name__} has no questions with candidates; CandidateChoice needs TaskPairs")
        if self.split not in SPLITS:
            raise ValueError(f"there is no split {self.split!r}; choose one of {', '.join(SPLITS)}")

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation accuracy", 0.25) and ("validation accuracy deviation", 0.05)."""
        found = report(method, params, data, self.split, questions=self.questions)
        yield f"{self.split} accuracy", found["accuracy"]
        yield f"{self.split} accuracy deviation", found["deviation"]


def report(method: Any, params: Any, data: TaskPairs, split: str, *, questions: int = 0) -> dict[str, Any]:
    """Accuracy by task.

    Returns:
      "tasks": name -> {"accuracy", "questions"}; "accuracy": the mean over tasks; "deviation": the standard deviation over tasks; "chance": a guess's.
    """
    asked = some(data.questions(split), questions)
    correct = right(score_candidates(method, params, asked))
    tasks = {}
    for number, name in enumerate(data.source.get().names):
        own = correct[asked["task"] == number]
        tasks[name] = {"accuracy": float(own.mean()), "questions": len(own)}
    each = [task["accuracy"] for task in tasks.values()]
    return {"accuracy": float(np.mean(each)), "deviation": float(np.std(each)), "chance": 1 / asked["text"].shape[1], "tasks": tasks}


def table(name: str, found: Mapping[str, Any]) -> str:
    """The report as monospaced text."""
    width = max(map(len, found["tasks"]))
    lines = [f"{name}: accuracy {found['accuracy']:.4f}, standard deviation over tasks {found['deviation']:.4f}, a guess {found['chance']:.4f}"]
    return "\n".join(lines + [f"{task:<{width}}  {row['accuracy']:.4f}  {row['questions']:>6,} questions" for task, row in found["tasks"].items()])


def score_candidates(method: Any, params: Any, questions: Mapping[str, np.ndarray]) -> np.ndarray:
    """[Q, C] float32 scores of all candidates, from `text` and `type` [Q, C, T] and `task` [Q]."""
    asked, candidates, length = questions["text"].shape
    rows = {name: questions[name].reshape(-1, length) for name in ("text", "type")} | {"task": np.repeat(questions["task"], candidates)}
    params, found = jax.device_put(params), []
    for begin in range(0, asked * candidates, ROWS):
        taken = np.minimum(np.arange(begin, begin + ROWS), asked * candidates - 1)  # the last row again, so that one program serves all
        found.append(np.asarray(_predictor(method)(params, {name: array[taken] for name, array in rows.items()})))
    return np.concatenate(found)[: asked * candidates].reshape(asked, candidates)


@functools.lru_cache(maxsize=8)
def _predictor(method: Any) -> Any:
    return jax.jit(method.predict)
