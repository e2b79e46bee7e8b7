"""Models as Hugging Face publishes them: a folder, or a hub id, with `config.json`, `tokenizer.json` and weights in safetensors."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any

import numpy as np

from jaxrec.artifact import checksum

WEIGHTS = "model.safetensors"
FILES = ["*.json", "1_Dense/*", "artifact.metadata", f"{WEIGHTS}*", "model-*.safetensors"]  # of a model that the hub holds, what is fetched
INDEX = "model.safetensors.index.json"
"""Where large weights are cut into several files: which tensor lies in which."""


def hf_package(name: str) -> ModuleType:
    """A package of the extra `hf`, imported when first needed.

    Raises:
      ModuleNotFoundError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"models in Hugging Face's format need the package {name}: pip install 'jaxrec[hf]'", name=name) from None


def locate(model: str) -> Path:
    """The folder of a model: `model` itself if it is one, or `$JAXREC_MODEL_DIR/<model>`, else what the hub holds under that id, downloaded once.

    Raises:
      FileNotFoundError: it is neither, or the hub cannot be reached and the model was not downloaded before.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if (held := Path(os.environ.get("JAXREC_MODEL_DIR") or "models") / model).is_dir():
        return held
    errors = hf_package("huggingface_hub.errors")
    try:
        return Path(hf_package("huggingface_hub").snapshot_download(model, allow_patterns=FILES))
    except errors.HFValidationError:
        raise FileNotFoundError(f"model={model!r} is no folder, and cannot be a hub id (owner/name); check the path {folder.absolute()}") from None
    except (errors.HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"model={model!r} is no folder ({folder.absolute()}), and the hub does not give it ({reason}); "
            f"give the folder that holds its config.json, tokenizer.json and {WEIGHTS}"
        ) from error


def existing(folder: Path, name: str) -> Path:
    """The path of a file of a model.

    Raises:
      FileNotFoundError: the folder does not hold it; lists what it holds.
    """
    path = folder / name
    if not path.is_file():
        held = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(f"{folder} has no {name}; it holds {', '.join(held[:8]) or 'nothing'}. Put the {name} that was published with the model there")
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`."""
    return read_json(existing(folder, "config.json"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights: one, or those that the index names.

    Raises:
      FileNotFoundError: a file is missing; names it.
    """
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        return [existing(folder, name) for name in sorted(set(_placement(folder).values()))]
    return [existing(folder, WEIGHTS)]


def contents(model: str, *names: str) -> dict[str, str]:
    """Checksums of the files of a folder or hub id, by name: those named, and its weights. A fingerprint of a model, wherever it lies."""
    folder = locate(model)
    return {path.name: checksum(path) for path in [*(existing(folder, name) for name in names), *weight_files(folder)]}


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model by name, as stored.

    Raises:
      ValueError: a file is damaged, or lacks a tensor that the index places there; names both.
    """
    return {name: tensor[...] for name, tensor in open_tensors(folder).items()}


class LazyTensor:
    """A tensor in a file: its shape is known, and of its values only the slices that are asked for are read."""

    def __init__(self, file: Any, name: str):
        self._slice = file.get_slice(name)
        self.shape: tuple[int, ...] = tuple(self._slice.get_shape())

    def __getitem__(self, index: tuple[slice, ...] | EllipsisType) -> np.ndarray:
        return self._slice[index]


def open_tensors(folder: Path) -> dict[str, LazyTensor]:
    """All tensors of a model by name, to be read by slices.

    Raises:
      FileNotFoundError: a file is missing; names it.
      ValueError: a file is damaged, or lacks a tensor that the index places there; names both.
    """
    safetensors = hf_package("safetensors")
    tensors: dict[str, LazyTensor] = {}
    for path in weight_files(folder):
        try:
            file = safetensors.safe_open(path, framework="np")
            held = {name: LazyTensor(file, name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}); fetch it again") from None
        if path.name != WEIGHTS:
            if lost := sorted(name for name, place in _placement(folder).items() if place == path.name and name not in held):
                raise ValueError(f"{path} lacks {len(lost)} tensors that {INDEX} places there, {lost[0]} first; fetch both again")
        tensors |= held
    return tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Iterable[tuple[str, np.ndarray]], *, limit: int = 5 * 10**9) -> None:
    """A model as others read it: `config.json` and weights, cut into files of at most `limit` bytes, of which one at a time is held in memory."""
    save = hf_package("safetensors.numpy").save_file
    folder.mkdir(parents=True, exist_ok=True)
    files: list[list[str]] = []
    held: dict[str, np.ndarray] = {}

    def close() -> None:
        save(held, folder / f"part-{len(files)}", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    total = 0
    for name, array in tensors:
        if held and sum(each.nbytes for each in held.values()) + array.nbytes > limit:
            close()
        held[name] = array
        total += array.nbytes
    close()
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)] if len(files) > 1 else [WEIGHTS]
    for number, name in enumerate(names):
        (folder / f"part-{number}").replace(folder / name)
    if len(files) > 1:
        places = {tensor: name for name, held_there in zip(names, files, strict=True) for tensor in held_there}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1), encoding="utf8")
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf8")


def _placement(folder: Path) -> dict[str, str]:
    """The file that holds each tensor, from the index."""
    index = read_json(folder / INDEX)
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files; fetch it again")
    return index["weight_map"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises ValueError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected an object {{...}}; fetch it again")
    return value
