"""Experiment: everything that decides a run, as one frozen dataclass in one Python file.

    # experiments/sasrec_beauty.py
    experiment = Experiment(method=SASRec(), data=Sequences(AmazonP5("beauty")), steps=4000)

The name is the file's; the workdir is `runs/<name>`. Any field is overridden by its dotted path: `--method.dim 128`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.data import Data
from jaxrec.limits import check
from jaxrec.method import Actor, Method, bind
from jaxrec.optimizer import Adam
from jaxrec.sharding import Layout


class Evaluator:
    """Measures a trained system: `(method, params, data) -> (name, value)` pairs, run every `eval_every` steps on validation."""

    def check(self, data: Any) -> None:
        """Raises ValueError, before any work starts, for what can never be measured on this data."""

    def __call__(self, method: Any, params: Any, data: Any) -> Iterable[tuple[str, float]]:
        raise TypeError(f"{type(self).__name__} does not evaluate")


@dataclass(frozen=True)
class Experiment:
    """A run.

    Attributes:
      method: the system to train.
      data: what it trains on and is asked.
      steps: optimiser steps; 0 for a method with nothing to train.
      optimizer: with its schedule.
      evals: run on validation every `eval_every` steps; the first value of the first one decides which checkpoint is best.
      layout: mesh, sharding rules, jit or pmap.
      tables: parameter name -> artifact that fills it (frozen arrays from data). The columns that the method uses need no mention.
      init_from: parameter prefix -> artifact or run folder whose parameters start it.
      accumulate: microbatches that one batch is split into; gradients are exact.
      dispatch: steps per call of the compiled program; more helps where steps are tiny.
      precision: dtype of the forward and backward pass; parameters and optimiser stay float32.
      patience: evaluations without a new best before stopping; 0 = never.
      seed: of initialisation, dropout and negatives (the data has its own).
      log_every, eval_every, save_every: in steps; 0 = only at the end.
      smoke: overrides by dotted path for `--smoke`, on top of a synthetic source and four steps.
      name: set by `load` from the file's name.
    """

    method: Method
    data: Data
    steps: int
    optimizer: Adam = field(default_factory=Adam)
    evals: tuple[Evaluator, ...] = ()
    layout: Layout = field(default_factory=Layout)
    tables: Mapping[str, Artifact] = field(default_factory=dict)
    init_from: Mapping[str, Artifact | str] = field(default_factory=dict)
    accumulate: int = 1
    dispatch: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    patience: int = 0
    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    save_every: int = 500
    smoke: Mapping[str, Any] = field(default_factory=dict)
    name: str = "experiment"

    def __post_init__(self):
        check(self, steps=0, accumulate=1, dispatch=1, patience=0, log_every=0, eval_every=0, save_every=0)
        if self.accumulate > 1 and self.data.batch % self.accumulate:
            raise ValueError(f"{self.name}: a batch of {self.data.batch} rows does not divide into accumulate={self.accumulate} microbatches")
        couples = getattr(self.method, "couples", False)
        if couples and (self.accumulate > 1 or self.layout.compile == "pmap"):
            raise ValueError(
                f"{type(self.method).__name__} couples the examples of a batch, so accumulate={self.accumulate} with compile={self.layout.compile!r} "
                "would change its loss; use accumulate=1 and compile='jit' (its own chunking, where it has one, saves memory)"
            )
        if isinstance(self.method, Actor) and self.accumulate > 1:
            raise ValueError(f"{type(self.method).__name__} makes its own batches; accumulate={self.accumulate} is not supported for it")

    def resolve(self) -> Experiment:
        """The same experiment with the method's `FROM_DATA` fields filled in, and a table from the data for every column that it uses."""
        wanted, given = getattr(self.method, "form", None), getattr(self.data, "form", None)
        if wanted not in (None, given):
            raise ValueError(f"{type(self.method).__name__} learns from rows of form {wanted!r}, but data.form is {given!r}; set data.form={wanted!r}")
        if given == "stream" and wanted is None and getattr(self.method, "positions", False):
            raise ValueError(
                f"{type(self.method).__name__} has positions for the {self.data.info()['length']} items of data.length, and rows of form 'stream' hold "
                "one more; set data.form='next'"
            )
        named = {parameter: self.data.column(name) for parameter, name in columns_of(self.method).items()}
        return dataclasses.replace(self, method=bind(self.method, self.data.info()), tables=dict(sorted(named.items())) | dict(self.tables))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of all tables by parameter name; a table of several arrays gives `name.part` for each."""
        loaded = {name: artifact.get() for name, artifact in self.tables.items()}
        several = {f"{name}.{part}": array for name, table in loaded.items() if isinstance(table, Mapping) for part, array in table.items()}
        return {name: table for name, table in loaded.items() if not isinstance(table, Mapping)} | several

    def smoked(self) -> Experiment:
        """A few steps on synthetic data of the same form: does it run at all?"""
        small = dataclasses.replace(
            self, data=self.data.smoke(), steps=4 if self.steps else 0, dispatch=1, patience=0, log_every=2, eval_every=4, save_every=4, tables={}, init_from={}
        )
        if hasattr(small.method, "features"):  # the synthetic source has no columns but the computed ones
            computed = {column.name for column in getattr(small.data, "columns", ())}
            features: tuple[Any, ...] = getattr(small.method, "features", ())
            small = override(small, {"method.features": tuple(feature for feature in features if feature.name in computed)})
        return override(small, self.smoke)


def load(path: str | Path) -> Experiment:
    """The experiment of a Python file, named after it.

    Raises:
      FileNotFoundError: no such file.
      ImportError, ValueError: it cannot import what it asks for; it fails otherwise, at the line that is named; or it does not define `experiment`.
    """
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else [])
        raise FileNotFoundError(f"no experiment file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location(f"experiments.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file; an experiment is a .py file that defines `experiment = Experiment(...)`")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise (ImportError if isinstance(error, ImportError) else ValueError)(_explained(error, path, vars(module))) from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(
            f"{path} defines no `experiment`; end it with experiment = Experiment(...)"
            if experiment is None
            else f"{path}: `experiment` is {experiment!r}, not an Experiment"
        )
    return dataclasses.replace(experiment, name=path.stem)


def _explained(error: Exception, path: Path, names: Mapping[str, Any]) -> str:
    """What went wrong in an experiment's file that has defined `names`: file, line, cause and the nearest name."""
    if isinstance(error, SyntaxError):  # perhaps of another file, which this one imports
        return f"{error.filename or path}:{error.lineno}: {error.msg}: {(error.text or '').strip()}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == names["__file__"]]
    cause = str(error) if isinstance(error, (ValueError, OSError, ImportError)) else f"{type(error).__name__}: {error}"
    unknown, known = getattr(error, "name", None), list(names)
    if found := re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        unknown, kind = found[2], names.get(found[1])
        known = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    near = difflib.get_close_matches(str(unknown), known, n=1) if isinstance(error, (TypeError, NameError)) else []
    return f"{path}:{lines[-1] if lines else 1}: {cause}" + (f". Did you mean {near[0]!r}?" if near and "Did you mean" not in cause else "")


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """A frozen dataclass with fields replaced by dotted path: `override(experiment, {"method.dim": 128})`.

    Raises:
      ValueError: no such field (with the nearest names), or a value of another type.
    """
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        names = [f.name for f in dataclasses.fields(config)]
        if head not in names:
            near = difflib.get_close_matches(head, names, n=1)
            raise ValueError(f"{type(config).__name__} has no field {head!r}." + (f" Did you mean {near[0]!r}?" if near else f" It has {', '.join(names)}."))
        current = getattr(config, head)
        if rest:
            if not dataclasses.is_dataclass(current):
                raise ValueError(f"{type(config).__name__}.{head} is {current!r}, which has no field {rest!r}")
            value = override(current, {rest: value})
        config = dataclasses.replace(config, **{head: value})
    return config


