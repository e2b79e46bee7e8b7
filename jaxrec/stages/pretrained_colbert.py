"""Pretrained ColBERTs: checkpoints of ColBERT itself or of PyLate as our method, its parameters and its tokenizer; and ours as such checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.tokenizers import MARKS, Tokenizer, open_tokenizer
from jaxrec.interop import colbert_files, safetensors_files
from jaxrec.interop.colbert_files import PUNCTUATION, ColBERTCheckpoint, Settings
from jaxrec.methods.late_interaction.colbert import ColBERT, TokenEncoder
from jaxrec.nn.bert import BERT
from jaxrec.param import flatten

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer


@dataclass(frozen=True)
class PretrainedColBERT(Artifact):
    """The parameters of a ColBERT checkpoint, to start the whole model from: `init_from={"": PretrainedColBERT("answerdotai/answerai-colbert-small-v1")}`.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return _checksums(self.model)

    def build(self, folder: Path) -> None:
        source = safetensors_files.locate(self.model)
        checkpoint = colbert_files.read(source)
        try:
            leaves = parameters(checkpoint)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        np.savez(folder / "params.npz", allow_pickle=False, **leaves)

    def load(self, folder: Path) -> dict[str, np.ndarray]:
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            return dict(file)


@dataclass(frozen=True)
class ColBERTTokenizer(Tokenizer):
    """The tokenizer of a ColBERT checkpoint, in which the marks of queries and documents have the names that `tokenize` looks for.

    PyLate trains marks of its own, "[Q] " and "[D] ". The vectors of [unused0] and [unused1] in such a model were never trained.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return _checksums(self.model)

    def build(self, folder: Path) -> None:
        checkpoint = colbert_files.read(safetensors_files.locate(self.model))
        (folder / "tokenizer.json").write_text(with_our_marks(checkpoint), encoding="utf8")
        open_tokenizer(folder / "tokenizer.json")


def parameters(checkpoint: ColBERTCheckpoint) -> dict[str, np.ndarray]:
    """The parameters of `method(checkpoint)` by name, float32.

    Raises:
      ValueError: config and tensors disagree; names the tensor and both shapes.
    """
    bert = flatten(BERT.from_config(checkpoint.config).from_hf(checkpoint.bert))
    kernel = np.ascontiguousarray(checkpoint.projection.T, np.float32)  # [hidden, dim]
    return {**{f"bert.{name}": np.asarray(leaf) for name, leaf in bert.items()}, "projection.kernel": kernel}


def method(checkpoint: ColBERTCheckpoint) -> ColBERT:
    """The ColBERT whose parameters and word pieces are those of a checkpoint.

    Raises:
      ValueError: the tokenizer lacks a special token; names it.
    """
    tokenizer, settings = checkpoint.open_tokenizer(), checkpoint.settings
    pad, unknown, mask = (tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[MASK]"))
    if pad is None or unknown is None or mask is None:
        raise ValueError("the tokenizer lacks [PAD], [UNK] or [MASK]; late interaction needs the special tokens of BERT")
    found = (tokenizer.token_to_id(token) for token in settings.skipped)
    pieces = {unknown if piece is None else piece for piece in found}  # ColBERT and PyLate leave [UNK] out for a mark that is no piece
    return ColBERT(
        encoder=BERT.from_config(checkpoint.config),
        dim=checkpoint.dim,
        pad=pad,
        mask_token=mask,
        punctuation=tuple(sorted(pieces)),
        augment=settings.augment,
        skip_punctuation=bool(pieces),
    )


def checkpoint_of(method: ColBERT, params: TokenEncoder, tokenizer: HfTokenizer, *, query_length: int, document_length: int) -> ColBERTCheckpoint:
    """A trained ColBERT as a checkpoint that `colbert_files.write` writes.

    Args:
      method: bound to its data.
      params: of the method.
      tokenizer: of its texts.
      query_length, document_length: word pieces of its texts, as in `Passages`.

    """
    skipped = tuple(str(tokenizer.id_to_token(piece)) for piece in method.punctuation) if method.skip_punctuation else ()
    if {*skipped} == {*PUNCTUATION}:
        skipped = PUNCTUATION
    return ColBERTCheckpoint(
        config=method.encoder.to_config(),
        bert={name: np.asarray(array) for name, array in method.encoder.to_hf(params.bert).items()},
        projection=np.asarray(params.projection.kernel).T,
        tokenizer=tokenizer.to_str(pretty=True),
        settings=Settings(query_length, document_length, MARKS["query"], MARKS["document"], method.augment, skipped),
    )


def with_our_marks(checkpoint: ColBERTCheckpoint) -> str:
    """The text of a checkpoint's `tokenizer.json` with its marks renamed to `MARKS`; word pieces that have these names get the names set free.

    Raises:
      ValueError: queries and documents have the same mark.
    """
    theirs, ours = (checkpoint.settings.query_mark, checkpoint.settings.document_mark), tuple(MARKS.values())
    if theirs[0] == theirs[1]:
        raise ValueError(f"queries and documents have the same mark {theirs[0]!r}, and late interaction here tells them apart; choose another model")
    if theirs == ours:
        return checkpoint.tokenizer
    renamed = dict(zip((*theirs, *sorted({*ours} - {*theirs})), (*ours, *sorted({*theirs} - {*ours})), strict=True))
    text = json.loads(checkpoint.tokenizer)
    text["model"]["vocab"] = {renamed.get(piece, piece): number for piece, number in text["model"]["vocab"].items()}
    for added in text.get("added_tokens", []):
        added["content"] = renamed.get(added["content"], added["content"])
    return json.dumps(text, ensure_ascii=False)


def _checksums(model: str) -> dict[str, Any]:
    folder = safetensors_files.locate(model)
    return {str(path.relative_to(folder)): checksum(path) for path in colbert_files.checkpoint_files(folder)}
