"""Meta-LoRA against standard retraining on personas: how well adapters of ten new tasks do on either base.

    python -m benchmarks.meta_lora_personas [--seeds 3] [--minutes 9]

Trains `experiments/meta_lora_personas.py` with adapters and without, then `experiments/meta_lora_personas_adapt.py` on both bases and on one that was never
trained. Every run lies under runs/meta_lora_personas/, so an interrupted call goes on where it stopped. `ours` is the accuracy of twenty-way choice on the
test questions of the new tasks, the mean over tasks and seeds; `peer` is that of standard retraining.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.interrupt import add_minutes, interrupt_after
from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.evals.task_choice import report, table
from jaxrec.experiment import Experiment, load
from jaxrec.stages.runs import load_run
from jaxrec.train.loop import train
from jaxrec.train.part import Part

RUNS = Path("runs/meta_lora_personas")
BASES = ("Meta-LoRA", "standard retraining", "no retraining")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=0, help="asked of each task, the first ones; 0 = all")
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    retraining, adapting = (load(Path("experiments") / f"meta_lora_personas{name}.py") for name in ("", "_adapt"))
    found: dict[str, list[dict[str, Any]]] = {}
    for base in options.bases:
        found[base] = [adapted(retraining, adapting, base, seed, options.questions) for seed in range(options.seeds)]
    record("meta_lora_personas", [result(base, found) for base in found])


def adapted(retraining: Experiment, adapting: Experiment, base: str, seed: int, questions: int) -> dict[str, Any]:
    """The report on the new tasks after retraining and adapting with one seed; trains first what is not trained yet."""
    name = f"{base.replace(' ', '_')}-seed{seed}"
    start: dict[str, Any] = dict(retraining.init_from)
    if base != BASES[-1]:
        method: Any = retraining.method if base == BASES[0] else dataclasses.replace(retraining.method, lora=None)  # type: ignore[type-var]
        say(f"\n=== {RUNS / name}")
        train(dataclasses.replace(retraining, method=method, seed=seed), RUNS / name)
        start = {"base": Part(str(RUNS / name), "base")}
    run = dataclasses.replace(adapting, init_from=start, seed=seed)
    say(f"\n=== {RUNS / name}-adapted")
    train(run, RUNS / f"{name}-adapted")
    run, params, _ = load_run(run, RUNS / f"{name}-adapted")
    measured = report(run.method, params, run.data, "test", questions=questions)  # type: ignore[arg-type]
    say(table(f"{base}, seed {seed}", measured))
    return measured


def result(base: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One result: means over seeds, and each task's accuracy."""
    seeds = {name: [one["accuracy"] for one in measured] for name, measured in found.items()}
    each = np.mean([[task["accuracy"] for task in one["tasks"].values()] for one in found[base]], axis=0)  # [tasks]
    return {
        "name": f"adapters of new tasks, {base}",
        "ours": round(float(np.mean(seeds[base])), 4),
        "peer": round(float(np.mean(seeds[BASES[1]])), 4) if BASES[1] in seeds else None,
        "unit": "accuracy of 20-way choice, mean over tasks",
        "deviation over tasks": round(float(np.std(each)), 4),
        "seeds": [round(accuracy, 4) for accuracy in seeds[base]],
        "chance": found[base][0]["chance"],
        "tasks": dict(zip(found[base][0]["tasks"], [round(float(accuracy), 4) for accuracy in each], strict=True)),
        "questions": {name: task["questions"] for name, task in found[base][0]["tasks"].items()},
    }


if __name__ == "__main__":
    main()
