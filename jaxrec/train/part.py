"""A part of trained parameters: what a later stage starts from, where the rest of an earlier one is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.train.checkpoint import read_params, run_content


@dataclass(frozen=True)
class Part(Artifact):
    """The parameters below a name, called as they are within it: `init_from={"base": Part(Trained(experiment), "base")}` leaves adapters and heads behind.

    Attributes:
      whole: an artifact that loads named arrays (`Trained`, `Average`), or the workdir of a run, whose best parameters count.
      name: of the part, dotted.

    Raises:
      ValueError: when it is loaded: the whole has no such part; it lists the parts there are.
    """

    whole: Artifact | str
    name: str

    def inputs(self) -> dict[str, Any]:
        """What a workdir holds; an artifact's fingerprint is in the fields."""
        return run_content(Path(self.whole)) if isinstance(self.whole, str) else {}

    def get(self) -> dict[str, np.ndarray]:
        """Nothing is built: the whole keeps its arrays."""
        leaves = read_params(Path(self.whole))[0] if isinstance(self.whole, str) else self.whole.get()
        found = {name.removeprefix(f"{self.name}."): leaf for name, leaf in leaves.items() if name.startswith(f"{self.name}.")}
        if not found:
            raise ValueError(f"no parameter lies below {self.name!r}; the parts are {', '.join(sorted({name.split('.')[0] for name in leaves}))}")
        return found
