"""A part of trained parameters starts another model; what is not of the part stays fresh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from jaxrec.artifact import Artifact
from jaxrec.train.checkpoint import save_params
from jaxrec.train.part import Part

LEAVES = {"base.word.table": np.ones((3, 2), np.float32), "base.norm.scale": np.full(2, 2.0, np.float32), "basement.x": np.zeros(1), "head.bias": np.zeros(2)}


@dataclass(frozen=True)
class Planted(Artifact):
    """Parameters that are made up."""

    def get(self):
        return LEAVES


def test_names_are_those_within_the_part(tmp_path):
    save_params(tmp_path / "run" / "best", LEAVES, 3)
    for whole in (Planted(), str(tmp_path / "run")):
        found = Part(whole, "base").get()
        assert set(found) == {"word.table", "norm.scale"}
        np.testing.assert_array_equal(found["norm.scale"], LEAVES["base.norm.scale"])
        assert set(Part(whole, "base.word").get()) == {"table"}


def test_what_a_workdir_holds_counts(tmp_path):
    part = Part(str(tmp_path / "run"), "base")
    save_params(tmp_path / "run" / "best", LEAVES, 3)
    (tmp_path / "run" / "experiment.json").write_text("{}")
    before = part.fingerprint()
    assert part.fingerprint() == before
    save_params(tmp_path / "run" / "best", LEAVES, 4)
    after = part.fingerprint()
    (tmp_path / "run" / "experiment.json").write_text('{"seed": 1}')
    assert len({before, after, part.fingerprint()}) == 3


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no parameter lies below 'encoder'; the parts are base, basement, head"):
        Part(Planted(), "encoder").get()
