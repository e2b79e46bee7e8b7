"""Text retrieval on public data: trained retrievers beside BM25 and the pretrained encoder that they start from.

    python -m benchmarks.scifact colbert_scifact --seeds 3 [--minutes 9]

Each seed is a run of its own under runs/search/, so an interrupted call continues where it stopped. The test queries of the collection, every document
scored; and of these queries alone those whose documents no training query has had. Experiments on other collections may be named, too; each gets its own
BM25 row, and with --encoder the single vectors of a pretrained encoder.
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
from jaxrec.data.collection import Collection
from jaxrec.data.passages import Passages
from jaxrec.evals.search import DEPTH, Judged, evaluate
from jaxrec.experiment import load
from jaxrec.index import ExactIndex
from jaxrec.stages.searches import evaluate_search
from jaxrec.stages.text_encoders import BertEncoder
from jaxrec.train.loop import train

METRICS = ("nDCG@10", "Recall@10", "Recall@100", "MRR@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", metavar="NAME", help="of a file in experiments/, without .py")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", default="", help="a BERT whose mean-pooled vectors are searched as well: a folder or hub id")
    add_minutes(parser)
    options = parser.parse_args()
    interrupt_after(options.minutes)
    for name in options.experiments:
        experiment = load(Path("experiments") / f"{name}.py")
        assert isinstance(experiment.data, Passages)
        judged: dict[str, list[Judged]] = {}
        for seed in range(options.seeds):
            workdir = Path("runs/search") / f"{name}-seed{seed}"
            say(f"\n=== {workdir}")
            seeded = dataclasses.replace(experiment, seed=seed, data=dataclasses.replace(experiment.data, seed=seed))
            train(seeded, workdir)
            for system, answer in evaluate_search(seeded, workdir).items():
                judged.setdefault(system, []).append(answer)
        if options.encoder:
            judged[f"single vectors of {Path(options.encoder).name}"] = [single_vectors(experiment.data, options.encoder)]
        source = experiment.data.source
        collection = getattr(source, "name", "") or type(source).__name__
        new = of_new_documents(experiment.data.collection())
        record("scifact", [result(f"{system}, {collection}", runs, new) for system, runs in judged.items()])


def single_vectors(data: Passages, model: str) -> Judged:
    """One vector per text, by a pretrained encoder as it is."""
    collection = data.collection()
    encoder = BertEncoder(model)
    index = ExactIndex(np.arange(len(collection.ids)), encoder.encode(collection.passages()))
    rows, _ = index.search(encoder.encode(collection.queries["test"].texts), min(DEPTH, len(index)))
    return evaluate(rows, collection, "test")


def of_new_documents(collection: Collection) -> np.ndarray:
    """[Q] bool: the test queries none of whose documents is relevant to a training query. The others can be learned by heart."""
    qrels = collection.qrels
    learned = np.isin(qrels["test"].documents, qrels["train"].documents) if "train" in qrels else np.zeros(len(qrels["test"].documents), bool)
    return np.add.reduceat(learned, qrels["test"].offsets[:-1]) == 0


def result(name: str, runs: list[Judged], new: np.ndarray) -> dict[str, Any]:
    """The mean over seeds, each seed, the 95 % interval over queries (mean of the seeds' bounds), and the mean over the `new` queries alone."""
    means, intervals = [run.mean() for run in runs], [run.intervals() for run in runs]
    chosen = new[runs[0].query]
    return {
        "name": name,
        "ours": {metric: round(float(np.mean([mean[metric] for mean in means])), 5) for metric in METRICS},
        "peer": None,
        "unit": "mean over queries and seeds",
        "seeds": {metric: [round(mean[metric], 5) for mean in means] for metric in METRICS},
        "interval": {metric: [round(float(np.mean([getattr(i[metric], end) for i in intervals])), 5) for end in ("low", "high")] for metric in METRICS},
        "queries": len(runs[0].query),
        "new documents": {metric: round(float(np.mean([run.values[metric][chosen].mean() for run in runs])), 5) for metric in METRICS}
        if chosen.any()
        else None,
        "queries of new documents": int(chosen.sum()),
    }


if __name__ == "__main__":
    main()
