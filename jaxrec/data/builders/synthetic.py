"""Synthetic: a small made-up shop whose shoppers move between clusters of items by habit, so that order matters and can be learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source

_SEGMENTS = ("new", "regular", "loyal")
_START = 1_600_000_000  # seconds since 1970 of the first possible event
_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class Synthetic(Source):
    """A made-up shop with habits; the same fields give the same data on every machine with the same numpy.

    Items lie in clusters. From cluster c the next event lies with probability `habit` in cluster (c + 1) mod `clusters`, else in any cluster; within a
    cluster, items are drawn by Zipf's law. The best predictor thus ranks the popular items of the next cluster first.

    Attributes:
      users, items, clusters: how many.
      length: mean number of events per user; lengths are 5 + Poisson(length - 5).
      habit: probability of the habitual transition.
      seed: of the generator.
    """

    users: int = 1000
    items: int = 200
    length: float = 20.0
    clusters: int = 10
    habit: float = 0.8
    seed: int = 0

    def __post_init__(self):
        if self.users < 1 or not 1 <= self.clusters <= self.items:
            raise ValueError(f"users={self.users}, clusters={self.clusters}, items={self.items}: need users >= 1 and 1 <= clusters <= items")
        if self.length < 5 or not 0 <= self.habit <= 1:
            raise ValueError(f"length={self.length}, habit={self.habit}: need length >= 5 and 0 <= habit <= 1")

    def inputs(self) -> dict[str, Any]:
        return {"numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def read(self) -> Interactions:
        rng = np.random.default_rng(self.seed)
        lengths = 5 + rng.poisson(self.length - 5, self.users)  # [U]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        user = np.repeat(np.arange(self.users), lengths)  # [E]
        cluster_of = np.arange(self.items) % self.clusters  # [N]
        cluster = self._walk(rng, user, offsets)  # [E]
        item = self._draw_items(rng, cluster)  # [E]
        segment = rng.integers(len(_SEGMENTS), size=self.users)  # [U]
        quality = rng.normal(3.5, 0.7, self.items)  # [N]
        ratings = np.clip(np.rint(quality[item] + 0.3 * (segment[user] - 1) + rng.normal(0, 0.7, len(item))), 1, 5)  # [E]
        gaps = rng.exponential(_DAY, len(item))  # [E]
        elapsed = np.cumsum(gaps)
        elapsed -= (elapsed - gaps)[offsets[:-1]][user]  # start afresh with each user
        price = np.round(np.exp(rng.normal(2.0 + 0.2 * cluster_of, 0.4)), 2)  # [N]
        return Interactions(
            users=[f"user-{u}" for u in range(self.users)],
            items=[f"item-{i}" for i in range(self.items)],
            offsets=offsets,
            sequence=(item + 1).astype(np.int32),
            times=(_START + elapsed).astype(np.int64),
            ratings=ratings.astype(np.float32),
            item_fields={
                "title": [f"Item {i} of aisle {c}" for i, c in enumerate(cluster_of)],
                "category": [f"aisle {c}" for c in cluster_of],
                "price": price.tolist(),
            },
            user_fields={"segment": [_SEGMENTS[s] for s in segment]},
        )

    def _walk(self, rng: np.random.Generator, user: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """[E] cluster of each event: a jump goes anywhere, any other event one cluster on from the one before."""
        jump = rng.random(len(user)) >= self.habit
        jump[offsets[:-1]] = True
        landing = rng.integers(self.clusters, size=len(user))
        last_jump = np.maximum.accumulate(np.where(jump, np.arange(len(user)), 0))
        return (landing[last_jump] + np.arange(len(user)) - last_jump) % self.clusters

    def _draw_items(self, rng: np.random.Generator, cluster: np.ndarray) -> np.ndarray:
        """[E] items: within cluster c, item c + rank * clusters with probability proportional to 1 / (rank + 1)."""
        size = (self.items - cluster + self.clusters - 1) // self.clusters  # [E] items in each event's cluster
        mass = np.cumsum(1 / np.arange(1, size.max() + 1))  # [R]
        rank = np.searchsorted(mass, rng.random(len(cluster)) * mass[size - 1], side="right")
        return cluster + np.minimum(rank, size - 1) * self.clusters
