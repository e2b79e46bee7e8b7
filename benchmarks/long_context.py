"""Kinds of attention in one small language model on one budget, in rows as long as those of training and in longer ones.

    python -m benchmarks.long_context [--task text] [--kinds softmax threshold_differential] [--steps N] [--minutes 9]
    python -m benchmarks.long_context --task passkey --beta 0.5

`text`: held-out loss, exact zeros, sinks, dead rows; what is recorded as `ours` is the loss on the test text at the training length, in nats per character.
`passkey`: keys hidden in the text; `ours` is the share of test keys that are given back whole at the training length, with those of longer rows and by depth.
Trains the task's experiment once for each kind, with as many parameters each. A run lies under runs/long_context/, so an interrupted call goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import NamedTuple

from benchmarks.interrupt import add_minutes, interrupt_after
from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.experiment import load
from jaxrec.stages.reports import measure
from jaxrec.train.loop import train

KINDS = ("softmax", "threshold_differential", "rectified", "differential")


class Task(NamedTuple):
    """An experiment's name, which quantity of each length in its report is `ours`, the unit, and the file of the results."""

    experiment: str
    quantity: str
    unit: str
    results: str


TASKS = {
    "text": Task("tda_shakespeare", "loss", "nats per character, test", "long_context"),
    "passkey": Task("tda_passkey", "keys", "share of test keys given back whole", "passkey"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="text")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--beta", type=float, default=1.0, help="of the threshold's gate")
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0 = the experiment's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="", help="the folder of the runs; empty: runs/long_context/<experiment>")
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    task = TASKS[options.task]
    experiment = load(Path("experiments") / f"{task.experiment}.py")
    experiment = dataclasses.replace(experiment, steps=options.steps or experiment.steps, seed=options.seed)
    ours: dict[str, float] = {}
    for kind in options.kinds:
        beta = options.beta if kind.startswith("threshold") else 1.0  # the others have none
        model = experiment.method.model  # type: ignore[attr-defined]
        model = dataclasses.replace(model, attention=dataclasses.replace(model.attention, weights=kind, beta=beta))
        name = kind + (f", beta {beta:g}" if beta != 1 else "") + (f", seed {options.seed}" if options.seed else "")
        run = dataclasses.replace(experiment, method=dataclasses.replace(experiment.method, model=model))  # type: ignore[type-var]
        workdir = Path(options.runs or f"runs/long_context/{task.experiment}") / f"weights={name.replace(', ', ',').replace(' ', '=')}"
        say(f"\n=== {workdir}")
        train(run, workdir)
        found = measure(run, workdir)
        ours[kind] = found[task.quantity][run.data.length][task.quantity]  # type: ignore[attr-defined]
        row = {"name": f"{task.experiment}, {name}", "ours": round(ours[kind], 4), "peer": ours.get("softmax"), "unit": task.unit}
        record(task.results, [row | {"steps": run.steps, "seed": run.seed} | found])


if __name__ == "__main__":
    main()
