"""The whole run on one page: bind, lock, restore or start, step, report, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec.artifact import locked, say, write_atomically
from jaxrec.experiment import Experiment, changes, identify
from jaxrec.method import Starter
from jaxrec.param import Tree, count
from jaxrec.train.checkpoint import Checkpoints, fill, read_identity, start_from, stored_steps
from jaxrec.train.log import Log
from jaxrec.train.part import check_bases
from jaxrec.train.step import Runner, State, is_finite, make_runner


def train(experiment: Experiment, workdir: Path) -> dict[str, float]:
    """Trains until `steps`, or until `patience` runs out; continues where an earlier call of the same experiment stopped.

    Returns:
      The last values of every metric, `best_<metric>` where evaluators ran, and `step`.

    Raises:
      ValueError: the workdir belongs to another configuration (says which field differs).
      RuntimeError: another process trains there; or FloatingPointError: a loss was not finite (says where).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    busy = f"another training runs in {workdir}; wait for it, or choose another workdir"
    with locked(workdir / "lock", wait=False, busy=busy) if jax.process_index() == 0 else contextlib.nullcontext():
        return _train(experiment.resolve(), workdir)


def _train(experiment: Experiment, workdir: Path) -> dict[str, float]:
    # --- What is this run?
    for evaluator in experiment.evals:
        evaluator.check(experiment.data)
    claim(experiment, workdir)
    method, data = experiment.method, experiment.data
    first = jax.process_index() == 0
    batches = data.batches(jax.process_index(), jax.process_count())
    tx = experiment.optimizer.build(experiment.steps, method.spec())
    runner = make_runner(method, tx, experiment.layout, seed=experiment.seed, accumulate=experiment.accumulate, precision=experiment.precision)
    tables = experiment.arrays()
    checkpoints = Checkpoints(workdir, refill=tables)
    iterator = batches.iterate()

    # --- Restore, or start.
    state, progress = resume(experiment, runner, checkpoints, tables, batches)
    if "data" in progress:
        iterator.set_state(progress["data"])
    done = int(runner.read(state).step)
    log = Log(workdir, experiment.steps, done=done, per_step=data.batch * data.examples_per_row(), quiet=not first)
    log.note(
        f"{experiment.name}: {type(method).__name__}, {count(method.spec(), trainable=True):,} parameters, {batches.rows:,} rows of {data.capacity} tokens, "
        f"{experiment.steps * data.batch / batches.rows:.1f} epochs, {jax.device_count()} {jax.default_backend()} device(s)"
        + (f", continuing at step {done:,}" if done else "")
    )

    # --- Step.
    values: dict[str, float] = progress["values"]
    pending: list[dict[str, jax.Array]] = []
    saved = done
    stop, interrupted = bool(experiment.patience) and progress["stale"] >= experiment.patience, False
    with stopping() as stopped, contextlib.closing(checkpoints), contextlib.closing(log):
        if not experiment.steps and checkpoints.latest_step() is None:
            progress["data"] = iterator.get_state()
            keep_start(experiment, runner.read(state), progress, checkpoints, log)
        while done < experiment.steps and not stop:
            burst = next_stop(done, experiment) - done
            state, metrics = runner.run(state, [next(iterator) for _ in range(burst)])
            done += burst
            pending.append(metrics)

            # --- Report.
            interrupted = stopped()
            last = done == experiment.steps or interrupted
            due_eval = bool(experiment.evals) and (done == experiment.steps or is_due(done, experiment.eval_every))
            due_save = last or is_due(done, experiment.save_every)
            if last or due_eval or due_save or is_due(done, experiment.log_every):
                means = settle_metrics(pending, runner.read(state), batches, checkpoints, experiment)
                pending = []
                log.report(done, means)
                values |= means

            # --- Evaluate.
            if due_eval:
                measured = evaluate(experiment, runner.read(state).params, done)
                log.report(done, measured)
                values |= measured
                if judge(progress, measured, done):
                    checkpoints.save_best(runner.read(state).params, done)
                stop = bool(experiment.patience) and progress["stale"] >= experiment.patience

            # --- Save.
            if due_save or stop:
                checkpoints.save(runner.read(state), {**progress, "data": iterator.get_state()})
                saved = done
            if interrupted:
                break
        checkpoints.wait()
        if stop:
            log.note(f"stopped at step {done:,}: no better {progress['metric']} since step {progress['best_step']:,}")
        elif interrupted:
            log.note(f"interrupted; step {saved:,} is saved. Run the same command again to continue.")
    if interrupted:
        raise KeyboardInterrupt
    best = {} if progress["best"] is None else {f"best_{progress['metric']}": progress["best"], "best_step": progress["best_step"]}
    return {**values, **best, "step": done}


def resume(experiment: Experiment, runner: Runner, checkpoints: Checkpoints, tables: dict[str, np.ndarray], batches: Any) -> tuple[State, dict[str, Any]]:
    """(state on the devices, progress): those of the newest checkpoint, else of a beginning."""
    fresh = {"best": None, "best_step": 0, "stale": 0, "metric": "", "values": {}}
    if checkpoints.latest_step() is None:
        return begin(experiment, runner, tables, batches), fresh
    placed = fill(runner.read(runner.start()).params, tables) if tables else None
    state, progress = checkpoints.restore(runner.abstract, placed)
    return runner.place(state), fresh | progress


def evaluate(experiment: Experiment, params: Tree, step: int) -> dict[str, float]:
    """The values of all evaluators, in their order."""
    whole = gathered(params)
    try:
        return {name: float(value) for evaluator in experiment.evals for name, value in evaluator(experiment.method, whole, experiment.data)}
    except ValueError as error:
        raise ValueError(f"{experiment.name}, evaluated after {step} steps: {error}") from error


