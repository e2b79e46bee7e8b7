"""The import order of docs/design.md, section 3, read from the syntax trees: lazy imports and type-checking imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

LAYERS = [
    {"kernels"},
    {"jaxrec", "param", "sharding", "method", "artifact", "optimizer", "limits"},  # "jaxrec" is jaxrec/__init__.py
    {"nn", "ops", "data", "interop"},
    {"methods", "index"},
    {"experiment"},
    {"evals"},
    {"train"},
    {"stages", "agents", "pods", "serve"},
    {"cli", "commands", "demo", "__main__", "experiments"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
ENTRY = {"__main__": {"cli"}, "cli": {"commands"}, "commands": {"demo"}}  # the doors that open onto their own layer

# Rooms that may import less than all of the layers below them.
ONLY = {
    "jaxrec": set(),
    "artifact": set(),
    "limits": set(),
    "data": {"jaxrec", "artifact", "limits"},
    "methods": LAYERS[0] | LAYERS[1] | {"nn", "ops"},
    "index": LAYERS[0] | LAYERS[1] | {"ops"},
}

COMPUTE = {"jax", "jaxlib", "flax", "optax", "orbax"}
# Packages that a room never imports, neither itself nor by what its imports import at once.
NEVER = {
    "jaxrec": COMPUTE,
    "artifact": COMPUTE,
    "limits": COMPUTE,
    "data": COMPUTE,
    "train": {"grain", "tensorflow_datasets", "scann", "tyro"},
}


class Import(NamedTuple):
    """One imported name; `at_once` unless it waits in a function or is for the type checker only."""

    name: str
    line: int
    at_once: bool


def imports(node: ast.AST, package: str, at_once: bool = True) -> Iterator[Import]:
    """All imports below `node`, as absolute dotted names; `from a import b` gives `a.b`, whether b is a module or not."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, at_once) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            source = ".".join([*above, *filter(None, [child.module])])
            yield from (Import(f"{source}.{alias.name}", child.lineno, at_once) for alias in child.names)
        elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
            if ast.unparse(child.func).split(".")[-1] in ("import_module", "__import__"):
                yield Import(str(child.args[0].value), child.lineno, False)
        for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        lazy = for_types or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(child, package, at_once and not lazy)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the layers by its dotted name; a package goes by its own name."""
    files = [file for top in ("kernels", "jaxrec", "experiments") for file in sorted((root / top).rglob("*.py"))]
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def room(name: str) -> str | None:
    """The room of a dotted name: the part below jaxrec, or the top-level folder; None for other people's packages."""
    top, *rest = name.split(".")
    if top == "jaxrec":
        return rest[0] if rest and (rest[0] == "__main__" or not rest[0].startswith("__")) else "jaxrec"
    return top if top in ("kernels", "experiments", "benchmarks", "tests") else None


def loaded(name: str, known: dict[str, list[Import]]) -> Iterator[str]:
    """The modules that run when `name` is imported: its packages, and itself where it is a module."""
    parts = name.split(".")
    yield from (prefix for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in known)


def brought(name: str, known: dict[str, list[Import]]) -> dict[str, str]:
    """The foreign packages that importing module `name` imports at once, each with the module that does it."""
    found: dict[str, str] = {}
    waiting, seen = list(loaded(name, known)), set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for target in known[module]:
            if target.at_once and room(target.name) is None:
                found.setdefault(target.name.split(".")[0], module)
            elif target.at_once:
                waiting.extend(loaded(target.name, known))
    return found


def may_import(here: str, there: str) -> bool:
    """Whether room `here` may import room `there`."""
    if here == there or there in ENTRY.get(here, ()):
        return True
    if there not in LAYER:
        return False
    contracts = LAYER[here] == LAYER[there] == 1  # the contracts are one layer and know one another
    return there in ONLY[here] if here in ONLY else LAYER[there] < LAYER[here] or contracts


def violations(root: Path) -> list[str]:
    """Every import under `root` that breaks the order, one line each."""
    files = modules(root)
    known = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        known[name] = list(imports(ast.parse(file.read_text(encoding="utf8"), str(file)), package))
    found = []
    for name, file in files.items():
        here, place = room(name), file.relative_to(root)
        if here not in LAYER:
            found.append(f"{place} is in no layer; give {here!r} one in docs/design.md, section 3, and here")
            continue
        never = NEVER.get(here, set())
        for target in known[name]:
            there, top = room(target.name), target.name.split(".")[0]
            if there is not None and not may_import(here, there):
                found.append(f"{place}:{target.line}: {here} may not import {there} ({target.name})")
            elif there is None and (top in never or (here == "kernels" and top not in {"jax", "numpy", *sys.stdlib_module_names})):
                found.append(f"{place}:{target.line}: {here} may not import {top}")
        for top, by in brought(name, known).items():
            if top in never and by != name:
                found.append(f"{place}: {here} may not import {top}, and {by} brings it")
    return found


