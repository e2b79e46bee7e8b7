"""Writing text inside a compiled program: the choice of a token from logits, and the loop that goes on until all texts have ended.

    writing = start(*params.prefill(ids, segment, slots=P + N), room=N)
    writing = write(params.step, greedy, writing, until=N, ends=(2,))
    writing = write(params.step, sampler(keys, 0.7, top_p=0.9), writing, until=N)

Rows never see one another, and a row's randomness is its own key and its count of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
"""(tokens [B], cache) -> (logits [B, V] of the next, cache)."""
Choice = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(logits [B, V], how many tokens were written []) -> (tokens [B] int32, log-probabilities [B])."""


@struct.dataclass
class Writing:
    """Texts as far as they are written, and what the next token comes from. A loop may stop, the host look, and the loop go on.

    Attributes:
      ids: [B, N] int32; 0 after a text's end. The token that ends it is one of them.
      log_probs: [B, N] float32 of the tokens, as they were chosen; 0 after the end.
      length: [B] int32 tokens written.
      done: [B] bool, whether a text has ended.
      place: [] int32, the next token's column.
      logits: [B, V] of the next token.
      cache: of the step.
    """

    ids: jax.Array
    log_probs: jax.Array
    length: jax.Array
    done: jax.Array
    place: jax.Array
    logits: jax.Array
    cache: Any


def start(logits: jax.Array, cache: Any, *, room: int, done: jax.Array | None = None) -> Writing:
    """Nothing written yet, with room for N tokens; `done` [B] marks rows that are padding of the batch."""
    B = len(logits)
    done = jnp.zeros(B, bool) if done is None else done
    return Writing(jnp.zeros((B, room), jnp.int32), jnp.zeros((B, room)), jnp.zeros(B, jnp.int32), done, jnp.zeros((), jnp.int32), logits, cache)


def write(step: Step, choose: Choice, writing: Writing, *, until: jax.Array | int, ends: tuple[int, ...] = ()) -> Writing:
    """Writes tokens until each text has one of `ends`, or `until` of them are written, counted from the start.

    Carried through the loop, the cache is updated in place; give `writing` up (donate it) to spare the copy before.
    """
    until = jnp.minimum(until, writing.ids.shape[1])

    def unfinished(writing: Writing) -> jax.Array:
        return (writing.place < until) & ~jnp.all(writing.done)

    def body(writing: Writing) -> Writing:
        tokens, log_probs = choose(writing.logits, writing.place)
        tokens, log_probs = jnp.where(writing.done, 0, tokens), jnp.where(writing.done, 0, log_probs)
        ended = jnp.any(tokens[:, None] == jnp.asarray(ends, jnp.int32)[None], axis=1) if ends else jnp.zeros_like(writing.done)
        logits, cache = step(tokens, writing.cache)
        column = (jnp.zeros((), jnp.int32), writing.place)
        return Writing(
            ids=jax.lax.dynamic_update_slice(writing.ids, tokens[:, None], column),
            log_probs=jax.lax.dynamic_update_slice(writing.log_probs, log_probs[:, None], column),
            length=writing.length + ~writing.done,
            done=writing.done | ended,
            place=writing.place + 1,
            logits=logits,
            cache=cache,
        )

    return jax.lax.while_loop(unfinished, body, writing)


def greedy(logits: jax.Array, place: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The most probable token of logits [B, V], the first of equals; and its log-probability."""
    tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return tokens, _log_prob(logits, tokens)


def sampler(keys: jax.Array, temperature: jax.Array | float, *, top_k: int = 0, top_p: float = 1.0) -> Choice:
    """A `Choice` that draws; `keys` [B] are of the rows, and each token's is folded from its row's and its place."""

    def choose(logits: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sample(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, place), temperature, top_k=top_k, top_p=top_p)

    return choose


def sample(logits: jax.Array, keys: jax.Array, temperature: jax.Array | float, *, top_k: int = 0, top_p: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Draws a token from softmax(logits / temperature), held to the `top_k` most probable (0 = all) and to the nucleus of mass `top_p` of those.

    Args:
      logits: [B, V].
      keys: [B], one of each row.
      temperature: above 0.
      top_k, top_p: at least 0, and above 0 and at most 1.

    Returns:
      tokens [B] int32, and their log-probabilities [B] float32 under softmax(logits / temperature), not renormalised over what is held.

    Raises:
      ValueError: top_k or top_p is outside its range.
    """
    if not (0 <= top_k and 0 < top_p <= 1):
        raise ValueError(f"top_k={top_k} must be at least 0 (0 = all), and top_p={top_p} above 0 and at most 1")
    scaled = logits.astype(jnp.float32) / temperature
    held, tokens = jax.lax.top_k(scaled, top_k) if 0 < top_k < scaled.shape[-1] else (scaled, None)
    if top_p < 1:
        held = jnp.where(nucleus(jax.nn.softmax(held, axis=-1), top_p), held, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, held).astype(jnp.int32)
    drawn = drawn if tokens is None else jnp.take_along_axis(tokens, drawn[:, None], axis=1)[:, 0]
    return drawn, _log_prob(scaled, drawn)


def nucleus(probabilities: jax.Array, mass: float) -> jax.Array:
    """[..., V] bool: the fewest most probable tokens that together have `mass` (Holtzman et al. 2020, arXiv 1904.09751); equals stay together.

    The lowest probability that stays is found by halving the interval of its bits, since floats above zero are ordered as their bits are: no sort.
    """
    bits = jax.lax.bitcast_convert_type(probabilities.astype(jnp.float32), jnp.int32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(bits >= middle, probabilities, 0), axis=-1, keepdims=True) >= mass
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    high = jnp.max(bits, axis=-1, keepdims=True) + 1  # with it nothing stays, with 0 everything
    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return bits >= low


def _log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen.astype(jnp.float32) - jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
