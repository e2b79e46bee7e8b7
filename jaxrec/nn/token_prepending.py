"""Token prepending: vectors of texts from a causal language model, without training.

In a causal model early tokens never see later ones. Placeholders before the text are given, at each of the early layers, what the layer before computed at the
end of a block; so what comes late is seen from the begin, one layer later:

    plan          the row                                        pooled
    vanilla       [prompt] S [suffix]                            S
    echo          [prompt] S [middle] S [suffix]                 the second S       Springer et al. 2024, arXiv 2402.15449
    prompt_eol    [prompt] S [suffix]                            the last token     Jiang et al. 2023, arXiv 2307.16645
    tp            [prompt] P S [suffix]                          S                  Fu et al. 2024, arXiv 2412.11556
    tp_sentence   [prompt] P1 S1 .. Pn Sn [suffix]               S1 .. Sn           the ablation of htp without front placeholders
    htp           [prompt] F1 .. Fn P1 S1 .. Pn Sn [suffix]      S1 .. Sn           Hierarchical Token Prepending, arXiv 2511.14868
    htp_omit      [prompt] F1 .. Fn S1 .. Sn [suffix]            S1 .. Sn

    for start <= l < exit, before layer l:  x[F_b] = x[P_b] = x[end of S_b], all read before any is written

What a row is, is decided on the host (`lay_out`, `batch`); `embed` is pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.limits import check
from jaxrec.nn.context import Context
from jaxrec.nn.language_model import Decoder
from jaxrec.nn.transformer import Between

Plan = Literal["vanilla", "echo", "prompt_eol", "tp", "tp_sentence", "htp", "htp_omit"]
PlanPooling = Literal["mean", "last"]

PLACEHOLDER = -1
"""In `ids`, where the mean of the word vectors goes in: no token of the vocabulary."""


@dataclass(frozen=True)
class TokenPrepending:
    """How a text becomes a vector.

    Attributes:
      plan: what the row holds, see above.
      start, exit: the layers start <= l < exit, counted from 0, are those before which placeholders are written.
      output_layer: whose states are pooled, as others count: 0 the word vectors, k what layer k gives, -1 the last layer and the norm, -2 the last but one.
      pooling: the mean of the text's tokens, or the row's last token, the suffix included; "prompt_eol" always takes the last.
      max_blocks: neighbouring blocks are joined until there are no more.
      last_block_end: the last block is summed up by the first token after the "text" ("suffix", as the authors' code does) where there is one, or by
        the last token of the text itself.
    """

    plan: Plan = "htp"
    start: int = 1
    exit: int = 7
    output_layer: int = -2
    pooling: PlanPooling = "mean"
    max_blocks: int = 64
    last_block_end: Literal["text", "suffix"] = "suffix"

    def __post_init__(self):
        for name, known in (("plan", get_args(Plan)), ("pooling", get_args(PlanPooling)), ("last_block_end", ("text", "suffix"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        check(self, start=0, exit=0, max_blocks=1)

    @property
    def front(self) -> bool:
        """Whether there is a placeholder for each block before all of them."""
        return self.plan in ("htp", "htp_omit")

    @property
    def own(self) -> bool:
        """Whether there is a placeholder before each block."""
        return self.plan in ("tp", "tp_sentence", "htp")

    @property
    def slots(self) -> int:
        """N, the blocks that a batch has room for."""
        return self.max_blocks if self.plan in ("tp_sentence", "htp", "htp_omit") else 1

    @property
    def copies(self) -> int:
        """How often the text stands in its row."""
        return 2 if self.plan == "echo" else 1

    @property
    def last(self) -> bool:
        """Whether the row's last token is pooled alone."""
        return self.pooling == "last" or self.plan == "prompt_eol"

    def until(self, depth: int) -> int | None:
        """After how many layers of a model's `depth` the states are taken; None: after all, and the norm.

        Raises:
          ValueError: the model has no such layer, or not the layers that placeholders are written before.
        """
        if (self.front or self.own) and self.exit > depth:
            raise ValueError(f"exit={self.exit} is more than the {depth} layers of the model; ask for exit <= {depth}")
        layers = self.output_layer + depth + 1 if self.output_layer < 0 else self.output_layer
        if not 0 <= layers <= depth:
            raise ValueError(f"output_layer={self.output_layer} is none of a model of {depth} layers; ask for {-depth - 1} to {depth}")
        return None if layers == depth else layers


class Row(NamedTuple):
    """A text as a model is to read it. Placeholders that a plan has not are missing.

    Attributes:
      ids: [L] int32, `PLACEHOLDER` among them.
      pooled: [L] bool.
      front, own: [n] int32 places of the placeholders, or [0].
      end: [n] int32 the place that sums up each block.
      cut: whether the text was too long.
    """

    ids: np.ndarray
    pooled: np.ndarray
    front: np.ndarray
    own: np.ndarray
    end: np.ndarray
    cut: bool


class Batch(NamedTuple):
    """Rows, padded on the right; T stands for a block or placeholder that is not there.

    Attributes:
      ids: [B, T] int32.
      segment: [B, T] int32, 1 where a token or a placeholder is.
      pooled: [B, T] bool.
      front, own, end: [B, N] int32 places in the row.
    """

    ids: np.ndarray
    segment: np.ndarray
    pooled: np.ndarray
    front: np.ndarray
    own: np.ndarray
    end: np.ndarray


def lay_out(options: TokenPrepending, pieces: Sequence[Sequence[int]], text: Sequence[int], ends: Sequence[int] | np.ndarray, *, length: int) -> Row:
    """The row of a text, cut so that it fits with all its placeholders.

    Args:
      options: whose plan.
      pieces: tokens of the prompt before, between and after the text: two pieces, and three if the text stands twice.
      text: [m] tokens.
      ends: [n] the tokens up to the end of each block, rising to m.
      length: most tokens of a row, placeholders included.

    Raises:
      ValueError: there are not as many pieces as the plan asks for, the blocks do not make up the text, or the prompt leaves no room.
    """
    if len(pieces) != options.copies + 1:
        raise ValueError(f"plan={options.plan} has the text {options.copies} times in a row, and the prompt {len(pieces) - 1}; write {{text}} that often")
    bounds = np.asarray(ends, np.int64)
    if bounds[-1:].sum() != len(text) or np.any(np.diff(bounds, prepend=0) <= 0):
        raise ValueError(f"blocks end after {bounds.tolist()} tokens, and the text has {len(text)}; ends must rise from above 0 to that")
    room = length - sum(map(len, pieces))
    kept = _fitting(options, bounds, room)
    if room < 0 or kept == 0 < len(text):
        around = f"the prompt's {length - room} tokens" + (" and the placeholders of a block" if options.slots and room >= 0 else "")
        raise ValueError(f"{around} leave no room for a text in length={length}; shorten the prompt, or raise length")
    bounds = _joined(np.unique(np.minimum(bounds, kept)) if kept else bounds[:0], options.slots)
    n, prefix = len(bounds), len(pieces[0])
    block = np.searchsorted(bounds, np.arange(kept), side="right")  # [kept]
    begin = prefix + n * options.front
    place = begin + np.arange(kept) + (block + 1) * options.own
    after = begin + kept + n * options.own
    ids = np.full(after + sum(map(len, pieces[1:])) + kept * (options.copies - 1), PLACEHOLDER, np.int32)
    ids[:prefix], ids[place] = pieces[0], text[:kept]
    end = place[bounds - 1]
    for number, piece in enumerate(pieces[1:], start=1):
        ids[after : after + len(piece)] = piece
        after += len(piece)
        if number < options.copies:
            place = after + np.arange(kept)
            ids[place] = text[:kept]
            after += kept
    if n and options.last_block_end == "suffix" and pieces[1]:
        end[-1] += 1
    pooled = np.zeros(len(ids), bool)
    if kept:
        pooled[[len(ids) - 1] if options.last else place] = True
    none = np.zeros(0, np.int32)
    front = prefix + np.arange(n) if options.front else none
    own = begin + np.append(0, bounds)[:n] + np.arange(n) if options.own else none
    return Row(ids, pooled, front.astype(np.int32), own.astype(np.int32), end.astype(np.int32), bool(kept < len(text)))


def batch(options: TokenPrepending, rows: Sequence[Row], *, width: int, size: int = 0) -> Batch:
    """Rows side by side: T = `width`, N = `options.slots`, and B = `size` (default: the rows), rows that are missing being empty.

    Raises:
      ValueError: a row is longer than the width, or there are more than `size`.
    """
    size = size or len(rows)
    if (longest := max((len(row.ids) for row in rows), default=0)) > width or len(rows) > size:
        raise ValueError(f"{len(rows)} rows of up to {longest} tokens do not fit into {size} of {width}; make the batch larger")
    ids, segment = np.zeros((2, size, width), np.int32)
    pooled = np.zeros((size, width), bool)
    places = np.full((3, size, options.slots), width, np.int32)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], segment[number, : len(row.ids)], pooled[number, : len(row.ids)] = row.ids, 1, row.pooled
        for held, own in zip(places, (row.front, row.own, row.end), strict=True):
            held[number, : len(own)] = own
    return Batch(ids, segment, pooled, *places)


