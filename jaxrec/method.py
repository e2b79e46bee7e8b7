"""Method: what a published system is to the rest of the library, and the capabilities it may have.

A method is a frozen dataclass of hyper-parameters. Its methods are pure functions of `(params, batch, key)`; it is hashable, so it
is static under `jit`. The bases below are nominal and empty: the loop, evaluators, exporter and server ask by `isinstance`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.param import Param, Tree

Array = jax.Array
Batch = Mapping[str, Any]
"""Arrays by name, leading axis = examples. The vocabulary:

  history   [B, T] int32   items in time order; 0 = padding
  target    [B, T] int32   (training) the item to predict at each position; [B] (evaluation) the item that came next
  mask      [B, T] float32 weight of each position's prediction, 0 = none
  segment   [B, T] int32   1, 2, ... numbers the histories packed into a row; 0 = padding
  position  [B, T] int32   0, 1, ... within its history
  user      [B, T] int32   the user's row, for user features; [B] in evaluation keeps the same meaning per example
  time      [B, T] int32   seconds since the data set's first event; only if the source has times
  item      [C]    int32   items to encode
"""

FROM_DATA = -1
"""The value of a field that the data knows (the number of items): `bind` fills it in by name from `data.info()`. Of a tuple: `(FROM_DATA,)`."""

M = TypeVar("M")


@struct.dataclass
class Loss:
    """Sums and weights, so that accumulation over microbatches and devices is exact.

    Attributes:
      terms: name -> (sum, weight); the objective is the sum of coefficient * sum / weight. Weights depend on the batch, never on params.
      metrics: name -> (sum, weight), reported and not optimised.
      stats: summed statistics for `Settler.settle`.
    """

    terms: Mapping[str, tuple[Array, Array]]
    metrics: Mapping[str, tuple[Array, Array]] = struct.field(default_factory=dict)
    stats: Mapping[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class Vectors:
    """Vectors of queries or items.

    Attributes:
      values: [B, T, D]; T = 1 for one vector per example.
      mask: [B, T] bool; False where a vector is padding.
    """

    values: Array
    mask: Array


class Method:
    """What the training loop needs. `couples` is True where examples interact (in-batch negatives, batch statistics)."""

    coefficients: ClassVar[Mapping[str, float]] = {}
    couples: ClassVar[bool] = False

    def spec(self) -> Tree:
        """The tree of `Param`s."""
        raise TypeError(f"{type(self).__name__} has no spec")

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        """The training loss of a batch."""
        raise TypeError(f"{type(self).__name__} has no loss")


class Encoder:
    """Turns queries and items into vectors whose inner products are scores."""

    def encode_query(self, params: Tree, batch: Batch) -> Vectors:
        raise TypeError(f"{type(self).__name__} does not encode queries")

    def encode_item(self, params: Tree, batch: Batch) -> Vectors:
        raise TypeError(f"{type(self).__name__} does not encode items")


class Scorer:
    """Scores candidates directly: `score(params, batch) -> [B, C]`."""

    def score(self, params: Tree, batch: Batch) -> Array:
        raise TypeError(f"{type(self).__name__} does not score")


class Generator:
    """Generates items: `generate(params, batch, key, beams=K) -> (ids [B, K, L], items [B, K], log_probs [B, K])`.

    Best first; item 0 (and log-probability -inf) where there are no more, or where an ID is no item's. A batch may hold lists of items [B, S], 0 =
    padding: `deny`, never to be generated, and `allow`, the only ones. `beams` is how many an evaluation asks for.
    """

    beams: int

    def generate(self, params: Tree, batch: Batch, key: Array, *, beams: int) -> tuple[Array, Array, Array]:
        raise TypeError(f"{type(self).__name__} does not generate")


class Predictor:
    """Anything else: denoised images, class logits."""

    def predict(self, params: Tree, batch: Batch) -> Any:
        raise TypeError(f"{type(self).__name__} does not predict")


class Balancer:
    """Chooses the coefficients of the loss terms from their values and gradients (Pareto weights)."""

    def balance(self, values: Mapping[str, Array], gradients: Mapping[str, Tree]) -> Mapping[str, Array]:
        raise TypeError(f"{type(self).__name__} does not balance")


class Actor:
    """Makes its own training batch on the device before the loss, without gradient."""

    def rollout(self, params: Tree, batch: Batch, key: Array) -> Batch:
        raise TypeError(f"{type(self).__name__} does not roll out")


class Starter:
    """Sets parameters from data once, before step 0 (k-means of codebooks)."""

    def start(self, params: Tree, batches: Iterable[Batch], key: Array) -> Tree:
        raise TypeError(f"{type(self).__name__} does not start from data")


class Settler:
    """Updates parameters without gradient after each step (EMA codebooks, revival of dead codes)."""

    def settle(self, params: Tree, stats: Mapping[str, Array], batch: Batch, key: Array) -> Tree:
        raise TypeError(f"{type(self).__name__} does not settle")


class Baseline:
    """A system that counts instead of learning: no parameters, no loss, plain NumPy."""

    def fit(self, sequence: np.ndarray, offsets: np.ndarray, items: int) -> Any:
        """Counts the training histories: `sequence` [E] item ids 1..items, user u's are `sequence[offsets[u]:offsets[u + 1]]`."""
        raise TypeError(f"{type(self).__name__} does not fit")

    def scores(self, counts: Any, histories: list[np.ndarray]) -> np.ndarray:
        """[B, items + 1] scores of all items for each history (column 0 is padding and ignored); higher is better."""
        raise TypeError(f"{type(self).__name__} does not score")


