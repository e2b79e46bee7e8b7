"""The abilities that agents ask for. Each takes them as arguments, so a scripted stub, a model on this machine and a served one are the same to it.

The bases are nominal, as those in `jaxrec.method`. A call is a pure function of its arguments: any order of calls, and any company in a batch, gives
the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Finish = Literal["stop", "length", "eos"]


@dataclass(frozen=True, eq=False)
class Completion:
    """What a generator wrote after a prompt.

    Attributes:
      text: without the stop string or the token that ended it.
      token_ids: int32 [T], all that were drawn.
      logprobs: float32 [T], of the drawn tokens, with the temperature applied.
      finish: "stop", a stop string came; "eos", the model ended the text; "length", the limit.
    """

    text: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: Finish


class TextGenerator:
    """Writes on after prompts."""

    def generate(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), max_new: int = 256, temperature: float = 0.0, seed: int | Sequence[int] = 0
    ) -> list[Completion]:
        """One completion for each prompt: at most `max_new` tokens, up to the first of the strings `stop`; temperature 0 is greedy.

        What is drawn depends on a prompt and its seed alone, so equal prompts with one seed get equal texts: for several of one prompt, give `seed` as a
        list, one for each prompt.
        """
        raise TypeError(f"{type(self).__name__} does not generate")


class TextScorer:
    """Says how probable texts are."""

    def logprob(self, prefixes: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """log p(token | prefix, target so far) of each target's tokens, teacher-forced: float32 [T_i] each."""
        raise TypeError(f"{type(self).__name__} does not score texts")


class Embedder:
    """Turns texts into vectors; `normalized` says whether they have unit length."""

    normalized: bool = True

    def encode(self, texts: Sequence[str], kind: Literal["query", "doc"]) -> np.ndarray:
        """float32 [B, D]."""
        raise TypeError(f"{type(self).__name__} does not encode")


class Judge:
    """Answers a question with one of finitely many labels; what cannot be parsed is `default`."""

    labels: tuple[str, ...] = ()
    default: str = ""

    def judge(self, prompt_vars: Mapping[str, Any]) -> str:
        """The label of a case, from the variables of the judge's prompt."""
        raise TypeError(f"{type(self).__name__} does not judge")


class Retriever:
    """Finds documents."""

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 [B, k] and scores float32 [B, k], best first; -1 where there are no more."""
        raise TypeError(f"{type(self).__name__} does not search")
