"""Beam search over semantic IDs inside a compiled program, restricted to a catalogue and to what each request may be given.

    restriction = restrict(trie, deny=history)  # or None
    beams = beam_search(step, cache, beams=50, trie=trie, restriction=restriction)
    items, log_probs = resolve(trie, beams.leaf, beams.log_probs, per_leaf=1, restriction=restriction)

Scores are sums of log-probabilities over the full softmax of each level, in float32: those of the model under teacher forcing, not renormalised over
the children that exist. Equal scores keep the order of their beams, and within a beam that of their codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.ops.trie import Trie

Step = Callable[[int, jax.Array | None, Any], tuple[jax.Array, Any]]
"""One level of a decoder: (level, codes [B, K_l] chosen at the level before, None at level 0, cache) -> (log_probs [B, K_l, W_l], cache).

K_0 = 1 and K_l <= K. The cache is a pytree of arrays [B, K_l, ...] (at first [B, 1, ...]) that follow their beams from level to level; what all
beams of a request share, such as the encoded history, belongs in the function's closure. Beams without a tuple carry some valid code."""


@struct.dataclass
class Beams:
    """The best semantic IDs of each request, best first; places without a tuple come last.

    Attributes:
      codes: [B, K, H] int32; -1 without a tuple.
      leaf: [B, K] int32 node of the trie's last level; -1 without a tuple, and everywhere after a search without a trie (see `lookup`).
      log_probs: [B, K] float32; -inf without a tuple.
    """

    codes: jax.Array
    leaf: jax.Array
    log_probs: jax.Array


@struct.dataclass
class Restriction:
    """What each request may be given, as places in the trie's order; made by `restrict`.

    Attributes:
      places: [B, S] int32, ascending and distinct, of the items that are denied or of the only ones allowed; N and above is padding, the last always.
      allow: which of the two; static.
    """

    places: jax.Array
    allow: bool = struct.field(pytree_node=False)

    def count(self, begin: jax.Array, end: jax.Array) -> jax.Array:
        """How many of the items at places begin .. end - 1 may be given, [B, ...] each."""
        listed = self._listed_before(end) - self._listed_before(begin)
        return listed if self.allow else end - begin - listed

    def nth(self, begin: jax.Array, rank: jax.Array) -> jax.Array:
        """[B, K, M] the place of the rank-th item (from 0) from place `begin` [B, K] on that may be given; N or more if there is none.

        Of denied places d_0 < d_1 < ..., d_i - i other places lie below d_i. This never falls with i, so a binary search finds how many to step over.
        """
        before = self._listed_before(begin)
        size = self.places.shape[1]
        if self.allow:
            wanted = jnp.minimum(before[..., None] + rank, size - 1)
            return jnp.take_along_axis(self.places, wanted.reshape(len(wanted), -1), axis=1).reshape(rank.shape)
        wanted = (begin - before)[..., None] + rank
        return wanted + _count(self.places - jnp.arange(size)[None], wanted, side="right")

    def _listed_before(self, place: jax.Array) -> jax.Array:
        return _count(self.places, place, side="left")


def restrict(trie: Trie, *, deny: jax.Array | None = None, allow: jax.Array | None = None) -> Restriction | None:
    """Exact deny- and allow-lists for `beam_search` and `resolve`, at a cost that depends on the lists and not on the catalogue.

    Args:
      trie: of the catalogue.
      deny: [B, S] item ids never to be returned. 0 = padding; duplicates and unknown ids do no harm.
      allow: [B, A] the only item ids to be returned, in the same form; a row of padding allows nothing. What is also denied is not allowed.

    Returns:
      None if both lists are None, which means everything.

    Raises:
      ValueError: a list is not [B, S], or the two are of different batches.
    """
    for name, ids in (("deny", deny), ("allow", allow)):
        if ids is not None and (jnp.ndim(ids) != 2 or not jnp.issubdtype(jnp.result_type(ids), jnp.integer)):
            raise ValueError(f"{name} has shape {jnp.shape(ids)} and dtype {jnp.result_type(ids)}; integers [batch, ids] with 0 as padding are needed")
    if deny is not None and allow is not None and len(deny) != len(allow):
        raise ValueError(f"deny is for {len(deny)} requests, allow for {len(allow)}; give one row of each per request")
    if (listed := deny if allow is None else allow) is None:
        return None
    padding = trie.sizes.items
    places = trie.place(jnp.asarray(listed))
    if allow is not None and deny is not None:
        denied = jnp.sort(trie.place(jnp.asarray(deny)), axis=1)
        places = jnp.where(_count(denied, places, side="right") > _count(denied, places, side="left"), padding, places)
    places = jnp.sort(jnp.pad(places, ((0, 0), (0, 1)), constant_values=padding), axis=1)
    again = jnp.pad(places[:, 1:] == places[:, :-1], ((0, 0), (1, 0)))
    places = jnp.sort(jnp.where(again, padding, places), axis=1)
    return Restriction(jnp.where(places == padding, padding + jnp.arange(places.shape[1])[None], places), allow is not None)


