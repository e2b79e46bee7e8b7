"""The command line: train, eval, compare, export, query, explain, embed, data, demo. `jaxrec COMMAND --help` says more."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from jaxrec.artifact import cache_dir, say
from jaxrec.commands import data, runs, serving

COMMANDS = runs.COMMANDS | serving.COMMANDS | data.COMMANDS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. What goes wrong with the input ends with one message and exit code 2, a bug with its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="jaxrec", description="Train, evaluate, export and query recommenders in JAX.")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = parsers.add_parser(name, help=command.summary, description=command.summary, add_help=not command.overridable)
        own.add_argument("--traceback", action="store_true", help="show where an error arose")
        command.declare(own)
    asked = COMMANDS.get(arguments[0]) if arguments else None
    if asked and asked.overridable and {"-h", "--help"} & set(arguments):
        print(parsers.choices[arguments[0]].format_help())
        if not any(argument.endswith(".py") for argument in arguments):
            return  # else the file goes on, with the fields of its experiment
    options, rest = parser.parse_known_args(arguments)
    command = COMMANDS[options.command]
    if rest and not command.overridable:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _settle_environment()
    try:
        command.run(options, rest)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        if options.traceback or "--traceback" in arguments:
            raise
        say(f"jaxrec {options.command}: {error}")
        raise SystemExit(2) from None


def _settle_environment() -> None:
    """Compiled programs are kept between commands, unless the user says where or that they are not; libraries keep their advice to themselves."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    logging.getLogger("absl").setLevel(logging.ERROR)
