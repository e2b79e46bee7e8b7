"""What commands are made of: a `Command`, the experiment that is meant, the folder of its run, and rows as text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the command line imports only what a command needs
    from jaxrec.experiment import Experiment


class Command(NamedTuple):
    """One command.

    Attributes:
      run: what it does, given its options and, where it is `overridable`, the arguments that are fields of the experiment.
      summary: a line of help.
      declare: adds its options to a parser.
      overridable: whether it takes an experiment's file, any field of which is an option too.
    """

    run: Callable[[argparse.Namespace, list[str]], None]
    summary: str
    declare: Callable[[argparse.ArgumentParser], None]
    overridable: bool = False


def chosen(options: argparse.Namespace, rest: list[str]) -> Experiment:
    """The experiment of the file, in miniature if `--smoke`, with the dotted overrides applied."""
    import tyro

    from jaxrec.experiment import Experiment, load

    if not options.experiment.endswith(".py"):
        raise ValueError(f"{options.experiment!r} is no experiment file; put the .py file first: jaxrec {options.command} FILE --method.dim 128")
    experiment = load(options.experiment)
    if options.smoke:
        experiment = experiment.smoked()
    return tyro.cli(Experiment, default=experiment, args=rest, prog=f"jaxrec {options.command} {options.experiment}")


def workdir(options: argparse.Namespace, experiment: Experiment) -> Path:
    """The folder of the experiment's run."""
    return Path(options.workdir) if options.workdir else Path("runs") / (experiment.name + ("-smoke" if options.smoke else ""))


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options that `chosen` and `workdir` read."""
    parser.add_argument("experiment", help="an experiment's Python file")
    parser.add_argument("--workdir", default="", help="of the run (default: runs/<name of the file>)")
    parser.add_argument("--smoke", action="store_true", help="a few steps on synthetic data: does it run?")


def columns(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as aligned text, a column per key."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[f"{v:.4f}" if isinstance(v := row.get(name, ""), float) else str(v) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
