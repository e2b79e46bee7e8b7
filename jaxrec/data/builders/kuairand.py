"""KuaiRand-1K: long histories of short videos (Gao et al. 2022, arXiv 2208.08696), in the 800-event sequences that AutoCDSR prepared (KDD 2025)."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import checksum
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source, locate

_FILE = "sequences.npz"
_PARTS = ("training", "evaluation", "testing")


@dataclasses.dataclass(frozen=True)
class KuaiRand(Source):
    """KuaiRand-1K: 5,101 sequences of 800 videos each, as AutoCDSR prepared them.

    Folder `kuairand_autocdsr`: `sequences.npz` with `<part>_items` (flat int32, -1 where the item is unknown) and `<part>_lengths` of the parts training,
    evaluation and testing. Unknown items and rare ones are left out, so a history is shorter than 800. Every sequence counts as a user, named by its
    part and place there; no times, no titles.

    Attributes:
      min_item: items with fewer events are left out.
      data_dir: the folder; empty: `$JAXREC_DATA_DIR/kuairand_autocdsr`.
    """

    min_item: int = 5
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {_FILE: checksum(self._path())}

    def read(self) -> Interactions:
        parts = _read(self._path())
        lengths = np.concatenate([lengths for _, lengths in parts.values()]).astype(np.int64)
        raw = np.concatenate([items for items, _ in parts.values()])
        user = np.repeat(np.arange(len(lengths)), lengths)
        known, item, count = np.unique(raw, return_inverse=True, return_counts=True)
        keep = (raw >= 0) & (count[item] >= self.min_item)
        if not keep.any():
            raise ValueError(f"{self._path()}: no item has min_item={self.min_item} events; lower it")
        rows, sequence = np.unique(item[keep], return_inverse=True)
        return Interactions(
            users=[f"{part} {number}" for part, (_, lengths) in parts.items() for number in range(len(lengths))],
            items=[str(raw_id) for raw_id in known[rows]],
            offsets=np.concatenate([[0], np.cumsum(np.bincount(user[keep], minlength=len(lengths)))]).astype(np.int64),
            sequence=(sequence + 1).astype(np.int32),
        )

    def _path(self) -> Path:
        hint = "It is made from data/ of github.com/snap-research/AutoCDSR: the features sequence_data and sequence_event_type of its records, flat."
        return locate(self.data_dir, (_FILE,), dataset="kuairand_autocdsr", hint=hint) / _FILE


def _read(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(items, lengths) of every part.

    Raises:
      ValueError: the file is damaged, lacks an array, or lengths and items disagree.
    """
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            arrays = {name: file[name] for part in _PARTS for name in (f"{part}_items", f"{part}_lengths")}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npz file ({error}); fetch it again") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}; it must hold <part>_items and <part>_lengths of {', '.join(_PARTS)}") from None
    for part in _PARTS:
        items, lengths = arrays[f"{part}_items"], arrays[f"{part}_lengths"]
        if lengths.sum() != len(items):
            raise ValueError(f"{path}: the {part} lengths add up to {lengths.sum():,}, but there are {len(items):,} items; fetch it again")
    return {part: (arrays[f"{part}_items"], arrays[f"{part}_lengths"]) for part in _PARTS}
