"""Artifacts: things that know how to build themselves, once, into a content-addressed cache.

A dataset, a set of embeddings, a trained part: each is a frozen dataclass. Its fingerprint is its class (with its source text, where it is
not the library's), its fields and the fingerprints of the artifacts among them, so a change anywhere upstream names a new folder and nothing is ever stale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import functools
import hashlib
import inspect
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar


def cache_dir() -> Path:
    """The folder of built artifacts: `$JAXREC_CACHE`, or `~/.cache/jaxrec`."""
    return Path(os.environ.get("JAXREC_CACHE") or Path.home() / ".cache" / "jaxrec").expanduser()


def say(message: str) -> None:
    """Prints one line of progress to standard error, so that standard output stays machine-readable."""
    print(message, file=sys.stderr, flush=True)


class Artifact:
    """Base of every artifact. Subclasses are frozen dataclasses that define `build` and `load`.

    `version` is raised when the code of `build` changes its result. Fields with `metadata={"fingerprint": False}` (where a raw
    file lies, for one) do not count; what they point to belongs in `inputs()`.
    """

    version: ClassVar[int] = 1

    def inputs(self) -> dict[str, Any]:
        """What the result depends on besides the fields: checksums of raw files, versions of packages. JSON-able."""
        return {}

    def build(self, folder: Path) -> None:
        """Writes the result into `folder`, which exists and is empty. It is renamed into place when this returns."""
        raise TypeError(f"{type(self).__name__} is an artifact without a build method")

    def load(self, folder: Path) -> Any:
        """Opens what `build` wrote. Memory-map what is large."""
        raise TypeError(f"{type(self).__name__} is an artifact without a load method")

    def describe(self) -> dict[str, Any]:
        """The fingerprint before hashing, readable; stored beside the result as `artifact.json`."""
        return {"artifact": class_name(type(self)), "version": self.version, "fields": counted_fields(self), "inputs": self.inputs()}

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name this artifact."""
        text = json.dumps(self.describe(), sort_keys=True, default=_encode)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder(self) -> Path:
        """Where this artifact lies, or will lie once built."""
        return cache_dir() / f"{type(self).__name__}-{self.fingerprint()}"

    def get(self) -> Any:
        """Loads the artifact, building it first if this machine does not have it."""
        folder = self.folder()
        if not (folder / "artifact.json").exists():
            self._build_into(folder)
        return self.load(folder)

    def _build_into(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            if (folder / "artifact.json").exists():  # somebody else built it while we waited
                return
            for left in folder.parent.glob(f"{folder.name}.partial-*"):  # by builds that were killed: whoever builds holds the lock
                shutil.rmtree(left, ignore_errors=True)
            partial = folder.with_suffix(f".partial-{os.getpid()}")
            partial.mkdir()
            began = time.perf_counter()
            say(f"building {type(self).__name__} -> {folder}")
            try:
                self.build(partial)
                (partial / "artifact.json").write_text(json.dumps(self.describe(), indent=1, default=_encode))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            say(f"built {type(self).__name__} in {time.perf_counter() - began:.1f} s")


def counted_fields(value: Any) -> dict[str, Any]:
    """Those fields of a dataclass that count in a fingerprint, by name."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.metadata.get("fingerprint", True)}


@functools.cache
def class_name(kind: type) -> str:
    """What a fingerprint calls a class: by its name in this library, whose classes raise `version`; elsewhere by its source text as well.

    Two experiment files may each define a `MyShop`, and either may be edited.
    """
    if kind.__module__.split(".")[0] == "jaxrec":
        return kind.__qualname__
    try:
        text = inspect.getsource(kind)
    except (OSError, TypeError):  # typed at a prompt
        text = ""
    return f"{kind.__module__}.{kind.__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _encode(value: Any) -> Any:
    if isinstance(value, Artifact):
        return value.fingerprint()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": class_name(type(value)), **counted_fields(value)}
    if isinstance(value, (Path, enum.Enum)):
        return str(value)
    raise TypeError(f"an artifact's field holds {value!r}, which has no stable text form; use numbers, strings, tuples or dataclasses")


SETTLED = 2.0
"""Seconds after a change until any file system's clock tells the next change from it."""


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal. A file is read once by a process, unless it changes."""
    at = Path(path).stat()
    if time.time() - at.st_ctime < SETTLED:
        return _digest(path)
    return _digest_of(Path(path).absolute(), at.st_dev, at.st_ino, at.st_size, at.st_ctime_ns)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=1024)
def _digest_of(path: Path, *state: int) -> str:
    """`_digest` of a file in this state: the time of its last change cannot be set by hand, unlike that of its last writing."""
    return _digest(path)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, busy: str = "") -> Iterator[None]:
    """Holds an exclusive advisory lock on `path`. Without `wait`, a taken lock raises `RuntimeError(busy)` at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise RuntimeError(busy or f"{path} is locked by another process") from None
        yield


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never half."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path, marker: str, what: str) -> Iterator[Path]:
    """Gives an empty folder that takes the place of `path` when the block ends, and disappears when the block raises.

    Args:
      path: the folder to write. It may be absent, empty, or an older `what`, told by its file `marker`.
      marker: name of a file that every `what` has.
      what: what is written, for the error.

    Raises:
      FileExistsError: `path` is something else; it stays untouched.
    """
    path = path.absolute()
    if path.exists() and not (path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))):
        raise FileExistsError(f"{path} exists and is not {what} (it has no {marker}), so it is left alone; choose another folder, or remove it")
    partial, old = (path.with_name(f".{path.name}.{state}-{os.getpid()}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
    finally:
        if old.exists() and not path.exists():  # the second rename failed
            os.replace(old, path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
