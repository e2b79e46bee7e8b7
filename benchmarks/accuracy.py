"""Accuracy on public data: every experiment over several seeds, the whole catalogue ranked, beside the published numbers.

    python -m benchmarks.accuracy sasrec_beauty esasrec_beauty --seeds 3 [--refit] [--minutes 9]

Each seed is a run of its own under runs/accuracy/, so an interrupted call continues where it stopped; with `--minutes` a call
stops by itself after so long. `--refit` afterwards trains on train + validation for as many epochs as each seed's best checkpoint had, and
reports that under a label of its own: its test items are still unseen, but it has one more event per user to learn from.
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
from jaxrec.evals.report import Row, summarise
from jaxrec.experiment import Experiment, load
from jaxrec.stages.runs import Trained, baseline_ranks, evaluate_run
from jaxrec.train.loop import train

KEPT, REMOVED = "seen kept, all targets", "seen removed, warm targets"
PUBLISHED = {  # protocol, Recall@10, NDCG@10; the papers of TIGER and EnsRec do not speak of seen items, and stand beside rows that keep them
    "sasrec_beauty": (REMOVED, 0.0921, 0.0531),  # this and what else has seen and cold items removed: Tikhonovich et al. 2025, arXiv 2508.06450
    "esasrec_beauty": (REMOVED, 0.0928, 0.0523),
    "hstu_beauty": (REMOVED, 0.0788, 0.0439),
    "sasrec_sports": (REMOVED, 0.0569, 0.0323),
    "sasrec_ml1m": (REMOVED, 0.2929, 0.1684),
    "hstu_ml1m": (REMOVED, 0.3097, 0.1720),
    "esasrec_ml1m": (REMOVED, 0.3133, 0.1772),
    "tiger_beauty": (KEPT, 0.0648, 0.0384),  # Rajput et al. 2023, arXiv 2305.05065
    "tiger_small_beauty": (KEPT, 0.0648, 0.0384),
    "tiger_decoder_beauty": (KEPT, 0.0648, 0.0384),
    "ensrec_beauty": (KEPT, 0.0980, 0.0565),  # Collins et al. 2025, arXiv 2512.17820
}
METRICS = ("Recall@10", "NDCG@10")
DATASETS = ("beauty", "sports", "toys", "ml1m", "python_api")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", metavar="NAME", help="of a file in experiments/, without .py")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--refit", action="store_true")
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    for name in options.experiments:
        experiment = load(Path("experiments") / f"{name}.py")
        rows = [run(experiment, seed, options.refit) for seed in range(options.seeds)]
        label = name + (" refit" if options.refit else "")
        record("accuracy", results(label, type(experiment.method).__name__, rows, PUBLISHED.get(label)))  # a refit is compared with nothing
        for baseline, ranks in baseline_ranks(dataclasses.replace(experiment.data, refit=options.refit), "test").items():
            dataset = dataset_of(name) + (" refit" if options.refit else "")
            record("accuracy", results(f"{baseline} {dataset}", baseline, [summarise(ranks)], None))


def dataset_of(name: str) -> str:
    """The data set of an experiment, by the end of its name."""
    return next((dataset for dataset in DATASETS if name.endswith(f"_{dataset}")), name)


def run(experiment: Experiment, seed: int, refit: bool) -> list[Row]:
    """The test rows of one seed; trains first what is not trained yet."""
    seeded, workdir, trained = train_seed(experiment, seed)
    if refit:
        data = dataclasses.replace(seeded.data, refit=True)
        steps = round(trained["best_step"] * data.batches().rows / seeded.data.batches().rows)
        seeded = dataclasses.replace(seeded, data=data, steps=steps, evals=())
        workdir = workdir.with_name(workdir.name + "-refit")
        train(seeded, workdir)
    return summarise(evaluate_run(seeded, workdir, "test"))


def train_seed(experiment: Experiment, seed: int) -> tuple[Experiment, Path, dict[str, Any]]:
    """(the experiment with its seed, its run, what `train` says of it); a finished run is left as it is.

    What it starts from is trained with the same seed, as a run beside it that has a row of its own where its name is asked for.
    """
    workdir = Path("runs/accuracy") / f"{experiment.name}-seed{seed}"
    starts = {name: str(train_seed(at.experiment, seed)[1]) if isinstance(at, Trained) else at for name, at in experiment.init_from.items()}
    seeded = dataclasses.replace(experiment, seed=seed, data=dataclasses.replace(experiment.data, seed=seed), init_from=starts)
    say(f"\n=== {workdir}")
    return seeded, workdir, train(seeded, workdir)


def results(label: str, method: str, seeds: list[list[Row]], published: tuple[str, float, float] | None) -> list[dict]:
    """One result per protocol: the mean over seeds, each seed, and the 95 % interval over users (mean of the seeds' bounds)."""
    found = []
    for rows in zip(*seeds, strict=True):
        first = rows[0]
        if not first.n or first.targets == "cold targets":
            continue
        values = {metric: [row.metrics[metric].mean for row in rows] for metric in METRICS}
        bounds = {metric: [float(np.mean([getattr(row.metrics[metric], end) for row in rows])) for end in ("low", "high")] for metric in METRICS}
        same = published[1:] if published is not None and f"{first.seen}, {first.targets}" == published[0] else None
        found.append(
            {
                "name": f"{label}, {first.seen}, {first.targets}",
                "method": method,
                "ours": {metric: round(float(np.mean(value)), 5) for metric, value in values.items()},
                "peer": None if same is None else dict(zip(METRICS, same, strict=True)),
                "ratio": None
                if same is None
                else {metric: round(float(np.mean(values[metric])) / number, 3) for metric, number in zip(METRICS, same, strict=True)},
                "unit": "mean over users and seeds",
                "seeds": {metric: [round(value, 5) for value in each] for metric, each in values.items()},
                "interval": {metric: [round(bound, 5) for bound in pair] for metric, pair in bounds.items()},
                "users": first.n,
            }
        )
    return found


if __name__ == "__main__":
    main()
