"""The one train step: gradients of summed terms, exact over microbatches and devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.method import Actor, Balancer, Batch, Loss, Method, Settler, cast
from jaxrec.param import Param, Tree, create, merge, split
from jaxrec.sharding import Layout, batch_sharding, make_mesh, partition
from kernels import dispatch

AXIS = "data"  # of pmap


@struct.dataclass
class State:
    """What a run carries from step to step.

    Attributes:
      step: int32, steps done.
      params: all parameters, trainable and frozen.
      optimizer: optax state, of the trainable ones.
    """

    step: jax.Array
    params: Tree
    optimizer: Any


def initial_state(method: Method, tx: optax.GradientTransformation, key: jax.Array) -> State:
    """A fresh state. Pure: jit it with shardings, or `jax.eval_shape` it."""
    spec = method.spec()
    params = create(spec, key)
    return State(jnp.zeros((), jnp.int32), params, tx.init(split(spec, params)[0]))


def is_finite(method: Method, state: State) -> bool:
    """Whether all that training changes is numbers, whose sum is one too. A step with a finite loss can leave others, for its gradient may be none."""
    learned = state.params if isinstance(method, Settler) else split(method.spec(), state.params)[0]
    return bool(_sum_is_finite((learned, state.optimizer)))


@jax.jit
def _sum_is_finite(tree: Tree) -> jax.Array:
    sums = [jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.isfinite(sum(sums, jnp.zeros(())))


def update(
    method: Method,
    tx: optax.GradientTransformation,
    state: State,
    batch: Batch,
    *,
    seed: int = 0,
    accumulate: int = 1,
    precision: Any = jnp.float32,
    axis: str | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One optimiser step.

    Args:
      method: its loss, and the capabilities Actor, Balancer and Settler where it has them.
      tx: the optimiser.
      state: is not changed.
      batch: leading axis = examples of this program (all of them under jit, one device's share under pmap).
      seed: of the step's randomness, folded with the step's number.
      accumulate: microbatches.
      precision: dtype of the forward and backward pass.
      axis: the mapped axis under pmap, else None.

    Returns:
      The next state, and the terms ("loss" is their weighted sum) and metrics, each already divided by its weight.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    settle = jax.random.split(key, 3)[2]  # the same on every device
    if axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    act, learn, _ = jax.random.split(key, 3)
    if isinstance(method, Actor):
        batch = jax.lax.stop_gradient(method.rollout(state.params, batch, act))
    spec = method.spec()
    trainable, frozen = split(spec, state.params)

    def loss(trainable: Tree, microbatch: Batch, key: jax.Array) -> Loss:
        return method.loss(cast(spec, merge(trainable, frozen), precision), microbatch, key)

    reduce = (lambda tree: jax.lax.psum(tree, axis)) if axis is not None else (lambda tree: tree)
    gradient, loss_sums, coefficients = _gradient(method, loss, trainable, _microbatches(batch, accumulate), jax.random.split(learn, accumulate), reduce)
    changes, optimizer = tx.update(gradient, state.optimizer, trainable)
    params = merge(optax.apply_updates(trainable, changes), frozen)
    if isinstance(method, Settler):
        whole = batch if axis is None else jax.lax.all_gather(batch, axis, tiled=True)
        params = method.settle(params, loss_sums.stats, whole, settle)
    values = {name: _ratio(*pair) for name, pair in {**loss_sums.terms, **loss_sums.metrics}.items()}
    values["loss"] = sum((coefficients[name] * values[name] for name in loss_sums.terms), jnp.zeros(()))
    return State(state.step + 1, params, optimizer), values


def _gradient(
    method: Method, loss: Callable[..., Loss], trainable: Tree, microbatches: Batch, keys: jax.Array, reduce: Callable[[Any], Any]
) -> tuple[Tree, Loss, Mapping[str, Any]]:
    """(gradient of the objective, summed Loss, coefficients).

    The weights do not depend on parameters, so they are summed first, in a pass from which the compiler drops everything else; then
    each microbatch's gradient is that of its sums over the total weights, and their sum is exact.
    """

    single = len(keys) == 1
    first = jax.tree.map(lambda leaf: leaf[0], (microbatches, keys))

    def weigh(carry: None, item: tuple[Batch, jax.Array]) -> tuple[None, Any]:
        return carry, {name: weight for name, (_, weight) in loss(trainable, *item).terms.items()}

    total_weights = None if single else reduce(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), jax.lax.scan(weigh, None, (microbatches, keys))[1]))

    def normalised(trainable: Tree, microbatch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], Loss]:
        result = loss(trainable, microbatch, key)
        weights = total_weights or reduce({name: weight for name, (_, weight) in result.terms.items()})
        return {name: _ratio(total, weights[name]) for name, (total, _) in result.terms.items()}, result

    def measure(microbatch: Batch, key: jax.Array) -> tuple[dict[str, Tree], Loss]:
        values, pullback, result = jax.vjp(lambda t: normalised(t, microbatch, key), trainable, has_aux=True)
        if isinstance(method, Balancer):  # one forward pass, one pullback per term
            cotangents = {name: {other: jnp.full((), float(name == other)) for other in values} for name in values}
        else:
            cotangents = {"objective": {name: jnp.full((), method.coefficients.get(name, 1.0)) for name in values}}
        return {name: pullback(cotangent)[0] for name, cotangent in cotangents.items()}, result

    def accumulate(total: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, measure(*item)), None

    if single:
        gradients, sums = reduce(measure(*first))
    else:
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(measure, *first))
        gradients, sums = reduce(jax.lax.scan(accumulate, nothing, (microbatches, keys))[0])
    if not isinstance(method, Balancer):
        return gradients["objective"], sums, {name: method.coefficients.get(name, 1.0) for name in sums.terms}
    coefficients = method.balance({name: _ratio(*pair) for name, pair in sums.terms.items()}, gradients)
    weighted = [jax.tree.map(lambda leaf, c=coefficients[name]: c * leaf, gradients[name]) for name in coefficients]
    return jax.tree.map(lambda *leaves: sum(leaves), *weighted), sums, coefficients


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    """total / weight, and 0 for a weight of 0: a batch without targets changes nothing."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0.0)