def test_imports_keep_the_layers():
    assert "jaxrec.artifact" in modules(ROOT)
    assert not (found := violations(ROOT)), "\n".join(found)


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("kernels/maxsim/gpu.py", "from jaxrec import param", "1: kernels may not import param"),
        ("kernels/maxsim/cpu.py", "import flax.struct", "1: kernels may not import flax"),
        ("jaxrec/param.py", "from jaxrec.nn.linear import Linear", "1: param may not import nn"),
        ("jaxrec/nn/linear.py", "from jaxrec.ops import losses", "1: nn may not import ops"),
        ("jaxrec/ops/losses.py", "from ..nn import linear", "1: ops may not import nn"),
        ("jaxrec/interop/linen.py", "from jaxrec import data", "1: interop may not import data"),
        ("jaxrec/data/text.py", "import numpy\ndef f():\n    import jax.numpy as jnp", "3: data may not import jax"),
        ("jaxrec/data/text.py", "import importlib\njax = importlib.import_module('jax')", "2: data may not import jax"),
        ("jaxrec/data/graph.py", "from jaxrec import param", "1: data may not import param"),
        (
            "jaxrec/methods/sequential/sasrec.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from jaxrec.train import loop",
            "3: methods may not import train",
        ),
        ("jaxrec/methods/sequential/sasrec.py", "from jaxrec.data import sequences", "1: methods may not import data"),
        ("jaxrec/index/exact.py", "import jaxrec.nn.linear", "1: index may not import nn"),
        ("jaxrec/train/loop.py", "class C:\n    def f(self):\n        from scann import scann_ops_pybind", "3: train may not import scann"),
        ("jaxrec/train/loop.py", "from jaxrec.evals import retrieval", "train may not import tyro, and jaxrec.evals.retrieval brings it"),
        ("jaxrec/serve/server.py", "from jaxrec import cli", "1: serve may not import cli"),
        ("jaxrec/evals/links.py", "from experiments import sasrec_beauty", "1: evals may not import experiments"),
        ("jaxrec/cli.py", "from benchmarks import index", "1: cli may not import benchmarks"),
        ("jaxrec/helpers.py", "", "is in no layer; give 'helpers' one"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, text, message):
    plant(tmp_path, {"jaxrec/__init__.py": "", "jaxrec/evals/retrieval.py": "import tyro", file: text})
    found = violations(tmp_path)
    assert any(message in line for line in found), found


def test_what_the_order_allows_passes(tmp_path):
    files = {
        "kernels/maxsim/__init__.py": "import functools\nfrom jax.experimental import pallas\nfrom kernels import dispatch\nfrom .reference import maxsim",
        "jaxrec/__init__.py": "import os",
        "jaxrec/method.py": "from jaxrec import __version__\nfrom jaxrec.param import Param",
        "jaxrec/data/text.py": "import grain\nfrom jaxrec.artifact import Artifact\nfrom . import sequences",
        "jaxrec/evals/retrieval.py": "from jaxrec import data\ndef search():\n    import scann",
        "jaxrec/methods/sequential/sasrec.py": "import jaxrec.nn.linear\nfrom kernels import maxsim\nfrom jaxrec.ops import losses",
        "jaxrec/train/loop.py": "import jax, optax, orbax.checkpoint\nfrom jaxrec.evals.retrieval import search",
        "jaxrec/__main__.py": "from jaxrec.cli import main",
        "experiments/sasrec.py": "from jaxrec.train import loop\nimport grain",
    }
    plant(tmp_path, files)
    assert violations(tmp_path) == []


def test_modules_are_named_for_what_they_hold():
    vague = {"util", "utils", "common", "base", "helper", "helpers", "misc"}
    files = [file for top in ("jaxrec", "kernels", "experiments", "benchmarks", "tests") for file in (ROOT / top).rglob("*.py")]
    found = [
        str(file.relative_to(ROOT))
        for file in files
        if vague & {part.strip("_").removesuffix("_test") for part in file.relative_to(ROOT).with_suffix("").parts}
    ]
    assert files
    assert not found, f"{found}: name each after the one idea it holds"
