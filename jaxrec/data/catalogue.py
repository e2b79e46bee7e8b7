"""The data sets that the command line knows by name: interactions, collections of documents, and texts."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.builders.beir import Beir, Cranfield
from jaxrec.data.builders.kuairand import KuaiRand
from jaxrec.data.builders.movielens import MovieLens
from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.builders.python_docs import PythonDocs
from jaxrec.data.builders.python_module_docs import PythonModules
from jaxrec.data.builders.qa_passages import AfriQA, TQuAD, XQuAD
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.builders.table import Table
from jaxrec.data.builders.tiny_shakespeare import TinyShakespeare
from jaxrec.data.collection import Collection, CollectionSource
from jaxrec.data.features import column_info
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source
from jaxrec.data.text import TextSource

INTERACTIONS: dict[str, Source] = {
    "python_api": PythonApi(),
    "amazon_beauty": AmazonP5("beauty"),
    "amazon_sports": AmazonP5("sports"),
    "amazon_toys": AmazonP5("toys"),
    "movielens_100k": MovieLens("100k"),
    "movielens_1m": MovieLens("1m"),
    "kuairand": KuaiRand(),
    "synthetic": Synthetic(),
}
DOCUMENTS: dict[str, CollectionSource] = {
    "python_docs": PythonDocs(),
    "python_modules": PythonModules(),
    "scifact": Beir("scifact"),
    "cranfield": Cranfield(),
    "xquad_turkish": XQuAD("tr"),
    "tquad": TQuAD(),
    "afriqa_kinyarwanda": AfriQA("kin"),
}
TEXTS: dict[str, TextSource] = {"tiny_shakespeare": TinyShakespeare()}


def find(name: str) -> Source | CollectionSource | TextSource:
    """The source of a name, or of the path of a CSV or Parquet file.

    Raises:
      ValueError: neither; lists the names.
    """
    if (source := (INTERACTIONS | DOCUMENTS | TEXTS).get(name)) is not None:
        return source
    if Path(name).suffix or Path(name).exists():
        return Table(name)
    near = difflib.get_close_matches(name, INTERACTIONS | DOCUMENTS | TEXTS, n=1)
    meant = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise ValueError(f"no data set {name!r}; {meant} {', '.join(INTERACTIONS | DOCUMENTS | TEXTS)}, and your own CSV or Parquet file by its path")


def interactions(name: str) -> Source:
    """The same, of a set that must have items.

    Raises:
      ValueError: it has documents or text in place of items.
    """
    source = find(name)
    if not isinstance(source, Source):
        raise ValueError(f"{name} has no items with interactions; those that have are {', '.join(INTERACTIONS)}, and your own CSV or Parquet file by its path")
    return source


def listing() -> list[dict[str, Any]]:
    """One row per known data set: its name, what kind it is of, whether it is built on this machine, and what it is."""
    rows = []
    for kind, sources in (("interactions", INTERACTIONS), ("documents", DOCUMENTS), ("text", TEXTS)):
        for name, source in sources.items():
            try:
                state = "built" if (source.folder() / "artifact.json").exists() else "not built"
            except FileNotFoundError:
                state = "files missing"
            rows.append({"name": name, "kind": kind, "state": state, "what": (type(source).__doc__ or "").splitlines()[0]})
    return rows


def statistics(source: Source | CollectionSource | TextSource) -> dict[str, Any]:
    """What a data set holds, in counts and in a few examples; builds it where it is not."""
    match found := source.get():
        case Interactions():
            known = _of_interactions(found)
        case Collection():
            known = _of_documents(found)
        case _:
            known = {"characters": {split: len(text) for split, text in found.items()}, "begins": found["train"][:200]}
    return known | {"folder": str(source.folder())}


def _of_interactions(interactions: Interactions) -> dict[str, Any]:
    """Counts, lengths, columns and a few sessions by title."""
    lengths = interactions.lengths()
    titles = interactions.titles()
    return {
        "users": len(interactions.users),
        "items": len(interactions.items),
        "interactions": len(interactions.sequence),
        "history_length": _spread(lengths),
        "density": float(f"{len(interactions.sequence) / (len(interactions.users) * len(interactions.items)):.3g}"),
        "times": interactions.times is not None,
        "ratings": interactions.ratings is not None,
        "columns": column_info(interactions),
        "first_histories": [
            [titles[item - 1] for item in interactions.sequence[a:b][:8]] for a, b in zip(interactions.offsets[:3], interactions.offsets[1:4], strict=True)
        ],
    }


def _of_documents(collection: Collection) -> dict[str, Any]:
    """Counts of documents, queries and judgements, lengths in words, and a query of each split."""
    return {
        "documents": len(collection.ids),
        "words": _spread(np.array([len(text.split()) for text in collection.passages()])),
        "queries": {split: len(queries.ids) for split, queries in collection.queries.items()},
        "judgements": {split: len(qrels) for split, qrels in collection.qrels.items()},
        "first_queries": {split: queries.texts[0] for split, queries in collection.queries.items() if queries.texts},
    }


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {"mean": round(float(counts.mean()), 2), "median": float(np.median(counts)), "longest": int(counts.max())}
