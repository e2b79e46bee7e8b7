"""Text embeddings from a causal language model as it was published: no training, a plan of `jaxrec.nn.token_prepending` for each text.

encoder = LanguageModelEncoder("Qwen/Qwen3-0.6B", TokenPrepending("htp"))
vectors = encoder.encode(["A text.", "Another one."])
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.sentences import sentence_ends
from jaxrec.interop import safetensors_files
from jaxrec.interop.tokenizer_files import check_known, open_tokenizer
from jaxrec.limits import check
from jaxrec.nn import language_families, token_prepending
from jaxrec.nn.language_model import Decoder, LanguageModel
from jaxrec.nn.token_prepending import Row, TokenPrepending
from jaxrec.ops.padding import padded_length
from jaxrec.stages.text_encoders import TextEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HTP = TokenPrepending()
PLACE = "{text}"
"""Where the text goes in a prompt."""
LENGTH = 512
LAYOUT = 2  # of rows; raised when the same options come to give other rows, so that no vectors of both kinds are mixed
PROMPTS = {"echo": f"{PLACE}\n{PLACE}", "prompt_eol": f'This text: "{PLACE}" means in one word: "'}
"""What is read where no prompt is given; of the other plans, the text alone."""


@dataclass(frozen=True)
class LanguageModelEncoder(TextEncoder):
    """A model folder: `config.json`, weights in safetensors, `tokenizer.json`. It is read at the first call. Rows are at unit length; an empty text is zeros.

    A text's vector depends on the text alone: a batch always has `batch` rows, and is as wide as each of its texts asks for by itself.

    Attributes:
      model: folder or hub id. Its files' content counts in the fingerprint, not where they lie.
      prepending: the plan, and which layers it takes part in.
      prompt: with {text} in it, and twice for the plan "echo"; "" = the plan's own. A row that would begin with a placeholder begins with the model's
        `bos_token_id` instead.
      blocks: tokens of a block; 0 = a block is a sentence.
      length: most tokens of a row, prompt and placeholders included; longer texts are cut. 0 = `LENGTH`, or what the model reads if that is less.
      batch: texts at a time.
      dtype: of parameters and states.
    """

    model: str = field(metadata={"fingerprint": False})
    prepending: TokenPrepending = HTP
    prompt: str = ""
    blocks: int = 0
    length: int = 0
    batch: int = field(default=8, metadata={"fingerprint": False})
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        check(self, blocks=0, length=0, batch=1)
        if self._prompt.count(PLACE) != self.prepending.copies:
            raise ValueError(f"prompt={self.prompt!r} must hold {PLACE} {self.prepending.copies} times for plan={self.prepending.plan}")

    def inputs(self) -> dict[str, Any]:
        return safetensors_files.contents(self.model, "config.json", "tokenizer.json") | {"layout of rows": LAYOUT}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, D] float32."""
        return self.encode_and_count(texts)[0]

    def encode_and_count(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """The vectors, and how many texts were cut.

        Raises:
          ValueError: the model has not the layers that were asked for, `length` is more than it reads, or a text has a token that it does not know.
        """
        length, params = self._length, self._loaded.params
        rows = self._rows(texts, length)
        vectors = np.zeros((len(texts), self._loaded.model.dim), np.float32)
        widths = np.array([min(padded_length(len(row.ids)), length) for row in rows], np.int64)
        for width in np.unique(widths):
            same = np.flatnonzero(widths == width)
            for low in range(0, len(same), self.batch):
                some = same[low : low + self.batch]
                batch = token_prepending.batch(self.prepending, [rows[number] for number in some], width=int(width), size=self.batch)
                vectors[some] = np.asarray(_embed(params, self.prepending, batch))[: len(some)]
        return vectors, sum(row.cut for row in rows)

    @property
    def _prompt(self) -> str:
        return self.prompt or PROMPTS.get(self.prepending.plan, PLACE)

    @functools.cached_property
    def _length(self) -> int:
        model = self._loaded.model
        self.prepending.until(model.layers)
        if self.length > model.length:
            raise ValueError(f"length={self.length} is more than the {model.length} tokens that {self.model} reads; ask for length <= {model.length}")
        return self.length or min(LENGTH, model.length)

    @functools.cached_property
    def _loaded(self) -> _Loaded:
        folder = safetensors_files.locate(self.model)
        config = safetensors_files.read_config(folder)
        try:
            model = language_families.from_config(config)
            tokenizer = open_tokenizer(folder, vocabulary=model.vocabulary)
            # Each layer's arrays on their own: to stop before the last layer would else copy the weights of all others out of a stack.
            params = language_families.from_hf(model, safetensors_files.open_tensors(folder), dtype=jnp.dtype(self.dtype), stacked=False)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        begins = config.get("bos_token_id")
        return _Loaded(model, params, tokenizer, begins if isinstance(begins, int) else None)

    @functools.cached_property
    def _pieces(self) -> list[list[int]]:
        """The tokens of the prompt around the text; the special ones of a whole row are at its ends."""
        tokenizer = self._loaded.tokenizer
        pieces = [self._known(tokenizer.encode(piece, add_special_tokens=False).ids, "the prompt") for piece in self._prompt.split(PLACE)]
        whole = tokenizer.encode("a", add_special_tokens=True)
        self._known(whole.ids, "a row")
        plain = whole.special_tokens_mask.index(0) if 0 in whole.special_tokens_mask else len(whole.ids)
        begin = whole.ids[:plain] + pieces[0]
        if not begin and (self.prepending.front or self.prepending.own):
            begin = self._first()
        end = [token for token, special in zip(whole.ids[plain:], whole.special_tokens_mask[plain:], strict=True) if special]
        return [begin, *pieces[1:-1], pieces[-1] + end]

    def _first(self) -> list[int]:
        """What stands before placeholders where neither the prompt nor the tokenizer begins a row.

        Models put attention that is to go nowhere on the first token. Written over, it is no place for that any more, and all states suffer.
        """
        token = self._loaded.begins
        if token is None:
            raise ValueError(
                f"{self.model}: rows would begin with a placeholder, for its tokenizer begins them with nothing and its config.json has no "
                f"bos_token_id; give a prompt with something before {PLACE}, like 'Text: {PLACE}'"
            )
        return self._known([token], "bos_token_id in config.json")

    def _rows(self, texts: Sequence[str], length: int) -> list[Row]:
        rows = []
        for number, text in enumerate(texts):
            encoding = self._loaded.tokenizer.encode(text, add_special_tokens=False)
            ids, ends = self._known(encoding.ids, f"text {number}"), self._block_ends(text, encoding.offsets)
            rows.append(token_prepending.lay_out(self.prepending, self._pieces, ids, ends, length=length))
        return rows

    def _known(self, ids: list[int], what: str) -> list[int]:
        check_known(self._loaded.tokenizer, ids, what, vocabulary=self._loaded.model.vocabulary)
        return ids

    def _block_ends(self, text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
        """[n] the tokens up to the end of each block; a token is in the sentence that it begins in."""
        if self.blocks:
            return np.append(np.arange(self.blocks, len(offsets), self.blocks), len(offsets))[: len(offsets)]
        begins = np.maximum.accumulate(np.array([begin for begin, _ in offsets], np.int64))
        ends = np.searchsorted(begins, sentence_ends(text), side="left")
        ends[-1:] = len(offsets)
        return np.unique(ends[ends > 0])


@dataclass(frozen=True)
class _Loaded:
    """What a folder holds."""

    model: LanguageModel
    params: Decoder
    tokenizer: Tokenizer
    begins: int | None  # the token that begins a row, if the configuration names one


@functools.partial(jax.jit, static_argnums=1)
def _embed(params: Decoder, options: TokenPrepending, batch: token_prepending.Batch) -> jax.Array:
    exact = params.word.table.dtype == jnp.float32  # accelerators would round float32 products to tf32 or bfloat16
    with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
        return token_prepending.embed(params, options, batch)
