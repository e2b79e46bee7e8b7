"""Limits: the numbers that the fields of a configuration may hold, said before any work starts."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

Limit = float | tuple[float, float]
"""The least, or the least and a bound that is not reached."""
POSITIVE = math.ulp(0.0)
"""The limit of what must be above 0."""
SHARE = (0.0, math.nextafter(1.0, 2.0))
"""The limits of a share: 0 to 1, both of them included."""


def check(config: Any, **limits: Limit) -> None:
    """Raises ValueError, which names them all, where fields are outside their limits: `dim=1` is at least 1, `dropout=(0, 1)` at least 0 and below 1.

    NaN, infinity and what is no number are outside all limits, and so is what is no whole number in a field that is declared `int`.
    """
    whole = {field.name for field in dataclasses.fields(config) if field.type in (int, "int")}
    _refuse(config, {name: getattr(config, name) for name in limits}, whole, limits)


def check_options(owner: Any, options: Mapping[str, Any], **limits: Limit) -> None:
    """As `check`, of options that are no fields of their owner, and whole numbers all."""
    _refuse(owner, options, limits, limits)


def _refuse(owner: Any, values: Mapping[str, Any], whole: Collection[str], limits: Mapping[str, Limit]) -> None:
    wrong = []
    for name, limit in limits.items():
        value = values[name]
        least, bound = limit if isinstance(limit, tuple) else (limit, math.inf)
        counts = name not in whole or (isinstance(value, numbers.Integral) and not isinstance(value, bool))
        if not (counts and isinstance(value, numbers.Real) and least <= float(value) < bound):
            known = {SHARE: "from 0 to 1", (POSITIVE, math.inf): "above 0"}
            usual = f"{'' if counts else 'a whole number of '}at least {least}" + (f" and below {bound}" if bound < math.inf else "")
            wrong.append(f"{name}={value!r} must be {known.get((least, bound), usual)}")
    if wrong:
        raise ValueError(f"{type(owner).__name__}: {'; '.join(wrong)}")
