"""LoRA: low-rank corrections of the linear maps of a model that itself stays as it is (Hu et al. 2021, arXiv 2106.09685).

    y = x W + b + alpha / rank * (x A) B,    B = 0 at the start, so that an untrained adapter changes nothing

    lora = LoRA(rank=8, targets=("qkv", "output"))
    adapters = create(lora.spec(model.spec()), key)   # a second, small parameter set, by the dotted names of the maps
    adapted = lora.attach(params, adapters)           # the same model with two branches in every target
    plain = lora.merge(params, adapters)              # the same function with one branch
    lora.save(Path("task.npz"), params, adapters)     # a small file, which knows its base: lora.load(path, params) refuses another

Switching an adapter off is using `params` instead of `adapted`: nothing is undone, so nothing can be undone wrongly. What we left out: dropout before A.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.artifact import write_atomically
from jaxrec.limits import POSITIVE, check
from jaxrec.nn.linear import Linear
from jaxrec.param import Param, Tree, fingerprint, flatten, path_name, unflatten, zeros


@struct.dataclass
class Adapter:
    """The two factors of `adapters` corrections of one linear map; in a stack of layers, every array has the stack's leading axis, too."""

    a: jax.Array  # [..., adapters, inputs, rank]
    b: jax.Array  # [..., adapters, rank, outputs]


Adapters = dict[str, Adapter]
"""By the dotted names of the linear maps."""


