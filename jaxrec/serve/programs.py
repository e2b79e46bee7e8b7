"""Programs: what a bundle computes, lowered by jax.export for every platform and any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from jaxrec.method import Encoder, Generator
from jaxrec.param import Tree, unflatten
from kernels.dispatch import compiling_for

PLATFORMS = ("cpu", "cuda", "tpu")
# Places of a generator's lists: its binary search over them is unrolled, so their number is no symbol. What is allowed may be a region of the catalogue.
LISTED = {"deny": 1024, "allow": 16_384}


def write_encoder(folder: Path, method: Encoder, leaves: Mapping[str, Any], length: int) -> tuple[dict[str, str], list[str]]:
    """Writes the query encoder, (parameters, inputs) -> [b, D]; returns file by platform, and the inputs that it uses beside the parameters."""

    def encode(params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        return single(method.encode_query(params, batch).values, method, "query")

    return _write(folder, "query", _program(method, encode, length), leaves, {"history": length, "time": length, "user": None})


def write_generator(folder: Path, method: Generator, leaves: Mapping[str, Any], length: int) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Writes the search under a list of denied items and that under one of allowed items, (parameters, inputs) -> (items [b, K], log-probs [b, K]).

    A list is an input named "deny" or "allow", [b, its LISTED], 0 = padding. Returns file by list by platform, and the inputs beside the list.
    """

    def generate(params: Tree, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        def one(example: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            example = {name: column[None] for name, column in example.items()}
            _, items, log_probs = method.generate(params, example, jax.random.key(0), beams=method.beams)
            return items[0], log_probs[0]

        return jax.vmap(one)(batch)  # example by example: a search asks for the length of its batch, which no symbol has

    programs: dict[str, dict[str, str]] = {platform: {} for platform in PLATFORMS}
    inputs: list[str] = []
    for name, places in LISTED.items():
        offered = {name: places, "history": length, "time": length, "user": None}
        files, inputs = _write(folder, f"generate.{name}", _program(method, generate, length), leaves, offered)
        if name not in inputs:
            raise ValueError(f"{type(method).__name__}.generate does not look at batch[{name!r}]; a generator that is served takes `deny` and `allow`")
        inputs.remove(name)
        for platform, file in files.items():
            programs[platform][name] = file
    return programs, inputs


def write_retriever(folder: Path, method: Any, leaves: Mapping[str, Any], length: int) -> dict[str, str]:
    """Writes the query encoder of texts, (parameters, {"query": [b, length]}) -> (vectors [b, N, D], mask [b, N]); returns file by platform."""

    def encode(leaves: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vectors = method.encode_query(unflatten(method.spec(), leaves), inputs)
        return vectors.values.astype(jnp.float32), vectors.mask

    return _write(folder, "query", encode, leaves, {"query": length})[0]


def single(values: jax.Array, method: Encoder, kind: str) -> jax.Array:
    """[B, 1, D] -> [B, D] float32."""
    if values.ndim != 3 or values.shape[1] != 1:
        raise ValueError(f"{type(method).__name__}.encode_{kind} gives {values.shape}; a bundle holds one vector for each {kind}: [B, 1, D]")
    return values[:, 0].astype(jnp.float32)


def _program(method: Any, answer: Callable[[Tree, dict[str, jax.Array]], Any], length: int) -> Callable[..., Any]:
    """`answer(params, batch)` as a function of the parameters by name, and of what a request says; the rest of the batch follows from that."""

    def program(leaves: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> Any:
        history = inputs["history"]  # [b, T]
        segment = (history != 0).astype(jnp.int32)
        batch = {**inputs, "segment": segment, "position": jnp.arange(length, dtype=jnp.int32)[None] * segment}
        if "user" in inputs:
            batch["user"] = jnp.broadcast_to(inputs["user"][:, None], history.shape)
        return answer(unflatten(method.spec(), leaves), batch)

    return program


def _write(
    folder: Path, stem: str, program: Callable[..., Any], leaves: Mapping[str, Any], offered: Mapping[str, int | None]
) -> tuple[dict[str, str], list[str]]:
    """Writes a program; returns file by platform, and those of the inputs `offered`, by name [b, width] or [b] for None, that it uses.

    One program serves all platforms, or where that cannot be lowered (a kernel of one platform is in it) each has its own.
    """
    abstract = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}

    def lower(platforms: tuple[str, ...], names: list[str], batch: str = "b") -> jax.export.Exported:
        shape = jax.export.symbolic_shape(batch)
        inputs = {name: jax.ShapeDtypeStruct(shape if offered[name] is None else (*shape, offered[name]), jnp.int32) for name in names}
        with compiling_for(platforms[0].replace("cuda", "gpu")):
            # A new function each time: jit would remember the trace, with the kernels of the platform before.
            return jax.export.export(jax.jit(lambda leaves, inputs: program(leaves, inputs)), platforms=platforms)(abstract, inputs)

    # Where no shape is symbolic, jit drops the arguments that a program does not use. Parameters come first, then the inputs by name.
    kept = lower(("cpu",), sorted(offered), batch="2").module_kept_var_idx
    names = [name for place, name in enumerate(sorted(offered), len(abstract)) if place in kept]
    try:
        one = lower(PLATFORMS, names).serialize()
    except (NotImplementedError, ValueError):
        files = {platform: f"{stem}.{platform}.stablehlo" for platform in PLATFORMS}
        for platform, file in files.items():
            (folder / file).write_bytes(lower((platform,), names).serialize())
        return files, names
    (folder / f"{stem}.stablehlo").write_bytes(one)
    return dict.fromkeys(PLATFORMS, f"{stem}.stablehlo"), names
