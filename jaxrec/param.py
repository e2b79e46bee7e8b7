"""Param: the promise of an array, and trees of them.

A model's parameters are declared once, as a tree whose leaves are `Param`s. That tree is the shape documentation, the sharding
table, the checkpoint template, the parameter count and the abstract input of an ahead-of-time compile. Parts are
`flax.struct.dataclass`es, so a tree of `Param`s and a tree of arrays have the same structure:

    spec = Linear.spec(64, 256)            # Linear(kernel=Param((64, 256), ...), bias=Param((256,), ...))
    params = create(spec, jax.random.key(0))
    y = params(x)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrec.sharding import AXES

Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
Tree = Any  # a pytree; its leaves are Params (a spec) or arrays (parameters)


@dataclass(frozen=True)
class Param:
    """A promise of an array: its shape, what its axes mean, and how it starts.

    Attributes:
      shape: sizes.
      axes: one name of `sharding.AXES`, or None, per dimension.
      init: `(key, shape, dtype) -> array`.
      dtype: of the stored array.
      trainable: whether an optimiser may change it.
      exact: whether mixed precision leaves it as it is stored, since what is computed from it would not bear rounding.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    dtype: DTypeLike = jnp.float32
    trainable: bool = True
    exact: bool = False

    def __post_init__(self):
        if len(self.axes) != len(self.shape):
            raise ValueError(f"Param of shape {self.shape} needs {len(self.shape)} axes, got {self.axes}")
        for axis in self.axes:
            if axis is not None and axis not in AXES:  # flax would replicate a misspelt axis without a word
                raise ValueError(f"unknown axis {axis!r}; the axes are {', '.join(AXES)}")


@dataclass(frozen=True)
class Stacked:
    """An initialiser for `repeats` layers at once: one key each, so fan-in is a layer's own and not multiplied by depth."""

    init: Initializer
    repeats: int

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.vmap(lambda k: self.init(k, shape[1:], dtype))(jax.random.split(key, self.repeats))


def normal(stddev: float) -> Initializer:
    """Normal with the given standard deviation."""
    return jax.nn.initializers.normal(stddev)


def lecun() -> Initializer:
    """Variance 1 / fan-in, for kernels of shape [inputs, outputs]."""
    return jax.nn.initializers.lecun_normal()


def constant(value: float) -> Initializer:
    """The given value everywhere."""
    return jax.nn.initializers.constant(value)


zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


def _is_param(leaf: Any) -> bool:
    return isinstance(leaf, Param)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of jax.tree_util as a dotted name: `encoder.stack.attention.query.kernel`."""
    return ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)


def flatten(tree: Tree) -> dict[str, Any]:
    """The leaves of a spec or of parameters by dotted name. The form in which checkpoints and bundles are stored."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_param)}


def unflatten(like: Tree, leaves: dict[str, Any]) -> Tree:
    """A tree like `like` with the leaves of `flatten`.

    Raises:
      ValueError: names that are missing or unknown, or shapes that disagree; it says which.
    """
    expected = flatten(like)
    if missing := expected.keys() - leaves.keys():
        raise ValueError(f"parameters are missing: {', '.join(sorted(missing))}")
    if unknown := leaves.keys() - expected.keys():
        raise ValueError(f"parameters that the model does not have: {', '.join(sorted(unknown))}")
    for name, leaf in expected.items():
        if jnp.shape(leaves[name]) != tuple(leaf.shape):
            raise ValueError(f"parameter {name} has shape {jnp.shape(leaves[name])}, the model expects {tuple(leaf.shape)}")
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], like, is_leaf=_is_param)


def fingerprint(params: Tree) -> str:
    """Sixteen hexadecimal digits that tell parameters from others: their dotted names, types, shapes and bits."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype} {jnp.shape(leaf)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def create(spec: Tree, key: jax.Array) -> Tree:
    """Arrays for a spec. Each leaf's key is folded from its name, so adding a part changes no other part's start."""

    def one(path, param: Param) -> jax.Array:
        return param.init(jax.random.fold_in(key, zlib.crc32(path_name(path).encode())), param.shape, param.dtype)

    return jax.tree_util.tree_map_with_path(one, spec, is_leaf=_is_param)


def abstract(spec: Tree) -> Tree:
    """`jax.ShapeDtypeStruct`s for a spec: enough to lower, compile and plan, with no array allocated."""
    return jax.tree.map(lambda param: jax.ShapeDtypeStruct(param.shape, param.dtype), spec, is_leaf=_is_param)


def stack(spec: Tree, repeats: int) -> Tree:
    """The spec of `repeats` copies of a part along a new leading axis, for `jax.lax.scan`."""

    def one(param: Param) -> Param:
        return dataclasses.replace(param, shape=(repeats, *param.shape), axes=("layers", *param.axes), init=Stacked(param.init, repeats))

    return jax.tree.map(one, spec, is_leaf=_is_param)


def freeze(spec: Tree) -> Tree:
    """The same spec with nothing trainable."""
    return jax.tree.map(lambda param: dataclasses.replace(param, trainable=False), spec, is_leaf=_is_param)


def exact(spec: Tree) -> Tree:
    """The same declarations, which mixed precision leaves as they are stored."""
    return jax.tree.map(lambda param: dataclasses.replace(param, exact=True), spec, is_leaf=_is_param)


def split(spec: Tree, params: Tree) -> tuple[Tree, Tree]:
    """(trainable, frozen): two trees of the params' structure, each with None where the other has the array."""
    trainable = jax.tree.map(lambda param, leaf: leaf if param.trainable else None, spec, params, is_leaf=_is_param)
    frozen = jax.tree.map(lambda param, leaf: None if param.trainable else leaf, spec, params, is_leaf=_is_param)
    return trainable, frozen


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def count(spec: Tree, *, trainable: bool | None = None) -> int:
    """Number of scalars in a spec; with `trainable`, only of the trainable (or only of the frozen) leaves."""
    leaves = jax.tree.leaves(spec, is_leaf=_is_param)
    return sum(math.prod(p.shape) for p in leaves if trainable is None or p.trainable == trainable)
