"""GRID's study (Ju et al. 2025, arXiv 2507.22224) on Amazon Beauty: TIGER with one thing changed at a time, in one table.

    python -m experiments.grid_ablation --list
    python -m experiments.grid_ablation --only base free dedup_random --steps 2000 [--seeds 3]

The base alone: jaxrec train experiments/grid_ablation.py

Each variant is a run under runs/grid_ablation/, so an interrupted call (Ctrl-C, or `timeout -s INT 540 python -m ...`) continues where it stopped, and is
rated on the test split; all rows so far are in runs/grid_ablation/table.json. Variants that change only the search (`free`, `beams_*`) take the base's
parameters. The base is of the size of tiger_small_beauty.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxrec.artifact import say, write_atomically
from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.evals.report import summarise
from jaxrec.experiment import SEARCH, Experiment, load, override
from jaxrec.methods.generative.rqvae import RQVAE
from jaxrec.methods.generative.tiger_decoder import TIGERDecoder
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.quantizers import LearnedRQVAE, Quantizer, ResidualKMeans, ResidualVQ
from jaxrec.stages.runs import evaluate_run
from jaxrec.stages.semantic_ids import SemanticIds
from jaxrec.stages.sid_trie import SidTrie
from jaxrec.stages.text_encoders import TfidfSvd
from jaxrec.train.loop import train

experiment = load(Path(__file__).with_name("tiger_small_beauty.py"))


def ids(quantizer: Quantizer, **options: Any) -> dict[str, Any]:
    """The override that gives the items other IDs."""
    return {"data.columns": (SidTrie(SemanticIds(TextEmbeddings(AmazonP5("beauty"), TfidfSvd(dim=256)), quantizer, **options)),)}


TABLE = Path("runs/grid_ablation/table.json")
METRICS = ("Recall@10", "NDCG@10", "Recall@5", "NDCG@5")
GRID: dict[str, dict[str, Any]] = {
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
    "decoder_only": {
        "method": TIGERDecoder(**{name: getattr(experiment.method, name) for name in ("dim", "layers", "heads", "head", "hidden", "dropout")}),
        "data.form": "stream",
        "data.stride": 0,
    },
    "free": {"method.constrained": False},
    "beams_10": {"method.beams": 10},
    "beams_50": {"method.beams": 50},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GRID, default=list(GRID), metavar="NAME")
    parser.add_argument("--steps", type=int, default=experiment.steps)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the variants and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:18} {', '.join(changes) or 'experiments/tiger_small_beauty.py'}" for name, changes in GRID.items()))
        return
    table = json.loads(TABLE.read_text()) if TABLE.exists() else []
    for name in options.only:
        for seed in range(options.seeds):
            cell = {"variant": name, "steps": options.steps, "seed": seed}
            rows = [
                {**cell, "protocol": f"{row.seen}, {row.targets}"} | {metric: round(row.metrics[metric].mean, 5) for metric in METRICS}
                for row in rated(variant(name, options.steps, seed), name, options.steps, seed)
            ]
            table = [row for row in table if not cell.items() <= row.items()] + rows
            write_atomically(TABLE, json.dumps(table, indent=1))
    print(f"{'variant':18}  steps  seed  {'protocol':29}  {'  '.join(METRICS)}")
    for row in table:
        numbers = "  ".join(f"{row[metric]:<{len(metric)}.4f}" for metric in METRICS)
        print(f"{row['variant']:18}  {row['steps']:5}  {row['seed']:4}  {row['protocol']:29}  {numbers}")


def variant(name: str, steps: int, seed: int) -> Experiment:
    """The experiment of one cell of the grid."""
    changed = override(dataclasses.replace(experiment, steps=steps, seed=seed, name=name), GRID[name])
    return dataclasses.replace(changed, data=dataclasses.replace(changed.data, seed=seed))


def rated(cell: Experiment, name: str, steps: int, seed: int) -> list[Any]:
    """Trains what is not trained yet, and gives the test's rows of the two protocols that papers use."""
    shared = name == "base" or set(GRID[name]) <= set(SEARCH)  # other searches over the same parameters
    workdir = Path("runs/grid_ablation") / f"{'base' if shared else name}-{steps}-seed{seed}"
    say(f"\n=== {name}, {workdir}")
    train(variant("base", steps, seed) if shared else cell, workdir)
    rows = summarise(evaluate_run(cell, workdir, keep=name == "base" or not shared))
    return [row for row in rows if row.n and (row.seen, row.targets) in (("seen kept", "all targets"), ("seen removed", "warm targets"))]


if __name__ == "__main__":
    main()
