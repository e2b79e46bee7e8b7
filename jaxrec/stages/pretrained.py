"""Pretrained parts: the weights and the tokenizer of a Hugging Face model, as artifacts that start a method and cut its texts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.tokenizers import Tokenizer, open_tokenizer
from jaxrec.interop import safetensors_files
from jaxrec.nn import encoders
from jaxrec.param import flatten


@dataclass(frozen=True)
class PretrainedTokenizer(Tokenizer):
    """The `tokenizer.json` of a model.

    Attributes:
      model: folder or hub id. The file's content counts in the fingerprint, not where it lies.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {"tokenizer.json": checksum(self._file())}

    def build(self, folder: Path) -> None:
        open_tokenizer(self._file())
        shutil.copyfile(self._file(), folder / "tokenizer.json")

    def _file(self) -> Path:
        return safetensors_files.existing(safetensors_files.locate(self.model), "tokenizer.json")


@dataclass(frozen=True)
class PretrainedBert(Artifact):
    """The weights of a BERT, RoBERTa, ModernBERT or T5 (its encoder), to start from.

    `Experiment(..., init_from={"bert": PretrainedBert("sentence-transformers/all-MiniLM-L6-v2")})`

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        folder = safetensors_files.locate(self.model)
        return {path.name: checksum(path) for path in [safetensors_files.existing(folder, "config.json"), *safetensors_files.weight_files(folder)]}

    def build(self, folder: Path) -> None:
        source = safetensors_files.locate(self.model)
        try:
            leaves = flatten(encoders.from_config(safetensors_files.read_config(source)).from_hf(safetensors_files.read(source)))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        np.savez(folder / "params.npz", allow_pickle=False, **{name: np.asarray(leaf) for name, leaf in leaves.items()})

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            return dict(file)