def keep_start(experiment: Experiment, state: State, progress: dict[str, Any], checkpoints: Checkpoints, log: Log) -> None:
    """Evaluates and saves a run of no steps: nothing is trained, and where it starts is the result."""
    if experiment.evals:
        progress["values"] |= evaluate(experiment, state.params, 0)
        judge(progress, progress["values"], 0)
        log.report(0, progress["values"])
    checkpoints.save(state, progress)


def judge(progress: dict[str, Any], measured: dict[str, float], step: int) -> bool:
    """Whether this evaluation is the best so far, by the first value of the first evaluator; notes it in `progress`."""
    metric, value = next(iter(measured.items()))
    better = math.isfinite(value) and (progress["best"] is None or value > progress["best"])
    progress |= {"metric": metric, "stale": 0 if better else progress["stale"] + 1}
    if better:
        progress |= {"best": value, "best_step": step}
    return better


def begin(experiment: Experiment, runner: Runner, tables: dict[str, np.ndarray], batches: Any) -> State:
    """A state at step 0, with tables, other runs' parameters and data-dependent starts in place."""
    state = runner.start()
    if not (tables or experiment.init_from or isinstance(experiment.method, Starter)):
        return state
    params = start_from(fill(runner.read(state).params, tables), experiment.init_from)
    check_bases(params, experiment.init_from, gathered)
    for prefix, at in experiment.init_from.items():
        if isinstance(at, str) and (other := other_tables(experiment, prefix, Path(at))):
            say(f"note: {at} learned with other {', '.join(other)} than are used here; what stands for a code or an item there may not do so here")
    if isinstance(experiment.method, Starter):
        whole = dataclasses.replace(batches, process=0, processes=1)  # every process must start from the same data
        some = (whole[number] for number in range(-(-whole.rows // whole.size)))
        params = experiment.method.start(params, some, jax.random.key(experiment.seed))
    return runner.place(dataclasses.replace(runner.read(state), params=params))


def other_tables(experiment: Experiment, prefix: str, workdir: Path) -> list[str]:
    """The tables (semantic IDs, text vectors) below `prefix` that a run had under the same name and with another content."""
    if not (workdir / "experiment.json").exists():
        return []
    theirs = read_identity(workdir).get("content", {}).get("tables", {})
    own = {name.removeprefix(f"{prefix}."): table.fingerprint() for name, table in experiment.tables.items() if not prefix or name.startswith(f"{prefix}.")}
    return [name for name, fingerprint in own.items() if theirs.get(name, fingerprint) != fingerprint]


def claim(experiment: Experiment, workdir: Path) -> None:
    """Writes the experiment into a fresh workdir; in one that holds a checkpoint, checks that it is the same.

    Raises:
      ValueError: names each field that differs, with both values.
    """
    path = workdir / "experiment.json"
    if path.exists() and any(stored_steps(workdir).values()):
        changed = changes(read_identity(workdir), experiment)
        if changed:
            raise ValueError(
                f"{workdir} holds another run; these fields differ:\n  "
                + "\n  ".join(changed)
                + "\nUse the old values to continue it, or another --workdir to start anew."
            )
    if jax.process_index() == 0:
        write_atomically(path, json.dumps(identify(experiment), indent=1))


def gathered(params: Tree) -> Tree:
    """Parameters as a program of one device reads them: from the host, where several devices hold them.

    Kernels are split over devices in the step alone, and of several processes each evaluates by itself.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(params, tiled=True)
    return jax.device_get(params) if any(len(leaf.devices()) > 1 for leaf in jax.tree.leaves(params)) else params


def settle_metrics(pending: list[dict[str, jax.Array]], state: State, batches: Any, checkpoints: Checkpoints, experiment: Experiment) -> dict[str, float]:
    """Means over the steps since the last report; stops the run if a loss is not finite, or the state they led to."""
    if not pending:
        return {}
    columns = {name: np.concatenate([np.asarray(metrics[name]) for metrics in pending]) for name in pending[0]}
    broken = ~np.isfinite(columns["loss"])
    if broken.any() or not is_finite(experiment.method, state):
        late = len(broken) - int(np.argmax(broken)) if broken.any() else 1  # a broken state breaks the next loss, so it is the last step's
        number, loss = int(state.step) - late, columns["loss"][-late]
        rows = batches.indices(number)
        shown = ", ".join(map(str, rows[:16].tolist())) + (", ..." if len(rows) > 16 else "")
        checkpoints.wait()
        good = checkpoints.latest_step()
        what = f"the loss of step {number} is {loss}" if broken.any() else f"the state after step {number} is not finite, though its loss is {loss:.6g},"
        raise FloatingPointError(
            f"{experiment.name}: {what} on rows [{shown}]. "
            + (f"The checkpoint of step {good} is good. " if good is not None else "No checkpoint was saved yet. ")
            + "Lower optimizer.peak, set optimizer.clip=1, or look at those rows; then start "
            + ("in another workdir." if good is not None else "again.")
        )
    return {name: float(column.mean()) for name, column in columns.items()}


def is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def next_stop(step: int, experiment: Experiment) -> int:
    """The step at which the next burst ends: at most `dispatch` further, and never past a report, evaluation or save."""
    stops = [step + experiment.dispatch, experiment.steps]
    stops += [(step // every + 1) * every for every in (experiment.log_every, experiment.eval_every, experiment.save_every) if every]
    return min(stops)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a question the loop asks between steps; a second Ctrl-C interrupts at once.

    Among several processes only SIGTERM asks, and jax agrees with all of them on the step at which to stop.
    """
    if jax.process_count() > 1:
        questions = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(questions))
        return
    caught: list[int] = []

    def handle(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {}
    with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
