"""The trie of a catalogue's semantic IDs, as flat arrays that a compiled decoder can gather from.

A semantic ID is a tuple of H codes (c_0 .. c_{H-1}), code c_l in [0, W_l). The trie's nodes of level l are the distinct prefixes c_0 .. c_l, numbered
in lexicographic order; the root is not stored. In that order the children of a node are contiguous, and so are the items below it, which
makes every question about a prefix one about a range of integers. Level H-1 holds the leaves: the distinct tuples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from numpy.typing import ArrayLike

from jaxrec.param import Param, zeros

DENSE_ENTRIES = 2**18
"""Most entries of a dense child table: 1 MiB of int32, which holds the first two levels of 256 codes (256 and 65,536 entries)."""


@dataclass(frozen=True)
class TrieSizes:
    """The sizes of a trie: hashable, and `TrieSizes(**dataclasses.asdict(sizes))` survives JSON.

    Attributes:
      items: N.
      bucket: most items that share one tuple.
      widths: [H] codes of each level.
      nodes: [H] distinct prefixes of length l + 1.
      branching: [H] most children that a node has at level l (for l = 0: of the root).
      dense: how many of the first levels have a child table.
    """

    items: int
    bucket: int
    widths: tuple[int, ...]
    nodes: tuple[int, ...]
    branching: tuple[int, ...]
    dense: int

    def __post_init__(self):
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), list):  # JSON knows no tuples
                object.__setattr__(self, field.name, tuple(value))

    @property
    def levels(self) -> int:
        """H."""
        return len(self.widths)


@struct.dataclass
class Trie:
    """Semantic IDs of items 1..N; a pytree of int32 arrays (or, from `spec`, of `Param`s), tuples by level l = 0..H-1.

    The first levels have few nodes and many children each: there a dense table gives all children of a node in one row gather, in the order of
    their codes. Deeper levels have many nodes with few children: there a window of `branching[l]` neighbours is read (compressed sparse rows), as in
    STATIC (Su et al. 2026, arXiv 2602.22647).

    Attributes:
      table: l < dense: [nodes[l-1], W_l] child by code, -1 = none.
      first: [nodes[l-1] + 1] where the children of each node of level l-1 begin among the nodes of level l.
      code: [nodes[l] + branching[l]] the last code of each node, then zeros, so that a window may run over the end.
      begin: [nodes[l] + 1] where the items of each node begin in the trie's order.
      items: [N] item ids in the trie's order: by tuple, and within a tuple by priority.
      inverse: [N + 1] the place of each item id in that order; N for the padding id 0.
      sizes: static.
    """

    table: tuple[Any, ...]
    first: tuple[Any, ...]
    code: tuple[Any, ...]
    begin: tuple[Any, ...]
    items: Any
    inverse: Any
    sizes: TrieSizes = struct.field(pytree_node=False)

    @classmethod
    def build(cls, codes: ArrayLike, widths: Sequence[int], priority: ArrayLike | None = None, *, dense_entries: int = DENSE_ENTRIES) -> Self:
        """The trie of a catalogue, as numpy arrays.

        Args:
          codes: [N, H] integers; row i is the semantic ID of item i + 1.
          widths: [H] codes of each level.
          priority: [N] which of the items of one tuple come first (higher first, equals by id); None: by id.
          dense_entries: levels have a child table from the first on while it has no more entries than this.

        Raises:
          ValueError: no items, arrays of another shape or kind, or codes outside of their level's width.
        """
        codes, widths = _checked(np.asarray(codes), tuple(int(width) for width in widths))
        count, levels = codes.shape
        items = np.arange(count) if priority is None else np.argsort(-_checked_priority(priority, count), kind="stable")  # rows
        for word in reversed(_words(codes, widths)):  # the last word first: each stable sort keeps the order of the later ones
            items = items[np.argsort(word[items], kind="stable")]
        inverse = np.empty(count + 1, np.int32)
        inverse[0], inverse[items + 1] = count, np.arange(count)
        codes = codes[items]
        starts = np.arange(count) == 0  # [N] whether an item is the first of its prefix
        begin, first, code, above = [], [], [], np.zeros(1, int)
        for level in range(levels):
            starts[1:] |= codes[1:, level] != codes[:-1, level]
            here = np.flatnonzero(starts)
            begin.append(np.append(here, count))
            first.append(np.append(np.cumsum(starts, dtype=np.int32)[above] - 1, len(here)))
            code.append(codes[here, level])
            above = here
        branching = tuple(int(np.diff(offsets).max()) for offsets in first)
        parents = (1, *(len(c) for c in code[:-1]))
        fits = [parent * width <= dense_entries for parent, width in zip(parents, widths)]
        sizes = TrieSizes(
            items=count,
            bucket=int(np.diff(begin[-1]).max()),
            widths=widths,
            nodes=tuple(len(c) for c in code),
            branching=branching,
            dense=(*fits, False).index(False),
        )
        table = [_child_table(first[level], code[level], widths[level]) for level in range(sizes.dense)]
        code = [np.append(c, np.zeros(reach, c.dtype)) for c, reach in zip(code, branching)]
        table, first, code, begin = (tuple(array.astype(np.int32) for array in arrays) for arrays in (table, first, code, begin))
        return cls(table=table, first=first, code=code, begin=begin, items=(items + 1).astype(np.int32), inverse=inverse, sizes=sizes)

    @classmethod
    def spec(cls, sizes: TrieSizes) -> Self:
        """The trie of a model as frozen `Param`s, to be filled with `flatten` of a built one; sizes that differ are then a shape error."""
        parents = (1, *sizes.nodes[:-1])

        def frozen(*shape: int) -> Param:
            return Param(shape, (None,) * len(shape), zeros, jnp.int32, trainable=False)

        return cls(
            table=tuple(frozen(parents[level], sizes.widths[level]) for level in range(sizes.dense)),
            first=tuple(frozen(parent + 1) for parent in parents),
            code=tuple(frozen(nodes + reach) for nodes, reach in zip(sizes.nodes, sizes.branching)),
            begin=tuple(frozen(nodes + 1) for nodes in sizes.nodes),
            items=frozen(sizes.items),
            inverse=frozen(sizes.items + 1),
            sizes=sizes,
        )

    def children(self, level: int, node: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The nodes of `level` below nodes of the level above.

        Args:
          level: l of the children.
          node: [...] of level l-1; 0, the root, at level 0.

        Returns:
          child [..., C], -1 where there is none, and the codes [..., C] that lead there, ascending; None for all codes 0 .. W_l - 1 in their order.
        """
        if level < self.sizes.dense:
            return jnp.asarray(self.table[level])[node], None
        first, code = jnp.asarray(self.first[level]), jnp.asarray(self.code[level])
        child = first[node][..., None] + jnp.arange(self.sizes.branching[level]).reshape((1,) * node.ndim + (-1,))
        return jnp.where(child < first[node + 1][..., None], child, -1), code[child]

    def last_code(self, level: int, node: jax.Array) -> jax.Array:
        """c_l of nodes [...] of level l."""
        return jnp.asarray(self.code[level])[node]

    def span(self, level: int, node: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The items below nodes [...] of a level have the places begin .. end - 1 in the trie's order."""
        begin = jnp.asarray(self.begin[level])
        return begin[node], begin[node + 1]

    def above(self, level: int, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For places [...] in the trie's order: the node of `level` above each, and where that stands in the last axis of its parent's `children`."""
        begin = jnp.asarray(self.begin[level])
        node = jnp.searchsorted(begin[:-1], place, side="right", method="scan_unrolled") - 1
        if level < self.sizes.dense:
            return node, self.last_code(level, node)
        first = jnp.asarray(self.first[level])
        return node, node - first[self.above(level - 1, place)[0] if level else jnp.zeros_like(node)]

    def place(self, item: jax.Array) -> jax.Array:
        """The places of item ids [...]; N for padding and for ids that the trie does not know."""
        return jnp.asarray(self.inverse)[jnp.where((item > 0) & (item <= self.sizes.items), item, 0)]

    def item(self, place: jax.Array) -> jax.Array:
        """The item ids at places [...] 0 .. N - 1."""
        return jnp.asarray(self.items)[place]


def _child_table(first: np.ndarray, code: np.ndarray, width: int) -> np.ndarray:
    """[nodes above, width] child by code, -1 = none."""
    table = np.full((len(first) - 1, width), -1)
    table[np.repeat(np.arange(len(first) - 1), np.diff(first)), code] = np.arange(len(code))
    return table


def _words(codes: np.ndarray, widths: tuple[int, ...]) -> list[np.ndarray]:
    """Tuples as mixed-radix numbers of as few int64 words as hold them, the most significant first."""
    words, capacity = [], math.inf
    for column, width in zip(codes.T, widths):
        if capacity * width < 2**63:
            words[-1] = words[-1] * width + column
            capacity *= width
        else:
            words.append(column.astype(np.int64))
            capacity = width
    return words


def _checked(codes: np.ndarray, widths: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"codes have shape {codes.shape} and dtype {codes.dtype}; integers of shape [items, levels] are needed")
    if 0 in codes.shape:
        raise ValueError(f"codes of shape {codes.shape} hold no semantic ID; a trie needs at least one item and one level")
    if len(widths) != codes.shape[1] or min(widths) < 1:
        raise ValueError(f"widths={widths} do not fit codes of {codes.shape[1]} levels; give one width >= 1 per level")
    if len(codes) >= 2**31 - 1:
        raise ValueError(f"{len(codes)} items do not fit int32 places; a trie holds fewer than {2**31 - 1}")
    low, high = codes.min(axis=0), codes.max(axis=0)
    for level, width in enumerate(widths):
        if low[level] < 0 or high[level] >= width:
            raise ValueError(f"codes of level {level} are in {low[level]}..{high[level]}, its width is {width}: 0..{width - 1} are allowed; widen it")
    return codes, widths


def _checked_priority(priority: ArrayLike, count: int) -> np.ndarray:
    priority = np.asarray(priority, np.float64)
    if priority.shape != (count,) or np.isnan(priority).any():
        raise ValueError(f"priority has shape {priority.shape} with {np.isnan(priority).sum()} NaNs; one number for each of the {count} items is needed")
    return priority
