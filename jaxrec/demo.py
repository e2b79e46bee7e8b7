"""The demo: from this machine's Python code to recommenders by item, by text and by semantic ID; the first is exported and queried."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxrec.artifact import say, write_atomically

EXPERIMENT, TEXT, ENSEMBLE, TIGER = (Path(f"experiments/{name}_python_api.py") for name in ("sasrec", "sasrec_text", "ensrec", "tiger"))
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "scann")


def demo(workdir: Path) -> None:
    """Builds the data, trains, prints one table with all baselines, exports, queries, and writes `report.json` into `workdir`.

    Raises:
      FileNotFoundError: it is not run from a checkout of the project.
    """
    if not EXPERIMENT.exists():
        raise FileNotFoundError(f"{EXPERIMENT} is not here; run the demo from a checkout of jaxrec")
    from jaxrec.data.sequences import with_histories
    from jaxrec.evals.report import table, to_json
    from jaxrec.experiment import load
    from jaxrec.serve.bundle import Bundle
    from jaxrec.serve.export import export
    from jaxrec.stages.runs import baseline_ranks, evaluate_run, load_run
    from jaxrec.train.loop import train

    seconds: dict[str, float] = {}
    experiment = load(EXPERIMENT)
    with stage("data", "1/8  Data: every function of the installed Python packages is a session, every call an item", seconds):
        interactions = with_histories(experiment.data).source.get()
        say(f"{len(interactions.users):,} functions, {len(interactions.items):,} called items, {len(interactions.sequence):,} calls")
    with stage("train", "2/8  Train: SASRec, with packing and sampled softmax", seconds):
        train(experiment, workdir / "run")
    with stage("text", "3/8  Text: SASRec that knows the items by their docstrings only, and EnsRec, which adds both models' cosines", seconds):
        text = load(TEXT)
        train(text, workdir / "text")
        ensemble = replace(load(ENSEMBLE), init_from={"id": str(workdir / "run"), "text": str(workdir / "text")})
        train(ensemble, workdir / "ensemble")
    with stage("sids", "4/8  Semantic IDs: residual k-means of the docstrings' vectors", seconds):
        tiger = load(TIGER)
        draw_ids(tiger.data, workdir / "semantic_ids.png")
    with stage("tiger", "5/8  TIGER: a transformer that writes the next item's ID", seconds):
        train(tiger, workdir / "tiger")
    with stage("evaluate", "6/8  Evaluate: the whole catalogue is ranked for every function, beside all baselines", seconds):
        runs = {"SASRec": (experiment, "run"), "SASRec, text": (text, "text"), "EnsRec": (ensemble, "ensemble"), "TIGER": (tiger, "tiger")}
        systems = {name: evaluate_run(each, workdir / folder) for name, (each, folder) in runs.items()} | baseline_ranks(experiment.data, "test")
        print("\n" + table(systems, targets=("all targets",)))
    bundle = workdir / "bundle"
    with stage("export", "7/8  Export: a bundle with parameters, StableHLO, item table and ScaNN index", seconds):
        resolved, params, step = load_run(experiment, workdir / "run")
        export(resolved, params, step, bundle)
    with stage("query", "8/8  Query: what is called next?", seconds):
        function, history, target = a_question(experiment.data)
        answers = Bundle.open(bundle).recommend([history], 5, keep_seen=True)[0]
        title = dict(zip(interactions.items, interactions.titles(), strict=True))
        print(f"in {function}, after {' -> '.join(title[item] for item in history)}:")
        for place, answer in enumerate(answers, 1):
            print(f"  {place}  {answer.score:7.3f}  {answer.title}" + ("   <- what came next" if answer.item == target else ""))
        if target not in [answer.item for answer in answers]:
            print(f"  (what came next: {title[target]})")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if _installed(name)} | {"python": platform.python_version()}
    data = {"functions": len(interactions.users), "items": len(interactions.items), "calls": len(interactions.sequence)}
    report = {"metrics": to_json(systems), "seconds": seconds, "data": data, "versions": versions}
    write_atomically(workdir / "report.json", json.dumps(report, indent=1))
    say(
        f"\nDone in {sum(seconds.values()):.0f} s; the numbers are in {workdir}/report.json. Try next:\n"
        f"  jaxrec query {bundle} --find json.            # look up ids\n"
        f"  jaxrec query {bundle} --history {','.join(history[:3])} -k 10\n"
        f"  jaxrec train {EXPERIMENT} --workdir runs/wider --method.dim 128\n"
        f'  jaxrec data info path/to/your.csv             # then copy {EXPERIMENT} and put Table("path/to/your.csv") in it'
    )


def draw_ids(data: Any, path: Path) -> None:
    """Says what the semantic IDs of a data set are like, and draws their tree."""
    from jaxrec.stages.sid_report import plot, report, text

    column = data.column("sid")
    titles = data.source.get().titles()
    ids = column.sids.get()
    say(text(report(ids, column.sids.embeddings.get(), titles, column.sids.reconstructed())))
    plot(ids, path, titles)
    say(f"drew {path}")


def a_question(data: Any) -> tuple[str, list[str], str]:
    """(function, the calls so far, the call that came next): the first test question about argparse, or else the first of all, with four to eight calls."""
    interactions, examples = data.source.get(), data.examples("test")
    short = [n for n in range(len(examples)) if 4 <= len(examples.history(n)) <= 8]
    number = next((n for n in short if any("argparse" in interactions.items[i - 1] for i in examples.history(n))), short[0])
    history = [interactions.items[item - 1] for item in examples.history(number)]
    return interactions.users[examples.user[number]], history, interactions.items[examples.target[number] - 1]


@contextlib.contextmanager
def stage(name: str, title: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announces a stage and records how long it took."""
    say(f"\n{title}")
    began = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - began, 2)
    say(f"({seconds[name]:.1f} s)")


def _installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False
