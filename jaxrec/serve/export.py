"""Export: a trained encoder as a `Bundle`, a folder that recommends without the code that trained it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxrec.artifact import replacing, say
from jaxrec.data.interactions import Interactions
from jaxrec.experiment import Experiment, describe
from jaxrec.index import ScannIndex
from jaxrec.index.scann import installed
from jaxrec.method import Encoder
from jaxrec.param import Tree, flatten, unflatten
from jaxrec.serve.bundle import MANIFEST, write_manifest
from kernels.dispatch import compiling_for

PLATFORMS = ("cpu", "cuda", "tpu")
ITEMS = 8192  # items that are encoded at once


def export(experiment: Experiment, params: Tree, step: int, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """Writes a bundle, whole or not at all; a bundle that is there already is replaced.

    Args:
      experiment: resolved; its method is an `Encoder` with one vector per query and item.
      params: of the method.
      step: of the parameters.
      folder: to write.
      metrics: how good it is, for the manifest.

    Raises:
      TypeError: the method is no Encoder.
      ValueError: it gives several vectors per query or item.
      FileExistsError: `folder` exists and is no bundle.
    """
    method, length = experiment.method, experiment.data.length
    if not isinstance(method, Encoder):
        raise TypeError(f"{type(method).__name__} does not encode queries and items into vectors; only an Encoder can be exported")
    interactions = experiment.data.source.get()
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    with replacing(folder, MANIFEST, "a bundle") as partial:
        programs, inputs = write_programs(partial, method, leaves, length)
        vectors = item_vectors(method, params, len(interactions.items))  # [N + 1, D]
        np.save(partial / "items.npy", vectors, allow_pickle=False)
        # Where ScaNN does not exist, the index is one that never builds a tree.
        ScannIndex(np.arange(1, len(vectors)), vectors[1:], **{} if installed() else {"exact_below": sys.maxsize}).save(partial / "index")
        np.savez(partial / "params.npz", allow_pickle=False, **{name: _plain(leaf) for name, leaf in leaves.items()})
        (partial / "experiment.json").write_text(json.dumps(describe(experiment), indent=1))
        _write_names(partial, interactions, users="user" in inputs)
        manifest = {
            "name": experiment.name,
            "method": type(method).__name__,
            "step": step,
            "metrics": dict(metrics or {}),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {package: _version(package) for package in ("jaxrec", "jax", "jaxlib", "numpy", "scann")},
            "items": len(interactions.items),
            "length": length,
            "dim": vectors.shape[1],
            "inputs": inputs,
            "time_origin": None if interactions.times is None else int(interactions.times.min()),
            "programs": programs,
            "dtypes": {name: str(leaf.dtype) for name, leaf in leaves.items()},
        }
        write_manifest(partial, manifest)
    say(f"wrote {folder}: {len(interactions.items):,} items, {vectors.shape[1]} dimensions")


def write_programs(folder: Path, method: Encoder, leaves: Mapping[str, Any], length: int) -> tuple[dict[str, str], list[str]]:
    """Writes the query encoder; returns file by platform, and the inputs that the method uses beside its parameters.

    One program serves all platforms, or where that cannot be lowered (a kernel of one platform is in it) each has its own.
    """

    def program(leaves: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> jax.Array:
        history = inputs["history"]  # [b, T]
        segment = (history != 0).astype(jnp.int32)
        batch = {**inputs, "segment": segment, "position": jnp.arange(length, dtype=jnp.int32)[None] * segment}
        if "user" in inputs:
            batch["user"] = jnp.broadcast_to(inputs["user"][:, None], history.shape)
        values = method.encode_query(unflatten(method.spec(), leaves), batch).values  # type: ignore[attr-defined]
        return _single(values, method, "query")

    abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}

    def lower(platforms: tuple[str, ...], names: list[str], batch: str = "b") -> jax.export.Exported:
        shape = jax.export.symbolic_shape(batch)
        inputs = {name: jax.ShapeDtypeStruct(shape if name == "user" else (*shape, length), jnp.int32) for name in names}
        with compiling_for(platforms[0].replace("cuda", "gpu")):
            # A new function each time: jit would remember the trace, with the kernels of the platform before.
            return jax.export.export(jax.jit(lambda leaves, inputs: program(leaves, inputs)), platforms=platforms)(abstract, inputs)

    # Where no shape is symbolic, jit drops the arguments that a program does not use. Parameters come first, then the inputs by name.
    offered = ["history", "time", "user"]
    kept = lower(("cpu",), offered, batch="2").module_kept_var_idx
    names = [name for place, name in enumerate(offered, len(abstract)) if place in kept]
    try:
        one = lower(PLATFORMS, names).serialize()
    except (NotImplementedError, ValueError):
        files = {platform: f"query.{platform}.stablehlo" for platform in PLATFORMS}
        for platform, file in files.items():
            (folder / file).write_bytes(lower((platform,), names).serialize())
        return files, names
    (folder / "query.stablehlo").write_bytes(one)
    return dict.fromkeys(PLATFORMS, "query.stablehlo"), names


def item_vectors(method: Encoder, params: Tree, items: int) -> np.ndarray:
    """[N + 1, D] float32 vectors of the items, row = id; row 0 is that of padding."""

    @jax.jit
    def encode(params: Tree, ids: jax.Array) -> jax.Array:
        return _single(method.encode_item(params, {"item": ids}).values, method, "item")

    ids = np.arange(items + 1, dtype=np.int32)
    size = min(ITEMS, len(ids))
    ids = np.concatenate([ids, np.zeros(-len(ids) % size, np.int32)])  # whole chunks, so that one program serves all
    vectors = [np.asarray(encode(params, chunk)) for chunk in ids.reshape(-1, size)]
    return np.concatenate(vectors)[: items + 1]


def _single(values: jax.Array, method: Encoder, kind: str) -> jax.Array:
    """[B, 1, D] -> [B, D] float32."""
    if values.ndim != 3 or values.shape[1] != 1:
        raise ValueError(f"{type(method).__name__}.encode_{kind} gives {values.shape}; a bundle holds one vector for each {kind}: [B, 1, D]")
    return values[:, 0].astype(jnp.float32)


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, or its bits where NumPy's files do not know the type (bfloat16)."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _write_names(folder: Path, interactions: Interactions, *, users: bool) -> None:
    with open(folder / "items.jsonl", "w") as file:
        for row, (item, title) in enumerate(zip(interactions.items, interactions.titles(), strict=True)):
            columns = {name: column[row] for name, column in interactions.item_fields.items() if name != "title"}
            file.write(json.dumps({"id": item, "title": title, "columns": columns}) + "\n")
    if users:
        (folder / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in interactions.users))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # not installed, or run from its sources
        return None
