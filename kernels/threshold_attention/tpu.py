"""Mosaic TPU kernels: scores live in VMEM a tile at a time, in the forward pass, in one over queries for d_q and d_gate, and in one over keys for d_k and d_v.

Arrays lie transposed, [width, tokens]: tokens fill the lanes however narrow a head is. Scores are [keys, queries], so what belongs to a query is a row
vector, and reductions run over sublanes. Of each tile of queries the first and the last tile of keys that it may see are known to the scalar core; tiles
outside of them are neither fetched nor computed. Weights are formed in float32, and rounded to the type of the values for the product with them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import dispatch
from kernels.threshold_attention import blocked

LANES = 128
SUBLANES = 16  # of a tile of 16-bit numbers; those of 32 bits have half as many
TILES = (256, 512)  # queries and keys, at most
SIDES = {"q": 0, "k": 1, "v": 1, "gate": 0, "d_o": 0, "query_segment": 0, "key_segment": 1}  # whose tiles an array has: 0 the queries', 1 the keys'


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of one call: B, H and G, tokens of a tile of queries and of keys, how many tiles, and the options.

    A kernel keeps the sums of one side's tiles and visits all tiles of the other.
    """

    batch: int
    heads: int
    groups: int
    tile: tuple[int, int]
    tiles: tuple[int, int]
    power: int
    causal: bool

    def grid(self, kept: int) -> tuple[int, int, int]:
        """Heads and tiles of the side that is kept, and the tiles of the other, those of queries for every head that shares the keys."""
        if kept == 0:
            return self.batch * self.heads, *self.tiles
        return self.batch * self.groups, self.tiles[1], self.heads // self.groups * self.tiles[0]

    def place(self, kept: int, head: Any, tile: Any, other: Any) -> tuple[Any, tuple[Any, Any], tuple[Any, Any]]:
        """(b, (query head of B H, key head of B G), (tile of queries, tile of keys)) of a step of the grid."""
        # lax.div and lax.rem, for // and % look at signs, and Mosaic asks the default device how.
        if kept == 0:
            return lax.div(head, self.heads), (head, lax.div(head, self.heads // self.groups)), (tile, other)
        query_head = head * (self.heads // self.groups) + lax.div(other, self.tiles[0])
        return lax.div(head, self.groups), (query_head, head), (lax.rem(other, self.tiles[0]), tile)


def forward(
    q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None, *, power: int, causal: bool
) -> tuple[Array, None]:
    """o [B, T, H, V], and nothing for `backward`, which looks anew which tiles are live."""
    sizes, inputs, visible = _arrange(q, k, v, gate, query_segment, key_segment, power, causal)
    shape = jax.ShapeDtypeStruct((len(inputs["q"]), inputs["v"].shape[1], inputs["q"].shape[2]), jnp.float32)
    [o] = _sums("threshold_attention_forward", _forward_tile, sizes, 0, inputs, visible, [shape], products=(1, 1))
    return _restore(o, q.shape[:3], v.shape[3]).astype(v.dtype), None


def backward(
    cotangent: Array, _: Any, q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None, *, power: int, causal: bool
) -> tuple[Array, Array, Array, Array]:
    """The gradients to q, k, v and gate, in their types, of sum(cotangent * o)."""
    sizes, inputs, visible = _arrange(q, k, v, gate, query_segment, key_segment, power, causal)
    inputs["d_o"] = _transposed(cotangent, sizes.tile[0])
    shapes = {name: jax.ShapeDtypeStruct(inputs[name].shape, jnp.float32) for name in ("q", "k", "v", "gate")}
    d_q, d_gate = _sums("threshold_attention_d_q", _d_query_tile, sizes, 0, inputs, visible, [shapes["q"], shapes["gate"]], products=(2, 1))
    d_k, d_v = _sums("threshold_attention_d_kv", _d_key_tile, sizes, 1, inputs, visible, [shapes["k"], shapes["v"]], products=(2, 2))
    gradients = zip((d_q, d_k, d_v, d_gate), (q, k, v, gate[..., None]), strict=True)
    d_q, d_k, d_v, d_gate = (_restore(sums, like.shape[:3], like.shape[3]).astype(like.dtype) for sums, like in gradients)
    return d_q, d_k, d_v, d_gate[..., 0]


def _forward_tile(excess, power, inputs, sums):
    v, [o] = inputs["v"][...], sums
    o[...] += _dot(v, _power(excess, power).astype(v.dtype), (1, 0))  # [V, queries]


def _d_query_tile(excess, power, inputs, sums):
    k, [d_q, d_gate] = inputs["k"][...], sums
    d_scores = _slope(excess, power) * _dot(inputs["v"][...], inputs["d_o"][...], (0, 0))  # [keys, queries]
    d_q[...] += _dot(k, d_scores.astype(k.dtype), (1, 0))
    d_gate[...] -= d_scores.sum(axis=0, keepdims=True)


def _d_key_tile(excess, power, inputs, sums):
    q, d_o, [d_k, d_v] = inputs["q"][...], inputs["d_o"][...], sums
    d_scores = _slope(excess, power) * _dot(inputs["v"][...], d_o, (0, 0))  # [keys, queries]
    d_k[...] += _dot(q, d_scores.astype(q.dtype), (1, 1))
    d_v[...] += _dot(d_o, _power(excess, power).astype(d_o.dtype), (1, 1))


def _kernel(first_ref, last_ref, *refs, add: Callable[..., None], sizes: Sizes, kept: int, names: list[str]):
    inputs, sums = dict(zip(names, refs)), refs[len(names) :]
    head, tile, other = (pl.program_id(axis) for axis in range(3))

    @pl.when(other == 0)
    def _():
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    batch, _heads, tiles = sizes.place(kept, head, tile, other)
    row = batch * sizes.tiles[kept] + tile

    @pl.when((tiles[1 - kept] >= first_ref[row]) & (tiles[1 - kept] <= last_ref[row]))
    def _():
        excess = _excess(sizes, tiles, inputs)

        @pl.when(excess.max() > 0)
        def _():
            add(excess, sizes.power, inputs, sums)


def _excess(sizes: Sizes, tiles: tuple[Array, Array], inputs: dict[str, Any]) -> Array:
    """How far the scores of a tile are above the gates, 0 where they are not or are hidden, [keys, queries]."""
    excess = jnp.maximum(_dot(inputs["k"][...], inputs["q"][...], (0, 0)) - inputs["gate"][...], 0)
    if "query_segment" in inputs:
        key_segment = jnp.broadcast_to(inputs["key_segment"][...], (LANES, sizes.tile[1])).T[:, :1]
        excess = jnp.where(key_segment == inputs["query_segment"][...], excess, 0)
    if sizes.causal:
        ahead = lax.broadcasted_iota(jnp.int32, excess.shape, 0) - lax.broadcasted_iota(jnp.int32, excess.shape, 1)
        excess = jnp.where(ahead <= tiles[0] * sizes.tile[0] - tiles[1] * sizes.tile[1], excess, 0)
    return excess


def _power(excess: Array, power: int) -> Array:
    return functools.reduce(jnp.multiply, [excess] * power)


def _slope(excess: Array, power: int) -> Array:
    return power * _power(excess, power - 1) if power > 1 else jnp.where(excess > 0, 1.0, 0.0)


def _sums(
    name: str,
    add: Callable[..., None],
    sizes: Sizes,
    kept: int,
    inputs: dict[str, Array],
    visible: Array,
    shapes: list[jax.ShapeDtypeStruct],
    *,
    products: tuple[int, int],
) -> list[Array]:
    """What `add` adds up, of the tiles that may see each other and are live, for every tile of one side.

    Args:
      kept: that side: 0 queries, 1 keys.
      visible: [B, tiles of queries, tiles of keys].
      shapes: of the sums, [heads of that side, width, tokens].
      products: how many matrix products of a tile are as wide as queries, and as wide as values.
    """

    def spec(array: Any, side: int, *, by_batch: bool = False) -> pl.BlockSpec:
        def index(head, tile, other, first_ref, last_ref):
            batch, heads, tiles = sizes.place(kept, head, tile, other)
            row = batch * sizes.tiles[kept] + tile
            seen = jnp.minimum(jnp.maximum(tiles[1 - kept], first_ref[row]), jnp.maximum(last_ref[row], 0))  # what is there already is not fetched again
            return batch if by_batch else heads[side], 0, tile if side == kept else seen

        return pl.BlockSpec((None, array.shape[1], sizes.tile[side]), index)

    grid = sizes.grid(kept)
    traffic = sum(array.nbytes * (1 if SIDES[name] == kept else sizes.tiles[kept]) for name, array in inputs.items())
    width = products[0] * inputs["q"].shape[1] + products[1] * inputs["v"].shape[1]
    return pl.pallas_call(
        functools.partial(_kernel, add=add, sizes=sizes, kept=kept, names=list(inputs)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=[spec(array, SIDES[name], by_batch=name.endswith("segment")) for name, array in inputs.items()],
            out_specs=[spec(shape, kept) for shape in shapes],
        ),
        out_shape=shapes,
        compiler_params=dispatch.tpu_compiler_params("parallel", "parallel", "arbitrary"),
        cost_estimate=pl.CostEstimate(  # as if all tiles were live
            flops=2 * grid[0] * grid[1] * grid[2] * sizes.tile[0] * sizes.tile[1] * width,
            transcendentals=0,
            bytes_accessed=traffic + sum(4 * shape.size for shape in shapes),
        ),
        interpret=dispatch.interpret(),
        name=name,
    )(*_ranges(visible if kept == 0 else visible.swapaxes(1, 2)), *inputs.values())


def _arrange(
    q: Array, k: Array, v: Array, gate: Array, query_segment: Array | None, key_segment: Array | None, power: int, causal: bool
) -> tuple[Sizes, dict[str, Array], Array]:
    """The sizes, the inputs as the kernels take them, and which tiles may see each other, [B, tiles of queries, tiles of keys].

    Queries of the padding have a gate that nothing passes, keys of the padding a value of 0.
    """
    lengths = q.shape[1], k.shape[1]
    tile = min(TILES[0], _up(lengths[0], LANES)), min(TILES[1], _up(lengths[1], LANES))
    tiles = -(-lengths[0] // tile[0]), -(-lengths[1] // tile[1])
    sizes = Sizes(len(q), q.shape[2], k.shape[2], tile, tiles, power, causal)
    inputs = {name: _transposed(array, tile[SIDES[name]]) for name, array in (("q", q), ("k", k), ("v", v))}
    gate = jnp.pad(gate, ((0, 0), (0, -lengths[0] % tile[0]), (0, 0)), constant_values=jnp.inf)
    inputs["gate"] = gate.swapaxes(1, 2).reshape(-1, 1, gate.shape[1])
    visible = jnp.ones((len(q), *tiles), bool)
    if query_segment is not None and key_segment is not None:
        pairs = zip((query_segment, key_segment), tile, strict=True)
        segments = [jnp.pad(segment.astype(jnp.int32), ((0, 0), (0, -segment.shape[1] % size)), mode="edge") for segment, size in pairs]
        inputs |= {"query_segment": segments[0][:, None], "key_segment": segments[1][:, None]}
        visible &= blocked.overlapping(*(segment.reshape(len(q), -1, size) for segment, size in zip(segments, tile, strict=True)))
    if causal:
        visible &= blocked.before(tiles, tile)[None]
    return sizes, inputs, visible


def _transposed(array: Array, size: int) -> Array:
    """[B, T, H, K] -> [B H, K, T], zeros up to whole tiles of so many tokens."""
    array = jnp.pad(array, ((0, 0), (0, -array.shape[1] % size), (0, 0), (0, -array.shape[3] % SUBLANES)))
    return array.transpose(0, 2, 3, 1).reshape(-1, array.shape[3], array.shape[1])


def _restore(array: Array, sizes: tuple[int, ...], width: int) -> Array:
    """[B H, K, T] -> [B, T, H, K] of such sizes, without the padding."""
    batch, tokens, heads = sizes
    return array.reshape(batch, heads, *array.shape[1:]).transpose(0, 3, 1, 2)[:, :tokens, :, :width]


def _ranges(visible: Array) -> tuple[Array, Array]:
    """[B * I] the first and the last true place of each row of [B, I, J]; of a row without any 0 and -1."""
    place = jnp.arange(visible.shape[2], dtype=jnp.int32)
    first = visible.argmax(axis=2).astype(jnp.int32)
    last = jnp.where(visible, place, -1).max(axis=2)
    return first.reshape(-1), last.reshape(-1)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    precision = lax.Precision.HIGHEST if left.dtype == right.dtype == jnp.float32 else lax.Precision.DEFAULT  # Mosaic knows HIGHEST for float32 only
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
