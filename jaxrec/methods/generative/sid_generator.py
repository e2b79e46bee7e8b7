"""What the generators of semantic IDs share: the IDs as tokens, and the search for the next item's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.limits import check
from jaxrec.method import FROM_DATA, Batch, Generator, Loss, Method
from jaxrec.methods.sequential.next_item import tiny_batch
from jaxrec.nn.attention import SOFTMAX, AttentionKind
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear
from jaxrec.nn.positions import Alibi, RelativeBias
from jaxrec.ops.decode import beam_search, lookup, resolve, restrict
from jaxrec.ops.trie import Trie, TrieSizes
from jaxrec.param import Param

FAR = -(2**20)
"""The position of user tokens: beyond every distance that a relative bias tells apart."""


@dataclass(frozen=True)
class Sids:
    """The semantic IDs of the catalogue as a model sees them: a column of the data, with the sizes of its trie (see `TrieSizes`)."""

    name: str = "sid"
    items: int = FROM_DATA
    bucket: int = FROM_DATA
    widths: tuple[int, ...] = (FROM_DATA,)
    nodes: tuple[int, ...] = (FROM_DATA,)
    branching: tuple[int, ...] = (FROM_DATA,)
    dense: int = FROM_DATA
    draw: int = FROM_DATA  # 1: of the items that share an ID, any is drawn; 0: the first by priority

    @property
    def sizes(self) -> TrieSizes:
        return TrieSizes(self.items, self.bucket, self.widths, self.nodes, self.branching, self.dense)


@struct.dataclass
class SidArrays:
    """The semantic IDs themselves; frozen, filled from the column."""

    codes: jax.Array  # [items + 1, H] int32; row 0, padding, is -1
    trie: Trie

    @classmethod
    def spec(cls, sids: Sids) -> SidArrays:
        codes = Param((sids.items + 1, len(sids.widths)), (None, None), _counted(sids.widths), jnp.int32, trainable=False)
        return cls(codes, Trie.spec(sids.sizes))  # type: ignore[arg-type]


@struct.dataclass
class SidTokens:
    """Items as H tokens: one vector per level and code on the way in, one softmax per level on the way out."""

    token: Embedding  # rows of level l begin at the sum of the widths before it
    separator: jax.Array | None  # [D], after each item
    user: Embedding | None  # one token before each history
    heads: tuple[Linear, ...]  # D -> W_l
    widths: tuple[int, ...] = struct.field(pytree_node=False)
    hashes: int = struct.field(pytree_node=False, default=0)  # user vectors; the table may have more rows

    @classmethod
    def spec(cls, sids: Sids, width: int, *, separators: bool, users: int) -> SidTokens:
        """Declares tokens of `width`; `users` is the number of user vectors that users are hashed to, 0 = none."""
        separator = Param((width,), ("embed",), jax.nn.initializers.normal(width**-0.5)) if separators else None
        return cls(
            token=Embedding.spec(sum(sids.widths), width),
            separator=separator,  # type: ignore[arg-type]
            user=Embedding.spec(users, width) if users else None,
            heads=tuple(Linear.spec(width, codes, axes=("embed", None), bias=False) for codes in sids.widths),
            widths=sids.widths,
            hashes=users,
        )

    def items(self, codes: jax.Array) -> jax.Array:
        """Codes [..., H] of items -> [..., H (+ 1 with separators), D], unit variance; 0 for padding, whose codes are -1."""
        vectors = self.token(jnp.maximum(codes, 0) + jnp.asarray(np.cumsum((0, *self.widths[:-1])), jnp.int32).reshape((1,) * (codes.ndim - 1) + (-1,)))
        if self.separator is not None:
            separator = self.separator.reshape((1,) * codes.ndim + (-1,))
            vectors = jnp.concatenate([vectors, jnp.broadcast_to(separator, (*codes.shape[:-1], 1, vectors.shape[-1]))], axis=-2)
        return jnp.where(codes[..., :1, None] >= 0, self._scaled(vectors), 0)

    def code(self, level: int, code: jax.Array) -> jax.Array:
        """The tokens [..., D] of codes [...] of one level."""
        return self._scaled(self.token(code + sum(self.widths[:level])))

    def users(self, user: jax.Array) -> jax.Array:
        """[...] user rows -> [..., D], hashed to as many vectors as there are."""
        assert self.user is not None
        mixed = user.astype(jnp.uint32) * jnp.uint32(2654435761)  # Knuth's multiplicative hash
        return self._scaled(self.user((mixed >> 8).astype(jnp.int32) % self.hashes))

    def log_probs(self, level: int, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., W_l] float32."""
        return jax.nn.log_softmax(self.heads[level](hidden).astype(jnp.float32), axis=-1)

    def _scaled(self, vectors: jax.Array) -> jax.Array:
        return vectors * jnp.asarray(vectors.shape[-1] ** 0.5, vectors.dtype)


