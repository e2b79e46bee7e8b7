"""Writes the README's tables from benchmarks/results: `python -m benchmarks.readme`; `--check` fails if they are stale."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from jaxrec.artifact import write_atomically

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MODULES = {"SASRec": "sasrec", "ESASRec": "esasrec", "HSTU": "hstu", "BERT4Rec": "bert4rec"}
MODULES |= {"Popularity": "popularity", "LastItem": "last_item", "Markov": "markov", "ItemKNN": "item_knn"}


def main() -> None:
    text = (ROOT / "README.md").read_text()
    new = replaced(replaced(text, "accuracy", accuracy(load("accuracy"))), "speed", speed([*load("sasrec_step"), *load("input_pipeline")]))
    if "--check" not in sys.argv:
        write_atomically(ROOT / "README.md", new)
    elif new != text:
        raise SystemExit("README.md is stale; run python -m benchmarks.readme")


def load(name: str) -> list[dict[str, Any]]:
    """The recorded results of one benchmark, none if it never ran."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def replaced(text: str, section: str, table: str) -> str:
    """`text` with what stands between the section's markers replaced."""
    new, places = re.subn(rf"(<!-- {section}: [^\n]*-->\n).*?(<!-- end -->)", lambda found: f"{found[1]}{table}{found[2]}", text, flags=re.DOTALL)
    if places != 1:
        raise ValueError(f"README.md has {places} places for the {section} table, expected one, between <!-- {section}: ... --> and <!-- end -->")
    return new


def paper(method: str) -> str:
    """What the first line of a method's file says about it."""
    return (importlib.import_module(f"jaxrec.methods.sequential.{MODULES[method]}").__doc__ or "").splitlines()[0]


def accuracy(results: list[dict[str, Any]]) -> str:
    """The methods, and below them every measured row."""
    lines = ["| method | file | what it is |", "|---|---|---|"]
    lines += [f"| {method} | `methods/sequential/{module}.py` | {paper(method)} |" for method, module in MODULES.items()]
    if results:
        where = ", ".join(dict.fromkeys(f"{row['device']}, {row['date']}" for row in results))
        lines += ["", f"Mean over seeds, and the 95 % bootstrap interval over users; {where}.", ""]
        lines += ["| run | protocol | seeds | Recall@10 | NDCG@10 | published |", "|---|---|---|---|---|---|"]
    for row in results:
        run, protocol = row["name"].split(", ", 1)
        cells = [f"{row['ours'][m]:.4f} [{row['interval'][m][0]:.4f}, {row['interval'][m][1]:.4f}]" for m in ("Recall@10", "NDCG@10")]
        published = "" if row["peer"] is None else f"{row['peer']['Recall@10']:.4f} / {row['peer']['NDCG@10']:.4f}"
        lines.append(f"| {run} | {protocol} | {len(row['seeds']['NDCG@10'])} | {cells[0]} | {cells[1]} | {published} |")
    return "\n".join(lines) + "\n"


def speed(results: list[dict[str, Any]]) -> str:
    """One line per ratio."""
    if not results:
        return ""
    where = ", ".join(dict.fromkeys(row["device"] for row in results))
    when = ", ".join(dict.fromkeys(row["date"] for row in results))
    lines = [f"Medians of interleaved turns in one run; {where}; {when}.", "", "| ours, peer | ours | peer | ratio | unit |", "|---|---|---|---|---|"]
    for row in results:
        ours, peer, ratio = (f"{row[key]:,.2f}" if isinstance(row.get(key), (int, float)) else "" for key in ("ours", "peer", "ratio"))
        lines.append(f"| {row['name']} | {ours} | {peer} | {ratio} | {row['unit']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