def beam_search(
    step: Step,
    cache: Any,
    *,
    beams: int,
    trie: Trie | None = None,
    widths: Sequence[int] | None = None,
    restriction: Restriction | None = None,
) -> Beams:
    """The `beams` most probable semantic IDs that a beam of this width finds.

    Args:
      step: scores one level.
      cache: what `step` carries from level to level, at first [B, 1, ...].
      beams: K. A level with fewer candidates keeps them all.
      trie: only tuples of this trie are followed; a prefix below which nothing may be given takes up no beam.
      widths: [H] instead of a trie: every tuple is followed, whether an item has it or not.
      restriction: from `restrict`; None = everything. It needs the trie.

    Raises:
      ValueError: arguments that do not go together, or log-probabilities of another shape than the trie's; it names both.
    """
    if beams < 1 or (trie is None) == (widths is None) or (trie is None and restriction is not None):
        raise ValueError(f"beams={beams} must be at least 1, and exactly one of trie and widths be given; a restriction needs the trie")
    widths = tuple(widths or ()) if trie is None else trie.sizes.widths
    log_probs, cache = step(0, None, cache)
    batch = len(log_probs)
    score, node = jnp.zeros((batch, 1), jnp.float32), jnp.zeros((batch, 1), jnp.int32)  # [B, K_l]
    codes = jnp.zeros((batch, 1, 0), jnp.int32)  # [B, K_l, l]
    for level, width in enumerate(widths):
        if level:
            log_probs, cache = step(level, codes[..., -1], cache)
        if log_probs.shape != (*score.shape, width):
            raise ValueError(f"step returned log-probabilities {log_probs.shape} at level {level}; {(*score.shape, width)} [batch, beams, codes] are needed")
        scores = score[..., None] + log_probs.astype(jnp.float32)  # [B, K_l, W_l]
        child, most = None, score.shape[1] * width
        if trie is not None:
            child, scores = candidates(trie, level, node, scores, restriction)  # [B, K_l, C]
            most = min(child.shape[1] * child.shape[2], trie.sizes.nodes[level])
        # One top-k over all candidates: taking each beam's best first is slower on a CPU, where many short selections lose to a long one.
        score, at = jax.lax.top_k(scores.reshape(batch, -1), min(beams, most))
        parent = at // scores.shape[2]
        if trie is None or child is None:
            node, chosen = jnp.full_like(at, -1), at % width
        else:
            node = jnp.where(score > -jnp.inf, jnp.take_along_axis(child.reshape(batch, -1), at, axis=1), -1)
            chosen = trie.last_code(level, jnp.maximum(node, 0))
        codes = jnp.concatenate([_follow(codes, parent), chosen[..., None]], axis=2)
        cache = jax.tree.map(lambda leaf, parent=parent: _follow(leaf, parent), cache)
    return _padded(codes, node, score, beams)


def candidates(trie: Trie, level: int, node: jax.Array, scores: jax.Array, restriction: Restriction | None = None) -> tuple[jax.Array, jax.Array]:
    """The children that a search may go on to at a level.

    Args:
      trie: of the catalogue.
      level: l of the children.
      node: [B, K] of level l-1; 0, the root, at level 0; -1 for a beam without one, whose scores are -inf.
      scores: [B, K, W_l] of the tuples so far and each code.
      restriction: None = everything.

    Returns:
      child [B, K, C] and its scores [B, K, C], -inf where there is no child or nothing below it may be given.
    """
    child, code = trie.children(level, jnp.maximum(node, 0))
    if code is not None:
        scores = jnp.take_along_axis(scores, code, axis=2)
    alive = child >= 0
    if restriction is not None:
        alive &= _alive(trie, level, node, child.shape[2], restriction)
    return child, jnp.where(alive, scores, -jnp.inf)


def lookup(trie: Trie, codes: jax.Array) -> jax.Array:
    """[...] leaf of the tuples `codes` [..., H], or -1 where no item has the tuple: what a search without a trie has made up is a miss."""
    node = jnp.zeros(codes.shape[:-1], jnp.int32)
    known = jnp.ones(codes.shape[:-1], bool)
    for level in range(trie.sizes.levels):
        child, code = trie.children(level, node)
        if code is None:
            code = jnp.arange(child.shape[-1]).reshape((1,) * node.ndim + (-1,))
        found = jnp.max(jnp.where(code == codes[..., level, None], child, -1), axis=-1)
        known &= found >= 0
        node = jnp.maximum(found, 0)
    return jnp.where(known, node, -1)


