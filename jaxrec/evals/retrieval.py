"""Retrieval: where the item that came next stands among all items of the catalogue, for every user. Nothing is sampled."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.artifact import write_atomically
from jaxrec.data.examples import Examples
from jaxrec.method import Baseline, Encoder, Generator, Scorer
from jaxrec.param import Tree

ANSWERS = ("target", "seen", "weight")  # what a batch of examples holds for the evaluation only: no system sees it


ARRAYS = ("kept", "removed", "cold", "user", "target")  # of Ranks
CUTOFFS = (5, 10)  # how deep metrics look
GENERATED = 128  # examples for which IDs are generated at once: a beam search holds the caches of all beams
SAME = "rank both on the same examples"


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Ranks of the targets of a system, 1 = best, one example per user.

    Attributes:
      kept: [B] int32 rank among all items of the catalogue.
      removed: [B] int32 rank among the items that the user has not seen; 0 = not asked: the target itself is one the user has seen.
      cold: [B] bool, True where the target never occurs in the training histories.
      user: [B] int32 the user's row, none twice.
      target: [B] int32 the item that came next.
      baseline: whether a `Baseline` gave these ranks; a model should beat it.
    """

    kept: np.ndarray
    removed: np.ndarray
    cold: np.ndarray
    user: np.ndarray
    target: np.ndarray
    baseline: bool = False

    def __post_init__(self):
        lengths = {name: len(getattr(self, name)) for name in ARRAYS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of Ranks differ in length: {lengths}")
        users, counts = np.unique(self.user, return_counts=True)
        if (counts > 1).any():  # the intervals of `report` and the pairs of `compare` rest on it
            raise ValueError(f"Ranks wants one example per user, but user {users[counts.argmax()]} has {counts.max()}; rank each set of examples by itself")
        if len(self.kept) and self.kept.min() < 1:
            raise ValueError(f"ranks start at 1, but kept holds {self.kept.min()}")

    def __len__(self) -> int:
        return len(self.user)

    def protocols(self) -> Iterator[tuple[str, str, np.ndarray, int]]:
        """Yields each protocol: what happens to seen items, which targets, the ranks [n] of the users asked, how many were not asked."""
        for seen, rank in (("seen kept", self.kept), ("seen removed", self.removed)):
            for targets, chosen in (("all targets", np.ones(len(self), bool)), ("warm targets", ~self.cold), ("cold targets", self.cold)):
                asked = chosen & (rank > 0)
                yield seen, targets, rank[asked], int(chosen.sum() - asked.sum())

    def by_user(self) -> Ranks:
        """The same in order of users."""
        order = np.argsort(self.user)
        return dataclasses.replace(self, **{name: getattr(self, name)[order] for name in ARRAYS})

    def check_same_questions(self, other: Ranks, name: str, other_name: str) -> None:
        """Raises ValueError, with the users concerned, unless both rank the same targets for the same users."""
        if len(apart := np.setxor1d(self.user, other.user)):
            raise ValueError(f"{name} and {other_name} rank for different users: only one of them has {_some(apart)}; {SAME}")
        a, b = self.by_user(), other.by_user()
        for what, differ in (("targets", a.target != b.target), ("cold flags", a.cold != b.cold), ("seen items", (a.removed > 0) != (b.removed > 0))):
            if differ.any():
                raise ValueError(f"{name} and {other_name} have different {what} for {_some(a.user[differ])}; {SAME}")

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all."""
        file = io.BytesIO()
        np.savez(file, kept=self.kept, removed=self.removed, cold=self.cold, user=self.user, target=self.target, baseline=np.array(self.baseline))
        write_atomically(Path(path), file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Ranks:
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is damaged, or no file of ranks.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}); rank the system again (jaxrec eval)") from error
        if missing := {*ARRAYS, "baseline"} - set(arrays):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}, so it is no file of ranks; rank the system again")
        return cls(*(arrays[name] for name in ARRAYS), baseline=bool(arrays["baseline"]))


def _some(users: np.ndarray) -> str:
    return f"{len(users)} user{'s' if len(users) > 1 else ''} ({', '.join(map(str, users[:5]))}{', ...' if len(users) > 5 else ''})"


def rank(
    system: Encoder | Scorer | Generator | Baseline, params: Tree, examples: Examples, *, items: int, length: int, batch: int = 256, seen_removed: bool = True
) -> Ranks:
    """Ranks each example's target among all items 1..`items`.

    Ranks are pessimistic: 1 + the number of other items whose score is the target's or better. Were ties broken in the target's
    favour, or by id, a system that gives every item the same score would look good; so it comes last, as it should. Infinite scores
    are allowed, and tie like others.

    Args:
      system: an `Encoder` (inner products of its query and item vectors, in float32), a `Scorer` (of the whole catalogue: its batch has no
        "item"; columns beyond `items` do not count), a `Generator` (its own number of beams; a target that it does not generate is ranked last, so
        only metrics @k with k <= beams say anything; seen items are removed by its deny-list) or a `Baseline`. Of several, the first.
      params: the system's parameters; of a Baseline, what `fit` returned.
      examples: what to ask.
      items: size of the catalogue; ids are 1..items, and column 0 never counts.
      length: histories are cut to their last `length` items; a Baseline sees all of them.
      batch: examples at a time.
      seen_removed: whether a Generator also searches with the seen items removed, which takes as long again; without it nobody is asked that.

    Raises:
      TypeError: the system is none of the four.
      ValueError: targets or vectors or scores of a wrong shape or range, or scores that are not a number.
    """
    if len(examples) and not 1 <= examples.target.min() <= examples.target.max() <= items:
        raise ValueError(f"targets run from {examples.target.min()} to {examples.target.max()}, items from 1 to {items}; pass the data's number of items")
    if not isinstance(system, Baseline):
        params = jax.device_put(params)  # once, not with each batch
    if isinstance(system, Encoder):
        batches = _ranks_of_encoder(system, params, examples, items, length, batch)
    elif isinstance(system, Scorer):
        batches = (_rank_by_scores(system, params, _inputs(b), b["target"], b["seen"], items) for b in examples.batches(batch, length))
    elif isinstance(system, Generator):
        deepest = max(CUTOFFS)
        if (found := system.beams * getattr(system, "per_id", 1)) < min(deepest, items):
            raise ValueError(f"beams={system.beams} give {found} items, and metrics look at the first {deepest}; set method.beams to {deepest} or more")
        asked = examples.batches(min(batch, GENERATED), length)
        batches = (_rank_by_generation(system, params, _inputs(b), b["target"], b["seen"], items, seen_removed) for b in asked)
    elif isinstance(system, Baseline):
        batches = _ranks_of_baseline(system, params, examples, items, batch)
    else:
        raise TypeError(f"{type(system).__name__} cannot rank items: it is neither an Encoder nor a Scorer nor a Generator nor a Baseline")
    kept, removed, broken = np.concatenate([np.zeros((3, 0), np.int32), *jax.device_get(list(batches))], axis=1)[:, : len(examples)]
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of the {len(examples) * items} scores of {type(system).__name__} are NaN, in {(broken > 0).sum()} of {len(examples)} examples"
        )
    return Ranks(kept, removed, np.asarray(examples.cold), np.asarray(examples.user), np.asarray(examples.target), isinstance(system, Baseline))


def _inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in batch.items() if name not in ANSWERS}


def _place(scores: Any, target: Any, seen: Any, items: int, xp: Any) -> Any:
    """[3, B] rank with the seen items kept, rank with them removed, and the number of NaN, in NumPy or jax.numpy (`xp`).

    Args:
      scores: [B, V], V > items.
      target: [B].
      seen: [B, S] distinct items, 0 = padding.
    """
    scores = scores[:, : items + 1]
    if xp is jnp:  # keep the compiler from computing the target's score a second time, with other rounding
        scores = jax.lax.optimization_barrier(scores)
    column = xp.arange(items + 1)[None, :]
    bar = xp.take_along_axis(scores, target[:, None], axis=1)  # [B, 1]
    ahead = (scores >= bar) & (column > 0) & (column != target[:, None])  # [B, V]
    kept = 1 + ahead.sum(axis=1)
    removed = kept - (xp.take_along_axis(ahead, seen, axis=1)).sum(axis=1)  # padding is column 0, never ahead
    removed = xp.where((seen == target[:, None]).any(axis=1), 0, removed)
    return xp.stack([kept, removed, xp.isnan(scores[:, 1:]).sum(axis=1)]).astype(np.int32)


def _ranks_of_encoder(system: Encoder, params: Tree, examples: Examples, items: int, length: int, size: int) -> Iterator[jax.Array]:
    table = _encode_items(system, params, items)
    for batch in examples.batches(size, length):
        yield _rank_by_vectors(system, params, table, _inputs(batch), batch["target"], batch["seen"])


@partial(jax.jit, static_argnames=("system", "items"))
def _encode_items(system: Encoder, params: Tree, items: int) -> jax.Array:
    return _one_vector(system, "item", system.encode_item(params, {"item": jnp.arange(items + 1)}).values, items + 1)  # [N + 1, D]


@partial(jax.jit, static_argnames=("system",))
def _rank_by_vectors(system: Encoder, params: Tree, table: jax.Array, inputs: Any, target: jax.Array, seen: jax.Array) -> jax.Array:
    query = _one_vector(system, "query", system.encode_query(params, inputs).values, len(target))  # [B, D]
    # An evaluation must not depend on the accelerator: by default, TPUs and GPUs multiply float32 in fewer bits.
    scores = jnp.matmul(query, table.T, precision="highest")  # [B, N + 1]
    return _place(scores, target, seen, len(table) - 1, jnp)


@partial(jax.jit, static_argnames=("system", "items"))
def _rank_by_scores(system: Scorer, params: Tree, inputs: Any, target: jax.Array, seen: jax.Array, items: int) -> jax.Array:
    scores = system.score(params, inputs)
    if scores.ndim != 2 or len(scores) != len(target) or scores.shape[1] <= items:
        raise ValueError(f"{type(system).__name__}.score gave {scores.shape} for {len(target)} examples; the whole catalogue is ({len(target)}, {items + 1})")
    return _place(scores, target, seen, items, jnp)


@partial(jax.jit, static_argnames=("system", "items", "seen_removed"))
def _rank_by_generation(system: Generator, params: Tree, inputs: Any, target: jax.Array, seen: jax.Array, items: int, seen_removed: bool) -> jax.Array:
    """As `_place`, from the items that are generated."""

    def place(extra: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        _, found, log_probs = system.generate(params, {**inputs, **extra}, jax.random.key(0), beams=system.beams)  # [B, K]
        hit = found == target[:, None]
        return jnp.where(hit.any(axis=1), 1 + hit.argmax(axis=1), items), jnp.isnan(log_probs).sum(axis=1)

    kept, broken = place({})
    if not seen_removed:
        return jnp.stack([kept, jnp.zeros_like(kept), broken]).astype(jnp.int32)
    left, more = place({"deny": seen})
    return jnp.stack([kept, jnp.where((seen == target[:, None]).any(axis=1), 0, left), broken + more]).astype(jnp.int32)


def _one_vector(system: Encoder, kind: str, values: jax.Array, rows: int) -> jax.Array:
    if values.ndim != 3 or values.shape[:2] != (rows, 1):
        raise ValueError(f"{type(system).__name__}.encode_{kind} gave {values.shape}; this evaluation wants one vector each: ({rows}, 1, D)")
    return values[:, 0].astype(jnp.float32)


def _ranks_of_baseline(system: Baseline, counts: Any, examples: Examples, items: int, size: int) -> Iterator[np.ndarray]:
    for begin, batch in zip(range(0, len(examples), size), examples.batches(size, 1), strict=True):
        histories = [examples.history(b) for b in range(begin, min(begin + size, len(examples)))]
        rows = len(histories)
        scores = system.scores(counts, histories)
        if scores.shape != (rows, items + 1):
            raise ValueError(f"{type(system).__name__}.scores gave {scores.shape}; the whole catalogue is ({rows}, {items + 1}); fit it with items={items}")
        yield _place(scores, batch["target"][:rows], batch["seen"][:rows], items, np)
