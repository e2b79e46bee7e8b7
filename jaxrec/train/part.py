"""A part of trained parameters: what a later stage starts from, where the rest of an earlier one is dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.param import Tree, fingerprint, flatten
from jaxrec.train.checkpoint import read_params, run_content


def read(whole: Artifact | str) -> Mapping[str, np.ndarray]:
    """The named arrays of an artifact, or of the run in a workdir."""
    return read_params(Path(whole))[0] if isinstance(whole, str) else whole.get()


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
        leaves = read(self.whole)
        if not (found := _below(f"{self.name}.", leaves)):
            raise ValueError(f"no parameter lies below {self.name!r}; the parts are {', '.join(sorted({name.split('.')[0] for name in leaves}))}")
        return found


def check_bases(params: Tree, sources: Mapping[str, Artifact | str], gather: Callable[[Tree], Tree]) -> None:
    """Sees to it that adapters which started from a source stand beside the base that they were trained on, as a run keeps both.

    Args:
      params: in which the sources have their places.
      sources: as `Experiment.init_from`.
      gather: brings parameters to the host.

    Raises:
      ValueError: the base beside them is another; names the fingerprints of both. A source of adapters alone says nothing of a base, and passes.
    """
    own = flatten(params)
    if all(_holder(name) is None for name in own):
        return
    for prefix, source in sources.items():
        inner, leaves = (f"{source.name}.", read(source.whole)) if isinstance(source, Part) else ("", read(source))
        places = {name: f"{prefix}.{name.removeprefix(inner)}".removeprefix(".") for name in leaves if name.startswith(inner)}
        for theirs, ours in {(_holder(name), _holder(place)) for name, place in places.items()}:
            if theirs is None or ours is None:
                continue
            said, found = (_below(f"{holder}base.", tree) for holder, tree in ((theirs, leaves), (ours, own)))
            if said and fingerprint(said) != fingerprint(gather(found)):
                raise ValueError(
                    f"the adapters that start {ours}adapters were trained on the base {fingerprint(said)}, and {ours}base is {fingerprint(gather(found))}; "
                    f"start the base from the same run, too: init_from={{'{ours}base': Part(run, '{theirs}base'), ...}}"
                )


def _holder(name: str) -> str | None:
    """What a parameter's name has before "adapters.", where the base is, too; None for a parameter that is no adapter."""
    at = f".{name}".find(".adapters.")
    return None if at < 0 else name[:at]


def _below(prefix: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}
