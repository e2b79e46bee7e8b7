"""Vectors of a file of texts, for files larger than memory: read as a stream, written by chunks, and taken up again where they stopped.

write_vectors(open_encoder("Qwen/Qwen3-0.6B", plan="htp"), Path("texts.jsonl"), Path("vectors.npy"))
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import checksum, counted_fields, locked, say, write_atomically
from jaxrec.interop import safetensors_files
from jaxrec.nn.encoders import ENCODERS
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.stages.language_model_embeddings import LanguageModelEncoder
from jaxrec.stages.text_encoders import SAY_EVERY, BertEncoder, TextEncoder

KINDS = (".jsonl", ".txt")
BERT_OPTIONS = {"pooling", "length", "batch"}
OPTIONS = ("plan", "blocks", "start", "exit", "output_layer", "pooling", "prompt", "length", "batch", "dtype")
"""Of `open_encoder`, what the command line offers."""
CHUNK = 256
BEGUN = "made_of.json"
"""In the folder of chunks: what they are made of."""
_SCRATCH = re.compile(rf"lock|({re.escape(BEGUN)}|\d{{8}}\.npz)(\.partial-\d+)?|vectors\.npy")


def open_encoder(model: str, **options: Any) -> TextEncoder:
    """The encoder that a model's `config.json` asks for, with those options that are not None.

    Args:
      model: folder or hub id: an encoder (BERT, RoBERTa, ModernBERT, or that of a T5), as sentence-transformers publishes them, or a causal language model.
      options: fields of `BertEncoder`, or of `LanguageModelEncoder` and its `TokenPrepending`; blocks may be "sentence", or a number as text.

    Raises:
      ValueError: an option is not one of that kind of model, or blocks is neither.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if "blocks" in given:
        given["blocks"] = _block_size(given["blocks"])
    if safetensors_files.read_config(safetensors_files.locate(model)).get("model_type") in ENCODERS:
        if others := sorted(given.keys() - BERT_OPTIONS):
            raise ValueError(f"{model} is an encoder, which reads in both directions, and {', '.join(others)} is of causal language models; leave it out")
        return BertEncoder(model, **given)
    held = {field.name for field in dataclasses.fields(TokenPrepending)}
    prepending = TokenPrepending(**{name: value for name, value in given.items() if name in held})
    return LanguageModelEncoder(model, prepending, **{name: value for name, value in given.items() if name not in held})


def _block_size(blocks: int | str) -> int:
    if blocks == "sentence":
        return 0
    if not str(blocks).isdigit() or not int(blocks):
        raise ValueError(f"blocks={blocks!r} must be 'sentence', or a number of tokens such as 64")
    return int(blocks)


@dataclass(frozen=True)
class Written:
    """What `write_vectors` did.

    Attributes:
      path: of the vectors.
      texts, width: their shape.
      cut: texts that were longer than the encoder reads; None where it does not tell.
      empty: texts without anything to read, whose vectors are zeros or the model's own of no text.
    """

    path: Path
    texts: int
    width: int
    cut: int | None
    empty: int

    def text(self) -> str:
        """What there is to say at the end."""
        cut = "" if self.cut is None else f", {self.cut:,} of the texts cut"
        return f"wrote {self.texts:,} vectors of {self.width} to {self.path}{cut}" + (f", {self.empty:,} empty" if self.empty else "")