def embed(decoder: Decoder, options: TokenPrepending, rows: Batch) -> jax.Array:
    """[B, D] float32 at unit length; the zero vector for a row of which nothing is pooled."""
    hidden = states(decoder, rows, inputs(decoder, rows.ids), start=options.start, exit=options.exit, until=options.until(decoder.depth))
    weights = jnp.asarray(rows.pooled, jnp.float32)
    mean = jnp.einsum("bt,btd->bd", weights, hidden.astype(jnp.float32)) / jnp.maximum(weights.sum(axis=1), 1)[:, None]
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def inputs(decoder: Decoder, ids: jax.Array | np.ndarray) -> jax.Array:
    """[B, T] -> [B, T, D], what goes into the first layer; a placeholder is the mean of the word vectors."""
    ids = jnp.asarray(ids)
    words = decoder.embed(jnp.maximum(ids, 0))
    table = decoder.word.table[: decoder.vocabulary]
    mean = table.mean(axis=0, dtype=jnp.float32).astype(words.dtype) * jnp.asarray(decoder.scale, words.dtype)
    return jnp.where((ids == PLACEHOLDER)[..., None], mean[None, None], words)


def states(
    decoder: Decoder,
    rows: Batch,
    x: jax.Array,
    *,
    start: int | jax.Array,
    exit: int | jax.Array,  # noqa: A002
    until: int | None,
    key: jax.Array | None = None,
) -> jax.Array:
    """[B, T, D] of `inputs` after `until` layers, placeholders rewritten on the way; start and exit may be traced; `key` for dropout."""
    return decoder(embeddings=x, segment=jnp.asarray(rows.segment), between=prepending(rows, start, exit), until=until, key=key)


