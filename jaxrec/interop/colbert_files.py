"""ColBERT checkpoints as others publish them: in the layout of ColBERT itself (ColBERTv2, answerai-colbert-small), and in PyLate's.

    stanford   artifact.metadata  config.json  tokenizer.json  model.safetensors: bert.*, linear.weight [dim, hidden]
    pylate     modules.json  config_sentence_transformers.json  config.json  tokenizer.json  model.safetensors: the encoder alone
               1_Dense/config.json  1_Dense/model.safetensors: linear.weight [dim, hidden]

What is read is written back bit for bit, in either layout. A setting that would make the vectors others than those of `ColBERT` is refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxrec.artifact import replacing
from jaxrec.interop import safetensors_files
from jaxrec.interop.safetensors_files import WEIGHTS, existing, hf_package, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Layout = Literal["pylate", "stanford"]
MARKERS: dict[Layout, str] = {"pylate": "modules.json", "stanford": "artifact.metadata"}
"""The file that tells a layout."""
ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "modernbert": "ModernBertModel",
}
"""What others open, by the `model_type` of a `config.json`."""
PYLATE, DENSE, TOKENIZER, LINEAR = "config_sentence_transformers.json", "1_Dense", "tokenizer.json", "linear.weight"
SENTENCES = "sentence_bert_config.json"
IDENTITY = "torch.nn.modules.linear.Identity"
PUNCTUATION = tuple(string.punctuation)
SPECIAL = {"pad": ("[PAD]", "<pad>"), "unk": ("[UNK]", "<unk>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "mask": ("[MASK]", "<mask>")}
"""The special tokens, as BERT and ModernBERT call them and as RoBERTa does."""


EXPECTED = {int: "a whole number", str: "a text", tuple: "a list of texts"}


@dataclass(frozen=True)
class Settings:
    """How texts become word pieces, and which of these are compared.

    Attributes:
      query_length, document_length: word pieces, the special ones included.
      query_mark, document_mark: the word piece after [CLS].
      augment: queries are filled up with [MASK], which are not attended to.
      skipped: word pieces of documents that are left out, () or single marks of punctuation.
    """

    query_length: int = 32
    document_length: int = 180
    query_mark: str = "[unused0]"
    document_mark: str = "[unused1]"
    augment: bool = True
    skipped: tuple[str, ...] = PUNCTUATION

    def __post_init__(self):
        for name, kind in (("query_length", int), ("document_length", int), ("query_mark", str), ("document_mark", str), ("skipped", tuple)):
            value = getattr(self, name)
            if not isinstance(value, kind) or not all(isinstance(piece, str) for piece in (value if isinstance(value, tuple) else ())):
                raise ValueError(f"{name}={value!r} in the settings of the checkpoint; {EXPECTED[kind]} is expected")
        if self.query_length < 4 or self.document_length < 4:
            raise ValueError(f"query_length={self.query_length} and document_length={self.document_length} must be at least 4: three pieces are special ones")


@dataclass(frozen=True, eq=False)
class ColBERTCheckpoint:
    """A trained ColBERT in Hugging Face's tensors.

    Attributes:
      config: the encoder's `config.json`.
      bert: the tensors of the encoder (BERT, RoBERTa, ModernBERT) by their names within it; a pooling layer is kept, though nothing uses it.
      projection: [dim, hidden].
      tokenizer: the text of its `tokenizer.json`.
      settings: of its texts.

    Raises:
      ValueError: a projection of another width than the encoder, a mark that is no word piece, more word pieces than it has vectors; says which.
    """

    config: Mapping[str, Any]
    bert: Mapping[str, np.ndarray]
    projection: np.ndarray
    tokenizer: str
    settings: Settings

    def __post_init__(self):
        if self.projection.shape != (self.dim, hidden := self.config.get("hidden_size")):
            raise ValueError(f"tensor {LINEAR} has shape {self.projection.shape}, config.json asks for (dim, {hidden}); are config and weights of one model?")
        tokenizer = self.open_tokenizer()
        for kind, mark in (("query", self.settings.query_mark), ("document", self.settings.document_mark)):
            if tokenizer.token_to_id(mark) is None:
                raise ValueError(f"the tokenizer has no word piece {mark!r}, the mark of a {kind}; take the {TOKENIZER} that was published with the model")
        rows = self.config.get("vocab_size", 0)
        pieces = tokenizer.get_vocab_size()
        if not isinstance(rows, int) or pieces > rows:
            raise ValueError(f"the tokenizer has {pieces} word pieces and config.json says vocab_size={rows}; take the {TOKENIZER} of this very model")

    @property
    def dim(self) -> int:
        """Width of a token's vector."""
        return self.projection.shape[0] if self.projection.ndim == 2 else 0

    def open_tokenizer(self) -> Tokenizer:
        """The tokenizer, as published.

        Raises:
          ValueError: its text is damaged.
        """
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the package raises nothing more special
            raise ValueError(f"{TOKENIZER} is no tokenizer ({error}); take the one that was published with the model") from None

    def special(self) -> dict[str, str]:
        """What the tokenizer calls each of the `SPECIAL` tokens.

        Raises:
          ValueError: it lacks one; names it.
        """
        tokenizer, found = self.open_tokenizer(), {}
        for kind, names in SPECIAL.items():
            held = [name for name in names if tokenizer.token_to_id(name) is not None]
            if not held:
                raise ValueError(f"the tokenizer lacks {' or '.join(names)}; late interaction needs the special tokens of BERT or RoBERTa")
            found[kind] = held[0]
        return found


