"""Data: what an experiment trains on and is asked, the contract of the loop with every family of methods."""

from __future__ import annotations

from typing import Any, Self

from jaxrec.data.batches import Batches


class Data:
    """Training batches, and what a method may know of them. Subclasses are frozen dataclasses.

    Attributes:
      batch: rows of a training batch, over all processes.
    """

    batch: int

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        raise TypeError(f"{type(self).__name__} does not say how long a row is")

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        """The endless training batches of one process."""
        raise TypeError(f"{type(self).__name__} has no batches")

    def info(self) -> dict[str, Any]:
        """What a method may take from the data by the names of its fields; JSON-able."""
        raise TypeError(f"{type(self).__name__} knows nothing of itself")

    def column(self, name: str) -> Any:
        """The artifact that fills a table of the method, by the column's name."""
        raise ValueError(f"{type(self).__name__} has no column {name!r}, and none at all")

    def examples_per_row(self) -> float:
        """Mean number of examples in a row: what the log counts."""
        return 1.0

    def smoke(self) -> Self:
        """The same data in miniature, for tests of a few steps."""
        raise TypeError(f"{type(self).__name__} has no miniature")
