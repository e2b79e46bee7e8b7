"""Parameters from tensors that another library has named and laid out, a shard at a time; and back.

A `Source` says of which tensors one of our leaves is made. Tensors are read by slices (an array in memory, or a `LazyTensor` of a file), and only
those parts that a device of this process holds: no second copy of the weights is ever made on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from jaxrec.param import Tree, flatten, unflatten

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"),
    *("max_position_embeddings", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"),
)
"""The entries of a `config.json` that say how large something is."""


def check_sizes(config: Mapping[str, Any], *more: str) -> None:
    """Raises ValueError where one of the `SIZES`, or one `more`, is there and no whole number above 0."""
    if wrong := [f"{name}={config[name]!r}" for name in (*SIZES, *more) if name in config and not (type(config[name]) is int and config[name] > 0)]:
        raise ValueError(f"config.json says {', '.join(wrong)}; whole numbers above 0 are needed: take the one that was published with the weights")


class Tensor(Protocol):
    """What can be read by slices: an array, or a tensor in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: tuple[slice, ...], /) -> np.ndarray: ...


@dataclass(frozen=True)
class Source:
    """The tensors that a leaf is made of.

    Attributes:
      names: [layers][parts] tensors; the parts of a layer lie side by side on the leaf's last axis.
      widths: of the parts on that axis.
      stacked: whether the leaf has a leading axis of layers; else there is one layer.
      transposed: whether a tensor is [outputs, inputs] where the leaf is [inputs, outputs].
      rows: of the tensor, where the leaf's first axis is padded beyond them with zeros; 0 = all.
    """

    names: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    stacked: bool = False
    transposed: bool = False
    rows: int = 0

    def shapes(self, leaf: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes of the parts of a layer, from the leaf's."""
        inner = leaf[1:] if self.stacked else leaf
        inner = (self.rows, *inner[1:]) if self.rows else inner
        own = [(*inner[:-1], width) for width in self.widths]
        return tuple(shape[::-1] if self.transposed else shape for shape in own)

    def read(self, tensors: Mapping[str, Tensor], leaf: tuple[int, ...], index: tuple[slice, ...], dtype: DTypeLike) -> np.ndarray:
        """The part `index` of the leaf."""
        bounds = [place.indices(size)[:2] for place, size in zip(index, leaf, strict=True)]
        out = np.zeros([stop - start for start, stop in bounds], dtype)
        layers, inner = (bounds[0], bounds[1:]) if self.stacked else ((0, 1), bounds)
        if self.rows:
            inner[0] = (min(inner[0][0], self.rows), min(inner[0][1], self.rows))
        *before, (begin, end) = inner
        for target, names in zip(out if self.stacked else [out], self.names[slice(*layers)], strict=True):
            offset = 0
            for name, width in zip(names, self.widths, strict=True):
                low, high = max(begin, offset), min(end, offset + width)
                if low < high:
                    place = (*(slice(*bound) for bound in before), slice(low - offset, high - offset))
                    piece = tensors[name][place[::-1]].T if self.transposed else tensors[name][place]
                    target[(*(slice(size) for size in piece.shape[:-1]), slice(low - begin, high - begin))] = piece
                offset += width
        return out


def load(spec: Tree, sources: Mapping[str, Source], tensors: Mapping[str, Tensor], *, dtype: DTypeLike = np.float32, shardings: Tree | None = None) -> Tree:
    """The parameters of a spec.

    Args:
      spec: a tree of `Param`s.
      sources: of each leaf, by its dotted name.
      tensors: by their names.
      dtype: of the parameters; a tensor of another is converted as it is read.
      shardings: a tree like the spec's; all on the first device unless given.

    Raises:
      ValueError: a tensor is missing or has another shape; names it and both shapes.
    """
    check(spec, sources, tensors)
    places = {} if shardings is None else flatten(shardings)

    def array(name: str, shape: tuple[int, ...]) -> jax.Array:
        sharding: Sharding = places.get(name) or SingleDeviceSharding(jax.devices()[0])
        held: dict[str, np.ndarray] = {}  # devices that hold the same part share what is read

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            if (key := str(index)) not in held:
                held[key] = sources[name].read(tensors, shape, index or (), dtype)
            return held[key]

        return jax.make_array_from_callback(shape, sharding, part)

    return unflatten(spec, {name: array(name, tuple(param.shape)) for name, param in flatten(spec).items()})


def check(spec: Tree, sources: Mapping[str, Source], tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless every tensor is there and has its shape."""
    wanted = {
        part: shape
        for name, param in flatten(spec).items()
        for layer in sources[name].names
        for part, shape in zip(layer, sources[name].shapes(tuple(param.shape)), strict=True)
    }
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"{len(missing)} tensors are missing, {', '.join(missing[:3])} first; are config and weights of one model?")
    for name, shape in wanted.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ValueError(f"tensor {name} has shape {found}, the config asks for {shape}; are config and weights of one model?")


def unload(params: Tree, sources: Mapping[str, Source]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of parameters one by one, the inverse of `load`."""
    for leaf, array in flatten(params).items():
        source: Any = sources[leaf]
        for number, names in enumerate(source.names):
            layer = np.asarray(array[number] if source.stacked else array)
            layer = layer[: source.rows] if source.rows else layer
            for name, part in zip(names, np.split(layer, np.cumsum(source.widths)[:-1], axis=-1), strict=True):
                yield name, np.ascontiguousarray(part.T if source.transposed else part)
