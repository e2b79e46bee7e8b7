"""Semantic IDs as a generator takes them: the codes of every item, and the trie that keeps its search to IDs that exist."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.data.features import Column
from jaxrec.data.source import Source
from jaxrec.data.splits import LeaveOneOut, Split
from jaxrec.ops.trie import Trie
from jaxrec.param import flatten
from jaxrec.stages.semantic_ids import SidTable


@dataclass(frozen=True)
class SidTrie(Column):
    """The column `sid` of a catalogue.

    Attributes:
      sids: an artifact that gives a `SidTable`.
      priority: an artifact that gives [items + 1] numbers: of items that share an ID the one with the highest comes first; None: that of the lowest number.
      name: of the column.
    """

    sids: Artifact
    priority: Artifact | None = None
    name: str = field(default="sid", metadata={"fingerprint": False})

    def build(self, folder: Path) -> None:
        table = self.sids.get()
        trie = Trie.build(table.codes[1:], table.widths, None if self.priority is None else self.priority.get()[1:])
        arrays = {"codes": np.asarray(table.codes), **{f"trie.{name}": np.asarray(leaf) for name, leaf in flatten(trie).items()}}
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "sizes.json").write_text(json.dumps(dataclasses.asdict(trie.sizes)))

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}

    def info(self) -> dict[str, Any]:
        self.get()
        return {"of": "item", "kind": "sid", "draw": int(self.sids.get().dedup == "random"), **json.loads((self.folder() / "sizes.json").read_text())}

    def smoke(self, source: Source) -> SidTrie:
        return dataclasses.replace(self, sids=self.sids.smoke(source), priority=None)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ItemCounts(Artifact):
    """How often each item stands in the training events: `get()` is [items + 1]. As `SidTrie.priority` it guides the choice among items that share an ID
    (by engagement, semantic IDs at Snapchat, 2026, arXiv 2604.03949).

    Attributes:
      source: of the events.
      split: which of them are trained on.
    """

    source: Source
    split: Split = field(default_factory=LeaveOneOut)

    def build(self, folder: Path) -> None:
        interactions = self.source.get()
        place = np.arange(len(interactions.sequence)) - np.repeat(interactions.offsets[:-1], interactions.lengths())
        trained = place < np.repeat(self.split.cuts(interactions).train, interactions.lengths())
        np.save(folder / "counts.npy", np.bincount(interactions.sequence[trained], minlength=len(interactions.items) + 1))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "counts.npy")


@dataclass(frozen=True)
class RandomSids(Artifact):
    """IDs without meaning, codes drawn at random: what semantic ones have to beat.

    Attributes:
      source: whose items.
      widths: codes of each level.
      seed: of the draw.
    """

    source: Source
    widths: tuple[int, ...] = (256, 256, 256)
    seed: int = 0

    def build(self, folder: Path) -> None:
        items = len(self.source.get().items)
        codes = np.random.default_rng(self.seed).integers(0, self.widths, (items + 1, len(self.widths))).astype(np.int32)
        codes[0] = -1
        np.save(folder / "codes.npy", codes)

    def load(self, folder: Path) -> SidTable:
        return SidTable(np.load(folder / "codes.npy", mmap_mode="r"), self.widths)

    def smoke(self, source: Source) -> RandomSids:
        """The same over a small source."""
        return dataclasses.replace(self, source=source, widths=(4, 4, 4))
