"""Checkpoints: the state of a run as a flat table of named arrays, written by orbax, so a folder survives refactoring of the code.

A run keeps its latest states (to resume) and apart from them the best parameters (to evaluate and export). Orbax writes into a
temporary folder and renames it, so a crash or a full disk leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxrec.artifact import checksum, say
from jaxrec.param import Tree, flatten, unflatten
from jaxrec.train.step import State


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Keeps tracebacks out of the log that orbax raises as well: each of its threads logs its own, and a full disk would be three hundred lines."""
    _, error, frames = record.exc_info or (None, None, None)
    of_frames = any("orbax" in Path(frame.f_code.co_filename).parts for frame, _ in traceback.walk_tb(frames))
    return not of_frames and "orbax-checkpoint-tmp" not in str(error)  # a write that nobody waited for has no frames, yet names its file


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_not_of_orbax)


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: of the run.
      refill: names of parameters that are not stored, because `Experiment.tables` fills them.
      keep: how many of the latest states.
    """

    def __init__(self, workdir: Path, *, refill: Iterable[str] = (), keep: int = 2):
        self.workdir = workdir.absolute()
        self._refill = set(refill)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self._latest = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

    def save(self, state: State, progress: Mapping[str, Any]) -> None:
        """Saves a state and the JSON-able `progress` (data iterator, best value) beside it. Returns once the arrays are copied."""
        step = int(state.step)
        if step == self._latest.latest_step():
            return
        with self._writing(f"checkpoint of step {step}"):
            if not stored_steps(self.workdir)["best"]:  # else those are evaluated
                self._drop_ranks()
            stored = ocp.args.StandardSave(one_copy(self._stored(state)))
            self._latest.save(step, args=ocp.args.Composite(state=stored, progress=ocp.args.JsonSave(dict(progress))))

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          OSError: it could not be written; names the step that survives.
        """
        with self._writing("checkpoint"):
            self._latest.wait_until_finished()

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._latest.latest_step()

    def restore(self, abstract: State, params: Tree | None = None) -> tuple[State, dict[str, Any]]:
        """The newest state, laid out like `abstract`, and its progress. `params` gives the arrays that are not stored."""
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(self._stored(abstract)), progress=ocp.args.JsonRestore())
        step = self._latest.latest_step()
        with _reading(self.workdir, "checkpoints", step):
            restored = self._latest.restore(step, args=wanted)
        leaves = dict(restored["state"])
        if self._refill:
            leaves |= {f"params.{name}": leaf for name, leaf in flatten(params).items() if name in self._refill}
        return unflatten(abstract, leaves), restored["progress"]

    def save_best(self, params: Tree, step: int) -> None:
        """Replaces the best parameters."""
        with self._writing(f"best parameters, of step {step},"):
            self._drop_ranks()
            save_params(self.workdir / "best", {name: leaf for name, leaf in flatten(params).items() if name not in self._refill}, step)

    def close(self) -> None:
        with self._writing("checkpoint"):
            self._latest.close()

    def _stored(self, state: State) -> dict[str, Any]:
        return {name: leaf for name, leaf in flatten(state).items() if name.removeprefix("params.") not in self._refill}

    def _drop_ranks(self) -> None:
        """Removes what an evaluation kept for `compare`: it is of other parameters than those of the run from here on."""
        if jax.process_index() == 0:
            for path in self.workdir.glob("ranks_*.npz"):
                path.unlink()

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Says of any error what could not be written, and which step survives."""
        try:
            yield
        except Exception as error:  # orbax passes on whatever its writer threads raised
            steps = stored_steps(self.workdir)["checkpoints"]
            kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no earlier checkpoint"
            raise OSError(
                f"the {what} could not be written to {self.workdir} ({error}); {kept}. Free some disk space and run the same command again"
            ) from error


def save_params(folder: Path, leaves: Mapping[str, Any], step: int) -> None:
    """Writes named arrays as the only checkpoint in `folder`; the previous one goes once the new one is complete."""
    with ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True, cleanup_tmp_directories=True)) as manager:
        for later in [s for s in manager.all_steps() if s > step]:  # left by a process that died before it saved its state
            manager.delete(later)
        if manager.latest_step() != step:
            manager.save(step, args=ocp.args.StandardSave(one_copy(leaves)))


def one_copy(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays as one process writes them: of what every device holds whole, the first device's.

    Orbax would let each device write its slice, which spares processes work; with one process it only compiles a program for every shape.
    """
    alone = jax.process_count() == 1
    return {name: leaf.addressable_data(0) if alone and isinstance(leaf, jax.Array) and leaf.is_fully_replicated else leaf for name, leaf in leaves.items()}


def stored_steps(workdir: Path) -> dict[str, list[int]]:
    """The steps of a run's complete checkpoints, rising: of its "best" parameters and of its latest "checkpoints"."""
    return {kind: sorted(int(path.name) for path in (workdir / kind).glob("[0-9]*") if path.name.isdigit()) for kind in ("best", "checkpoints")}