@struct.dataclass
class Adapted:
    """y = x W + b + scale (x A) B, called as the `Linear` that it replaces."""

    base: Linear
    a: jax.Array  # [inputs, rank], or [adapters, inputs, rank] where `which` chooses
    b: jax.Array  # [rank, outputs], or [adapters, rank, outputs]
    which: jax.Array | None  # [B] int32, the adapter of each row, -1 = none; None: the one there is
    scale: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., inputs] -> [..., outputs]; the first axis is that of the rows where rows differ.

        Raises:
          ValueError: the input has other rows than were chosen for.
        """
        plain = self.base(x)
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        if self.which is None:
            return plain + self.scale * (x.reshape(-1, x.shape[-1]) @ a @ b).reshape(plain.shape)
        if len(x) != len(self.which):
            raise ValueError(f"adapters are chosen for {len(self.which)} rows, and the input has {len(x)}; choose one for each row")
        chosen = jnp.maximum(self.which, 0)
        low = jnp.einsum("bti,bir->btr", x.reshape(len(x), -1, x.shape[-1]), a[chosen])
        delta = self.scale * jnp.einsum("btr,bro->bto", low, b[chosen]).reshape(plain.shape)
        on = (self.which >= 0).reshape(-1, *(1,) * (plain.ndim - 1))
        return jnp.where(on, plain + delta, plain)  # not plain + 0 * delta: a row without an adapter is the base bit for bit, whatever the adapters hold


@dataclass(frozen=True)
class LoRA:
    """Which linear maps of a model have adapters, and of what size.

    Attributes:
      rank: of a correction.
      alpha: corrections are multiplied by alpha / rank, so that another rank needs no other learning rate.
      targets: patterns for dotted names, or for their ends: "qkv", "feed.*", "stack.layers.attention.output"; "*" = every `Linear`.
      adapters: corrections of each map, among which the rows of a batch choose (one for each task or tenant).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("*",)
    adapters: int = 1

    def __post_init__(self):
        check(self, rank=1, alpha=POSITIVE, adapters=1)
        if isinstance(self.targets, str) or not self.targets:
            raise ValueError(f"targets={self.targets!r} must be a tuple of names, like ('qkv', 'output'), or ('*',) for all")

    def check_shared(self) -> None:
        """Raises ValueError where there are several adapters, for models whose rows all share one."""
        if self.adapters != 1:
            raise ValueError(f"lora.adapters={self.adapters}: all rows share one adapter here; set lora.adapters=1")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def spec(self, base: Tree) -> Adapters:
        """Declares the adapters of the model with spec `base`.

        Raises:
          ValueError: a target that no linear map of the model has the name of; it lists the names there are.
        """

        def one(kernel: Any) -> Adapter:
            *stacked, inputs, outputs = kernel.axes
            a, b = self._shapes(kernel)
            lecun = jax.nn.initializers.lecun_normal(batch_axis=tuple(range(len(stacked) + 1)))  # fan-in is one map's own
            axes = (*stacked, None, inputs, None), (*stacked, None, None, outputs)
            return Adapter(Param(a, axes[0], lecun, kernel.dtype), Param(b, axes[1], zeros, kernel.dtype))  # type: ignore[arg-type]

        return {name: one(linear.kernel) for name, linear in self._targets(base).items()}

    def attach(self, params: Tree, adapters: Adapters, which: jax.Array | np.ndarray | Sequence[int] | np.integer | int | None = None) -> Tree:
        """The model in which every target is `Adapted`; params and adapters are shared, not copied.

        Args:
          params: of the base model, stacked or not, as its spec was for `spec`.
          adapters: of this base.
          which: the adapter of all rows, or [B] integers, that of each row, where -1 is none: several adapters then serve one batch. None: the only one.
            What is on the host is checked; what is on a device or traced cannot be.

        Raises:
          ValueError: the adapters are of another base (it names the array and both shapes), or the choice is missing or is none of them.
        """
        if which is None and self.adapters > 1:
            raise ValueError(f"there are {self.adapters} adapters; say with `which` the one of all rows, or of each row")
        if which is None or isinstance(which, int | np.integer):
            chosen = self._chosen(params, adapters, int(which or 0))
            return _replaced(params, chosen, lambda linear, pair: Adapted(linear, pair.a, pair.b, None, self.scale))
        if not isinstance(which, jax.Array):
            which = np.asarray(which)
            if which.ndim != 1 or not np.issubdtype(which.dtype, np.integer):
                raise ValueError(f"which is {which.dtype} {which.shape}; the adapter of each row is [B] whole numbers")
            if len(wrong := which[(which < -1) | (which >= self.adapters)]):
                raise ValueError(f"which={wrong[0]} is none of the {self.adapters} adapters, numbered from 0; -1 is none")
        rows = jnp.asarray(which, jnp.int32)

        def one(linear: Linear, pair: Adapter) -> Adapted:
            stacked = linear.kernel.shape[:-2]  # a scan over layers slices every array, so each layer has the choice, too
            return Adapted(linear, pair.a, pair.b, jnp.broadcast_to(rows.reshape((1,) * len(stacked) + (-1,)), (*stacked, len(rows))), self.scale)

        return _replaced(params, self._checked(params, adapters), one)

    def merge(self, params: Tree, adapters: Adapters, which: int = 0) -> Tree:
        """Plain parameters with W + scale A B for W: no second branch to compute, and no way to choose by row."""
        return self._moved(params, adapters, which, self.scale)

    def unmerge(self, params: Tree, adapters: Adapters, which: int = 0) -> Tree:
        """What `merge` did, subtracted. Rounding stays: keep the base if it is to be the same bits again."""
        return self._moved(params, adapters, which, -self.scale)

    def save(self, path: Path, params: Tree, adapters: Adapters) -> None:
        """Writes adapters as an `.npz` of float32 arrays by name, with alpha and the fingerprint of the base `params` that they correct.

        Raises:
          ValueError: the file would have another suffix, or the adapters are of a base of other shapes.
        """
        if path.suffix != ".npz":
            raise ValueError(f"{path} is to hold arrays in NumPy's format; end its name with .npz")
        leaves = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(self._checked(params, adapters)).items()}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, base=fingerprint(params), alpha=self.alpha, **leaves)
        write_atomically(path, file.getvalue())

    def load(self, path: Path, params: Tree) -> Adapters:
        """The adapters of a file, in the types of the base `params`. A file of others may say neither its base nor alpha: then names and shapes decide.

        Raises:
          ValueError: it was written for a base of other weights (it names the fingerprints of both) or shapes, or for another alpha; or is no such file.
        """
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                leaves = dict(file)
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no whole .npz of arrays ({error}); give what LoRA.save wrote") from None
        said, alpha = leaves.pop("base", None), leaves.pop("alpha", None)
        if said is not None and str(said) != (own := fingerprint(params)):
            raise ValueError(
                f"{path} holds adapters of the base {said}, and the parameters given are {own}: the same shapes would not make them fit; "
                "give the base that they were trained on, in the same form and precision, or train adapters of this one"
            )
        if alpha is not None and float(alpha) != self.alpha:
            raise ValueError(
                f"{path} holds adapters of alpha={float(alpha)}, and alpha={self.alpha} would scale them otherwise; write LoRA(alpha={float(alpha)})"
            )
        like = self._like(params)
        return jax.tree.map(lambda wanted, leaf: jnp.asarray(leaf, wanted.dtype), like, unflatten(like, leaves))

    def _moved(self, params: Tree, adapters: Adapters, which: int, scale: float) -> Tree:
        def one(linear: Linear, pair: Adapter) -> Linear:
            delta = scale * jnp.matmul(pair.a.astype(jnp.float32), pair.b.astype(jnp.float32), precision="highest")
            return dataclasses.replace(linear, kernel=(linear.kernel.astype(jnp.float32) + delta).astype(linear.kernel.dtype))

        return _replaced(params, self._chosen(params, adapters, which), one)

    def _chosen(self, params: Tree, adapters: Adapters, which: int) -> Adapters:
        """One adapter of each map, without the axis of adapters."""
        if not 0 <= which < self.adapters:
            raise ValueError(f"which={which} is none of the {self.adapters} adapters, numbered from 0; the base alone is `params` itself")
        return jax.tree.map(lambda leaf: leaf[..., which, :, :], self._checked(params, adapters))

    def _targets(self, base: Tree) -> dict[str, Linear]:
        """The linear maps that have adapters, by name."""
        maps = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base, is_leaf=_is_linear) if _is_linear(leaf)}
        for target in self.targets:
            if not any(_named(name, target) for name in maps):
                raise ValueError(f"target {target!r} is no linear map of the model, which has {', '.join(maps) or 'none'}; name one, or the end of one")
        return {name: leaf for name, leaf in maps.items() if any(_named(name, target) for target in self.targets)}

    def _shapes(self, kernel: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of A and B beside a kernel."""
        *stacked, inputs, outputs = kernel.shape
        return (*stacked, self.adapters, inputs, self.rank), (*stacked, self.adapters, self.rank, outputs)

    def _checked(self, params: Tree, adapters: Adapters) -> Adapters:
        """The adapters, once it is certain that they are of a base of these shapes."""
        return unflatten(self._like(params), flatten(adapters))

    def _like(self, params: Tree) -> Adapters:
        """The shapes and types of the adapters of a base."""

        def one(linear: Linear) -> Adapter:
            return Adapter(*(jax.ShapeDtypeStruct(shape, linear.kernel.dtype) for shape in self._shapes(linear.kernel)))  # type: ignore[arg-type]

        return {name: one(linear) for name, linear in self._targets(params).items()}


def _is_linear(leaf: Any) -> bool:
    return isinstance(leaf, Linear)


def _named(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")


def _replaced(params: Tree, adapters: Adapters, one: Callable[[Linear, Adapter], Any]) -> Tree:
    """The tree with `one(linear, adapter)` for every linear map that has an adapter."""

    def visit(path: tuple[Any, ...], leaf: Any) -> Any:
        return one(leaf, adapters[path_name(path)]) if path_name(path) in adapters else leaf

    return jax.tree_util.tree_map_with_path(visit, params, is_leaf=_is_linear)
