"""Token reduction: what fewer tokens and fewer bytes of them cost in nDCG@10, on one picture.

    python -m benchmarks.token_reduction experiments/colbert_scifact.py --workdir runs/search/colbert_scifact-seed0

The token vectors of a trained retriever are made once and kept in its workdir (`vectors_test.npz`, which `benchmarks.multivector_index --vectors` reads, too).
Each reduction is applied to the documents, undone as far as it can be, and every document scored for every test query: how good the vectors still are, not
how fast an engine searches them. Writes a row each, and the picture beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.record import RESULTS, record
from jaxrec.artifact import say
from jaxrec.data.passages import Passages
from jaxrec.evals.document_retrieval import best
from jaxrec.evals.encoding import TokenVectors, encode
from jaxrec.evals.search import DEPTH, evaluate
from jaxrec.experiment import load
from jaxrec.index import compress
from jaxrec.stages.runs import load_run

Reduction = Callable[[TokenVectors], tuple[TokenVectors, float]]  # -> what is left, and bytes a token that is left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="an experiment on Passages")
    parser.add_argument("--workdir", required=True, help="of its run")
    options = parser.parse_args()
    data, queries, documents = vectors(options.experiment, Path(options.workdir))
    label = Path(options.experiment).stem
    rows = []
    for name, reduction in reductions().items():
        kept, size = reduction(documents)
        asked = TokenVectors(np.sign(queries.values), queries.offsets) if name.startswith("sign bits") else queries
        found, _ = best(asked, kept, min(DEPTH, len(documents)))
        judged = evaluate(found, data.collection(), "test")
        mean, interval = judged.mean()["nDCG@10"], judged.intervals()["nDCG@10"]
        tokens = len(kept.values) / len(documents.values)
        say(f"  {name}: nDCG@10 {mean:.4f}, {tokens:.2f} of the tokens, {size:.0f} bytes each")
        row = {
            "name": f"{label}: {name}",
            "ours": round(mean, 5),
            "unit": "nDCG@10",
            "interval": [round(interval.low, 5), round(interval.high, 5)],
            "tokens_kept": round(tokens, 4),
            "bytes_per_kept_token": size,
            "bytes_per_document": round(size * len(kept.values) / len(documents), 1),
        }
        rows += record("token_reduction", [row])  # one by one: an interrupted call has measured what it says it has
    draw(rows, RESULTS / f"token_reduction_{label}.png")


def vectors(path: str, workdir: Path) -> tuple[Passages, TokenVectors, TokenVectors]:
    """The data, and the vectors of its test queries and documents, encoded once."""
    experiment, params, _ = load_run(load(path), workdir)
    data = experiment.data
    assert isinstance(data, Passages)
    file = workdir / "vectors_test.npz"
    if not file.exists():
        tokens, pad = data.tokens(), data.info()["pad"]
        queries, documents = (encode(experiment.method, params, tokens[n], kind, pad=pad) for n, kind in (("test", "query"), ("documents", "document")))  # type: ignore[arg-type]
        lengths = {"lengths": np.diff(documents.offsets), "query_lengths": np.diff(queries.offsets)}
        np.savez(file, tokens=documents.values, queries=queries.values, **lengths)
    with np.load(file, allow_pickle=False) as held:
        return data, *(TokenVectors(held[v], np.r_[0, np.cumsum(held[n])]) for v, n in (("queries", "query_lengths"), ("tokens", "lengths")))


def reductions() -> dict[str, Reduction]:
    """By name, in the order of the table."""
    found: dict[str, Reduction] = {"float32": lambda d: (d, 4.0 * d.values.shape[1]), "int8": _int8}
    found |= {f"residual, {bits} bits": _residual(bits) for bits in (4, 2, 1)}
    found |= {f"product codes, {parts} parts": _product(parts) for parts in (32, 16, 8)}
    found |= {"sign bits": _sign, "k-means codes, 4,096": _product(1, 4096)}
    found |= {f"pooled by {factor}": _each(lambda v, factor=factor: compress.pool(v, factor)) for factor in (2, 3, 4, 6)}
    found |= {f"{share:.0%} most central": _each(lambda v, share=share: v[compress.salient(compress.centrality(v), share)]) for share in (0.75, 0.5, 0.25)}
    found |= {f"{count} instance tokens": _each(lambda v, count=count: _instances(v, count)) for count in (64, 32)}
    found |= {f"pooled by 2, residual, {bits} bits": _then(found["pooled by 2"], _residual(bits)) for bits in (4, 2)}
    return found


def _int8(documents: TokenVectors) -> tuple[TokenVectors, float]:
    return TokenVectors(compress.int8_vectors(*compress.int8_codes(documents.values)), documents.offsets), documents.values.shape[1] + 4.0


def _residual(bits: int) -> Reduction:
    def reduce(documents: TokenVectors) -> tuple[TokenVectors, float]:
        codec = compress.ResidualCodec.fit(documents.values, bits, centroids=4096)
        return TokenVectors(codec.decode(*codec.encode(documents.values)), documents.offsets), documents.values.shape[1] * bits / 8 + 2.0

    return reduce


def _product(parts: int, codes: int = 256) -> Reduction:
    def reduce(documents: TokenVectors) -> tuple[TokenVectors, float]:
        books = compress.fit_product(documents.values, parts, codes)
        coded = compress.product_codes(documents.values, books)
        return TokenVectors(compress.product_vectors(coded, books), documents.offsets), float(parts * coded.dtype.itemsize)

    return reduce


def _sign(documents: TokenVectors) -> tuple[TokenVectors, float]:
    """-1 and 1, whose inner products rank as Hamming distances do."""
    return TokenVectors(np.where(documents.values > 0, 1, -1).astype(np.float32), documents.offsets), documents.values.shape[1] / 8


def _instances(vectors: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(vectors))
    return compress.aggregate(vectors, compress.farthest(vectors, count))


def _each(reduce: Callable[[np.ndarray], np.ndarray]) -> Reduction:
    """A reduction of each document by itself."""

    def whole(documents: TokenVectors) -> tuple[TokenVectors, float]:
        kept = [reduce(documents[row]) for row in range(len(documents))]
        return TokenVectors(np.concatenate(kept).astype(np.float32), np.r_[0, np.cumsum(list(map(len, kept)))]), 4.0 * documents.values.shape[1]

    return whole


def _then(first: Reduction, second: Reduction) -> Reduction:
    return lambda documents: second(first(documents)[0])


def draw(rows: list[dict], path: Path) -> None:
    """nDCG@10 over bytes of a document; what nothing cheaper is better than is joined by a line."""
    import matplotlib.pyplot as plt

    ordered = sorted(rows, key=lambda row: (row["bytes_per_document"], -row["ours"]))
    front, highest = [], -1.0
    for row in ordered:
        if row["ours"] > highest:
            front.append(row)
            highest = row["ours"]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    axes.plot([row["bytes_per_document"] for row in front], [row["ours"] for row in front], color="#2a7f7f", linewidth=1, zorder=1)
    for row in ordered:
        on_front = row in front
        axes.scatter(row["bytes_per_document"], row["ours"], s=28, color="#2a7f7f" if on_front else "#b0b0a8", zorder=2)
        label = row["name"].partition(": ")[2]
        axes.annotate(label, (row["bytes_per_document"], row["ours"]), (4, 5 if on_front else -11), textcoords="offset points", fontsize=8, color="#333")
    axes.set(xscale="log", xlabel="bytes per document", ylabel="nDCG@10", title=rows[0]["name"].partition(": ")[0])
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    say(f"drew {path}")


if __name__ == "__main__":
    main()
