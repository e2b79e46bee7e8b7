"""Commands on runs: train, eval, compare, and the demo that does all in turn."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from jaxrec.artifact import say, write_atomically
from jaxrec.commands.options import Command, chosen, columns, run_arguments, workdir


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.train.loop import train

    runs = {}
    for choice in itertools.product(*map(_choices, options.sweep)):
        experiment = chosen(options, [*rest, *(part for path, value in choice for part in _option(path, value))])
        experiment.resolve().method.spec()  # what cannot be built is said before anything is trained or written
        runs[",".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in choice)] = experiment
    if not options.sweep:
        result = train(runs[""], workdir(options, runs[""]))
        print(json.dumps(result))
        return
    rows = []
    for label, experiment in runs.items():
        say(f"\n=== {label}")
        rows.append({"run": label, **train(experiment, workdir(options, experiment) / "sweep" / label)})
        write_atomically(workdir(options, experiment) / "sweep.json", json.dumps(rows, indent=1))
    print(columns(rows))


def _eval(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.stages.reports import evaluate

    experiment = chosen(options, rest)
    report = evaluate(experiment, workdir(options, experiment), options.split)
    print(json.dumps(report.json, indent=1) if options.json else report.text)


def _compare(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.evals import complementarity
    from jaxrec.evals.compare import compare, text, to_json
    from jaxrec.evals.retrieval import Ranks

    ranks = []
    for run in (options.first, options.second):
        path = Path(run) / f"ranks_{options.split}.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; evaluate the run first: jaxrec eval experiments/{Path(run).name}.py --split {options.split}")
        ranks.append(Ranks.load(path))
    names = (Path(options.first).name, Path(options.second).name)
    result = compare(*ranks, names=names)
    if options.json:
        print(json.dumps(to_json(result), indent=1))
    else:
        print(text(result, names) + "\n\n" + complementarity.text(complementarity.complementarity(*ranks, names=names), names))


def _choices(sweep: str) -> list[tuple[str, str]]:
    """`method.dim=64,128` as [("method.dim", "64"), ("method.dim", "128")]."""
    path, equals, values = sweep.partition("=")
    if not (path and equals and values):
        raise ValueError(f"--sweep {sweep!r} should look like method.dim=64,128")
    return [(path, value) for value in values.split(",")]


def _option(path: str, value: str) -> tuple[str, ...]:
    """A field's value as arguments; truth is told by the flag's name."""
    if value not in ("True", "False"):
        return f"--{path}", value
    head, dot, last = path.rpartition(".")
    return (f"--{path}" if value == "True" else f"--{head}{dot}no-{last}",)


def _demo(options: argparse.Namespace, rest: list[str]) -> None:
    from jaxrec.demo import demo

    demo(Path(options.workdir))


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("--sweep", action="append", default=[], metavar="PATH=VALUE,VALUE", help="run each value in turn, into one table; may be repeated")


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    run_arguments(parser)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--json", action="store_true")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="RUN", help="a run's folder, already evaluated")
    parser.add_argument("second", metavar="RUN")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--json", action="store_true")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", default="runs/demo")


COMMANDS = {
    "train": Command(
        _train, "train an experiment; run the same command again to resume; any field is an option: --method.dim 128", _train_arguments, overridable=True
    ),
    "eval": Command(_eval, "what a run is worth: recommenders and retrievers on everything there is, beside all baselines", _eval_arguments, overridable=True),
    "compare": Command(_compare, "is one run better than another? paired, with significance", _compare_arguments),
    "demo": Command(_demo, "data, training, evaluation, export and query, on this machine's Python code", _demo_arguments),
}
