"""CandidateEnsemble: a generator beside the members of EnsRec (Collins et al. 2025, arXiv 2512.17820): both give their best items, whose places are fused.

  s(u, i) = sum_m w_m / (60 + place of i in the list of m), where a list that lacks i gives nothing

The log-probabilities of a generator and the cosines of an encoder have no common scale, and a generator scores only what it wrote. So places are added, not
scores (reciprocal rank fusion, Cormack et al., SIGIR 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.limits import check
from jaxrec.method import FROM_DATA, Batch, Generator, Method
from jaxrec.methods.generative import tiger_decoder
from jaxrec.methods.generative.sid_generator import SidGenerator
from jaxrec.methods.sequential import sasrec
from jaxrec.methods.sequential.ensrec import EnsRec
from jaxrec.methods.sequential.next_item import NextItem
from jaxrec.param import freeze

OFFSET = 60  # of reciprocal rank fusion, as its authors chose it


@dataclass(frozen=True)
class CandidateEnsemble(Method, Generator):
    """Frozen members, from `Experiment.init_from` below "generator" and "encoder"; `steps=0` leaves them so.

    Attributes:
      generator: writes semantic IDs.
      encoder: one model of items, or an ensemble of them.
      items: catalogue size N.
      weights: of the generator's list and of the encoder's.
      beams: items in the list of each.
      recent: items of a history that the generator reads, the last ones, if it was trained on shorter histories than the encoder; 0 = all.
    """

    generator: SidGenerator
    encoder: NextItem | EnsRec
    items: int = FROM_DATA
    weights: tuple[float, float] = (1.0, 1.0)
    beams: int = 20
    recent: int = 0

    def __post_init__(self):
        check(self, beams=1, recent=0)
        if len(self.weights) != 2 or min(self.weights) < 0 or not sum(self.weights):
            raise ValueError(f"weights={self.weights} must be two numbers of at least 0, not both 0: of the generator and of the encoder")

    def spec(self) -> dict[str, Any]:
        return {"generator": freeze(self.generator.spec()), "encoder": freeze(self.encoder.spec())}

    def generate(self, params: Any, batch: Batch, key: jax.Array, *, beams: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(IDs [B, 2 K, H], items [B, 2 K], scores [B, 2 K]) of all that either member names, best first, under the request's `deny` and `allow`."""
        _, written, _ = self.generator.generate(params["generator"], latest(batch, self.recent), key, beams=beams)
        items, scores = fused(written, self.encoded(params["encoder"], batch, written.shape[1]), self.weights)
        return params["generator"].sids.codes[items], items, scores

    def encoded(self, params: Any, batch: Batch, count: int) -> jax.Array:
        """[B, count] the encoder's best items that the request's lists leave, 0 where there are no more."""
        query = self.encoder.encode_query(params, batch).values[:, 0]
        table = self.encoder.encode_item(params, {"item": jnp.arange(self.items + 1)}).values[:, 0]
        scores = jnp.matmul(query, table.T, precision="highest")  # [B, N + 1]
        row = jnp.arange(scores.shape[0])[:, None]
        left = jnp.ones(scores.shape, bool) if "allow" not in batch else jnp.zeros(scores.shape, bool).at[row, batch["allow"]].set(True)
        if "deny" in batch:
            left = left.at[row, batch["deny"]].set(False)
        best, items = jax.lax.top_k(jnp.where(left.at[:, 0].set(False), scores, -jnp.inf), min(count, self.items))
        return jnp.where(best > -jnp.inf, items, 0)


def latest(batch: Batch, count: int) -> Batch:
    """The batch of histories [B, T], one to a row, cut to their last `count` items; 0 = as it is."""
    if not 0 < count < batch["history"].shape[1]:
        return batch
    length = jnp.sum(batch["segment"] > 0, axis=1, keepdims=True)
    place = jnp.maximum(length - count, 0) + jnp.arange(count)[None]  # [B, count]
    cut = {name: jnp.take_along_axis(batch[name], place, axis=1) for name in ("history", "segment", "user", "time") if name in batch}
    return {**batch, **cut, "position": jnp.arange(count, dtype=jnp.int32)[None] * (cut["segment"] > 0)}


def fused(first: jax.Array, second: jax.Array, weights: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    """Two lists of items [B, K] and [B, C], best first, 0 = nothing, as one: (items [B, K + C], each once, then 0; scores, then -inf)."""
    shares = [weight / (OFFSET + 1 + jnp.arange(items.shape[1], dtype=jnp.float32)) for weight, items in zip(weights, (first, second), strict=True)]
    same = (first[:, :, None] == second[:, None]) & (first > 0)[:, :, None]  # [B, K, C]
    from_first = shares[0][None] + jnp.where(same, shares[1][None, None], 0).sum(axis=2)
    from_second = jnp.where(same.any(axis=1), -jnp.inf, shares[1][None])  # what both name stands in the first list
    items = jnp.concatenate([first, second], axis=1)
    scores = jnp.where(items > 0, jnp.concatenate([from_first, from_second], axis=1), -jnp.inf)
    scores, place = jax.lax.top_k(scores, scores.shape[1])
    return jnp.where(scores > -jnp.inf, jnp.take_along_axis(items, place, axis=1), 0), scores


def tiny() -> tuple[CandidateEnsemble, Batch]:
    """An ensemble and a batch small enough for a test."""
    generator, batch = tiger_decoder.tiny()
    return CandidateEnsemble(generator, sasrec.tiny()[0], items=30, beams=4), batch
