"""Text embeddings of items: computed from their texts by an encoder, or read from a file, as a column that any model can use."""

from __future__ import annotations

import copy
import functools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.artifact import checksum, say
from jaxrec.data.features import Column, RandomVectors
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source
from jaxrec.interop import safetensors_files
from jaxrec.nn import encoders
from jaxrec.nn.bert import BidirectionalEncoder, Pooling
from jaxrec.ops.padding import padded_length
from jaxrec.param import Tree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SAY_EVERY = 10.0  # seconds between two lines of progress


class TextEncoder:
    """Turns texts into vectors. Subclasses are small frozen dataclasses."""

    def inputs(self) -> dict[str, Any]:
        """What the vectors depend on besides the fields, as in `Artifact.inputs`."""
        return {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, E] float32, one vector per text."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def encode_and_count(self, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """The vectors, and how many texts were longer than is read and so were cut; None: this encoder does not tell."""
        return self.encode(texts), None


@dataclass(frozen=True)
class TfidfSvd(TextEncoder):
    """Latent semantic analysis (Deerwester et al. 1990, JASIS 41): words weighted by TF-IDF, projected on the leading singular vectors, at unit length.

    A word's weight is (1 + ln tf) * (1 + ln((1 + n) / (1 + df))). E = min(dim, texts, distinct words): a few texts span no more. A text
    without a kept word is the zero vector.

    Attributes:
      dim: most columns E.
      min_count: words that stand in fewer texts are left out.
      seed: of the randomised SVD.
    """

    dim: int = 128
    min_count: int = 1
    seed: int = 0

    def __post_init__(self):
        if self.dim < 1 or self.min_count < 1:
            raise ValueError(f"dim={self.dim} and min_count={self.min_count} must be at least 1")

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import, and only a build needs it
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        vectorizer = TfidfVectorizer(token_pattern=r"\w+", min_df=min(self.min_count, len(texts)), sublinear_tf=True, dtype=np.float32)  # pyright: ignore[reportArgumentType]
        try:
            weights = vectorizer.fit_transform(texts)  # [n, words], unit rows
        except ValueError:  # scikit-learn's answer to an empty vocabulary
            raise ValueError(f"no word stands in min_count={self.min_count} of the {len(texts)} texts; lower min_count, or embed a source with texts") from None
        width = min(self.dim, *weights.shape)
        if width < self.dim:
            say(f"  {weights.shape[0]:,} texts of {weights.shape[1]:,} words give {width} of dim={self.dim} columns")
        with threadpool_limits(1):  # more threads gain nothing on such thin matrices, and would change the last bits
            left, strength, _ = randomized_svd(weights, width, random_state=self.seed)
        return unit(left * strength)


@dataclass(frozen=True)
class BertEncoder(TextEncoder):
    """A pretrained BERT, RoBERTa, ModernBERT or T5 (sentence-transformers, BGE, E5, GTE ...) in Hugging Face's format, run in JAX in float32.

    It is read at the first call, and kept.

    Attributes:
      model: folder or hub id. Its files' content counts in the fingerprint, not where they lie.
      length: tokens that a text is cut to.
      pooling: "mean" of a text's tokens, or its "cls" token: as the model was trained.
      normalize: to unit length.
      prefix: put before every text, for models trained with one ("passage: " for E5).
      batch: texts at a time; no vector depends on it but for rounding.
    """

    model: str = field(metadata={"fingerprint": False})
    length: int = 256
    pooling: Pooling = "mean"
    normalize: bool = True
    prefix: str = ""
    batch: int = field(default=64, metadata={"fingerprint": False})

    def __post_init__(self):
        if self.length < 2 or self.batch < 1:
            raise ValueError(f"length={self.length} must be at least 2 (the first and last token are BERT's own), and batch={self.batch} at least 1")
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling={self.pooling!r} is not one of mean, cls")

    def inputs(self) -> dict[str, Any]:
        folder = safetensors_files.locate(self.model)
        files = [safetensors_files.existing(folder, name) for name in ("config.json", "tokenizer.json")]
        return {path.name: checksum(path) for path in [*files, *safetensors_files.weight_files(folder)]}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.encode_and_count(texts)[0]

    def encode_and_count(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        bert, params = self._loaded.bert, self._loaded.params
        tokens, cut = self._tokens(texts)
        vectors = np.empty((len(texts), bert.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda row: -len(tokens[row]))  # neighbours need equal padding; the largest batch shows at once if it fits
        began = said = time.perf_counter()
        for low in range(0, len(order), self.batch):
            rows = order[low : low + self.batch]
            ids = np.zeros((min(self.batch, len(texts)), min(padded_length(len(tokens[rows[0]])), bert.longest)), np.int32)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = tokens[row]
                mask[place, : len(tokens[row])] = 1
            vectors[rows] = np.asarray(_encode(bert, params, ids, mask, self.pooling))[: len(rows)]
            if (now := time.perf_counter()) - said > SAY_EVERY:
                said, done = now, low + len(rows)
                say(f"  {done:,} of {len(texts):,} texts, {done / (now - began):,.0f} a second")
        return (unit(vectors) if self.normalize else vectors), cut

    @functools.cached_property
    def _loaded(self) -> _Loaded:
        folder = safetensors_files.locate(self.model)
        _refuse_other_modules(folder)
        config, arrays = safetensors_files.read_config(folder), safetensors_files.read(folder)
        try:
            bert = encoders.from_config(config)
            params = jax.device_put(bert.from_hf(arrays))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        if self.length > bert.longest:
            raise ValueError(f"length={self.length} is more than the {bert.longest} positions of {self.model}; ask for length <= {bert.longest}")
        tokenizers = safetensors_files.hf_package("tokenizers")
        tokenizer = tokenizers.Tokenizer.from_file(str(safetensors_files.existing(folder, "tokenizer.json")))
        tokenizer.enable_truncation(self.length)
        tokenizer.no_padding()
        return _Loaded(folder, bert, params, tokenizer)

    def _tokens(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """The word pieces of each text, its first and last token included, and how many texts were cut."""
        folder, bert, tokenizer = self._loaded.folder, self._loaded.bert, self._loaded.tokenizer
        encodings = tokenizer.encode_batch([self.prefix + text for text in texts])
        tokens = [encoding.ids for encoding in encodings]
        if (largest := max(map(max, filter(None, tokens)), default=0)) >= bert.vocabulary:
            raise ValueError(f"{folder}: tokenizer.json gives id {largest}, and the model has {bert.vocabulary} word pieces; take both of one model")
        return tokens, sum(bool(encoding.overflowing) for encoding in encodings)


def _refuse_other_modules(folder: Path) -> None:
    """Raises ValueError where sentence-transformers would do more with the states than pool them: vectors without it would be others."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    kinds = re.findall(r'"type":\s*"([^"]*)"', path.read_text(encoding="utf8"))
    if others := [kind for kind in kinds if kind.rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(f"{path} asks for {others[0]} after pooling, which is not read here; choose a model without it")


@dataclass(frozen=True)
class _Loaded:
    """What a folder holds."""

    folder: Path
    bert: BidirectionalEncoder
    params: Tree
    tokenizer: Tokenizer


@functools.partial(jax.jit, static_argnums=(0, 4))
def _encode(bert: BidirectionalEncoder, params: Tree, ids: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # accelerators would round float32 products to tf32 or bfloat16
        return bert.encode(params, jnp.asarray(ids), jnp.asarray(mask), pooling)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows [n, E] as float32 at unit length; a row that is all but zero has no direction and becomes zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > 1e-6, rows / np.maximum(length, 1e-6), 0).astype(np.float32)


@dataclass(frozen=True)
class ItemVectors(Column):
    """A vector for each item: `get()` is [items + 1, E] float32, memory-mapped; row = item id, row 0 (padding) zeros.

    Attributes:
      source: whose items.
      name: of the column.
    """

    source: Source
    name: str = field(default="text", kw_only=True, metadata={"fingerprint": False})

    def vectors(self, interactions: Interactions) -> np.ndarray:
        """[N, E] float32, in the order of the items."""
        raise TypeError(f"{type(self).__name__} has no vectors")

    def info(self) -> dict[str, Any]:
        rows, width = self.get().shape
        return {"of": "item", "kind": "vector", "rows": rows, "width": width, "size": 0}

    def smoke(self, source: Source) -> Column:
        return RandomVectors(source, name=self.name)

    def build(self, folder: Path) -> None:
        vectors = self.vectors(self.source.get())
        np.save(folder / "vectors.npy", np.concatenate([np.zeros_like(vectors[:1]), vectors]))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "vectors.npy", mmap_mode="r")


@dataclass(frozen=True)
class TextEmbeddings(ItemVectors):
    """The items' texts (`item_texts`), encoded.

    Attributes:
      encoder: `TfidfSvd`, which needs no download, or `BertEncoder`.
      fields: the item fields that make an item's text, in order; () takes the title and then every other field that holds text.
    """

    encoder: TextEncoder = TfidfSvd()
    fields: tuple[str, ...] = ()

    def inputs(self) -> dict[str, Any]:
        return {"encoder": self.encoder.inputs()}

    def vectors(self, interactions: Interactions) -> np.ndarray:
        texts = item_texts(interactions, self.fields)
        silent = [row for row, text in enumerate(texts) if not text]
        if silent:
            first = ", ".join(interactions.items[row] for row in silent[:3])
            say(f"  {len(silent):,} of {len(texts):,} items have no text ({first} first); their ids are encoded in its place")
        encoder = copy.copy(self.encoder)  # what it loads goes with it; the column stays, and would keep the weights on the device
        return encoder.encode([text or item for text, item in zip(texts, interactions.items, strict=True)])


def item_texts(interactions: Interactions, fields: Sequence[str] = ()) -> list[str]:
    """[N] the text of each item, a line per field: title and free text as they are, others as `categories: Makeup, Nails`; "" where all are empty.

    Raises:
      ValueError: `fields` names one that the items do not have.
    """
    held = interactions.item_fields
    if unknown := [name for name in fields if name not in held]:
        raise ValueError(f"the items have no field {', '.join(unknown)}; they have {', '.join(held) or 'none'}")
    chosen = fields or sorted((name for name, values in held.items() if _is_text(values)), key=lambda name: name != "title")
    lines: list[list[str]] = [[] for _ in interactions.items]
    for name in chosen:
        label = "" if name in ("title", "text") else f"{name}: "
        for item, value in zip(lines, held[name], strict=True):
            parts = value if isinstance(value, (list, tuple)) else [value]
            if content := ", ".join(part for part in (" ".join(str(part).split()) for part in parts if part is not None) if part):
                item.append(label + content)
    return ["\n".join(item) for item in lines]


def _is_text(values: Sequence[Any]) -> bool:
    """Whether a field holds words: text, or lists of text, with a letter somewhere (codes written as digits say nothing to an encoder)."""
    parts = (part for value in values for part in (value if isinstance(value, (list, tuple)) else [value]))
    return any(isinstance(part, str) and any(map(str.isalpha, part)) for part in parts)


@dataclass(frozen=True)
class EmbeddingFile(ItemVectors):
    """Vectors that were made elsewhere, checked.

    Attributes:
      path: `.npy` [N, E] in the order of the source's items (or [N + 1, E] with a zero row 0), `.npz` with arrays `ids` [n] and `vectors`
        [n, E], or `.parquet` with columns `id` and `vector`. Ids are the source's outside ids; those it does not know are passed over.
      ids: a text file with one outside id per line, for a `.npy` in an order of its own.
    """

    path: str = field(metadata={"fingerprint": False})
    ids: str = field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {name: checksum(_existing(path)) for name, path in (("path", self.path), ("ids", self.ids)) if path}

    def vectors(self, interactions: Interactions) -> np.ndarray:
        items = interactions.items
        ids, rows = read_vectors(_existing(self.path), _existing(self.ids) if self.ids else None)
        if rows.ndim != 2 or not rows.shape[-1]:
            raise ValueError(f"{self.path}: vectors have shape {rows.shape}, expected [items, width]; save one row of numbers per item")
        if not np.issubdtype(rows.dtype, np.floating):
            raise ValueError(f"{self.path}: vectors are {rows.dtype}, expected float32 (or float16, float64); convert them before saving")
        if ids is None:
            rows = self._in_order(rows, len(items))
        else:
            rows = rows[self._positions(ids, len(rows), items)]
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is refused by name
            rows = np.asarray(rows, np.float32)
        self._refuse(np.flatnonzero(~np.isfinite(rows).all(axis=1)), items, "hold NaN or inf", "compute them again, in float32 if float16 overflowed")
        self._refuse(
            np.flatnonzero(~rows.any(axis=1)), items, "are all zero, which has no direction", "give these items a vector (of their title, or the mean of all)"
        )
        return rows

    def _in_order(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The rows of the items from a file without ids."""
        if len(rows) == count:
            return rows
        if len(rows) != count + 1:
            raise ValueError(
                f"{self.path}: {len(rows)} rows for {count} items; save one row per item in the order of the source's items, or name each row's item in ids="
            )
        if np.any(rows[0]):
            raise ValueError(f"{self.path}: {len(rows)} rows for {count} items, so row 0 is padding, but it is not zero; drop the row too many, or zero row 0")
        return rows[1:]

    def _positions(self, ids: list[str], count: int, items: list[str]) -> np.ndarray:
        """[N] the row of each item in a file with ids."""
        if len(ids) != count:
            raise ValueError(f"{self.ids or self.path}: {len(ids)} ids for {count} vectors; give one id per vector")
        position = {item: row for row, item in enumerate(ids)}
        if len(position) < len(ids):
            again = next(item for row, item in enumerate(ids) if position[item] != row)
            raise ValueError(f"{self.ids or self.path}: {len(ids) - len(position)} ids stand more than once, {again!r} first; keep one vector per item")
        missing = [item for item in items if item not in position]
        if missing:
            first = ", ".join(missing[:3])
            raise ValueError(
                f"{self.path}: {len(missing)} of {len(items)} items have no vector, {first} first (the file begins {', '.join(ids[:3])}); add them"
            )
        if len(ids) > len(items):
            say(f"  {len(ids) - len(items):,} of {len(ids):,} vectors are of items that the source does not have")
        return np.array([position[item] for item in items])

    def _refuse(self, rows: np.ndarray, items: list[str], what: str, fix: str) -> None:
        if len(rows):
            first = ", ".join(items[row] for row in rows[:3])
            raise ValueError(f"{self.path}: the vectors of {len(rows)} items {what}, {first} first; {fix}")


def read_vectors(path: Path, ids: Path | None) -> tuple[list[str] | None, np.ndarray]:
    """(the id of each row, or None; the rows) of a file of vectors, as `EmbeddingFile.path` and `.ids` describe them."""
    if ids is not None and path.suffix != ".npy":
        raise ValueError(f"ids={str(ids)!r} goes with a .npy; {path} names its items itself")
    try:
        if path.suffix == ".npy":
            return None if ids is None else ids.read_text(encoding="utf8").splitlines(), _open_array(path)
        if path.suffix == ".npz":
            with np.load(path) as file:
                if missing := {"ids", "vectors"} - set(file):
                    raise ValueError(
                        f"it has no array {', '.join(sorted(missing))}, only {', '.join(file) or 'none'}; save it by np.savez(path, ids=, vectors=)"
                    )
                return list(map(str, file["ids"].tolist())), file["vectors"]
        if path.suffix == ".parquet":
            return _read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path}: {path.suffix!r} is not one of .npy, .npz, .parquet; save the vectors as one of these")


def _open_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"it is no array of numbers ({error}); save it by np.save(path, vectors), vectors float32") from None


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow  # half a second to import, and only this needs it
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    if missing := {"id", "vector"} - set(table.column_names):
        raise ValueError(f"it has no column {', '.join(sorted(missing))}, only {', '.join(table.column_names)}; rename the columns to id and vector")
    ids, column = list(map(str, table["id"].to_pylist())), table["vector"].combine_chunks()
    kind = column.type
    if not (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind)):
        raise ValueError(f"its column vector holds {kind}, expected a list of floats per row")
    if column.null_count:
        raise ValueError(f"{column.null_count} of its {len(ids)} rows have no vector; give every row one, or leave the row out")
    lengths = np.full(len(ids), kind.list_size) if pyarrow.types.is_fixed_size_list(kind) else column.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) and (odd := np.flatnonzero(lengths != lengths[0])).size:
        raise ValueError(f"the vector of {ids[odd[0]]!r} has {lengths[odd[0]]} numbers, that of {ids[0]!r} has {lengths[0]}; give all vectors one width")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return ids, values.reshape(len(ids), -1) if len(ids) else values.reshape(0, 0)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {Path(path).absolute()}; check the path of the embeddings")
    return Path(path)
