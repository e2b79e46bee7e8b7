"""Limits: each number out of range is named, with what it should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from jaxrec.limits import POSITIVE, SHARE, check, check_options


@dataclass
class Config:
    dim: int = 1
    rate: float = 0.0


def test_what_is_inside_passes():
    check(Config(), dim=1, rate=(0, 1))
    check(Config(dim=10**9, rate=0.999), dim=1, rate=(0, 1))
    check(Config(dim=np.int32(3), rate=1e-300), dim=1, rate=POSITIVE)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan, math.inf, "a", None])
def test_all_that_is_outside_is_named(rate):
    with pytest.raises(ValueError, match=rf"^Config: dim=0 must be at least 1; rate={rate!r} must be at least 0 and below 1$"):
        check(Config(dim=0, rate=rate), dim=1, rate=(0, 1))


@pytest.mark.parametrize("dim", [1.5, 2.0, True, "a", None])
def test_a_field_of_whole_numbers_holds_no_other(dim):
    with pytest.raises(ValueError, match=rf"^Config: dim={dim!r} must be a whole number of at least 1$"):
        check(Config(dim=dim), dim=1)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan])
def test_what_must_be_above_0(rate):
    with pytest.raises(ValueError, match=rf"^Config: rate={rate!r} must be above 0$"):
        check(Config(rate=rate), rate=POSITIVE)


def test_options_need_not_be_fields():
    check_options(Config(), {"probes": np.int64(3), "kind": "x"}, probes=1)
    with pytest.raises(ValueError, match="^Config: probes='x' must be a whole number of at least 1$"):
        check_options(Config(), {"probes": "x"}, probes=1)


def test_a_share_has_both_its_ends():
    for rate in (0, 0.5, 1.0):
        check(Config(rate=rate), rate=SHARE)
    for rate in (-1e-9, 1 + 1e-9, math.nan):
        with pytest.raises(ValueError, match=rf"^Config: rate={rate!r} must be from 0 to 1$"):
            check(Config(rate=rate), rate=SHARE)
