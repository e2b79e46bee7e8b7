"""The default dataset, which needs no download: which library functions Python functions call, read from the source on the machine.

The body of a function is a user, each call whose target can be named is an event, the called function is the item. What keeps the
data healthy:

- Calls stand in the order of evaluation (arguments before the call); nested functions and lambdas where they are written. Names are
  resolved to the place of definition, so that `np.dot`, `numpy.dot` and a re-export are one item.
- Calls that are everywhere (`len`, `isinstance`, `list.append`) say nothing about a function, and built-in errors only that it checks
  its arguments: both are left out.
- Tests, vendored copies and generated code are left out, and of functions that call exactly the same sequence (pasted code) one stays.
- A call repeated at once counts once.
- Functions with few events and items with few occurrences are dropped until none are left of either (a core in the sense of graphs).
- Users and items are numbered by name, so that neither popularity nor order of appearance leaks through ties.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import say
from jaxrec.data.builders.python_modules import Module, read_module
from jaxrec.data.builders.python_names import Names
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source

STANDARD_LIBRARY = "python"

PACKAGES = (
    STANDARD_LIBRARY, "absl-py", "array_record", "contourpy", "dm-tree", "einops", "etils", "flax", "fonttools", "fsspec", "grain", "jax", "jaxlib",
    "joblib", "matplotlib", "ml_dtypes", "narwhals", "numpy", "optax", "orbax-checkpoint", "packaging", "pillow", "protobuf", "psutil", "pyarrow",
    "pyparsing", "python-dateutil", "PyYAML", "requests", "rich", "scikit-learn", "scipy", "tensorflow-datasets", "tensorstore", "tqdm", "treescope",
    "tyro", "urllib3",
)  # fmt: skip

# Tests, vendored copies, programs rather than libraries, and what a distributor of Python may leave out.
_SKIPPED = re.compile(
    r"(^|[/_])(tests?|testing|conftest)[_./]"
    r"|(^|/)(_?vendor(ed)?|_?externals?|extern|site-packages|dist-packages)/"
    r"|^(config-[^/]*|distutils|ensurepip|idlelib|lib2to3|tkinter|turtledemo|__phello__)/|^(_sysconfigdata[^/]*|turtle)\.py$"
)
_GENERATED_NAME = re.compile(r"_gen$|_pb2(_grpc)?$")
_GENERATED = re.compile(rb"generated (by|from|file|code|automatically)|automatically generated|auto-?generated|do not edit", re.IGNORECASE)


@dataclass(frozen=True)
class PythonApi(Source):
    """Calls in the source of installed packages, as interactions.

    `users` are qualified names of functions, `items` those of what they call (`posixpath.join`), both sorted. Columns of items:
    `title` (as people write it: `os.path.join`), `text` (the first paragraph of the docstring; "" where the source has none) and
    `package` (top-level). Columns of users: `function` and `package`. There are no times.

    Attributes:
      packages: distributions to mine, by the name that pip installs; "python" is the standard library.
      max_share: an item that more than this share of all functions calls is dropped.
      min_session: a function with fewer events is dropped.
      min_item: an item with fewer occurrences is dropped.
    """

    packages: tuple[str, ...] = PACKAGES
    max_share: float = 0.02
    min_session: int = 4
    min_item: int = 4

    def inputs(self) -> dict[str, Any]:
        """The versions of Python and of the mined packages."""
        return {name: platform.python_version() if name == STANDARD_LIBRARY else _distribution(name).version for name in (STANDARD_LIBRARY, *self.packages)}

    def read(self) -> Interactions:
        """Mines the packages.

        Raises:
          ModuleNotFoundError: a package is not installed.
          ValueError: too little is left after dropping rare items and short sessions.
        """
        modules: list[Module] = []
        compiled: set[str] = set()
        digests: set[bytes] = set()
        versions = self.inputs()
        for package in self.packages:
            found = dict(source_files(package))
            parsed = _parse({name: path for name, path in found.items() if path.suffix == ".py"}, seen=digests)
            modules += parsed
            compiled |= found.keys() - {module.name for module in parsed}
            say(f"  {package} {versions[package]}: {sum(len(module.calls) for module in parsed):,} functions in {len(parsed):,} files")
        names = Names(modules, compiled)
        sessions, spellings = _sessions(modules, names)
        return _interactions(self._core(sessions), names, spellings)

    def _core(self, sessions: dict[str, list[str]]) -> dict[str, list[str]]:
        """Drops what is everywhere, then repeats, copies, rare items and short sessions until nothing changes."""
        callers = Counter(item for session in sessions.values() for item in set(session))
        common = {item for item, count in callers.items() if count > self.max_share * len(sessions)}
        sessions = {user: [item for item in session if item not in common] for user, session in sessions.items()}
        while True:
            counts = Counter(item for session in sessions.values() for item in session)
            kept, copies = {}, set()
            for user, session in sessions.items():
                items = _collapse(item for item in session if counts[item] >= self.min_item)
                if len(items) >= self.min_session and (key := tuple(items)) not in copies:
                    copies.add(key)
                    kept[user] = items
            if kept == sessions:
                break
            sessions = kept
        if not sessions:
            raise ValueError(
                f"no function in {', '.join(self.packages)} has {self.min_session} calls of items that occur {self.min_item} times; "
                "lower min_session or min_item, or mine more packages"
            )
        return sessions


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"PythonApi mines {name!r}, which is not installed; install it or leave it out of packages") from None


def source_files(package: str) -> Iterator[tuple[str, Path]]:
    """Names and paths of a distribution's modules, sorted; tests and vendored copies left out."""
    if package == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    else:
        distribution = _distribution(package)
        found = {file.as_posix(): Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.suffix in (".py", ".so", ".pyd")}
        if not found:
            raise ModuleNotFoundError(f"{package!r} does not list its Python files (an editable installation?); install it from a wheel or leave it out")
    modules = {}
    for relative, path in found.items():
        parts = relative[: -len(path.suffix)].removesuffix("/__init__").split("/")
        parts[-1] = parts[-1].partition(".")[0]  # _umath.cpython-311-x86_64-linux-gnu
        if all(part.isidentifier() for part in parts) and not _SKIPPED.search(relative):
            modules[".".join(parts)] = path
    if package == STANDARD_LIBRARY:
        modules |= {name: Path(name) for name in sys.stdlib_module_names if name not in modules and name != "builtins"}
    return iter(sorted(modules.items()))