def describe(value: Any) -> Any:
    """An experiment (or any part of it) as JSON-able data: dataclasses become {"type": ..., field: ...}."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__qualname__, **{f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def columns_of(method: Any, prefix: str = "") -> dict[str, str]:
    """Parameter name -> the column that fills it, for a method and for the members of an ensemble."""
    found = {f"{prefix}features.{feature.name}.table": feature.name for feature in getattr(method, "features", ())}
    if hasattr(method, "sids"):
        found[f"{prefix}sids"] = method.sids.name
    if hasattr(method, "members"):
        for name, member in zip(method.names, method.members, strict=True):
            found |= columns_of(member, f"{prefix}{name}.")
    if hasattr(method, "ensemble"):
        found |= columns_of(method.ensemble, prefix)
    return found


FREE = ("log_every", "eval_every", "save_every", "patience", "layout", "dispatch", "name", "smoke")
"""Fields that may change between the start of a run and its continuation; the rest decide the result."""
SEARCH = ("method.beams", "method.per_id", "method.constrained")
"""How a generator searches: it may be asked otherwise than it was validated."""


def identify(experiment: Experiment) -> dict[str, Any]:
    """What a run is: its fields, and the content of the data and tables behind them, which a path does not tell."""
    tables = {name: table.fingerprint() for name, table in experiment.tables.items()}
    runs = {name: Path(at) / "experiment.json" for name, at in experiment.init_from.items() if isinstance(at, str)}
    starts = {name: checksum(path) for name, path in runs.items() if path.exists()}
    starts |= {name: at.fingerprint() for name, at in experiment.init_from.items() if isinstance(at, Artifact)}
    data: Any = experiment.data
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data)}
    behind = {name: value.fingerprint() for name, value in fields.items() if isinstance(value, Artifact)}  # data made up on the spot has nothing behind it
    return {**describe(experiment), "content": {"data": behind.pop("source", None), **behind, "tables": tables, "starts": starts}}


def changes(before: Mapping[str, Any], experiment: Experiment, *, search: bool = False) -> list[str]:
    """Where an experiment differs from what `identify` said of a run, in what decides the result; one line each.

    With `search`, how a generator searches may differ: that is a question to trained parameters, but training chooses the best ones by it.
    """
    free = {*FREE, *SEARCH} if search else set(FREE)
    lines = [
        line for line in differences(completed(before, experiment), identify(experiment)) if not {line.split(".")[0].split(":")[0], line.split(":")[0]} & free
    ]
    told = [line for line in lines if not (line.startswith("content.") and ": None -> " in line)]  # an older record did not tell it
    return [f"{line} (a data file, or what it is read with, has changed)" if line.startswith("content.") else line for line in told]


def completed(record: Any, value: Any) -> Any:
    """A `describe`d value as this version would have said it: fields that are newer than the record are at their defaults, which do what was done before."""
    if isinstance(value, (list, tuple)) and isinstance(record, list) and len(record) == len(value):
        return [completed(*pair) for pair in zip(record, value, strict=True)]
    if isinstance(value, Mapping) and isinstance(record, Mapping):
        return {name: completed(told, value[name]) if name in value else told for name, told in record.items()}
    if not (dataclasses.is_dataclass(value) and isinstance(record, Mapping)) or record.get("type", type(value).__qualname__) != type(value).__qualname__:
        return record
    told = {f.name: f for f in dataclasses.fields(value) if f.name in record}
    known = {name: completed(record[name], getattr(value, name)) for name in told}
    if isinstance(value, Artifact):  # where a file lies is no matter: what it holds is compared by fingerprint
        known |= {name: describe(getattr(value, name)) for name, f in told.items() if not f.metadata.get("fingerprint", True)}
    newer = {f.name: f for f in dataclasses.fields(value) if f.name not in record}
    makers = {name: f.default_factory for name, f in newer.items() if f.default_factory is not dataclasses.MISSING}
    fixed = {name: f.default for name, f in newer.items() if f.default is not dataclasses.MISSING}
    return {**record, **known, **describe(fixed | {name: make() for name, make in makers.items()})}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two `describe`d values differ: one line `path: a -> b` each."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for key in sorted({*a, *b}) for line in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)]
    return [] if a == b else [f"{path}: {a!r} -> {b!r}"]
