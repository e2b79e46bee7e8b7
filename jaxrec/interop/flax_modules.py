"""Flax modules as parts: your own linen or nnx module declares `Param`s, so it trains, shards and is stored like any other part.

    net = from_linen(MLP(64), jax.ShapeDtypeStruct((1, 6), jnp.float32))  # or from_nnx(MLP, 6, 64)
    spec = net.spec()                                                     # nested dicts of Params, named as Flax names them
    params = create(spec, jax.random.key(0))
    y = net(params, x, rngs=key)

A part is a field of a method, or is made anew wherever it is needed: parts made from the same things are equal. Do not make a linen
module itself a field: `bind` would take a -1 among the module's own fields for `FROM_DATA`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.traverse_util import unflatten_dict
from jax.typing import DTypeLike

from jaxrec.param import Param, Tree, flatten, path_name
from jaxrec.sharding import AXES

Axes = Mapping[str, str | None]


class FlaxPart:
    """A module's parameters as a spec, and the module as a pure function of them; hashable, hence static under `jit`.

    Args:
      *made_from: a linen module, or what constructs an nnx module; a tuple and a dict of arguments, for the call that initialises a linen
        module or for the constructor; the module's names of axes -> names of `sharding.AXES`, or None.
    """

    def __init__(self, *made_from):  # untyped: of a field with typed arguments the command line would make options, and it has none for a module
        module, args, options, axes = made_from
        self._module, self._args, self._options, self._axes = module, args, dict(options), dict(axes or {})
        self._name = getattr(module, "__name__", type(module).__name__)
        leaves, structure = jax.tree.flatten((self._args, self._options))
        self._made_from = type(self), module, tuple(leaves), structure, tuple(sorted(self._axes.items()))
        try:
            hash(self._made_from)
        except TypeError as error:
            raise ValueError(f"{self} is not hashable, so jit cannot hold it; use tuples where its fields or arguments are lists, dicts or arrays") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlaxPart) and self._made_from == other._made_from

    def __hash__(self) -> int:
        return hash(self._made_from)

    def __repr__(self) -> str:
        """What it is made from, without addresses: an experiment that has it as a field is known by this."""
        arguments = [*map(repr, (self._module, *self._args)), *(f"{name}={value!r}" for name, value in self._options.items())]
        return re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-f]+|# (attributes|children)\n", "", f"{type(self).__name__}({', '.join(arguments)})"))

    def spec(self) -> Tree:
        """The tree of `Param`s; no array is allocated.

        Each leaf is drawn by the module's own initialisation from that leaf's own key, so leaves have the module's distribution but not the
        values of one call of its `init` (`initial` gives those). Outside `jit` every leaf costs a whole initialisation.

        Raises:
          ValueError: the module holds state that is no parameter; or it names an axis that is none of `sharding.AXES`.
        """
        boxes = jax.eval_shape(lambda: self._boxes(jax.random.key(0)))

        def one(path: tuple[Any, ...], box: Any) -> Param:
            name, value = path_name(path), _unbox(box)
            return Param(value.shape, self._names(name, box, len(value.shape)), _Initial(self, name), value.dtype)

        return jax.tree_util.tree_map_with_path(one, boxes, is_leaf=_is_box)

    def initial(self, key: jax.Array) -> Tree:
        """All parameters from one key, exactly as the module itself makes them."""
        return jax.tree.map(_unbox, self._boxes(key), is_leaf=_is_box)

    def __call__(self, params: Tree, *args: Any, rngs: Any = None, method: str = "__call__", **options: Any) -> Any:
        raise TypeError(f"{type(self).__name__} is not callable")

    def _boxes(self, key: jax.Array) -> Tree:
        """Nested dicts of parameters, in Flax's boxes where they have axis names."""
        raise TypeError(f"{type(self).__name__} declares no parameters")

    def _names(self, parameter: str, box: Any, rank: int) -> tuple[str | None, ...]:
        """The logical axes of a parameter, renamed by `axes`."""
        names = (box.get_metadata("out_sharding", None) if isinstance(box, nnx.Variable) else getattr(box, "names", None)) or ()
        axes = tuple(self._axes.get(name, name) for name in names) + (None,) * (rank - len(names))
        for axis in axes:
            if axis is not None and axis not in AXES:  # to drop it would replicate the parameter without a word
                raise ValueError(
                    f"{self._name} calls an axis of its parameter {parameter} {axis!r}, which is none of {', '.join(AXES)}; "
                    f"pass axes={{{axis!r}: <one of them>}}, or axes={{{axis!r}: None}} to leave that axis whole on every device"
                )
        return axes


class Linen(FlaxPart):
    """A linen module; see `from_linen`."""

    def __call__(self, params: Tree, *args: Any, rngs: Any = None, method: str = "__call__", **options: Any) -> Any:
        """`module.apply` on the parameters: `rngs` is a key for every stream, or a mapping of streams to keys."""
        return self._module.apply({"params": params}, *args, rngs=rngs, method=method, **options)

    def _boxes(self, key: jax.Array) -> Tree:
        def zeros(leaf: Any) -> Any:
            return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf

        args, options = jax.tree.map(zeros, (self._args, self._options))
        variables = dict(self._module.init(key, *args, **options))
        params = variables.pop("params", {})
        if variables:
            raise ValueError(
                f"{self._name} keeps {', '.join(map(repr, sorted(variables)))} beside its parameters, and a training step carries parameters only; "
                "use modules without such state (LayerNorm or GroupNorm for BatchNorm), or pass it to the call as an argument"
            )
        return params


