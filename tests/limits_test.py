"""Limits: each number out of range is named, with what it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from jaxrec.limits import check


@dataclass
class Config:
    dim: int = 1
    rate: float = 0.0


def test_what_is_inside_passes():
    check(Config(), dim=1, rate=(0, 1))
    check(Config(dim=10**9, rate=0.999), dim=1, rate=(0, 1))


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan, math.inf, "a", None])
def test_all_that_is_outside_is_named(rate):
    with pytest.raises(ValueError, match=rf"^Config: dim=0 must be at least 1; rate={rate!r} must be at least 0 and below 1$"):
        check(Config(dim=0, rate=rate), dim=1, rate=(0, 1))
