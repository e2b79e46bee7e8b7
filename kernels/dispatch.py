"""Which implementation runs where, and the one place that knows which jax version has which Pallas names."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

Backend = Literal["auto", "reference", "blocked", "tpu", "gpu"]


@dataclass(frozen=True)
class _Devices:
    mesh: Mesh
    axes: tuple[str, ...]  # of the mesh, that rows of a batch are spread over


_devices: contextvars.ContextVar[_Devices | None] = contextvars.ContextVar("kernels_devices", default=None)
_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("kernels_target_platform", default=None)


def platform() -> str:
    """The platform that is compiled for: `compiling_for`'s where it is in force, that of jax's default devices otherwise."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Traces inside this context choose kernels for `platform`, as an ahead-of-time compile for devices that are not here needs."""
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)


@contextlib.contextmanager
def spread_over(mesh: Mesh, axes: Sequence[str]) -> Iterator[None]:
    """Traces inside this context are of a program for all devices of the mesh, whose batches are spread over these axes of it.

    The compiler can split neither a Pallas kernel nor a loop over tiles, so kernels split themselves: see `by_rows`.
    """
    token = _devices.set(_Devices(mesh, tuple(axes)) if mesh.size > 1 else None)
    try:
        yield
    finally:
        _devices.reset(token)


def by_rows(function: Callable[..., Array], arguments: Sequence[Array | None], *, split: Sequence[bool], total: bool = False) -> Array:
    """`function(*arguments)`, computed by each device for its own rows where a program is spread over several.

    Args:
      function: of rows that do not depend on each other.
      arguments: arrays, or None.
      split: of each argument, whether its first axis is rows; the others go to every device whole.
      total: the result is a sum over the rows; otherwise it has their axis first.
    """
    devices = _devices.get()
    if devices is None:
        return function(*arguments)
    sizes = [len(argument) for argument, rows in zip(arguments, split, strict=True) if rows and argument is not None]
    shares = math.prod(devices.mesh.shape[axis] for axis in devices.axes)
    divides = not any(size % shares for size in sizes)  # otherwise every device computes all
    rows = PartitionSpec(devices.axes if divides and devices.axes else None)
    specs = tuple(rows if is_rows else PartitionSpec() for is_rows in split)

    def share(*own: Array | None) -> Array:
        result = function(*own)
        return jax.lax.psum(result, devices.axes) if total and divides and devices.axes else result

    spread = jax.shard_map(share, mesh=devices.mesh, in_specs=specs, out_specs=PartitionSpec() if total else rows, check_vma=False)
    return spread(*arguments)


def choose(backend: str, implementations: Collection[str]) -> str:
    """The name of the implementation to run: `backend` itself, or for "auto" the kernel for TPUs on one, where there is one, and "blocked" elsewhere.

    Kernels for GPUs run only if they are asked for: none was timed on hardware.
    """
    if backend == "auto":
        return "tpu" if platform() == "tpu" and "tpu" in implementations else "blocked"
    if backend not in implementations:
        raise ValueError(f"backend={backend!r} is not an implementation of this kernel; use 'auto' or one of {sorted(implementations)}")
    return backend


def interpret() -> bool:
    """Whether a Pallas TPU kernel must be interpreted, because what is compiled for is not a TPU."""
    return platform() != "tpu"


def interpret_gpu() -> Any:
    """How a Mosaic GPU kernel is interpreted where what is compiled for is not a GPU; False where it is one.

    Raises:
      NotImplementedError: this jax cannot interpret it.
    """
    if platform() == "gpu":
        return False
    from jax.experimental.pallas import mosaic_gpu as plgpu

    parameters = getattr(plgpu, "InterpretGPUParams", None)  # since jax 0.12
    if parameters is None:
        raise NotImplementedError(f"backend='gpu' on a {platform()} is simulated by jax >= 0.12, and this is {jax.__version__}; use backend='auto'")
    return parameters()


def gpu_kernel(body: Callable[..., None], *, cost: pl.CostEstimate, **options: Any) -> Callable[..., Any]:
    """Mosaic GPU's `kernel(body, **options)`, interpreted where it must be, and with its cost where jax takes one."""
    from jax.experimental.pallas import mosaic_gpu as plgpu  # takes a third of a second, hence not above

    if "cost_estimate" in inspect.signature(plgpu.kernel).parameters:  # jax 0.10 has none
        options["cost_estimate"] = cost
    return plgpu.kernel(body, interpret=interpret_gpu(), **options)


def tpu_compiler_params(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Mosaic's parameters: whether the steps of each axis of the grid are independent of each other, or run in order."""
    return pltpu.CompilerParams(dimension_semantics=semantics)  # of this name since jax 0.7; 0.10 to 0.12 need no distinction
