"""Pretrained ColBERTs: checkpoints of ColBERT itself or of PyLate as our method, its parameters and its tokenizer; and ours as such checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.artifact import Artifact, checksum
from jaxrec.data.tokenizers import MARKS, Tokenizer, bert_frame, open_tokenizer
from jaxrec.interop import colbert_files, safetensors_files
from jaxrec.interop.colbert_files import PUNCTUATION, SPECIAL, ColBERTCheckpoint, Settings
from jaxrec.methods.late_interaction.colbert import ColBERT, TokenEncoder
from jaxrec.nn import encoders
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
    """The tokenizer of a ColBERT checkpoint, in which the marks of queries and documents and the special tokens have the names that `tokenize` looks for.

    PyLate trains marks of its own, "[Q] " and "[D] ". The vectors of [unused0] and [unused1] in such a model were never trained. RoBERTa's special tokens
    are those of BERT by other names.

    Attributes:
      model: folder or hub id; its files' content counts in the fingerprint.
    """

    model: str = field(metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return _checksums(self.model)

    def build(self, folder: Path) -> None:
        checkpoint = colbert_files.read(safetensors_files.locate(self.model))
        (folder / "tokenizer.json").write_text(with_our_names(checkpoint), encoding="utf8")
        bert_frame(open_tokenizer(folder / "tokenizer.json"))


def parameters(checkpoint: ColBERTCheckpoint) -> dict[str, np.ndarray]:
    """The parameters of `method(checkpoint)` by name, float32.

    Raises:
      ValueError: config and tensors disagree; names the tensor and both shapes.
    """
    bert = flatten(encoders.from_config(checkpoint.config).from_hf(checkpoint.bert))
    kernel = np.ascontiguousarray(checkpoint.projection.T, np.float32)  # [hidden, dim]
    return {**{f"bert.{name}": np.asarray(leaf) for name, leaf in bert.items()}, "projection.kernel": kernel}


def method(checkpoint: ColBERTCheckpoint) -> ColBERT:
    """The ColBERT whose parameters and word pieces are those of a checkpoint.

    Raises:
      ValueError: the tokenizer lacks a special token; names it.
    """
    vocabulary, special, settings = checkpoint.open_tokenizer().get_vocab(), checkpoint.special(), checkpoint.settings
    unknown = vocabulary[special["unk"]]
    pieces = {vocabulary.get(token, unknown) for token in settings.skipped}  # ColBERT and PyLate leave [UNK] out for a mark that is no piece
    return ColBERT(
        encoder=encoders.from_config(checkpoint.config),
        dim=checkpoint.dim,
        pad=vocabulary[special["pad"]],
        mask_token=vocabulary[special["mask"]],
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


def with_our_names(checkpoint: ColBERTCheckpoint) -> str:
    """The text of a checkpoint's `tokenizer.json` with its marks renamed to `MARKS`, and its special tokens to BERT's.

    Word pieces that have the names of marks get the names set free.

    Raises:
      ValueError: queries and documents have the same mark.
    """
    theirs, ours = (checkpoint.settings.query_mark, checkpoint.settings.document_mark), tuple(MARKS.values())
    if theirs[0] == theirs[1]:
        raise ValueError(f"queries and documents have the same mark {theirs[0]!r}, and late interaction here tells them apart; choose another model")
    renamed = dict(zip((*theirs, *sorted({*ours} - {*theirs})), (*ours, *sorted({*theirs} - {*ours})), strict=True))
    renamed |= {name: SPECIAL[kind][0] for kind, name in checkpoint.special().items()}
    if all(name == new for name, new in renamed.items()):
        return checkpoint.tokenizer
    text = json.loads(checkpoint.tokenizer)
    model = text["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(piece, piece): number for piece, number in model["vocab"].items()}
    else:  # of a unigram model, pieces and their scores
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    if unknown := model.get("unk_token"):
        model["unk_token"] = renamed.get(unknown, unknown)
    for added in text.get("added_tokens", []):
        added["content"] = renamed.get(added["content"], added["content"])
    return json.dumps(text, ensure_ascii=False)


def _checksums(model: str) -> dict[str, Any]:
    folder = safetensors_files.locate(model)
    return {str(path.relative_to(folder)): checksum(path) for path in colbert_files.checkpoint_files(folder)}