def write_vectors(encoder: TextEncoder, source: Path, output: Path, *, key: str = "text", chunk: int = CHUNK) -> Written:
    """Encodes the texts of a file into `output`, float32 [texts, D] in their order; a row of zeros stands for an empty text of a language model.

    Until all are there, chunks lie in a folder beside it, each of them written whole or not at all. The same call goes on where another was stopped, and
    gives the same bytes (another `batch` of the encoder may change the last bits); after the last it does nothing. Beside the vectors a `.json` says what
    they were made of. What stands at these places and was not written here stays as it is.

    Args:
      encoder: of the texts.
      source: `.jsonl`, an object with `key` or a string on each line, or `.txt`, a text on each line.
      output: a `.npy` file, or a folder, which gets a `vectors.npy`.
      key: of the text in an object.
      chunk: texts that are held at once.

    Raises:
      ValueError: what was begun there is of other arguments or another input, or was not written here; a line is no text; there is no text.
      FileNotFoundError: there is no such input.
      RuntimeError: another process writes there.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")
    if not source.is_file():
        raise FileNotFoundError(f"there is no file {source}; give the path of the texts, {' or '.join(KINDS)}")
    path = output if output.suffix == ".npy" else output / "vectors.npy"
    record, chunks = path.with_suffix(".json"), path.with_suffix(".chunks")
    made_of = _made_of(encoder, source, key, chunk)
    _refuse_others(path, record, chunks)
    if path.exists() and not chunks.exists():
        return _complete(path, record, made_of)
    with locked(chunks / "lock", wait=False, busy=f"{path} is being written by another process; wait until it ends"):
        if path.exists():  # all was done but to remove the chunks
            written = _complete(path, record, made_of)
        else:
            begun = chunks / BEGUN
            if begun.exists() and next(chunks.glob("*.npz"), None):
                _check_same(safetensors_files.read_json(begun), made_of, chunks)
            write_atomically(begun, json.dumps(made_of, indent=1))
            try:
                files = _write_chunks(encoder, source, key, chunk, chunks)
            except BaseException:
                if not next(chunks.glob("*.npz"), None):  # refused before the first: there is nothing to go on from
                    shutil.rmtree(chunks)
                raise
            written = _joined(files, chunks / "vectors.npy", path)
            stated = {name: value for name, value in dataclasses.asdict(written).items() if name != "path"}
            write_atomically(record, json.dumps({**stated, "made_of": made_of}, indent=1))
            os.replace(chunks / "vectors.npy", path)
        shutil.rmtree(chunks)
    return written


def read_texts(path: Path, key: str = "text") -> Iterator[str]:
    """The texts of a file one by one, without holding more than a line.

    Raises:
      ValueError: the file is of another kind, or a line is no text; names the line.
    """
    if path.suffix not in KINDS:
        raise ValueError(f"{path} is none of {', '.join(KINDS)}; write a text, or an object with the text under {key!r}, on each line")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode().removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
                value = line if path.suffix == ".txt" else json.loads(line)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: byte 0x{raw[error.start]:02x} is not UTF-8 text; save the file as UTF-8") from None
            except RecursionError:
                raise ValueError(f"{path}:{number}: lists or objects are nested too deeply to be read; remove what is nested, or the line") from None
            except ValueError as error:
                raise ValueError(f"{path}:{number}: not JSON ({error}); write one object or string on each line") from None
            text = value.get(key) if isinstance(value, dict) else value
            if not isinstance(text, str):
                keys = f"; its keys are {', '.join(value)}" if isinstance(value, dict) else ""
                raise ValueError(f"{path}:{number}: {key!r} must be a string, got {text!r}{keys}")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON may hold one half of a pair
                raise ValueError(f"{path}:{number}: {text[error.start]!r} is half a character (a lone surrogate); remove it") from None
            yield text


def _made_of(encoder: TextEncoder, source: Path, key: str, chunk: int) -> dict[str, Any]:
    """All that the bytes depend on, flat, as JSON keeps it."""
    fields: dict[str, Any] = {"encoder": type(encoder).__name__}
    for name, value in counted_fields(encoder).items():
        fields |= counted_fields(value) if dataclasses.is_dataclass(value) else {name: value}
    return fields | {"key": key, "chunk": chunk, "input": checksum(source)} | {f"model's {name}": value for name, value in encoder.inputs().items()}


def _refuse_others(path: Path, record: Path, chunks: Path) -> None:
    """Raises ValueError where vectors cannot lie, or somebody else's file would be overwritten, or removed with the chunks."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a file is to be written there; give {path}/vectors.npy, or another name")
    if file := next((place for place in path.parents if place.exists() and not place.is_dir()), None):
        raise ValueError(f"{file} is a file, and {path} would lie in a folder of that name; choose another output, like {file.with_suffix('.npy')}")
    if path.exists() and not record.exists():
        raise ValueError(f"{path} exists, and {record.name} beside it does not say of what it was made; choose another output, or remove it")
    fix = "so it is left alone; choose another output, or move it"
    if record.exists():
        try:
            ours = "made_of" in safetensors_files.read_json(record)
        except ValueError:
            ours = False
        if not ours:
            raise ValueError(f"{record} exists, and does not say of what vectors were made, {fix}")
    if not chunks.exists():
        return
    held = sorted(file.name for file in chunks.iterdir()) if chunks.is_dir() else [chunks.name]
    begun = path.exists() or any(name.startswith(BEGUN) for name in held)
    if others := [name for name in held if name != "lock" and not (begun and _SCRATCH.fullmatch(name))]:
        raise ValueError(f"{chunks} is where chunks would go, and {others[0]} there is none of them, {fix}")


