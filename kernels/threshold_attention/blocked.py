"""Tiles of queries and keys in plain XLA, for any platform: the forward pass visits those that a query may see, the backward pass those that were live.

The tiles to visit are listed first and a loop runs over the list, so a tile that is not on it costs nothing. A tile has the scores of one head where
sequences are long, and of several where they are short. The query heads that share a key head lie behind each other, as one long query axis.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from kernels import dispatch

TILE = 128  # queries and keys, at most: smaller ones skip more and multiply slower
SCORES = TILE * TILE  # of a tile on a CPU; with fewer queries it has more keys, and of short sequences more heads
ACCELERATOR = 256  # times as many scores where every step of the loop costs the launch of programs; a guess, not measured


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the scores fall into tiles.

    Attributes:
      batch, groups: B and G.
      repeats: H / G, query heads of a key head.
      lengths: T and S.
      sizes: queries and keys of a tile.
      heads: key heads of a tile, a divisor of B G.
    """

    batch: int
    groups: int
    repeats: int
    lengths: tuple[int, int]
    sizes: tuple[int, int]
    heads: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """Tiles along key heads, along queries of all heads of a key head, and along keys."""
        queries, keys = (-(-length // size) for length, size in zip(self.lengths, self.sizes, strict=True))
        return self.batch * self.groups // self.heads, self.repeats * queries, keys

    def tiles(self, place: Array) -> tuple[Array, Array]:
        """The rows of `split` arrays that have the queries and the keys of a tile, of its number among all."""
        _, rows, columns = self.steps
        return place // columns, place // (rows * columns) * columns + place % columns

    def split(self, array: Array, side: int, **padding: Any) -> Array:
        """[B, T, H, ...] -> [steps, heads, queries, ...] of side 0, [B, S, G, ...] -> [steps, heads, keys, ...] of side 1."""
        array = jnp.pad(array, [(0, 0), (0, -array.shape[1] % self.sizes[side])] + [(0, 0)] * (array.ndim - 2), **padding)
        rest, repeats = array.shape[3:], array.shape[2] // self.groups
        array = array.reshape(self.batch, -1, self.sizes[side], self.groups, repeats, *rest)
        array = jnp.moveaxis(array, (3, 4), (1, 2))  # [B, G, H / G, tiles, size, ...]
        array = array.reshape(-1, self.heads, repeats * array.shape[3], self.sizes[side], *rest).swapaxes(1, 2)
        return array.reshape(-1, self.heads, self.sizes[side], *rest)

    def join(self, tiles: Array, side: int) -> Array:
        """The inverse of `split`."""
        rest, repeats = tiles.shape[3:], self.repeats if side == 0 else 1
        array = tiles.reshape(self.steps[0], -1, self.heads, self.sizes[side], *rest).swapaxes(1, 2)
        array = array.reshape(self.batch, self.groups, repeats, -1, self.sizes[side], *rest)
        array = jnp.moveaxis(array, (1, 2), (3, 4))
        return array.reshape(self.batch, -1, self.groups * repeats, *rest)[:, : self.lengths[side]]


def tiling(q: Array, k: Array) -> Tiling:
    """The tiles for q [B, T, H, K] and k [B, S, G, K] on the platform that is compiled for."""
    (batch, queries, heads, _), (_, keys, groups, _) = q.shape, k.shape
    scores = SCORES if dispatch.platform() == "cpu" else ACCELERATOR * SCORES
    rows = _even(queries, TILE)
    columns = _even(keys, max(TILE, SCORES // rows))
    together = max(heads for heads in range(1, batch * groups + 1) if batch * groups % heads == 0 and (heads == 1 or heads * rows * columns <= scores))
    return Tiling(batch, groups, heads // groups, (queries, keys), (rows, columns), together)


def forward(
    q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None, *, power: int, causal: bool, skip: bool = True
) -> tuple[Array, Array]:
    """o [B, T, H, V], and which tiles are live: some score of theirs passes its query's gate. Without `skip` every tile counts as live."""
    plan, inputs = _inputs(q, k, v, gate, query_segment, key_segment)
    visible = _visible(plan, inputs, causal) if skip else jnp.ones(plan.steps, bool)

    def step(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        o, live = carry
        place = places[number]
        row, column = plan.tiles(place)
        scores = _dot(inputs["q"][row], inputs["k"][column], (2, 2))

        def add(o: Array) -> Array:
            return o.at[row].add(_dot(_excess(plan, inputs, place, scores, causal) ** power, inputs["v"][column], (2, 1)))

        if not skip:
            return add(o), live
        passes = (scores.max(axis=2) > inputs["gate"][row]).any()  # hidden scores count, too: to leave them out here takes as long as the product
        return lax.cond(passes, add, lambda o: o, o), live.at[place].set(passes)

    places, count = _listed(visible)
    o = jnp.zeros((*inputs["q"].shape[:3], v.shape[-1]), jnp.float32)
    o, live = lax.fori_loop(0, count, step, (o, jnp.full(visible.size, not skip)))
    return plan.join(o, 0).astype(v.dtype), live


def backward(
    cotangent: Array,
    live: Array,
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    query_segment: Array | None,
    key_segment: Array | None,
    *,
    power: int,
    causal: bool,
) -> tuple[Array, Array, Array, Array]:
    """The gradients to q, k, v and gate, in their types, of sum(cotangent * o); `live` as `forward` gave it."""
    plan, inputs = _inputs(q, k, v, gate, query_segment, key_segment)
    d_o = plan.split(cotangent.astype(jnp.float32), 0)

    def step(number: Array, sums: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        d_q, d_k, d_v, d_gate = sums
        place = places[number]
        row, column = plan.tiles(place)
        excess = _excess(plan, inputs, place, _dot(inputs["q"][row], inputs["k"][column], (2, 2)), causal)
        weight, slope = excess**power, power * excess ** (power - 1) if power > 1 else (excess > 0).astype(jnp.float32)
        d_scores = slope * _dot(d_o[row], inputs["v"][column], (2, 2))
        return (
            d_q.at[row].add(_dot(d_scores, inputs["k"][column], (2, 1))),
            d_k.at[column].add(_dot(d_scores, inputs["q"][row], (1, 1))),
            d_v.at[column].add(_dot(weight, d_o[row], (1, 1))),
            d_gate.at[row].add(-d_scores.sum(axis=2)),
        )

    places, count = _listed(live)
    sums = lax.fori_loop(0, count, step, tuple(jnp.zeros_like(inputs[name]) for name in ("q", "k", "v", "gate")))
    d_q, d_k, d_v, d_gate = (plan.join(tiles, side) for tiles, side in zip(sums, (0, 1, 1, 0), strict=True))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), d_gate


def overlapping(queries: Array, keys: Array) -> Array:
    """[..., I, J] whether tiles of query segments [..., I, size] and key segments [..., J, size] span a common one; exact where segments ascend."""
    below = queries.min(axis=-1)[..., :, None] <= keys.max(axis=-1)[..., None, :]
    return below & (keys.min(axis=-1)[..., None, :] <= queries.max(axis=-1)[..., :, None])


def before(steps: tuple[int, int], sizes: tuple[int, int]) -> Array:
    """[I, J] whether a tile's first key is not after its last query."""
    return jnp.arange(steps[1])[None, :] * sizes[1] < (jnp.arange(steps[0])[:, None] + 1) * sizes[0]


def _even(length: int, most: int) -> int:
    """The size of tiles of `length`, as few as `most` allows and of even size, so that little is padded."""
    return -(-length // -(-length // most))


def _inputs(q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None) -> tuple[Tiling, dict[str, Array]]:
    """All inputs in tiles, in float32. Queries of the padding have a gate that nothing passes, keys of the padding a value of 0."""
    plan = tiling(q, k)
    inputs = {"q": plan.split(q.astype(jnp.float32), 0), "k": plan.split(k.astype(jnp.float32), 1), "v": plan.split(v.astype(jnp.float32), 1)}
    inputs["gate"] = plan.split(gate, 0, constant_values=jnp.inf)
    for side, segment, heads in ((0, query_segment, q.shape[2]), (1, key_segment, k.shape[2])):
        if segment is not None:
            inputs[("query_segment", "key_segment")[side]] = plan.split(jnp.repeat(segment[:, :, None], heads, axis=2), side, mode="edge")
    return plan, inputs


def _visible(plan: Tiling, inputs: dict[str, Array], causal: bool) -> Array:
    """Tiles in which some query may see some key, of the shape of `plan.steps`."""
    heads, rows, columns = plan.steps
    visible = jnp.ones(plan.steps, bool)
    if "query_segment" in inputs:
        sides = (inputs[name].reshape(heads, -1, *inputs[name].shape[1:]).swapaxes(1, 2) for name in ("query_segment", "key_segment"))
        visible = overlapping(*sides).any(axis=1)  # over the heads of a tile
    if causal:
        visible &= jnp.tile(before((rows // plan.repeats, columns), plan.sizes), (plan.repeats, 1))[None]
    return visible


def _listed(tiles: Array) -> tuple[Array, Array]:
    """The numbers of the true ones, first in the list, and how many they are."""
    return jnp.nonzero(tiles.reshape(-1), size=tiles.size, fill_value=0)[0].astype(jnp.int32), tiles.sum(dtype=jnp.int32)


def _excess(plan: Tiling, inputs: dict[str, Array], place: Array, scores: Array, causal: bool) -> Array:
    """How far a tile's scores are above the gate, 0 where they are not or are hidden, [heads, queries, keys]."""
    row, column = plan.tiles(place)
    excess = jnp.maximum(scores - inputs["gate"][row][:, :, None], 0)
    if "query_segment" in inputs:
        excess = jnp.where(inputs["query_segment"][row][:, :, None] == inputs["key_segment"][column][:, None, :], excess, 0)
    if causal:
        _, rows, columns = plan.steps
        first_query, first_key = row % (rows // plan.repeats) * plan.sizes[0], place % columns * plan.sizes[1]
        ahead = lax.broadcasted_iota(jnp.int32, excess.shape, 2) - lax.broadcasted_iota(jnp.int32, excess.shape, 1)
        excess = jnp.where(ahead <= first_query - first_key, excess, 0)
    return excess


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Products of the heads of two tiles."""
    axes = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return lax.dot_general(left, right, axes, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