def _parse(files: Mapping[str, Path], *, seen: set[bytes]) -> list[Module]:
    """Reads source files by module name. Copies and generated code keep their definitions and lose their calls; `seen` grows."""
    modules = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are large and hold no cycles; looking for them takes a quarter of the time
    try:
        for name, path in files.items():
            source = path.read_bytes()
            module = read_module(source, name, package=path.name == "__init__.py")
            digest = hashlib.sha256(source).digest()
            if digest in seen or _GENERATED_NAME.search(name) or _GENERATED.search(source[:1000]):
                module.calls.clear()
            seen.add(digest)
            modules.append(module)
    finally:
        if collecting:
            gc.enable()
    return modules


def _sessions(modules: Iterable[Module], names: Names) -> tuple[dict[str, list[str]], dict[str, Counter[str]]]:
    """What each function calls, and how often each item is written under which dotted name."""
    sessions: dict[str, list[str]] = {}
    spellings: dict[str, Counter[str]] = {}
    for module in modules:
        for function, references in module.calls.items():
            session = []
            for reference in references:
                if item := names.called(module.name, reference):
                    session.append(item)
                    if spelling := names.spelling(module.name, reference):
                        spellings.setdefault(item, Counter())[spelling] += 1
            sessions[function] = session
    return sessions, spellings


def _collapse(items: Iterable[str]) -> list[str]:
    """Without immediate repeats."""
    kept: list[str] = []
    for item in items:
        if not kept or kept[-1] != item:
            kept.append(item)
    return kept


def _interactions(sessions: dict[str, list[str]], names: Names, spellings: dict[str, Counter[str]]) -> Interactions:
    users = sorted(sessions)
    items = sorted({item for session in sessions.values() for item in session})
    number = {item: i for i, item in enumerate(items, start=1)}
    titles = names.titles(items, spellings)
    return Interactions(
        users=users,
        items=items,
        offsets=np.cumsum([0, *(len(sessions[user]) for user in users)], dtype=np.int64),
        sequence=np.array([number[item] for user in users for item in sessions[user]], np.int32),
        item_fields={
            "title": [titles[item] for item in items],
            "text": [names.text(item) for item in items],
            "package": [("" if item.startswith("builtins.") else titles[item]).partition(".")[0] or "builtins" for item in items],
        },
        user_fields={"function": users, "package": [user.partition(".")[0] for user in users]},
    )
