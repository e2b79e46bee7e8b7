"""record: prints results as JSON lines and keeps the newest of each name in a file, from which the tables of README.md and docs/results.md are generated."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxrec.artifact import cache_dir, locked, write_atomically

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "numpy")


def record(name: str, rows: Iterable[Mapping[str, Any]], *, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Prints one JSON line per result and merges the results by their names into `folder/<name>.json`.

    Args:
      name: of the benchmark.
      rows: each with `name`, `ours` and `unit`, and what else is worth keeping. `peer` is None where nothing was compared; `ratio` is ours / peer
        unless given; `versions` of peers are joined to our own.
      folder: where the results lie.

    Returns:
      The rows with ratio, device, date, commit and versions.

    Raises:
      ValueError: a row lacks a field, or two rows share a name.
    """
    here = {"device": device(), "load": round(os.getloadavg()[0], 1), "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": commit()}
    own = {package: importlib.metadata.version(package) for package in PACKAGES}
    rows = [_complete(row) | here | {"versions": own | row.get("versions", {})} for row in rows]
    found = {row["name"]: row for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"two results of {name} are called the same: {sorted(row['name'] for row in rows)}; give each a name of its own")
    for row in rows:
        print(json.dumps(row), flush=True)
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(cache_dir() / f"benchmarks-{name}.lock"):
        kept = {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}
        write_atomically(path, json.dumps(list((kept | found).values()), indent=1) + "\n")
    return rows


def _complete(row: Mapping[str, Any]) -> dict[str, Any]:
    missing = {"name", "ours", "unit"} - row.keys()
    if missing:
        raise ValueError(f"the result {row.get('name', dict(row))!r} lacks {', '.join(sorted(missing))}; a result has name, ours, peer and unit")
    ours, peer = row["ours"], row.get("peer")
    ratio = round(ours / peer, 3) if isinstance(ours, (int, float)) and isinstance(peer, (int, float)) and peer else None
    return {"name": row["name"], "ours": ours, "peer": peer, "ratio": ratio, **row}


def device() -> str:
    """What jax computes on: the accelerators, or the processor and how many of its cores this process may use."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    return f"{processor()}, {cores()} cores"


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The revision that was measured, with a + where files differ from it; "unknown" outside of a repository."""
    try:
        revision, changes = (
            subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changes else "")