def prepending(rows: Batch, start: int | jax.Array, exit: int | jax.Array) -> Between:  # noqa: A002
    """Before each layer start <= l < exit: every placeholder becomes the state at the end of its block."""
    place = jnp.concatenate([jnp.asarray(rows.front), jnp.asarray(rows.own)], axis=1)  # [B, 2 N]
    source = jnp.concatenate([jnp.asarray(rows.end)] * 2, axis=1)
    row = jnp.arange(place.shape[0])[:, None]

    def between(layer: int | jax.Array, x: jax.Array, context: Context) -> jax.Array:
        del context
        T = x.shape[1]
        summary = x[row, jnp.minimum(source, T - 1)]  # [B, 2 N, D], all of them before any is written
        written = jnp.where((layer >= start) & (layer < exit), place, T)
        return x.at[row, written].set(summary, mode="drop")  # place T is outside of the row

    return between


def _fitting(options: TokenPrepending, ends: np.ndarray, room: int) -> int:
    """How many tokens of the text fit into `room` with the placeholders of the blocks that they are in."""
    if not len(ends):
        return 0
    tokens = np.arange(ends[-1])
    blocks = np.minimum(np.searchsorted(ends, tokens, side="right") + 1, options.slots)
    return int(np.searchsorted((tokens + 1) * options.copies + blocks * (options.front + options.own), room, side="right"))


def _joined(ends: np.ndarray, most: int) -> np.ndarray:
    """At most so many blocks, each of as many neighbours as the others, or one more."""
    count = len(ends)
    return ends if count <= most else ends[np.arange(1, most + 1) * count // most - 1]
