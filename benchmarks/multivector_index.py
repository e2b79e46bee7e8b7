"""Multi-vector engines beside the exact scan: recall of its top 10 and 100, time of a query, bytes of a token, time to build.

    python -m benchmarks.multivector_index
    python -m benchmarks.multivector_index --vectors scifact_tokens.npz --queries 100 [--only product]

`--vectors` (or $JAXREC_TOKEN_VECTORS) names an .npz of real token vectors of norm 1: tokens [T, D], lengths [N], queries [M, D], query_lengths [B]. Without it
they are clustered normals: a document has tokens around the words of a theme, a query around tokens of a document. Each query is asked of the engine
and of the exact scan in turn, so that a busy machine is busy for both; the speed-up is the median of the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import record
from jaxrec.artifact import say
from jaxrec.index.compress import unit
from jaxrec.index.multivector import ExactMultiVector, MultiVectorIndex, Muvera, Plaid, Warp

STAGES = [{"probes": probes, "candidates": candidates, "decoded": decoded} for probes, candidates, decoded in ((32, 256, 64), (64, 512, 256), (128, 1024, 512))]
# What is built, and how it is then searched.
CONFIGURATIONS: list[tuple[type[MultiVectorIndex], dict[str, Any], list[dict[str, Any]]]] = [
    (ExactMultiVector, {"storage": "float32"}, [{}]),
    (ExactMultiVector, {"storage": "int8"}, [{}]),
    (Muvera, {"repetitions": 20, "bits": 4, "projection": 16}, [{"depth": depth} for depth in (64, 256, 384, 512)]),
    (Muvera, {"repetitions": 40, "bits": 4, "projection": 16, "final": 2048}, [{"depth": 512}]),
    (Plaid, {"bits": 32, "centroids": 4096}, [STAGES[0], STAGES[2]]),
    (Plaid, {"bits": 32, "centroids": 16_384}, STAGES),
    (Plaid, {"bits": 4, "centroids": 16_384}, STAGES),
    (Plaid, {"bits": 2, "centroids": 4096}, STAGES),
    (Plaid, {"bits": 1, "centroids": 4096}, STAGES[1:]),
    (Plaid, {"bits": 2, "residuals": "product", "centroids": 4096}, STAGES),
    (Plaid, {"bits": 1, "residuals": "product", "centroids": 4096}, STAGES[1:]),
    (Warp, {"bits": 4, "centroids": 4096}, [{"probes": 8}, {"probes": 32}]),
    (Warp, {"bits": 2, "centroids": 4096}, [{"probes": 32}]),
]


class Collection(NamedTuple):
    """Token vectors of documents and queries, and where they are from."""

    name: str
    tokens: np.ndarray  # [T, D]
    lengths: np.ndarray  # [N]
    queries: list[np.ndarray]  # [m, D] each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, default=os.environ.get("JAXREC_TOKEN_VECTORS"), help=".npz of real token vectors")
    parser.add_argument("--documents", type=int, default=5000, help="of made-up token vectors")
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--only", default="", help="configurations with this in their name")
    options = parser.parse_args()
    collection = read(Path(options.vectors), options.queries) if options.vectors else made_up(options.documents, options.queries)
    for row in rows(collection, options.only):  # one by one: an index of many centroids takes minutes to build
        record("multivector_index", [row])


def read(path: Path, queries: int) -> Collection:
    """The vectors of a file, as the module has it."""
    with np.load(path) as file:
        asked = np.split(file["queries"].astype(np.float32), np.cumsum(file["query_lengths"])[:-1])
        return Collection(path.stem, file["tokens"].astype(np.float32), file["lengths"], asked[:queries])


def made_up(documents: int, queries: int, dim: int = 128, length: int = 150) -> Collection:
    """Clustered vectors."""
    random = np.random.default_rng(0)

    def near(vectors: np.ndarray, noise: float) -> np.ndarray:
        return unit(vectors + noise / np.sqrt(dim) * random.normal(size=vectors.shape)).astype(np.float32)

    words = unit(random.normal(size=(4000, dim)))
    themes = random.integers(4000, size=(documents // 25 + 1, 100))
    lengths = random.integers(length // 2, length * 3 // 2, documents)
    found = []
    for size in lengths:
        own = random.choice(themes[random.integers(len(themes))], 40)  # of a theme's words a document has some, and some of all words
        found.append(near(words[random.choice(np.concatenate([own, random.integers(4000, size=10)]), size)], 0.6))
    asked = [near(found[row][random.integers(lengths[row], size=32)], 0.6) for row in random.integers(documents, size=queries)]
    return Collection("made up", np.concatenate(found), lengths, asked)


def rows(collection: Collection, only: str) -> Iterator[dict[str, Any]]:
    """One row for each configuration with `only` in its name."""
    ids = np.arange(len(collection.lengths))
    exact = ExactMultiVector()
    exact.add(ids, collection.tokens, collection.lengths)
    best = [exact.search([query], 100)[0][0] for query in collection.queries]
    for engine, built, searches in CONFIGURATIONS:
        label = f"{engine.__name__}, " + ", ".join(f"{value} {name}" for name, value in built.items())
        if only not in label:
            continue
        begin = time.perf_counter()
        index = engine(**built)
        index.add(ids, collection.tokens, collection.lengths)
        size = index.nbytes  # makes the inverted lists, too
        seconds = time.perf_counter() - begin
        for tuned in searches:
            index.tune(**tuned)
            short, long = measure(index, exact, collection.queries, best, 10), measure(index, exact, collection.queries[:20], best, 100)
            row = {
                "name": ", ".join([f"{collection.name}, {label}", *(f"{value} {name}" for name, value in tuned.items())]),
                "ours": short["p50"],
                "unit": "ms/query",
                "p95": short["p95"],
                "exact_scan": short["exact"],
                "times_faster": short["times"],
                "recall_at_10": short["recall"],
                "recall_at_100": long["recall"],
                "p50_of_100": long["p50"],
                "bytes_per_token": round(size / len(collection.tokens), 1),
                "build_s": round(seconds, 1),
                "documents": len(ids),
                "tokens": len(collection.tokens),
                "query_tokens": round(statistics.mean(map(len, collection.queries)), 1),
            }
            say(f"  {row['name']}: recall {row['recall_at_10']}, {row['ours']} ms, {row['times_faster']} x exact, {row['bytes_per_token']} bytes a token")
            yield row


def measure(index: MultiVectorIndex, exact: MultiVectorIndex, queries: list[np.ndarray], best: list[np.ndarray], k: int) -> dict[str, float]:
    """Recall at k of the exact k, and milliseconds of single queries beside the exact scan's."""
    index.search(queries[:1], k)  # touches the memory
    spent, scanned, recalls = [], [], []
    for query, wanted in zip(queries, best, strict=False):
        times = []
        for one in (exact, index):
            begin = time.perf_counter()
            ids, _ = one.search([query], k)
            times.append(1e3 * (time.perf_counter() - begin))
        scanned.append(times[0])
        spent.append(times[1])
        recalls.append(len(np.intersect1d(ids[0], wanted[:k])) / k)
    return {
        "recall": round(statistics.mean(recalls), 4),
        "p50": round(statistics.median(spent), 2),
        "p95": round(float(np.quantile(spent, 0.95)), 2),
        "exact": round(statistics.median(scanned), 2),
        "times": round(statistics.median(before / after for before, after in zip(scanned, spent, strict=True)), 2),
    }


if __name__ == "__main__":
    main()