def _microbatches(batch: Batch, parts: int) -> Batch:
    """Every array [B, ...] as [parts, B / parts, ...]; rows are dealt out in turn, so each keeps its share of every device's rows."""
    return {name: jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0) for name, array in batch.items()}


@dataclass(frozen=True)
class Runner:
    """A compiled step and how to get states and batches to it and back.

    Attributes:
      start: () -> a fresh state, on the devices.
      place: (state on one device or host) -> the state on the devices.
      run: (state, host batches of this process) -> (state, metrics stacked over the batches).
      step: the program of one global batch, (state, batch) -> (state, metrics); `step.lower(abstract, batch)` compiles it ahead of time.
      read: (state) -> the state as checkpoints hold it.
      abstract: shapes, dtypes and shardings of `read(state)`.
    """

    start: Callable[[], State]
    place: Callable[[State], State]
    run: Callable[[State, list[Batch]], tuple[State, dict[str, jax.Array]]]
    step: Any
    read: Callable[[State], State]
    abstract: State


def make_runner(
    method: Method, tx: optax.GradientTransformation, layout: Layout, *, seed: int = 0, accumulate: int = 1, precision: Any = jnp.float32, devices: Any = None
) -> Runner:
    """Compiles the step for a layout. Programs are compiled at the first call for each number of batches."""
    step = functools.partial(update, method, tx, seed=seed, accumulate=accumulate, precision=jnp.dtype(precision))
    start = functools.partial(initial_state, method, tx, jax.random.key(seed))
    return _pmap_runner(step, start, devices) if layout.compile == "pmap" else _jit_runner(method, tx, step, start, layout, make_mesh(layout, devices))


