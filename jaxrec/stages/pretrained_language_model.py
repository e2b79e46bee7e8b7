"""Pretrained language models: hyper-parameters and weights of a Hugging Face folder, to start a method from.

method=Hydra(encoder=hyper_parameters("Qwen/Qwen3-0.6B"), ...), init_from={"base": PretrainedLanguageModel("Qwen/Qwen3-0.6B")}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.param import flatten


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


@dataclass(frozen=True)
class PretrainedLanguageModel(Artifact):
    """The parameters of `hyper_parameters(model)` by name, float32, each array memory-mapped from a file of its own.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        folder = safetensors_files.locate(self.model)
        return {path.name: checksum(path) for path in [safetensors_files.existing(folder, "config.json"), *safetensors_files.weight_files(folder)]}

    def build(self, folder: Path) -> None:
        source = safetensors_files.locate(self.model)
        model = hyper_parameters(self.model)
        try:
            params = language_families.from_hf(model, safetensors_files.open_tensors(source))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        for name, leaf in flatten(params).items():
            np.save(folder / f"{name}.npy", np.asarray(leaf), allow_pickle=False)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