class NNX(FlaxPart):
    """An nnx module; see `from_nnx`."""

    def __call__(self, params: Tree, *args: Any, rngs: jax.Array | None = None, method: str = "__call__", **options: Any) -> Any:
        """The module with these parameters, called: with a key as it was constructed, without one in evaluation mode (`Module.eval`)."""
        graph, variables, streams = self._abstract
        leaves = jax.tree.leaves(jax.tree.map(lambda _, leaf: leaf, nnx.to_pure_dict(variables), params))
        module = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(variables), leaves), _seeded(streams, rngs))
        if rngs is None:
            module.eval()
        return getattr(module, method)(*args, **options)

    def _boxes(self, key: jax.Array) -> Tree:
        return unflatten_dict(dict(nnx.to_flat_state(self._split(key)[1])))

    @functools.cached_property
    def _abstract(self) -> tuple[Any, Any, Any]:
        return jax.eval_shape(lambda: self._split(jax.random.key(0)))

    def _split(self, key: jax.Array) -> tuple[Any, Any, Any]:
        """(what is static, parameters, streams of random keys)."""
        with nnx.use_eager_sharding(False):  # the layout decides where parameters go, not the mesh of the moment
            module = self._module(*self._args, **self._options, rngs=nnx.Rngs(key))
            others = {
                path_name((*path, name)): "a plain array"
                for path, part in nnx.iter_modules(module)
                for name, value in vars(part).items()
                if isinstance(value, (jax.Array, np.ndarray))
            }
            graph, variables, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        others = {path_name(path): type(value).__name__ for path, value in nnx.to_flat_state(rest)} | others
        if others:
            raise ValueError(
                f"{self._name} keeps {', '.join(f'{name} ({kind})' for name, kind in sorted(others.items()))} beside its parameters, and a training step "
                "carries parameters only; use modules without such state (LayerNorm or GroupNorm for BatchNorm), or make it an nnx.Param and `freeze` its spec"
            )
        return graph, variables, streams


def from_linen(module: linen.Module, *examples: Any, axes: Axes | None = None, **options: Any) -> Linen:
    """A linen module as a part: `part.spec()`, `part(params, *args, rngs=None, method="__call__", **options)`.

    Args:
      module: hashable, so its fields are tuples rather than lists.
      *examples: inputs of the call that initialises it: trees of `jax.ShapeDtypeStruct`, or arrays, whose shapes count. Initialisers that look
        at inputs see zeros.
      axes: names of axes in the module (`nn.with_logical_partitioning`) -> names of `sharding.AXES`, or None. Names of `AXES` need no mention.
      **options: keyword arguments of that call (`train=False`).

    Raises:
      ValueError: it is not hashable.
    """

    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf

    return Linen(module, jax.tree.map(shape, examples), jax.tree.map(shape, options), axes)


def from_nnx(constructor: Callable[..., nnx.Module], *args: Any, axes: Axes | None = None, **options: Any) -> NNX:
    """The nnx module `constructor(*args, **options, rngs=rngs)` as a part: `part.spec()`, `part(params, *args, rngs=None, method="__call__", **options)`.

    Its `nnx.Param`s are the parameters. A key as `rngs` seeds all its streams; without one it runs in evaluation mode. Whatever else a call
    writes into the module is dropped. Prefer `from_nnx(MLP, 6, 64)` to a lambda, whose sizes a run cannot tell and which never equals another.

    Args:
      constructor: usually the module's class.
      *args: of the constructor.
      axes: names of axes in the module (`nnx.with_partitioning`) -> names of `sharding.AXES`, or None. Names of `AXES` need no mention.
      **options: keyword arguments of the constructor.

    Raises:
      ValueError: it is not hashable.
    """
    return NNX(constructor, args, options, axes)


@dataclass(frozen=True)
class _Initial:
    """The initialiser of one parameter: the whole module's, of which the compiler keeps what this parameter needs."""

    part: FlaxPart
    name: str

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return flatten(_initial(self.part, key))[self.name].astype(dtype)


@functools.partial(jax.jit, static_argnums=0)  # traced once for all parameters
def _initial(part: FlaxPart, key: jax.Array) -> Tree:
    return part.initial(key)


class _NoKey:
    """Stands where a stream's key would be when a module is called without one."""

    def __getitem__(self, _: Any) -> Any:
        raise ValueError("the module draws random numbers and was called without rngs; pass rngs=key")


def _seeded(streams: Any, key: jax.Array | None) -> Any:
    """Streams that start at count 0, each with its own key folded from `key`."""
    seeded = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(streams)):
        shape = variable.get_value().shape
        if not isinstance(variable, nnx.RngKey):
            value = jnp.zeros(shape, jnp.uint32)
        else:
            value = _NoKey() if key is None else jax.random.split(jax.random.fold_in(key, number), shape)
        seeded.append((path, variable.replace(value)))
    return nnx.from_flat_state(seeded)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, (linen.meta.AxisMetadata, nnx.Variable))


def _unbox(box: Any) -> Any:
    return jax.tree.leaves(box)[0]  # Flax's own `unbox` would also constrain the array to the mesh of the moment