def _jit_runner(method: Method, tx: optax.GradientTransformation, step: Callable[..., Any], start: Callable[[], State], layout: Layout, mesh: Mesh) -> Runner:
    shardings = state_shardings(method, tx, layout, mesh)
    rows = batch_sharding(layout, mesh)
    stacked = NamedSharding(mesh, PartitionSpec(None, *rows.spec))
    shares = mesh.size // rows.shard_shape((mesh.size,))[0]
    axes = jax.tree.leaves(tuple(rows.spec))  # of the mesh, that rows are spread over

    def spread(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        with dispatch.spread_over(mesh, axes):
            return step(state, batch)

    scanned = jax.jit(
        lambda state, batches: jax.lax.scan(spread, state, batches), donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec()))
    )
    single = jax.jit(spread, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))

    def run(state: State, batches: list[Batch]) -> tuple[State, dict[str, jax.Array]]:
        _check_rows(batches[0], jax.process_count(), shares)
        if len(batches) == 1:
            batch = {name: jax.make_array_from_process_local_data(rows, np.asarray(array)) for name, array in batches[0].items()}
            state, metrics = single(state, batch)
            return state, {name: value[None] for name, value in metrics.items()}
        joined = {name: jax.make_array_from_process_local_data(stacked, np.stack([batch[name] for batch in batches])) for name in batches[0]}
        return scanned(state, joined)

    abstract = jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(start), shardings)
    return Runner(
        start=jax.jit(start, out_shardings=shardings),
        place=lambda state: jax.device_put(state, shardings),
        run=run,
        step=single,
        read=lambda state: state,
        abstract=abstract,
    )


def _pmap_runner(step: Callable[..., Any], start: Callable[[], State], devices: Any) -> Runner:
    count = len(jax.local_devices() if devices is None else devices)
    mapped = jax.pmap(functools.partial(step, axis=AXIS), axis_name=AXIS, devices=devices, donate_argnums=0)

    def place(state: State) -> State:
        return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf)[None], (count, *leaf.shape)), state)  # pmap spreads what is on the host

    def run(state: State, batches: list[Batch]) -> tuple[State, dict[str, jax.Array]]:
        _check_rows(batches[0], 1, count)
        collected = []
        for batch in batches:
            state, metrics = mapped(state, {name: np.reshape(array, (count, -1, *array.shape[1:])) for name, array in batch.items()})
            collected.append(jax.tree.map(lambda leaf: leaf[0], metrics))
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)

    return Runner(
        start=lambda: place(jax.jit(start)()),
        place=place,
        run=run,
        step=mapped,
        read=lambda state: jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), state),  # of NumPy, too, where `place` has just put it
        abstract=jax.eval_shape(start),
    )


def _check_rows(batch: Batch, processes: int, devices: int) -> None:
    rows = len(next(iter(batch.values()))) * processes
    if rows % devices:
        raise ValueError(f"a batch of {rows} rows does not divide over the {devices} devices that share it; make data.batch a multiple of {devices}")


def state_shardings(method: Method, tx: optax.GradientTransformation, layout: Layout, mesh: Mesh) -> State:
    """The sharding of every leaf of a state: parameters by their axes, optimiser moments like their parameters, the rest on every device."""
    spec = method.spec()
    params = jax.tree.map(lambda param: partition(param.axes, param.shape, layout, mesh), spec, is_leaf=lambda leaf: isinstance(leaf, Param))
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = jax.eval_shape(functools.partial(initial_state, method, tx), jax.random.key(0))
    optimizer = optax.tree_utils.tree_map_params(
        tx, lambda _, sharding: sharding, state.optimizer, split(spec, params)[0], transform_non_params=lambda _: everywhere
    )
    return State(everywhere, params, optimizer)  # type: ignore[arg-type]
