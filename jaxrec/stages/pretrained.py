"""Pretrained parts: the weights and the tokenizer of a Hugging Face model, as artifacts that start a method and cut its texts.

ColBERT(encoder=...), init_from={"bert": PretrainedBert("sentence-transformers/all-MiniLM-L6-v2")}
Hydra(encoder=hyper_parameters("Qwen/Qwen3-0.6B"), ...), init_from={"base": PretrainedLanguageModel("Qwen/Qwen3-0.6B")}
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.tokenizers import Frame, Tokenizer, bert_frame, open_tokenizer
from jaxrec.interop import safetensors_files
from jaxrec.nn import encoders, language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.param import Tree, flatten

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer


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
        try:
            bert_frame(open_tokenizer(self._file()))
        except ValueError as error:
            raise ValueError(f"{self._file()}: {error}; of a language model take LanguageModelTokenizer") from None
        shutil.copyfile(self._file(), folder / "tokenizer.json")

    def _file(self) -> Path:
        return safetensors_files.existing(safetensors_files.locate(self.model), "tokenizer.json")


@dataclass(frozen=True)
class LanguageModelTokenizer(Tokenizer):
    """The tokenizer of a causal language model. A row is what the model has before every text (its begin of a sequence, if any), a prompt, the text, and a
    token that ends it, at which the whole text has been read.

    Attributes:
      model: folder or hub id. The files' content counts in the fingerprint, not where they lie.
      query, document: prompts: words before every query and every document, like "query: ".
      end: the name of the token behind a text; "": the end of a sequence, by `tokenizer_config.json`.
      pad: the name of the token that fills up rows; "": that for padding, by `tokenizer_config.json`. It is not `end`.
    """

    model: str = field(metadata={"fingerprint": False})
    query: str = ""
    document: str = ""
    end: str = ""
    pad: str = ""

    def inputs(self) -> dict[str, Any]:
        folder = safetensors_files.locate(self.model)
        files = [safetensors_files.existing(folder, "tokenizer.json"), folder / "tokenizer_config.json"]
        return {path.name: checksum(path) for path in files if path.is_file()}

    def build(self, folder: Path) -> None:
        source = safetensors_files.locate(self.model)
        path = safetensors_files.existing(source, "tokenizer.json")
        settings = source / "tokenizer_config.json"
        named = safetensors_files.read_json(settings) if settings.is_file() else {}
        try:
            frame = self._frame(open_tokenizer(path), named)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        (folder / "frame.json").write_text(json.dumps(dataclasses.asdict(frame)))
        shutil.copyfile(path, folder / "tokenizer.json")

    def frame(self) -> Frame:
        self.get()
        return Frame.of(json.loads((self.folder() / "frame.json").read_text()))

    def _frame(self, tokenizer: HfTokenizer, named: Mapping[str, Any]) -> Frame:
        """The frame that the fields and a `tokenizer_config.json` ask for; ValueError where they do not say it all."""
        ids = {}
        for what, name, key in (("end", self.end, "eos_token"), ("pad", self.pad, "pad_token")):
            said = name or named.get(key) or ""
            token = said.get("content", "") if isinstance(said, Mapping) else str(said)
            if not token or (number := tokenizer.token_to_id(token)) is None:
                found = f"{token!r} is no token of it" if token else f"tokenizer_config.json names no {key}"
                raise ValueError(f"{found}; name a token that texts do not hold: LanguageModelTokenizer(..., {what}='<|...|>')")
            ids[what] = number
        if ids["end"] == ids["pad"]:
            raise ValueError(
                f"a text ends with the token that fills up rows, {tokenizer.id_to_token(ids['end'])!r}, and would lose its end; name another pad= or end="
            )
        whole = tokenizer.encode("a", add_special_tokens=True)
        plain = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else len(whole.ids)
        begin = tuple(whole.ids[:plain])
        return Frame(begin, begin, ids["end"], ids["pad"], self.query, self.document)


@dataclass(frozen=True)
class PretrainedWeights(Artifact):
    """The parameters of a published model by name, float32, each array memory-mapped from a file of its own.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return safetensors_files.contents(self.model, "config.json")

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