def resolve(
    trie: Trie,
    leaf: jax.Array,
    log_probs: jax.Array,
    *,
    per_leaf: int,
    restriction: Restriction | None = None,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Items of semantic IDs: up to `per_leaf` of those that share a tuple, in the order of the beams; K * M is the budget of a request.

    A deep budget (10 tuples of 100 items) retrieved better than a broad one (100 of 10), and the first by a measure of quality better than a random
    choice (semantic IDs at Snapchat, 2026, arXiv 2604.03949).

    Args:
      trie: of the catalogue.
      leaf: [B, K] int32, distinct within a row; -1 = nothing.
      log_probs: [B, K] of the tuples.
      per_leaf: M.
      restriction: the one of the search; None = everything.
      keys: None for the first items by the priority that the trie was built with; a key [B] for each row for a uniformly random choice.

    Returns:
      items [B, K * M] int32 without duplicates, then 0 (and 0 in the place of a leaf -1); log_probs [B, K * M] float32 of their tuples, then -inf.
    """
    if per_leaf < 1 or leaf.shape != log_probs.shape:
        raise ValueError(f"per_leaf={per_leaf} must be at least 1, and leaf {leaf.shape} and log_probs {log_probs.shape} of one shape [batch, beams]")
    if restriction is None:
        restriction = Restriction(jnp.full((len(leaf), 1), trie.sizes.items, jnp.int32), False)
    begin, end = trie.span(trie.sizes.levels - 1, jnp.maximum(leaf, 0))  # [B, K]
    if keys is None:
        rank = jnp.broadcast_to(jnp.arange(per_leaf), (*leaf.shape, per_leaf))
    else:
        rank = jax.vmap(_sample, in_axes=(0, 0, None))(keys, restriction.count(begin, end), per_leaf)
    place = restriction.nth(begin, rank)  # [B, K, M]
    found = (place < end[..., None]) & (leaf >= 0)[..., None]
    items = jnp.where(found, trie.item(jnp.minimum(place, trie.sizes.items - 1)), 0).reshape(len(leaf), -1)
    scores = jnp.where(found, log_probs[..., None].astype(jnp.float32), -jnp.inf).reshape(len(leaf), -1)
    lost = (leaf < 0)[..., None] & (jnp.arange(per_leaf) == 0)[None, None]  # an ID that is no item's keeps one place: it was an answer, and a miss
    order = jnp.argsort(~(found | lost).reshape(len(leaf), -1), axis=1, stable=True)
    return jnp.take_along_axis(items, order, axis=1), jnp.take_along_axis(scores, order, axis=1)


def _alive(trie: Trie, level: int, node: jax.Array, fan: int, restriction: Restriction) -> jax.Array:
    """[B, K, C] whether anything below each child of the beams' nodes [B, K] may be given.

    Each listed item lies below one node of the level, and that below at most one beam: so only the listed items are looked at, not the candidates.
    """
    places, allow = restriction.places, restriction.allow  # [B, S]
    ancestor, column = trie.above(level, places)
    parent = trie.above(level - 1, places)[0] if level else jnp.zeros_like(places)
    owned = parent[..., None] == node[:, None, :]  # [B, S, K]
    decides = (places < trie.sizes.items) & jnp.any(owned, axis=-1)
    if not allow:
        decides &= restriction.count(*trie.span(level, ancestor)) == 0
    size = node.shape[1] * fan
    at = jnp.where(decides, jnp.argmax(owned, axis=-1) * fan + column, size)  # what decides nothing is dropped past the end
    alive = jax.vmap(lambda row, index: row.at[index].set(allow, mode="drop"))(jnp.full((len(node), size), not allow), at)
    return alive.reshape(*node.shape, fan)


def _padded(codes: jax.Array, leaf: jax.Array, score: jax.Array, beams: int) -> Beams:
    """Exactly `beams` of them, with nothing in the places that no tuple takes."""
    missing = ((0, 0), (0, beams - score.shape[1]))
    return Beams(
        codes=jnp.pad(jnp.where(score[..., None] > -jnp.inf, codes, -1), (*missing, (0, 0)), constant_values=-1),
        leaf=jnp.pad(leaf, missing, constant_values=-1),
        log_probs=jnp.pad(score, missing, constant_values=-jnp.inf),
    )


def _follow(leaf: jax.Array, parent: jax.Array) -> jax.Array:
    """[B, K', ...] the rows of `leaf` [B, K, ...] that the beams `parent` [B, K'] came from."""
    return jax.vmap(lambda rows, index: rows[index])(leaf, parent)


def _count(places: jax.Array, query: jax.Array, *, side: str) -> jax.Array:
    """How many of the ascending `places` [B, S] lie below (left), or not above (right), each of `query` [B, ...]."""
    return jax.vmap(lambda row, asked: jnp.searchsorted(row, asked, side=side, method="scan_unrolled"))(places, query.reshape(len(query), -1)).reshape(
        query.shape
    )


def _sample(key: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """[..., size] distinct ranks below each of `count` [...], uniform over subsets (Floyd's algorithm); all of them, and more, where count <= size."""
    spare = jnp.maximum(count - size, 0)

    def draw(place, ranks):
        last = spare + place
        rank = jax.random.randint(jax.random.fold_in(key, place), count.shape, 0, last + 1)
        taken = jnp.any(ranks == rank[..., None], axis=-1)
        return ranks.at[..., place].set(jnp.where(taken, last, rank))

    return jax.lax.fori_loop(0, size, draw, jnp.full((*count.shape, size), -1, jnp.int32))