def layout_of(folder: Path) -> Layout:
    """Which layout a folder has; PyLate's where the files of both lie there, as PyLate itself reads it.

    Raises:
      FileNotFoundError: the folder has neither; lists what it holds.
    """
    for layout, marker in MARKERS.items():
        if (folder / marker).is_file():
            return layout
    held = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    raise FileNotFoundError(
        f"{folder} is no ColBERT checkpoint: it has neither {MARKERS['pylate']} (PyLate) nor {MARKERS['stanford']} (ColBERT); it holds "
        f"{', '.join(held[:8]) or 'nothing'}. A plain BERT has no projection to token vectors: start from it with PretrainedBert"
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """Every file that decides what `read` gives.

    Raises:
      FileNotFoundError: one is missing; names it.
    """
    if layout_of(folder) == "stanford":
        return [*(existing(folder, name) for name in (MARKERS["stanford"], "config.json", TOKENIZER)), *safetensors_files.weight_files(folder)]
    files = [existing(folder, name) for name in (MARKERS["pylate"], PYLATE)]
    for path in _modules(folder):
        files += [existing(path, "config.json"), *safetensors_files.weight_files(path)]
    return [*files, _pylate_tokenizer(folder)]


def read(folder: Path) -> ColBERTCheckpoint:
    """The checkpoint in a folder of either layout.

    Raises:
      FileNotFoundError: the folder has neither layout, or a file is missing; names it.
      ValueError: a file is damaged, configuration and tensors disagree, or a setting asks for what `ColBERT` does not do; names it.
    """
    try:
        return _read_pylate(folder) if layout_of(folder) == "pylate" else _read_stanford(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def write(folder: Path, checkpoint: ColBERTCheckpoint, layout: Layout = "pylate") -> None:
    """Writes a checkpoint, whole or not at all; one of the same layout that is there already is replaced.

    Raises:
      ValueError: the layout is unknown, or cannot hold the encoder or one of the settings.
      FileExistsError: `folder` exists and is something else.
    """
    if layout not in MARKERS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(MARKERS)}")
    if (kind := checkpoint.config.get("model_type", "")) not in ARCHITECTURES:
        raise ValueError(f"config.json says model_type={kind!r}; the encoders known are {', '.join(ARCHITECTURES)}")
    if layout == "stanford":
        _check_stanford(checkpoint)
    with replacing(folder, MARKERS[layout], f"a ColBERT checkpoint of layout {layout}") as partial:
        architecture = "HF_ColBERT" if layout == "stanford" else ARCHITECTURES[kind]
        _write_json(partial / "config.json", {**checkpoint.config, "architectures": [architecture]})
        _write_tokenizer(partial, checkpoint)
        if layout == "stanford":
            _save(partial, {**{f"bert.{name}": array for name, array in checkpoint.bert.items()}, LINEAR: checkpoint.projection})
            _write_json(partial / MARKERS["stanford"], _stanford_metadata(checkpoint))
        else:
            _save(partial, checkpoint.bert)
            (partial / DENSE).mkdir()
            _save(partial / DENSE, {LINEAR: checkpoint.projection})
            _write_pylate_settings(partial, checkpoint)


# --- ColBERT's own layout -----------------------------------------------------------------------------------------------------------


def _read_stanford(folder: Path) -> ColBERTCheckpoint:
    metadata, tensors = read_json(existing(folder, MARKERS["stanford"])), safetensors_files.read(folder)
    _refuse(
        MARKERS["stanford"],
        metadata,
        attend_to_mask_tokens=(False,),
        similarity=("cosine",),
        interaction=("colbert",),
        relu=(False,),
    )
    projection = _projection(tensors, WEIGHTS)
    if (dim := metadata.get("dim", len(projection))) != len(projection):
        raise ValueError(f"tensor {LINEAR} has shape {projection.shape}, {MARKERS['stanford']} asks for ({dim}, ...); are they of one model?")
    given = {
        "query_length": metadata.get("query_maxlen"),
        "document_length": metadata.get("doc_maxlen", 220),
        "query_mark": metadata.get("query_token_id"),
        "document_mark": metadata.get("doc_token_id"),
        "skipped": PUNCTUATION if metadata.get("mask_punctuation", True) else (),
    }
    bert = {name.removeprefix("bert."): array for name, array in tensors.items() if name != LINEAR and not name.startswith("cls.")}  # cls.: of pretraining
    return ColBERTCheckpoint(safetensors_files.read_config(folder), bert, projection, existing(folder, TOKENIZER).read_text("utf8"), _settings(given))


def _check_stanford(checkpoint: ColBERTCheckpoint) -> None:
    if (kind := checkpoint.config["model_type"]) != "bert":
        raise ValueError(f"the layout 'stanford' holds a BERT, and config.json says model_type={kind!r}, which needs layout='pylate'")
    settings = checkpoint.settings
    if not settings.augment or settings.skipped not in ((), PUNCTUATION):
        raise ValueError(
            f"the layout 'stanford' always augments queries and skips all punctuation or none; augment={settings.augment} with {len(settings.skipped)} skipped "
            "pieces needs layout='pylate'"
        )


def _stanford_metadata(checkpoint: ColBERTCheckpoint) -> dict[str, Any]:
    settings = checkpoint.settings
    return {
        "dim": checkpoint.dim,
        "query_maxlen": settings.query_length,
        "doc_maxlen": settings.document_length,
        "query_token_id": settings.query_mark,
        "doc_token_id": settings.document_mark,
        "query_token": "[Q]",
        "doc_token": "[D]",
        "mask_punctuation": bool(settings.skipped),
        "attend_to_mask_tokens": False,
        "interaction": "colbert",
        "similarity": "cosine",
        "model_name": "bert-base-uncased",  # ColBERT takes the class of the model from this, and the sizes from config.json
    }


# --- PyLate's layout ----------------------------------------------------------------------------------------------------------------


def _modules(folder: Path) -> tuple[Path, Path]:
    """The folders of the encoder and of the projection."""
    path = folder / MARKERS["pylate"]
    try:
        modules = [(module["type"], folder / module["path"]) for module in json.loads(path.read_text("utf8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path.name} is no list of modules with type and path ({error!r}); fetch it again") from None
    if [kind.rpartition(".")[2] for kind, _ in modules] != ["Transformer", "Dense"]:
        raise ValueError(
            f"{path.name} lists {', '.join(kind for kind, _ in modules) or 'nothing'}; a ColBERT is a Transformer and then one Dense without bias. "
            "A sentence encoder has no projection to token vectors: start from it with PretrainedBert"
        )
    return modules[0][1], modules[1][1]


def _pylate_tokenizer(folder: Path) -> Path:
    return existing(_modules(folder)[0], TOKENIZER)


def _read_pylate(folder: Path) -> ColBERTCheckpoint:
    encoder, dense = _modules(folder)
    given, shape = read_json(existing(folder, PYLATE)), safetensors_files.read_config(dense)
    _refuse(f"{dense.name}/config.json", shape, bias=(False,), use_residual=(False,), activation_function=(IDENTITY,))
    _refuse(PYLATE, given, attend_to_expansion_tokens=(False,), similarity_fn_name=("MaxSim", "maxsim", "cosine"), default_prompt_name=(None,))
    if (texts := encoder / SENTENCES).is_file():
        _refuse(SENTENCES, read_json(texts), do_lower_case=(False,))
    prompts = given.get("prompts") or {}
    if prompted := [name for name, text in prompts.items() if text] if isinstance(prompts, Mapping) else ["text"]:
        raise ValueError(f"{PYLATE} has prompts={prompts!r}, text put before every {prompted[0]}, which ColBERT does not do; choose another model")
    projection = _projection(safetensors_files.read(dense), f"{dense.name}/{WEIGHTS}")
    if (wanted := (shape.get("out_features"), shape.get("in_features"))) != projection.shape:
        raise ValueError(f"tensor {LINEAR} has shape {projection.shape}, {dense.name}/config.json asks for {wanted}; are they of one model?")
    words = given.get("skiplist_words")
    settings = {
        "query_length": given.get("query_length"),
        "document_length": given.get("document_length"),
        "query_mark": given.get("query_prefix") or "[Q] ",  # what PyLate itself takes where nothing is said
        "document_mark": given.get("document_prefix") or "[D] ",
        "augment": given.get("do_query_expansion"),
        "skipped": tuple(words) if isinstance(words, list) else words,
    }
    bert = safetensors_files.read(encoder)
    return ColBERTCheckpoint(safetensors_files.read_config(encoder), bert, projection, _pylate_tokenizer(folder).read_text("utf8"), _settings(settings))


def _write_pylate_settings(folder: Path, checkpoint: ColBERTCheckpoint) -> None:
    settings, (dim, hidden) = checkpoint.settings, checkpoint.projection.shape
    modules = [("", "sentence_transformers.models.Transformer"), (DENSE, "pylate.models.Dense.Dense")]
    listed = [{"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(modules)]
    _write_json(folder / MARKERS["pylate"], listed)
    _write_json(folder / SENTENCES, {"max_seq_length": settings.document_length - 1, "do_lower_case": False})  # the mark is put in later
    _write_json(
        folder / DENSE / "config.json",
        {"in_features": hidden, "out_features": dim, "bias": False, "activation_function": IDENTITY, "use_residual": False},
    )
    _write_json(
        folder / PYLATE,
        {
            "model_type": "ColBERT",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            "query_prefix": settings.query_mark,
            "document_prefix": settings.document_mark,
            "query_length": settings.query_length,
            "document_length": settings.document_length,
            "attend_to_expansion_tokens": False,
            "do_query_expansion": settings.augment,
            "skiplist_words": list(settings.skipped),
        },
    )


# --- both ---------------------------------------------------------------------------------------------------------------------------


def _settings(given: Mapping[str, Any]) -> Settings:
    """Settings, with their defaults where None is given."""
    return dataclasses.replace(Settings(), **{name: value for name, value in given.items() if value is not None})


def _refuse(file: str, given: Mapping[str, Any], **supported: tuple[Any, ...]) -> None:
    """Raises ValueError for the first entry with a value that is not among the supported ones; an entry that is absent has the first of these."""
    for name, values in supported.items():
        if (value := given.get(name)) is not None and value not in values:
            raise ValueError(f"{file} has {name}={value!r}, and ColBERT here does only {name}={values[0]!r}; choose another model")


def _projection(tensors: Mapping[str, np.ndarray], file: str) -> np.ndarray:
    """[dim, hidden]"""
    if LINEAR not in tensors:
        raise ValueError(f"{file} has no tensor {LINEAR}, the projection to token vectors; its tensors begin {', '.join(sorted(tensors)[:3]) or 'nowhere'}")
    if (projection := tensors[LINEAR]).ndim != 2:
        raise ValueError(f"tensor {LINEAR} of {file} has shape {projection.shape}, expected (dim, hidden)")
    return projection


def _save(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    hf_package("safetensors")
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    hf_package("safetensors.numpy").save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})  # without it others refuse the file


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf8")


def _write_tokenizer(folder: Path, checkpoint: ColBERTCheckpoint) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer, text, special = checkpoint.open_tokenizer(), checkpoint.tokenizer, checkpoint.special()
    if tokenizer.post_processor is None:  # others have [CLS] and [SEP] put around a text by it
        begin, end = special["cls"], special["sep"]
        tokenizer.post_processor = TemplateProcessing(f"{begin} $A {end}", special_tokens=[(name, tokenizer.token_to_id(name)) for name in (begin, end)])
        text = tokenizer.to_str(pretty=True)
    (folder / TOKENIZER).write_text(text, encoding="utf8")
    length = checkpoint.config.get("max_position_embeddings")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, **{f"{name}_token": token for name, token in special.items()}}
    if not checkpoint.config.get("type_vocab_size"):
        settings["model_input_names"] = ["input_ids", "attention_mask"]  # others would give it token types
    _write_json(folder / "tokenizer_config.json", settings)
