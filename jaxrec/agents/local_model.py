"""LocalModel: a published language model on this machine, as a text generator and scorer.

model = LocalModel("Qwen/Qwen3-0.6B")
answer, = model.generate(["What is retrieval?"], stop=["\\n"], max_new=64)
likelihoods = model.logprob(["The capital of France is"], [" Paris"])
"""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.agents.protocols import Completion, Finish, TextGenerator, TextScorer
from jaxrec.interop import safetensors_files
from jaxrec.interop.tokenizer_files import check_known, open_tokenizer
from jaxrec.limits import check
from jaxrec.nn import language_families
from jaxrec.nn.encoder_decoder import EncoderDecoder
from jaxrec.nn.language_model import Decoder
from jaxrec.nn.t5 import T5
from jaxrec.ops.padding import padded_length
from jaxrec.ops.sampling import Writing, greedy, sampler, start, write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Precision = Literal["float32", "bfloat16"]
COLDEST = 1e-30  # of temperatures above 0: scores divided by a smaller one are no numbers in float32


@dataclass(frozen=True)
class LocalModel(TextGenerator, TextScorer):
    """A model folder, of a causal language model or a T5: `config.json`, weights in safetensors, `tokenizer.json`. It is read at the first call.

    A text's result depends on nothing but the text and the arguments: a batch always has `batch` rows, and is as wide as each of its prompts asks
    for by itself, so every company leads through the same program. A prompt's randomness comes from its seed and the prompt.

    Attributes:
      model: folder or hub id.
      batch: texts at once.
      dtype: of parameters and states; attention weights and logits are float32 always.
      top_k, top_p: what sampling is held to, see `jaxrec.ops.sampling.sample`.
      look: tokens that are written before the host looks for stop strings.
    """

    model: str
    batch: int = 8
    dtype: Precision = "float32"
    top_k: int = 0
    top_p: float = 1.0
    look: int = 16

    def __post_init__(self):
        check(self, batch=1, look=1, top_k=0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1, which is all")
        if self.dtype not in get_args(Precision):
            raise ValueError(f"dtype={self.dtype!r} is none of {', '.join(get_args(Precision))}")

    def generate(
        self, prompts: Sequence[str], *, stop: Sequence[str] = (), max_new: int = 256, temperature: float = 0.0, seed: int | Sequence[int] = 0
    ) -> list[Completion]:
        """As `TextGenerator.generate`.

        Raises:
          ValueError: a prompt and what is to follow are longer than the model, a prompt has no token, there are not as many seeds as prompts, or an
            argument is outside its range.
        """
        _check_lists(prompts=prompts, stop=stop)
        if not isinstance(max_new, int | np.integer) or max_new < 1:
            raise ValueError(f"max_new={max_new!r} must be a whole number of at least 1")
        if not isinstance(temperature, numbers.Real) or not (temperature == 0 or COLDEST <= temperature < math.inf):
            raise ValueError(f"temperature={temperature!r} must be 0, which is greedy, or at least {COLDEST}")
        if "" in stop:
            raise ValueError(f"stop={list(stop)} holds an empty string, which every text has at once; leave it out")
        seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed] * len(prompts)
        if wrong := [each for each in seeds if not (isinstance(each, int | np.integer) and -(2**31) <= each < 2**32)]:
            raise ValueError(f"seed={wrong[0]!r} is no whole number of 32 bits; of a longer one take the remainder by 2**32")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds and {len(prompts)} prompts: give one seed for each prompt, or one number for all")
        rows = [self._prompt(prompt, f"prompt {number}") for number, prompt in enumerate(prompts)]
        length = self._loaded.length
        for number, row in enumerate(rows):
            if len(row) + max_new > length:
                raise ValueError(
                    f"prompt {number} has {len(row)} tokens, and {max_new} more are longer than the {length} of the model; shorten it, or lower max_new"
                )
        found: dict[int, Completion] = {}
        for width, group in _batches({number: min(padded_length(len(row)), length - max_new) for number, row in enumerate(rows)}, self.batch):
            room = min(padded_length(max_new), length - width)
            keys = [jax.random.fold_in(jax.random.key(seeds[number]), zlib.crc32(prompts[number].encode())) for number in group]
            ids, segment = self._padded([rows[number] for number in group], width)
            done = jnp.asarray(np.arange(self.batch) >= len(group))
            writing = self._programs.read(self._loaded.params, ids, segment, done, room=room)
            before = [[] if self._loaded.apart else rows[number] for number in group]
            continuations = [_Continuation(self._loaded.tokenizer, row, tuple(stop), self._loaded.ends) for row in before]
            keys = jnp.stack(keys + keys[:1] * (self.batch - len(group)))
            for until in range(self.look, max_new + self.look, self.look) if stop else (max_new,):
                heat = jnp.float32(temperature) if temperature else None
                writing = self._programs.write(self._loaded.params, writing, keys, heat, min(until, max_new))
                written, lengths, ended = np.asarray(writing.ids), np.asarray(writing.length), np.asarray(writing.done).copy()
                for row, continuation in enumerate(continuations):
                    ended[row] |= continuation.look(written[row, : lengths[row]])
                if ended.all():
                    break
                writing = writing.replace(done=jnp.asarray(ended))  # type: ignore[attr-defined]
            log_probs = np.asarray(writing.log_probs)
            found |= {number: each.completion(log_probs[row]) for row, (number, each) in enumerate(zip(group, continuations, strict=True))}
        return [found[number] for number in range(len(rows))]

    def logprob(self, prefixes: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """As `TextScorer.logprob`; prefix and target are cut into tokens apart, and special tokens go before the prefix.

        Raises:
          ValueError: a pair is longer than the model, a prefix has no token, or there are not as many targets as prefixes.
        """
        _check_lists(prefixes=prefixes, targets=targets)
        if len(prefixes) != len(targets):
            raise ValueError(f"{len(prefixes)} prefixes and {len(targets)} targets: give one target for each prefix")
        befores = [self._prompt(prefix, f"prefix {number}") for number, prefix in enumerate(prefixes)]
        afters = [self._encode(target, f"target {number}", special=False) for number, target in enumerate(targets)]
        length, sizes = self._loaded.length, {}
        for number, (before, after) in enumerate(zip(befores, afters, strict=True)):
            if (tokens := len(before) + len(after)) > length:
                raise ValueError(f"prefix and target {number} have {tokens} tokens, longer than the {length} of the model; shorten the prefix")
            if after:
                behind = min(padded_length(len(after)), length - len(before))
                sizes[number] = min(padded_length(len(before)), length - behind), behind
        found = {number: np.zeros(0, np.float32) for number, after in enumerate(afters) if not after}
        for (width, behind), group in _batches(sizes, self.batch):
            ids, segment = self._padded([befores[number] for number in group], width)
            target, given = self._padded([afters[number] for number in group], behind, left=False)
            scores = np.asarray(self._programs.score(self._loaded.params, ids, segment, target, given))
            found |= {number: scores[row, : len(afters[number])] for row, number in enumerate(group)}
        return [found[number] for number in range(len(prefixes))]

    @functools.cached_property
    def _loaded(self) -> _Loaded:
        return _open(safetensors_files.locate(self.model), jnp.dtype(self.dtype))

    @functools.cached_property
    def _programs(self) -> _Programs:
        return _Programs(self._loaded.ends, self.top_k, self.top_p)

    def _prompt(self, text: str, what: str) -> list[int]:
        """The tokens of a text that something follows."""
        if not (ids := self._encode(text, what, special=True)):
            if self._loaded.begin is None:
                raise ValueError(f"{what} has no tokens, and the model no token to begin with; give it some text")
            ids = [self._loaded.begin]
        return ids

    def _encode(self, text: str, what: str, *, special: bool) -> list[int]:
        ids = self._loaded.tokenizer.encode(text, add_special_tokens=special).ids
        check_known(self._loaded.tokenizer, ids, what, vocabulary=self._loaded.params.vocabulary)
        return ids

    def _padded(self, rows: list[list[int]], width: int, *, left: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(ids, segment) [batch, width], padded on the left or right; rows that are missing hold one token."""
        ids, segment = np.zeros((2, self.batch, width), np.int32)
        segment[len(rows) :, -1 if left else 0] = 1
        for place, row in enumerate(rows):
            begin = width - len(row) if left else 0
            ids[place, begin : begin + len(row)], segment[place, begin : begin + len(row)] = row, 1
        return ids, segment


@dataclass(frozen=True)
class _Loaded:
    """What a folder holds: the model, of at most `length` tokens, and whether what it writes stands apart from what it read."""

    params: Decoder | EncoderDecoder
    length: int
    apart: bool
    tokenizer: Tokenizer
    ends: tuple[int, ...]
    begin: int | None


class _Programs:
    """The compiled programs of a model; jax keeps one of each for every shape."""

    def __init__(self, ends: tuple[int, ...], top_k: int, top_p: float):
        def read(params: Decoder | EncoderDecoder, ids: jax.Array, segment: jax.Array, done: jax.Array, *, room: int) -> Writing:
            slots = room + (1 if isinstance(params, EncoderDecoder) else ids.shape[1])
            return start(*params.prefill(ids, segment, slots=slots), room=room, done=done)

        def write_on(params: Decoder | EncoderDecoder, writing: Writing, keys: jax.Array, temperature: jax.Array | None, until: int) -> Writing:
            choose = greedy if temperature is None else sampler(keys, temperature, top_k=top_k, top_p=top_p)
            return write(params.step, choose, writing, until=until, ends=ends)

        def score(params: Decoder | EncoderDecoder, ids: jax.Array, segment: jax.Array, target: jax.Array, given: jax.Array) -> jax.Array:
            """[B, L] log-probabilities of targets, padded on the right, behind texts that are padded on the left."""
            if isinstance(params, EncoderDecoder):
                return params.log_likelihood(ids, segment, target, given=given)
            hidden = params(jnp.concatenate([ids, target], axis=1), jnp.concatenate([segment, given], axis=1))[:, ids.shape[1] - 1 : -1]
            return params.log_likelihood(hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)).reshape(target.shape)

        self.read = jax.jit(_in_own_precision(read), static_argnames="room")
        self.write = jax.jit(_in_own_precision(write_on), donate_argnums=1)
        self.score = jax.jit(_in_own_precision(score))


def _in_own_precision(program: Callable[..., Any]) -> Callable[..., Any]:
    """Accelerators would round float32 products to tf32 or bfloat16; bfloat16 products are what they are."""

    @functools.wraps(program)
    def run(params: Decoder | EncoderDecoder, *arguments: Any, **options: Any) -> Any:
        exact = params.word.table.dtype == jnp.float32
        with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
            return program(params, *arguments, **options)

    return run


class _Continuation:
    """One text as the host sees it: where a stop string ends it."""

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], stop: tuple[str, ...], ends: tuple[int, ...]):
        self._tokenizer, self._prompt, self._stop, self._ends = tokenizer, prompt, stop, ends
        self._before = self._decode([])
        self._ids: list[int] = []
        self._text = ""
        self._finish: Finish = "length"

    def look(self, written: np.ndarray) -> bool:
        """Takes in what was written so far; whether the text has ended."""
        for token in written[len(self._ids) :].tolist():
            if self._finish != "length":
                break
            self._ids.append(token)
            if token in self._ends:
                self._finish = "eos"
            elif self._stop:
                self._find()
        return self._finish != "length"

    def completion(self, log_probs: np.ndarray) -> Completion:
        if self._finish != "stop":
            self._text = self._written(self._ids[:-1] if self._finish == "eos" else self._ids)
        return Completion(self._text, np.asarray(self._ids, np.int32), log_probs[: len(self._ids)].astype(np.float32), self._finish)

    def _find(self) -> None:
        """Ends the text before the first stop string."""
        text = self._written(self._ids)
        if places := [place for stop in self._stop if (place := text.find(stop)) >= 0]:
            self._text, self._finish = text[: min(places)], "stop"

    def _written(self, ids: list[int]) -> str:
        """The text of tokens after the prompt: many decoders drop a space at the begin, which is none here."""
        whole = self._decode(ids)
        return whole[len(self._before) :] if whole.startswith(self._before) else self._tokenizer.decode(ids, skip_special_tokens=False)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(self._prompt + ids, skip_special_tokens=False)


def _check_lists(**lists: Sequence[str]) -> None:
    """Raises ValueError for a list that is a string itself, or holds what is none."""
    for name, texts in lists.items():
        if isinstance(texts, str):
            raise ValueError(f"{name} is the string {texts[:40]!r}, and a list of strings is needed; put it into a list")
        if not isinstance(texts, Collection):
            raise ValueError(f"{name} is {texts!r}, and a list of strings is needed; none at all are []")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"{name} holds {wrong[0]!r}, which is no string")


def _open(folder: Path, dtype: Any) -> _Loaded:
    """Reads a model folder.

    Raises:
      ValueError: its parts are not of one model, or one is damaged; names it.
    """
    config = safetensors_files.read_config(folder)
    try:
        params, length = _read(config, folder, dtype)
        tokenizer = open_tokenizer(folder, vocabulary=params.vocabulary)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    settings = config.get("text_config", {}) | config
    if (folder / "generation_config.json").is_file():
        settings |= safetensors_files.read_json(folder / "generation_config.json")
    ends = settings.get("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
    return _Loaded(params, length, isinstance(params, EncoderDecoder), tokenizer, ends, settings.get("bos_token_id"))


def _read(config: Mapping[str, Any], folder: Path, dtype: Any) -> tuple[Decoder | EncoderDecoder, int]:
    """The parameters, and the most tokens that they read and write; ValueError for what is no language model."""
    tensors = safetensors_files.open_tensors(folder)
    if config.get("model_type") != "t5":
        model = language_families.from_config(config)
        return language_families.from_hf(model, tensors, dtype=dtype, stacked=False), model.length
    if not (model := T5.from_config(config)).decoder_layers:
        raise ValueError("config.json says that this T5 is an encoder alone, and writing needs a decoder; take the whole model, or `jaxrec embed` this one")
    return model.from_hf(tensors, dtype=dtype, stacked=False), model.longest


def _batches(sizes: Mapping[int, Any], most: int) -> Iterator[tuple[Any, list[int]]]:
    """(size, at most `most` numbers of texts that have it)."""
    for size in sorted(set(sizes.values())):
        group = [number for number, own in sizes.items() if own == size]
        yield from ((size, group[begin : begin + most]) for begin in range(0, len(group), most))
