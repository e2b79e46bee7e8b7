"""Sharding: what the axes of arrays mean, and where they go on a mesh of devices.

Methods name logical axes; a `Layout` maps them to mesh axes. No method knows the mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax.linen import logical_to_mesh_axes
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = {
    "batch": "examples (or packed rows) of a batch",
    "vocabulary": "rows of an embedding table",
    "embed": "the model's width",
    "hidden": "the inner width of a feed-forward layer",
    "heads": "attention heads",
    "head": "width of one head",
    "layers": "repeats of a scanned stack",
    "codebook": "codes of a quantiser",
    "level": "levels of a semantic ID",
    "feature": "columns of a frozen feature vector",
}

Rules = tuple[tuple[str, str | None], ...]

DATA: Rules = (("batch", "data"),)
"""Every device holds the whole model and a share of the batch."""

FSDP: Rules = (("batch", "data"), ("vocabulary", "data"), ("hidden", "data"), ("embed", "data"))
"""Parameters and optimiser state are spread over the data axis and gathered where needed. The first rule of an array that fits wins."""

TABLES: Rules = (("batch", "data"), ("vocabulary", "model"))
"""Item tables are spread over the model axis, the rest is copied; for catalogues that outgrow one device."""


@dataclass(frozen=True)
class Layout:
    """How a run uses devices.

    Attributes:
      mesh: names and sizes of the mesh's axes; one size may be -1: all devices that remain.
      rules: logical axis -> mesh axis.
      compile: "jit" with named shardings, or "pmap" (whole model on each device; for methods whose examples do not interact).
    """

    mesh: tuple[tuple[str, int], ...] = (("data", -1),)
    rules: Rules = DATA
    compile: Literal["jit", "pmap"] = "jit"


def make_mesh(layout: Layout, devices: Any = None) -> Mesh:
    """The mesh of a layout over `devices` (default: all).

    Raises:
      ValueError: the sizes do not multiply to the number of devices; or no rule lays anything on an axis of several devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    names, sizes = zip(*layout.mesh, strict=True)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or devices.size % known or (-1 not in sizes and known != devices.size):
        raise ValueError(f"mesh {dict(layout.mesh)} does not fit {devices.size} devices; its sizes must multiply to {devices.size}, and one may be -1")
    mesh = Mesh(devices.reshape([devices.size // known if size == -1 else size for size in sizes]), names)
    used = {target for _, target in layout.rules}
    for name, size in mesh.shape.items():
        if size > 1 and name not in used:  # each of its devices would repeat the others' work without a word
            raise ValueError(
                f"no rule lays anything on mesh axis {name!r}, so its {size} devices would all do the same work; the rules are "
                f"{', '.join(f'{axis} -> {target}' for axis, target in layout.rules) or 'none'}; add a rule (TABLES has one for 'model'), or drop the axis"
            )
    return mesh


def partition(axes: tuple[str | None, ...], shape: tuple[int, ...], layout: Layout, mesh: Mesh) -> NamedSharding:
    """The sharding of one array from its logical axes.

    Raises:
      ValueError: a dimension is not a multiple of the mesh axis that it is laid on.
    """
    spec = _mesh_axes(axes, layout, mesh)
    for name, size, target in zip(axes, shape, spec, strict=False):
        if target is not None and size % mesh.shape[target]:
            raise ValueError(
                f"axis {name!r} of size {size} does not divide over the {mesh.shape[target]} devices of mesh axis {target!r}; change the size or the rules"
            )
    return NamedSharding(mesh, spec)


def batch_sharding(layout: Layout, mesh: Mesh) -> NamedSharding:
    """The sharding of every array of a batch: its leading axis is "batch"."""
    return NamedSharding(mesh, _mesh_axes(("batch",), layout, mesh))


def _mesh_axes(axes: tuple[str | None, ...], layout: Layout, mesh: Mesh) -> PartitionSpec:
    return logical_to_mesh_axes(axes, [rule for rule in layout.rules if rule[1] in mesh.axis_names]) or PartitionSpec()