def run_content(workdir: Path) -> dict[str, Any]:
    """What a run holds, JSON-able, for the fingerprint of what starts from it.

    Raises:
      FileNotFoundError: the run has no checkpoint; says which command makes one.
    """
    steps = {kind: sorted(map(str, steps)) for kind, steps in stored_steps(workdir).items()}
    if not any(steps.values()):
        raise FileNotFoundError(f"{workdir} has no checkpoint; train first: jaxrec train experiments/{workdir.name}.py")
    return {**steps, "experiment": checksum(workdir / "experiment.json")}


def read_identity(workdir: Path) -> dict[str, Any]:
    """What `experiment.identify` said of a run when it began.

    Raises:
      ValueError: the file is damaged; says what to do.
    """
    path = workdir / "experiment.json"
    try:
        identity = json.loads(path.read_text())
        if not isinstance(identity, dict):
            raise ValueError(f"it holds {identity!r}")
        return identity
    except ValueError as error:  # of UTF-8 or of JSON, too
        raise ValueError(
            f"{path} is damaged: {error}. If you are sure how the run was configured, remove the file and run that training command again, "
            "which writes it anew; else train in another workdir"
        ) from error


def read_params(workdir: Path) -> tuple[dict[str, np.ndarray], int]:
    """(named arrays, step) of a run: its best parameters if it kept any, else those of its newest state.

    The arrays are on the host, so that it does not matter on which devices they were trained.

    Raises:
      FileNotFoundError: the run has no checkpoint; says which command makes one.
    """
    for folder, prefix in ((workdir / "best", ""), (workdir / "checkpoints", "params.")):
        if not folder.is_dir():
            continue
        handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()} if prefix else ocp.StandardCheckpointHandler()
        with ocp.CheckpointManager(folder.absolute(), item_handlers=handlers, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
            if (step := manager.latest_step()) is None:
                continue
            with _reading(workdir, folder.name, step):
                stored = manager.item_metadata(step)
                arrays = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in (stored["state"] if prefix else stored).items()}
                wanted = ocp.args.StandardRestore(arrays)
                restored = manager.restore(step, args=ocp.args.Composite(state=wanted))["state"] if prefix else manager.restore(step, args=wanted)
            return {name.removeprefix(prefix): leaf for name, leaf in restored.items() if name.startswith(prefix)}, step
    raise FileNotFoundError(f"{workdir} has no checkpoint; train first: jaxrec train experiments/{workdir.name}.py")


@contextlib.contextmanager
def _reading(workdir: Path, kind: str, step: int | None) -> Iterator[None]:
    """Says of any error which checkpoint cannot be read, and what is left of the run."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore raise whatever they stumble over
        folder = workdir / kind / str(step)
        older = [other for other in stored_steps(workdir)["checkpoints"] if kind == "best" or other != step]
        left = (
            f"the checkpoint of step {older[-1]} is left: remove {folder}, and it takes its place"
            if older
            else "there is no older one: train again in another workdir"
        )
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 240, placeholder=" ...")
        raise ValueError(f"the checkpoint {folder} cannot be read; {left}. {reason}") from error


def fill(params: Tree, tables: Mapping[str, Any]) -> Tree:
    """Parameters with some arrays replaced by name.

    Raises:
      ValueError: a name that the parameters do not have, or another shape; it names both.
    """
    if not tables:
        return params
    leaves = flatten(params)
    for name, value in tables.items():
        if name not in leaves:
            raise ValueError(f"the model has no parameter {name!r} to fill; it has {', '.join(leaves)}")
        if leaves[name].shape != value.shape:
            raise ValueError(f"parameter {name!r} has shape {leaves[name].shape}, the table for it {value.shape}")
        if jax.numpy.issubdtype(leaves[name].dtype, jax.numpy.integer) and not jax.numpy.issubdtype(value.dtype, jax.numpy.integer):
            raise ValueError(f"parameter {name!r} holds integers, the table for it {value.dtype}; is the column numeric?")
        leaves[name] = jax.device_put(jax.numpy.asarray(value, leaves[name].dtype), leaves[name].sharding)
    return unflatten(params, leaves)


def start_from(params: Tree, sources: Mapping[str, Any]) -> Tree:
    """Parameters whose names begin with a prefix replaced by those of another run: `{"reference": Trained(experiment)}`.

    A source is an artifact that loads named arrays, or the workdir of a run. The prefix "" starts the whole model.
    """
    for prefix, source in sources.items():
        leaves = source.get() if hasattr(source, "get") else read_params(Path(source))[0]
        names = {name: f"{prefix}.{name}" if prefix else name for name in leaves}
        say(f"starting {prefix or 'the model'} from {source if isinstance(source, str) else type(source).__name__}: {len(names)} arrays")
        params = fill(params, {names[name]: leaf for name, leaf in leaves.items()})
    return params
