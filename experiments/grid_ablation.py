"""GRID's study (Ju et al. 2025, arXiv 2507.22224): TIGER with one thing changed at a time, in one table.

    python -m experiments.grid_ablation --list
    python -m experiments.grid_ablation --only base free dedup_random --steps 2000 [--seeds 3] [--base tiger_small_python_api]

The base alone: jaxrec train experiments/grid_ablation.py

Each variant is a run under runs/grid_ablation/BASE/, so an interrupted call (Ctrl-C, or `timeout -s INT 540 python -m ...`) continues where it stopped, and is
rated on the test split; all rows so far are in table.json beside the runs. Variants that change only the search (`free`, `beams_*`) take the base's
parameters. A base is an encoder-decoder TIGER with one column, the trie of residual k-means.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxrec.artifact import say, write_atomically
from jaxrec.evals.report import Row, summarise
from jaxrec.experiment import SEARCH, Experiment, load, override
from jaxrec.methods.generative.rqvae import RQVAE
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder
from jaxrec.stages.quantizers import LearnedRQVAE, Quantizer, ResidualKMeans, ResidualVQ
from jaxrec.stages.runs import evaluate_run
from jaxrec.train.loop import train

BASES = ("tiger_small_beauty", "tiger_small_python_api")
ROOT = Path("runs/grid_ablation")
METRICS = ("Recall@10", "NDCG@10", "Recall@5", "NDCG@5")
PROTOCOLS = (("seen kept", "all targets"), ("seen removed", "warm targets"))  # the two that papers use

experiment = load(Path(__file__).with_name(f"{BASES[0]}.py"))


def grid(base: Experiment) -> dict[str, dict[str, Any]]:
    """By the name of a variant, what it overrides in the base."""
    [column] = base.data.columns

    def ids(quantizer: Quantizer, **options: Any) -> dict[str, Any]:
        return {"data.columns": (dataclasses.replace(column, sids=dataclasses.replace(column.sids, quantizer=quantizer, **options)),)}

    sizes = ("dim", "layers", "heads", "head", "hidden", "dropout")
    decoder = {"method": TIGERDecoder(**{name: getattr(base.method, name) for name in sizes}), "data.form": "stream"}
    return {
        "base": {},
        "rvq": ids(ResidualVQ()),
        "rqvae": ids(LearnedRQVAE(RQVAE())),
        "kmeans_normalized": ids(ResidualKMeans(normalize=True)),
        "levels_2": ids(ResidualKMeans(levels=2)),
        "levels_4": ids(ResidualKMeans(levels=4)),
        "codes_64": ids(ResidualKMeans(codes=64)),
        "codes_128": ids(ResidualKMeans(codes=128)),
        "dedup_random": ids(ResidualKMeans(), dedup="random"),
        "dedup_none": ids(ResidualKMeans(), dedup="none"),
        "no_augmentation": {"data.stride": 0},
        "separators": {"method.separators": True},
        "users_2000": {"method.users": 2000},
        "decoder_only": decoder | {"data.stride": 0},
        "free": {"method.constrained": False},
        "beams_10": {"method.beams": 10},
        "beams_50": {"method.beams": 50},
    }


def main() -> None:
    names = list(grid(experiment))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, default=BASES[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--steps", type=int, default=0, help="0: as many as the base has")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the variants and stop")
    options = parser.parse_args()
    base = load(Path(__file__).with_name(f"{options.base}.py"))
    if options.list:
        print("\n".join(f"{name:18} {', '.join(changes) or f'experiments/{options.base}.py'}" for name, changes in grid(base).items()))
        return
    path = ROOT / options.base / "table.json"
    table = json.loads(path.read_text()) if path.exists() else []
    for name in options.only:
        for seed in range(options.seeds):
            start = seeded(base, seed, options.steps)
            cell = {"variant": name, "steps": start.steps, "seed": seed}
            rows = [
                {**cell, "protocol": f"{row.seen}, {row.targets}"} | {metric: round(row.metrics[metric].mean, 5) for metric in METRICS}
                for row in rated(start, name, path.parent)
            ]
            table = [row for row in table if not cell.items() <= row.items()] + rows
            write_atomically(path, json.dumps(table, indent=1))
    print(f"{'variant':18}  steps  seed  {'protocol':29}  {'  '.join(METRICS)}")
    for row in table:
        numbers = "  ".join(f"{row[metric]:<{len(metric)}.4f}" for metric in METRICS)
        print(f"{row['variant']:18}  {row['steps']:5}  {row['seed']:4}  {row['protocol']:29}  {numbers}")


def seeded(base: Experiment, seed: int, steps: int = 0) -> Experiment:
    """The base with a seed, and with other steps unless they are 0."""
    return dataclasses.replace(base, steps=steps or base.steps, seed=seed, data=dataclasses.replace(base.data, seed=seed))


def rated(base: Experiment, name: str, folder: Path) -> list[Row]:
    """The test's rows of a variant of `base`, by the two protocols that papers use; trains first what is not trained yet."""
    changes = grid(base)[name]
    searched = not changes.keys() - set(SEARCH)  # the base itself, and other searches over its parameters
    trained = "base" if searched else name
    workdir = folder / f"{trained}-{base.steps}-seed{base.seed}"
    say(f"\n=== {name}, {workdir}")
    train(named(base, {} if searched else changes, trained), workdir)
    rows = summarise(evaluate_run(named(base, changes, name), workdir, keep=name == trained))
    return [row for row in rows if row.n and (row.seen, row.targets) in PROTOCOLS]


def named(base: Experiment, changes: dict[str, Any], name: str) -> Experiment:
    return dataclasses.replace(override(base, changes), name=name)


if __name__ == "__main__":
    main()