def bind(method: M, info: Mapping[str, Any]) -> M:
    """The method with every `FROM_DATA` field filled from `info` by name, nested dataclasses and tuples of them included.

    A dataclass that has the name of a column in `info["columns"]` (a `Feature`) takes its fields from that column.

    Raises:
      ValueError: the data does not know a field or a column; it names it and what the data knows.
    """
    changes = {}
    known = info
    if "columns" in info and (name := getattr(method, "name", None)) is not None:
        if name not in info["columns"]:
            raise ValueError(f"the data has no column {name!r}; it has {', '.join(info['columns']) or 'none'}")
        known = info["columns"][name]
        for what in ("kind", "of"):
            if what in known and (asked := getattr(method, what, known[what])) != known[what]:
                also = "; or, if it should hold numbers alone, leave the cells without one empty" if (asked, known[what]) == ("numeric", "categorical") else ""
                raise ValueError(f"Feature({name!r}) says {what}={asked!r}, but the column is {known[what]!r}; write {what}={known[what]!r}{also}")
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        if value == (FROM_DATA,) or (isinstance(value, int) and not isinstance(value, bool) and value == FROM_DATA):
            if field.name not in known:
                raise ValueError(
                    f"{type(method).__name__}.{field.name} is to come from the data, which knows only {', '.join(known)}; set it in the experiment"
                )
            changes[field.name] = _hashable(known[field.name])
        elif field.name == "vocabulary" and isinstance(value, int) and value < known.get("vocabulary", 0):
            raise ValueError(
                f"{type(method).__name__}.vocabulary={value} is less than the {known['vocabulary']} tokens of the data's tokenizer; "
                "take the tokenizer that belongs to the model"
            )
        elif field.name in ("items", "length", "segments") and isinstance(value, int) and value < known.get(field.name, 0):
            raise ValueError(
                f"{type(method).__name__}.{field.name}={value} is less than the {known[field.name]} of the data; leave it out, and it is taken from there"
            )
        elif isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
            changes[field.name] = tuple(bind(part, info) for part in value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = bind(value, info)
    return dataclasses.replace(method, **changes)  # type: ignore[type-var]


def _hashable(value: Any) -> Any:
    """Lists as tuples: what data knows has come through JSON, and a method is static under `jit`."""
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def cast(spec: Tree, params: Tree, dtype: Any) -> Tree:
    """Floating-point leaves in `dtype`, but for those whose `Param` says `exact`; the rest as they are."""

    def one(param: Param, leaf: Array) -> Array:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) and not param.exact else leaf

    return jax.tree.map(one, spec, params, is_leaf=lambda leaf: isinstance(leaf, Param))
