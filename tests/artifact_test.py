"""Artifacts: what tells two of them apart, and what a build that was killed leaves behind."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from jaxrec import artifact
from jaxrec.artifact import Artifact
from jaxrec.experiment import load

SHOP = """
from dataclasses import dataclass

import numpy as np

from jaxrec.data.interactions import Interactions
from jaxrec.data.sequences import Sequences
from jaxrec.data.source import Source
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec


@dataclass(frozen=True)
class MyShop(Source):
    def read(self):
        return Interactions(["u"], ["FIRST", "z"], np.array([0, 2]), np.array([1, 2], np.int32))


experiment = Experiment(SASRec(dim=8), Sequences(MyShop(), batch=8), steps=1)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def items(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return list(load(path).data.source.get().items)


def test_classes_of_one_name_in_two_files_are_two_artifacts_and_an_edited_one_is_another(tmp_path: Path):
    assert items(tmp_path / "a.py", SHOP.replace("FIRST", "apple"))[0] == "apple"
    assert items(tmp_path / "b.py", SHOP.replace("FIRST", "ball"))[0] == "ball"
    assert items(tmp_path / "a.py", SHOP.replace("FIRST", "axe_"))[0] == "axe_"
    assert items(tmp_path / "a.py", SHOP.replace("FIRST", "apple"))[0] == "apple"


@dataclasses.dataclass(frozen=True)
class Failing(Artifact):
    """Fails as often as its file says."""

    path: str = dataclasses.field(metadata={"fingerprint": False})

    def build(self, folder: Path) -> None:
        (folder / "large").write_text("half")
        if Path(self.path).exists():
            Path(self.path).unlink()
            raise RuntimeError("not yet")

    def load(self, folder: Path) -> str:
        return (folder / "large").read_text()


def test_what_a_killed_build_leaves_goes_with_the_next_one(tmp_path: Path, cache: Path):
    artifact = Failing(str(tmp_path / "fail"))
    left = artifact.folder().with_suffix(".partial-1")
    left.mkdir(parents=True)
    (left / "large").write_text("of a process that is no more")
    (tmp_path / "fail").touch()
    with pytest.raises(RuntimeError, match="not yet"):
        artifact.get()
    assert artifact.get() == "half"
    assert sorted(path.name for path in cache.iterdir()) == sorted([artifact.folder().name, artifact.folder().with_suffix(".lock").name])


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path, reads = tmp_path / "raw.csv", []
    digest = artifact._digest
    monkeypatch.setattr(artifact, "_digest", lambda path: reads.append(path) or digest(path))
    path.write_text("one")
    first = artifact.checksum(path)
    assert artifact.checksum(path) == first == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 2  # so soon after a change its time proves nothing
    path.write_text("two")
    assert artifact.checksum(path) == hashlib.sha256(b"two").hexdigest()
    monkeypatch.setattr(artifact, "SETTLED", -1.0)
    reads.clear()
    assert artifact.checksum(path) == artifact.checksum(path)
    assert len(reads) == 1
    path.write_text("three")
    assert artifact.checksum(path) == hashlib.sha256(b"three").hexdigest()
