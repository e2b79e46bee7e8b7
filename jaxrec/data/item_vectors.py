"""Item vectors as training rows: what a quantiser learns from."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact
from jaxrec.data.batches import Batches
from jaxrec.data.data import Data
from jaxrec.data.features import RandomVectors
from jaxrec.data.source import Source


@dataclass(frozen=True)
class ItemVectorRows(Data):
    """One row per item: `vector` [B, E] float32 and `mask` [B].

    Attributes:
      source: gives the vectors [N + 1, E]; row 0 is padding.
      batch: rows of a batch.
      seed: of the shuffles.
    """

    source: Artifact
    batch: int = 1024
    seed: int = 0

    @property
    def capacity(self) -> int:
        return 1

    def batches(self, process: int = 0, processes: int = 1) -> Batches:
        vectors = self.source.get()[1:]
        return Batches({"vector": vectors, "mask": np.ones(len(vectors), np.float32)}, self.batch, self.seed, process, processes)

    def info(self) -> dict[str, Any]:
        rows, width = self.source.get().shape
        return {"items": rows - 1, "width": width}

    def smoke(self) -> ItemVectorRows:
        """The same form with a few made-up vectors."""
        random = np.random.default_rng(0)
        return dataclasses.replace(self, source=GivenVectors(random.normal(size=(65, 16)).astype(np.float32)), batch=16)


@dataclass(frozen=True)
class GivenVectors(Artifact):
    """Vectors that are already in memory, as an artifact; their content is their identity.

    Attributes:
      vectors: [N + 1, E] float32; row 0 is padding.
    """

    vectors: np.ndarray = field(repr=False, compare=False, metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(np.ascontiguousarray(self.vectors).data).hexdigest(), "shape": list(self.vectors.shape)}

    def get(self) -> np.ndarray:
        return self.vectors

    def smoke(self, source: Source) -> RandomVectors:
        """Vectors of a small source, of our width."""
        return RandomVectors(source, width=self.vectors.shape[1])


@dataclass(frozen=True)
class FusedVectors(Artifact):
    """Several embeddings of the items side by side, for a quantiser that fuses them: RQVAE(parts=(384, 64)).

    Attributes:
      embeddings: each gives [N + 1, E_m] of the same items.
    """

    embeddings: tuple[Artifact, ...]

    def build(self, folder: Path) -> None:
        arrays = [embeddings.get() for embeddings in self.embeddings]
        if len({len(array) for array in arrays}) != 1:
            raise ValueError(f"the embeddings have {', '.join(str(len(array) - 1) for array in arrays)} items; fuse embeddings of the same catalogue")
        np.save(folder / "vectors.npy", np.concatenate(arrays, axis=1, dtype=np.float32))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "vectors.npy", mmap_mode="r")

    def smoke(self, source: Source) -> FusedVectors:
        """The miniatures of its parts, side by side."""
        return FusedVectors(tuple(embeddings.smoke(source) for embeddings in self.embeddings))  # type: ignore[attr-defined]
