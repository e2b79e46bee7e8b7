"""What fewer token vectors, and fewer bytes of them, cost a trained retriever in nDCG@10: every reduction of `jaxrec.index`, in one table.

    jaxrec train experiments/compress_scifact.py          # the retriever itself, that of colbert_scifact.py
    python -m experiments.compress_scifact [--workdir runs/compress_scifact] [--only float32 int8 "residual, 2 bits"]

The token vectors are made once and kept in the workdir. Each reduction is applied to the documents, undone as far as it can be, and every document scored for
every test query: how good the vectors still are, not how fast an engine searches them. Another retriever: `--experiment`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import say
from jaxrec.data.passages import Passages
from jaxrec.evals.document_retrieval import best
from jaxrec.evals.encoding import TokenVectors, encode
from jaxrec.evals.search import DEPTH, evaluate
from jaxrec.experiment import load
from jaxrec.index import compress
from jaxrec.index.product_residuals import ProductResidualCodec
from jaxrec.stages.runs import load_run

Reduction = Callable[[TokenVectors], tuple[TokenVectors, float]]  # -> what is left, and bytes a token that is left
CENTROIDS = 4096

experiment = load(Path(__file__).with_name("colbert_scifact.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    print(f"{'reduction':32}  nDCG@10  tokens kept  bytes each  bytes a document")
    for name, row in rated(options.experiment, options.workdir, options.only):
        print(f"{name:32}  {row['ours']:.4f}   {row['tokens_kept']:11.2f}  {row['bytes_per_kept_token']:10.0f}  {row['bytes_per_document']:16,.0f}", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiment", type=Path, default=Path(__file__), help="a file whose data are Passages")
    parser.add_argument("--workdir", type=Path, default=Path("runs/compress_scifact"), help="of its run")
    parser.add_argument("--only", nargs="+", choices=reductions(), default=list(reductions()), metavar="NAME", help=f"of {'; '.join(reductions())}")


def rated(path: Path, workdir: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it keeps and costs) of each reduction in turn, on the test queries of a trained retriever."""
    data, queries, documents = vectors(path, workdir)
    for name in names:
        kept, size = reductions()[name](documents)
        asked = TokenVectors(np.sign(queries.values), queries.offsets) if name.startswith("sign bits") else queries
        judged = evaluate(best(asked, kept, min(DEPTH, len(documents)))[0], data.collection(), "test")
        mean, interval = judged.mean()["nDCG@10"], judged.intervals()["nDCG@10"]
        row = {
            "ours": round(mean, 5),
            "unit": "nDCG@10",
            "interval": [round(interval.low, 5), round(interval.high, 5)],
            "tokens_kept": round(len(kept.values) / len(documents.values), 4),
            "bytes_per_kept_token": size,
            "bytes_per_document": round(size * len(kept.values) / len(documents), 1),
        }
        yield name, row


def vectors(path: Path, workdir: Path) -> tuple[Passages, TokenVectors, TokenVectors]:
    """The data, and the vectors of its test queries and documents, encoded once (`vectors_test.npz`)."""
    run, params, _ = load_run(load(path), workdir)
    data = run.data
    if not isinstance(data, Passages):
        raise TypeError(f"{path}: its data are {type(data).__name__}, and token vectors are of Passages; name a text retriever")
    file = workdir / "vectors_test.npz"
    if not file.exists():
        tokens, pad = data.tokens(), data.info()["pad"]
        queries, documents = (encode(run.method, params, tokens[n], kind, pad=pad) for n, kind in (("test", "query"), ("documents", "document")))  # type: ignore[arg-type]
        lengths = {"lengths": np.diff(documents.offsets), "query_lengths": np.diff(queries.offsets)}
        np.savez(file, allow_pickle=False, tokens=documents.values, queries=queries.values, **lengths)
        say(f"kept {len(documents.values):,} token vectors in {file}")
    with np.load(file, allow_pickle=False) as held:
        return data, *(TokenVectors(held[v], np.r_[0, np.cumsum(held[n])]) for v, n in (("queries", "query_lengths"), ("tokens", "lengths")))


def reductions() -> dict[str, Reduction]:
    """By name, in the order of the table."""
    found: dict[str, Reduction] = {"float32": lambda d: (d, 4.0 * d.values.shape[1]), "int8": _int8}
    found |= {f"residual, {bits} bits": _residual(compress.ResidualCodec, bits) for bits in (4, 2, 1)}
    found |= {f"residual, {bits} bits, product": _residual(ProductResidualCodec, bits) for bits in (4, 2, 1)}
    found |= {f"product codes, {parts} parts": _product(parts) for parts in (32, 16, 8)}
    found |= {"sign bits": _sign, "k-means codes, 4,096": _product(1, CENTROIDS)}
    found |= {f"pooled by {factor}": _each(lambda v, factor=factor: compress.pool(v, factor)) for factor in (2, 3, 4, 6)}
    found |= {f"{share:.0%} most central": _each(lambda v, share=share: v[compress.salient(compress.centrality(v), share)]) for share in (0.75, 0.5, 0.25)}
    found |= {f"{count} instance tokens": _each(lambda v, count=count: _instances(v, count)) for count in (64, 32)}
    found |= {f"pooled by 2, residual, {bits} bits": _then(found["pooled by 2"], found[f"residual, {bits} bits"]) for bits in (4, 2)}
    return found


def _int8(documents: TokenVectors) -> tuple[TokenVectors, float]:
    return TokenVectors(compress.int8_vectors(*compress.int8_codes(documents.values)), documents.offsets), documents.values.shape[1] + 4.0


def _residual(kind: type[compress.ResidualCodec | ProductResidualCodec], bits: int) -> Reduction:
    def reduce(documents: TokenVectors) -> tuple[TokenVectors, float]:
        codec = kind.fit(documents.values, bits, centroids=CENTROIDS)
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


def _instances(tokens: np.ndarray, count: int) -> np.ndarray:
    count = min(count, len(tokens))
    return compress.aggregate(tokens, compress.farthest(tokens, count))


def _each(reduce: Callable[[np.ndarray], np.ndarray]) -> Reduction:
    """A reduction of each document by itself."""

    def whole(documents: TokenVectors) -> tuple[TokenVectors, float]:
        kept = [reduce(documents[row]) for row in range(len(documents))]
        return TokenVectors(np.concatenate(kept).astype(np.float32), np.r_[0, np.cumsum(list(map(len, kept)))]), 4.0 * documents.values.shape[1]

    return whole


def _then(first: Reduction, second: Reduction) -> Reduction:
    return lambda documents: second(first(documents)[0])


if __name__ == "__main__":
    main()
