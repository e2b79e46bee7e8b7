"""Limits: the numbers that the fields of a configuration may hold, said before any work starts."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check(config: Any, **limits: float | tuple[float, float]) -> None:
    """Raises ValueError, which names them all, where fields are outside their limits: `dim=1` is at least 1, `dropout=(0, 1)` at least 0 and below 1.

    NaN, infinity and what is no number are outside all limits.
    """
    wrong = []
    for name, limit in limits.items():
        value = getattr(config, name)
        least, bound = limit if isinstance(limit, tuple) else (limit, math.inf)
        if not (isinstance(value, numbers.Real) and least <= float(value) < bound):
            wrong.append(f"{name}={value!r} must be at least {least}" + (f" and below {bound}" if bound < math.inf else ""))
    if wrong:
        raise ValueError(f"{type(config).__name__}: {'; '.join(wrong)}")
