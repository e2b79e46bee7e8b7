"""A part of trained parameters starts another model; what is not of the part stays fresh."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.artifact import Artifact
from jaxrec.param import fingerprint
from jaxrec.train.checkpoint import save_params, start_from
from jaxrec.train.part import Part, check_bases

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


@dataclass(frozen=True)
class Adapted(Artifact):
    """A base and its adapters, or one of them."""

    base: float | None = 1.0
    adapters: bool = True

    def get(self):
        base = {} if self.base is None else {"base.map.kernel": np.full((3, 3), self.base, np.float32)}
        return base | ({"adapters.map.a": np.ones((1, 3, 2), np.float32)} if self.adapters else {})


PARAMS = {"base": {"map": {"kernel": jnp.zeros((3, 3))}}, "adapters": {"map": {"a": jnp.zeros((1, 3, 2))}}}
SAME, OTHER = (Adapted(base, adapters=False) for base in (1.0, 2.0))


@pytest.mark.parametrize("prefix", ["", "member."])
def test_adapters_start_beside_the_base_that_they_were_trained_on(prefix):
    params = {"member": PARAMS} if prefix else PARAMS
    whole, base, adapters = prefix.removesuffix("."), f"{prefix}base", f"{prefix}adapters"
    for sources in (
        {whole: Adapted()},
        {adapters: Part(Adapted(), "adapters"), base: Part(Adapted(), "base")},
        {base: Part(SAME, "base"), adapters: Part(Adapted(), "adapters")},
        {base: Part(OTHER, "base"), adapters: Part(Adapted(base=None), "adapters")},  # adapters that say nothing of a base
        {base: Part(Adapted(), "base")},
    ):
        check_bases(start_from(params, sources), sources, dict)
    said, random, other = (fingerprint({"map.kernel": np.full((3, 3), value, np.float32)}) for value in (1.0, 0.0, 2.0))
    for sources, found in (
        ({adapters: Part(Adapted(), "adapters")}, random),
        ({base: Part(OTHER, "base"), adapters: Part(Adapted(), "adapters")}, other),
        ({whole: Adapted(), base: Part(OTHER, "base")}, other),
    ):
        message = rf"adapters that start {adapters} were trained on the base {said}, and {base} is {found}; start .* init_from=\{{'{base}': Part\(run, 'base'\)"
        with pytest.raises(ValueError, match=message):
            check_bases(start_from(params, sources), sources, dict)
