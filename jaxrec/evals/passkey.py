"""Passkeys: how often a language model gives a hidden key back whole, by depth, also in rows longer than those of training."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.passkeys import Passkeys
from jaxrec.evals.language_modelling import TOKENS
from jaxrec.experiment import Evaluator

DEPTHS = 10


@dataclass(frozen=True)
class PasskeyRecall(Evaluator):
    """The share of validation keys that greedy decoding gives back whole, and the share of their symbols, in rows of the training length.

    Attributes:
      rows: how many.
    """

    rows: int = 256

    def check(self, data: Any) -> None:
        if not isinstance(data, Passkeys):
            raise ValueError(f"{type(data).__name__} hides no keys; PasskeyRecall needs Passkeys")

    def __call__(self, method: Any, params: Any, data: Any) -> Iterator[tuple[str, float]]:
        """Yields ("validation keys", 0.9) and ("validation symbols", 0.95)."""
        right = answers(method, params, data.rows("validation", data.length, self.rows), data.key)
        yield "validation keys", float(right.all(axis=1).mean())
        yield "validation symbols", float(right.mean())


def answers(method: Any, params: Any, rows: Mapping[str, np.ndarray], key: int) -> np.ndarray:
    """[N, key] bool: whether the most probable token is the key's, at each place of the answer, the places before it being right.

    Greedy decoding gives a key back whole exactly if all of its places are right: until the first wrong one, it reads what is read here.
    """
    count, length = rows["token"].shape
    at_once, found = max(1, min(count, TOKENS // length)), []
    for begin in range(0, count, at_once):
        taken = np.minimum(np.arange(begin, begin + at_once), count - 1)  # the last rows again, so that one program serves all
        best = np.asarray(_reader(method, key)(params, rows["token"][taken], rows["segment"][taken]))
        found.append(np.equal(best, rows["target"][taken, -key:])[: count - begin])
    return np.concatenate(found)


@functools.lru_cache(maxsize=8)
def _reader(method: Any, key: int) -> Any:
    def best(params: Any, token: jax.Array, segment: jax.Array) -> jax.Array:
        return jnp.argmax(params.logits(params(token, segment)[:, -key:]), axis=-1)  # [B, key]

    return jax.jit(best)


def report(method: Any, params: Any, data: Passkeys, split: str, *, longer: tuple[int, ...] = (1, 2, 4), rows: int = 500) -> dict[str, Any]:
    """Keys given back whole at 1, 2, 4 times the training length.

    Returns:
      "keys": length -> {"rows", "keys", "symbols", "depths"}: shares of the keys and of the symbols that are right, and of the keys by tenth of the depth,
      from the begin of the text to its end; None where no row has that depth.
    """
    found = {}
    for length in (times * data.length for times in longer if times * data.length <= method.model.length):
        drawn = data.rows(split, length, rows)
        right = answers(method, params, drawn, data.key)
        tenth, whole = np.minimum((drawn["depth"] * DEPTHS).astype(int), DEPTHS - 1), np.all(right, axis=1)
        depths = [round(float(whole[tenth == one].mean()), 4) if (tenth == one).any() else None for one in range(DEPTHS)]
        found[length] = {"rows": rows, "keys": float(whole.mean()), "symbols": float(right.mean()), "depths": depths}
    return {"keys": found}


def table(name: str, found: Mapping[str, Any]) -> str:
    """The report as monospaced text."""
    lines = [f"{name}: keys given back whole, by length of the row and depth of the key", f"{'tokens':>8}  {'keys':>6}  {'symbols':>7}  depth 0 to 1 in tenths"]
    for length, row in found["keys"].items():
        depths = " ".join("  -" if share is None else f"{100 * share:3.0f}" for share in row["depths"])
        lines.append(f"{length:>8,}  {row['keys']:>6.3f}  {row['symbols']:>7.3f}  {depths}")
    return "\n".join(lines)
