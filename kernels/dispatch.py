"""Which implementation runs where, and the one place that knows which jax version has which Pallas names."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
from jax.experimental.pallas import tpu as pltpu

Backend = Literal["auto", "reference", "blocked", "tpu"]

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


def choose(backend: str, implementations: Mapping[str, Any]) -> str:
    """The name of the implementation to run: `backend` itself, or for "auto" the platform's own kernel where there is one and "blocked" elsewhere."""
    if backend == "auto":
        return platform() if platform() in implementations else "blocked"
    if backend not in implementations:
        raise ValueError(f"backend={backend!r} is not an implementation of this kernel; use 'auto' or one of {sorted(implementations)}")
    return backend


def interpret() -> bool:
    """Whether a Pallas TPU kernel must be interpreted, because what is compiled for is not a TPU."""
    return platform() != "tpu"


def tpu_compiler_params(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
    """Mosaic's parameters: whether the steps of each axis of the grid are independent of each other, or run in order."""
    return pltpu.CompilerParams(dimension_semantics=semantics)  # of this name since jax 0.7; 0.10 to 0.12 need no distinction