@dataclass(frozen=True)
class SidGenerator(Method, Generator):
    """A model that writes the semantic ID of the next item, code by code. Subclasses say how.

    Attributes:
      sids: the column of semantic IDs.
      segments: histories that share a training row at most.
      dim: width D of the model.
      layers: of each stack.
      heads, head: attention heads, and the width of one; head=0 is dim / heads.
      hidden: inner width of the feed-forward layers.
      dropout: rate on the inputs and on every residual branch.
      users: user tokens: users are hashed to so many vectors, one before each history; 0 = none.
      separators: a token after each item.
      constrained: search only the IDs that exist; without it, what is no item's ID is a lost place.
      beams: IDs that an evaluation searches; more find better ones, so it belongs to every number.
      per_id: items given for one ID, where several share it.
      attention: its kind, in self-attention; its own positions are T5's bias.
    """

    sids: Sids = field(default_factory=Sids)
    segments: int = FROM_DATA
    dim: int = 128
    layers: int = 4
    heads: int = 6
    head: int = 64
    hidden: int = 1024
    dropout: float = 0.15
    users: int = 0
    separators: bool = False
    constrained: bool = True
    beams: int = 20
    per_id: int = 1
    attention: AttentionKind = SOFTMAX

    form: ClassVar[str]
    """The form of the training rows that it learns from; see `Sequences.form`."""

    def __post_init__(self):
        known = {} if self.segments == FROM_DATA else {"segments": 1}
        check(self, **known, dim=1, layers=1, heads=1, head=0, hidden=1, dropout=(0, 1), users=0, beams=1, per_id=1)
        if self.users and self.attention.positions == "alibi":
            raise ValueError(f"users={self.users}: ALiBi hides user tokens, which are far from every item; choose other positions, or users=0")
        if self.users and (self.attention.positions == "rotary" or self.attention.window):
            raise ValueError(
                f"users={self.users}: rotary positions and windows count places in the row, which begins with {self.segments} user tokens in training and "
                "with one when it generates; choose other positions, window=0, or users=0"
            )

    @property
    def tokens_per_item(self) -> int:
        return len(self.sids.widths) + self.separators

    def read(self, sids: SidArrays, tokens: SidTokens, batch: Batch, segments: int) -> tuple[jax.Array, jax.Array]:
        """A row as tokens, (vectors [B, S, D], segment [B, S]): the histories' items, after one user token for each history."""
        x = tokens.items(sids.codes[batch["history"]])  # [B, T, H, D]
        x = x.reshape(len(x), -1, self.dim)
        segment = jnp.repeat(batch["segment"], self.tokens_per_item, axis=1)
        if tokens.user is None:
            return x, segment
        number = jnp.arange(1, segments + 1, dtype=jnp.int32)[None]  # [1, M]
        member = batch["segment"][:, :, None] == number[:, None]  # [B, T, M]
        user = jnp.max(jnp.where(member, batch["user"][:, :, None], 0), axis=1)  # [B, M]
        return jnp.concatenate([tokens.users(user), x], axis=1), jnp.concatenate([jnp.broadcast_to(number, user.shape), segment], axis=1)

    def places(self, length: int, segments: int) -> jax.Array:
        """[S] positions of the tokens of a row of `length` items, for relative distances; a user token is as far as can be from every item."""
        items = jnp.arange(length * self.tokens_per_item, dtype=jnp.int32)
        return items if not self.users else jnp.concatenate([jnp.full(segments, FAR, jnp.int32), items])

    def search(self, trie: Trie, batch: Batch, step: Callable[..., Any], beams: int, key: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(codes [B, K, H], items [B, K * per_id], log-probs [B, K * per_id]) of the best IDs under the request's lists `allow` and `deny` [B, S].

        Items are in the order of their IDs, but those that a list leaves out free their places, so item k need not be that of ID k.
        """
        restriction = restrict(trie, allow=batch.get("allow"), deny=batch.get("deny"))
        if self.constrained:
            found = beam_search(step, None, beams=beams, trie=trie, restriction=restriction)
            leaf = found.leaf
        else:
            found = beam_search(step, None, beams=beams, widths=self.sids.widths)
            leaf = lookup(trie, found.codes)
        keys = own_keys(key, batch["history"]) if self.sids.draw and key is not None else None
        items, log_probs = resolve(trie, leaf, found.log_probs, per_leaf=self.per_id, restriction=restriction, keys=keys)
        return found.codes, items, log_probs


def own_keys(key: jax.Array, history: jax.Array) -> jax.Array:
    """A key [B] for each history [B, T]: what is drawn for one does not depend on the others of its batch, and differs between them."""
    multiplier = jnp.uint32(16777619)  # of the FNV hash
    mixed = jax.lax.fori_loop(0, history.shape[1], lambda t, h: (h ^ history[:, t].astype(jnp.uint32)) * multiplier, history[:, 0].astype(jnp.uint32))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, mixed)


def distances(bias: RelativeBias | Alibi | None, query: jax.Array, key: jax.Array) -> jax.Array | None:
    """The bias [1, H, T, S] of positions [T] and [S], where there is one."""
    return None if bias is None else bias(query, key)


def cross_entropy(log_probs: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """The weighted sum of -log p(target): log_probs [..., W], target and weight [...]."""
    return -jnp.sum(jnp.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0] * weight)


def level_losses(per_level: list[jax.Array], weight: jax.Array) -> Loss:
    """The sum over levels of the cross-entropy; each level's is also a metric."""
    total = jnp.sum(weight)
    return Loss(terms={"loss": (sum(per_level[1:], per_level[0]), total)}, metrics={f"level {n}": (each, total) for n, each in enumerate(per_level, 1)})


def _counted(widths: tuple[int, ...]) -> Any:
    """An initialiser of codes that counts the items in the mixed radix of the widths, so that a model without data has IDs too."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        number, digits = jnp.maximum(jnp.arange(shape[0]) - 1, 0), []
        for width in reversed(widths):
            digits.append(number % width)
            number = number // width
        return jnp.stack(digits[::-1], axis=1).astype(dtype).at[0].set(-1)

    return init


def tiny_sids(items: int = 30, widths: tuple[int, ...] = (4, 4, 3)) -> tuple[Sids, dict[str, Any]]:
    """(IDs for tests, their arrays by name): items counted in the mixed radix of the widths."""
    codes = np.asarray(_counted(widths)(jax.random.key(0), (items + 1, len(widths)), jnp.int32))
    trie = Trie.build(codes[1:], widths)
    sizes = trie.sizes
    return Sids("sid", sizes.items, sizes.bucket, sizes.widths, sizes.nodes, sizes.branching, sizes.dense, draw=0), {"codes": codes, "trie": trie}


def tiny_rows(form: str) -> dict[str, np.ndarray]:
    """The batch of the sequence models' tests, in the form that a generator learns from."""
    batch = tiny_batch()
    last = batch["segment"] != np.pad(batch["segment"][:, 1:], ((0, 0), (0, 1)))
    mask = last if form == "last" else ~last
    target = batch["target"] if form == "last" else np.where(last, 0, np.roll(batch["history"], -1, axis=1))
    return {**batch, "target": np.where(mask, target, 0).astype(np.int32), "mask": mask.astype(np.float32)}
