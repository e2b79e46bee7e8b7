"""Pretrained parts: the weights and the tokenizer of a Hugging Face model, as artifacts that start a method and cut its texts.

ColBERT(encoder=...), init_from={"bert": PretrainedBert("sentence-transformers/all-MiniLM-L6-v2")}
Hydra(encoder=hyper_parameters("Qwen/Qwen3-0.6B"), ...), init_from={"base": PretrainedLanguageModel("Qwen/Qwen3-0.6B")}
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.tokenizers import Tokenizer, open_tokenizer
from jaxrec.interop import safetensors_files
from jaxrec.nn import encoders, language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.param import Tree, flatten


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
class PretrainedWeights(Artifact):
    """The parameters of a published model by name, float32, each array memory-mapped from a file of its own.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        folder = safetensors_files.locate(self.model)
        return {path.name: checksum(path) for path in [safetensors_files.existing(folder, "config.json"), *safetensors_files.weight_files(folder)]}

    def read(self, folder: Path) -> Tree:
        """The parameters in a model's folder."""
        raise NotImplementedError

    def build(self, folder: Path) -> None:
        source = safetensors_files.locate(self.model)
        try:
            params = self.read(source)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        for name, leaf in flatten(params).items():
            np.save(folder / f"{name}.npy", np.asarray(leaf), allow_pickle=False)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


@dataclass(frozen=True)
class PretrainedBert(PretrainedWeights):
    """Those of a BERT, RoBERTa, ModernBERT or T5 (its encoder)."""

    version: ClassVar[int] = 2

    def read(self, folder: Path) -> Tree:
        return encoders.from_config(safetensors_files.read_config(folder)).from_hf(safetensors_files.read(folder))


@dataclass(frozen=True)
class PretrainedLanguageModel(PretrainedWeights):
    """Those of a causal language model, `hyper_parameters(model)`."""

    def read(self, folder: Path) -> Tree:
        return language_families.from_hf(language_families.from_config(safetensors_files.read_config(folder)), safetensors_files.open_tensors(folder))


def hyper_parameters(model: str) -> LanguageModel:
    """Those that the `config.json` of a folder or hub id asks for.

    Raises:
      FileNotFoundError: there is no such model here.
      ValueError: its family is not known, or asks for what is not here; names the file.
    """
    folder = safetensors_files.locate(model)
    try:
        return language_families.from_config(safetensors_files.read_config(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
