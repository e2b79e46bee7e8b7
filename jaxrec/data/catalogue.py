"""The data sets that the command line knows by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.data.builders.amazon_p5 import AmazonP5
from jaxrec.data.builders.kuairand import KuaiRand
from jaxrec.data.builders.movielens import MovieLens
from jaxrec.data.builders.python_api import PythonApi
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.builders.table import Table
from jaxrec.data.features import column_info
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source

SOURCES: dict[str, Source] = {
    "python_api": PythonApi(),
    "amazon_beauty": AmazonP5("beauty"),
    "amazon_sports": AmazonP5("sports"),
    "amazon_toys": AmazonP5("toys"),
    "movielens_100k": MovieLens("100k"),
    "movielens_1m": MovieLens("1m"),
    "kuairand": KuaiRand(),
    "synthetic": Synthetic(),
}


def find(name: str) -> Source:
    """The source of a name, or of the path of a CSV or Parquet file.

    Raises:
      ValueError: neither; lists the names.
    """
    if name in SOURCES:
        return SOURCES[name]
    if Path(name).suffix or Path(name).exists():
        return Table(name)
    raise ValueError(f"no data set {name!r}; there are {', '.join(SOURCES)}, and your own CSV or Parquet file by its path")


def listing() -> list[dict[str, Any]]:
    """One row per known data set: its name, whether it is built on this machine, and what it is."""
    rows = []
    for name, source in SOURCES.items():
        try:
            state = "built" if (source.folder() / "artifact.json").exists() else "not built"
        except FileNotFoundError:
            state = "files missing"
        rows.append({"name": name, "state": state, "what": (type(source).__doc__ or "").splitlines()[0]})
    return rows


def statistics(source: Source, interactions: Interactions) -> dict[str, Any]:
    """Counts, lengths, columns and a few sessions by title."""
    lengths = interactions.lengths()
    titles = interactions.titles()
    return {
        "users": len(interactions.users),
        "items": len(interactions.items),
        "interactions": len(interactions.sequence),
        "history_length": {"mean": round(float(lengths.mean()), 2), "median": float(np.median(lengths)), "longest": int(lengths.max())},
        "density": float(f"{len(interactions.sequence) / (len(interactions.users) * len(interactions.items)):.3g}"),
        "times": interactions.times is not None,
        "ratings": interactions.ratings is not None,
        "columns": column_info(interactions),
        "first_histories": [
            [titles[item - 1] for item in interactions.sequence[a:b][:8]] for a, b in zip(interactions.offsets[:3], interactions.offsets[1:4], strict=True)
        ],
        "folder": str(source.folder()),
    }
