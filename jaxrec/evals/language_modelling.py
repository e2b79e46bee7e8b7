"""Language modelling: how probable held-out text is, also in rows longer than those of training, and what attention does with its keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.text import TextRows
from jaxrec.evals.attention import attention_shares
from jaxrec.experiment import Evaluator

TOKENS = 16_384
"""Tokens that are scored at once."""


@dataclass(frozen=True)
class HeldOutText(Evaluator):
    """The geometric mean of the probability of a validation token (1 / perplexity), and its loss in nats.

    Attributes:
      rows: of the validation text, evenly apart; 0 = all.
    """

    rows: int = 64

    def check(self, data: Any) -> None:
        if not isinstance(data, TextRows):
            raise ValueError(f"{type(data).__name__} has no rows of text; HeldOutText needs TextRows")
        data.rows("validation", data.length, data.length)

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation probability", 0.21) and ("validation loss", 1.56)."""
        losses = token_losses(method, params, some(data.rows("validation", data.length, data.length), self.rows))
        yield "validation probability", float(np.exp(-losses.mean()))
        yield "validation loss", float(losses.mean())


def some(rows: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """`count` of the rows evenly apart, or all if 0 or if there are fewer."""
    there = len(rows["token"])
    chosen = np.arange(there) if not 0 < count < there else np.linspace(0, there - 1, count).astype(int)
    return {name: np.ascontiguousarray(array[chosen]) for name, array in rows.items()}


def token_losses(method: Any, params: Any, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """-log p of every target, [N, T] float32 nats."""
    count, length = rows["token"].shape
    at_once = max(1, min(count, TOKENS // length))
    score = _scorer(method)
    found = []
    for begin in range(0, count, at_once):
        taken = np.minimum(np.arange(begin, begin + at_once), count - 1)  # the last rows again, so that one program serves all
        found.append(-np.asarray(score(params, {name: array[taken] for name, array in rows.items()}))[: count - begin])
    return np.concatenate(found)


@functools.lru_cache(maxsize=8)
def _scorer(method: Any) -> Any:
    return jax.jit(method.log_likelihood)


def report(method: Any, params: Any, data: Any, split: str, *, longer: tuple[int, ...] = (1, 2, 4), rows: int = 0) -> dict[str, Any]:
    """What `jaxrec eval` shows of a language model.

    Returns:
      "loss": nats per token in rows of 1, 2, 4 times the training length, with "last": that of each row's last quarter, where the length matters; and
      "attention": the statistics of `attention_shares` at the training length.
    """
    losses = {}
    for times in longer:
        length = times * data.length
        if length > method.model.length or len(data.tokens.get().ids[split]) <= length:
            continue
        each = token_losses(method, params, some(data.rows(split, length, length), rows))
        losses[length] = {"rows": len(each), "loss": float(each.mean()), "last": float(each[:, -(length // 4) :].mean())}
    shown = some(data.rows(split, data.length, data.length), 8)
    shares = jax.jit(attention_shares)(params, jnp.asarray(shown["token"]))
    return {"loss": losses, "attention": {name: float(value) for name, value in shares.items()}}


def table(name: str, found: Mapping[str, Any]) -> str:
    """The report as monospaced text."""
    lines = [f"{name}: nats per token by length of the row", f"{'tokens':>8}  {'rows':>6}  {'loss':>7}  {'perplexity':>10}  last quarter"]
    for length, row in found["loss"].items():
        lines.append(f"{length:>8,}  {row['rows']:>6,}  {row['loss']:>7.4f}  {np.exp(row['loss']):>10.3f}  {row['last']:>12.4f}")
    return "\n".join([*lines, "", *(f"{label}: {value:.4f}" for label, value in found["attention"].items())])
