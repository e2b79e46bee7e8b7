"""Text encoders: texts to vectors, by TF-IDF and SVD or by a pretrained BERT, without training."""

from __future__ import annotations

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

from jaxrec.artifact import say
from jaxrec.interop import safetensors_files
from jaxrec.limits import check
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
        check(self, dim=1, min_count=1)

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
        check(self, length=2, batch=1)  # the first and last token are BERT's own
        if self.pooling not in ("mean", "cls"):
            raise ValueError(f"pooling={self.pooling!r} is not one of mean, cls")

    def inputs(self) -> dict[str, Any]:
        return safetensors_files.contents(self.model, "config.json", "tokenizer.json")

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