def _complete(path: Path, record: Path, made_of: Mapping[str, Any]) -> Written:
    """What the record says of vectors that are there."""
    said = safetensors_files.read_json(record)
    _check_same(said.pop("made_of"), made_of, path)
    say(f"  {path} is complete")
    return Written(path, **said)


def _check_same(said: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    differ = [name for name in {**said, **now} if said.get(name) != now.get(name)]
    if differ:
        name = differ[0]
        if name == "input" or name.startswith("model's "):
            raise ValueError(f"{place} was made of another {name.replace(chr(39) + 's', chr(39) + 's file')}; choose another output, or remove it")
        raise ValueError(f"{place} was made with {name}={said.get(name)!r}, and now it is {now.get(name)!r}; repeat the first command, or remove {place}")


def _write_chunks(encoder: TextEncoder, source: Path, key: str, chunk: int, folder: Path) -> list[Path]:
    """The files of all chunks; those that are there already stay as they are."""
    texts, files = read_texts(source, key), []
    began = said = time.perf_counter()
    done = fresh = 0
    while some := list(itertools.islice(texts, chunk)):
        files.append(folder / f"{len(files):08}.npz")
        done += len(some)
        if files[-1].exists() and _whole(files[-1]):
            continue
        if done - len(some) and not fresh:
            say(f"  going on after {done - len(some):,} texts")
        vectors, cut = encoder.encode_and_count(some)
        held = io.BytesIO()
        np.savez(held, vectors=np.asarray(vectors, np.float32), cut=-1 if cut is None else cut, empty=sum(not text.strip() for text in some))
        write_atomically(files[-1], held.getvalue())
        fresh += len(some)
        if (now := time.perf_counter()) - said > SAY_EVERY:
            said = now
            say(f"  {done:,} texts, {fresh / (now - began):,.1f} a second")
    if not files:
        raise ValueError(f"{source} has no text; write one on each line")
    return files


def _whole(path: Path) -> bool:
    """Whether a chunk can be read; a damaged one is written again."""
    try:
        with np.load(path) as held:
            return {"vectors", "cut", "empty"} <= set(held)
    except (ValueError, EOFError, zipfile.BadZipFile):
        say(f"  {path} is damaged, and is written again")
        return False


def _joined(files: list[Path], partial: Path, path: Path) -> Written:
    """The chunks as one array in the file `partial`, a chunk at a time."""
    texts = width = cut = empty = 0
    for file in files:
        with np.load(file) as held:
            texts, width = texts + len(held["vectors"]), held["vectors"].shape[1]
            cut, empty = cut + int(held["cut"]), empty + int(held["empty"])
    vectors = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(texts, width))
    low = 0
    for file in files:
        with np.load(file) as held:
            some = held["vectors"]
        vectors[low : low + len(some)] = some
        low += len(some)
    vectors.flush()
    return Written(path, texts, width, cut if cut >= 0 else None, empty)
