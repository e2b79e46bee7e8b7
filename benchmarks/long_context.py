"""Kinds of attention in one small language model on one budget: held-out loss, also in longer rows, exact zeros, sinks, dead rows.

    python -m benchmarks.long_context [--kinds softmax threshold_differential] [--steps N] [--minutes 9]

Trains `experiments/tda_shakespeare.py` once for each kind, with as many parameters each. A run lies under runs/long_context/, so an
interrupted call goes on where it stopped. What is recorded as `ours` is the loss on the test text at the training length, in nats per character.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from benchmarks.interrupt import add_minutes, interrupt_after
from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.experiment import load
from jaxrec.stages.language_runs import evaluate_text
from jaxrec.train.loop import train

KINDS = ("softmax", "threshold_differential", "rectified", "differential")
NAME = "tda_shakespeare"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--beta", type=float, default=1.0, help="of the threshold's gate")
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0 = the experiment's")
    parser.add_argument("--runs", default=f"runs/long_context/{NAME}", help="the folder of the runs")
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    experiment = load(Path("experiments") / f"{NAME}.py")
    experiment = dataclasses.replace(experiment, steps=options.steps or experiment.steps)
    losses: dict[str, float] = {}
    for kind in options.kinds:
        model = experiment.method.model  # type: ignore[attr-defined]
        model = dataclasses.replace(model, attention=dataclasses.replace(model.attention, weights=kind, beta=options.beta))
        name = kind if options.beta == 1 else f"{kind}, beta {options.beta:g}"
        run = dataclasses.replace(experiment, method=dataclasses.replace(experiment.method, model=model))  # type: ignore[type-var]
        workdir = Path(options.runs) / f"weights={name.replace(', ', ',').replace(' ', '=')}"
        say(f"\n=== {workdir}")
        train(run, workdir)
        found = evaluate_text(run, workdir)
        losses[name] = found["loss"][run.data.length]["loss"]  # type: ignore[attr-defined]
        row = {"name": f"{NAME}, {name}", "ours": round(losses[name], 4), "peer": losses.get("softmax"), "unit": "nats per character, test"}
        record("long_context", [row | {"steps": run.steps, "seed": run.seed} | found])


if __name__ == "__main__":
    main()
