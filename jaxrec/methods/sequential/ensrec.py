"""EnsRec: an ensemble of recommenders that were trained apart, one on ids and one on text (Collins et al. 2025, arXiv 2512.17820).

A model of ids and a model of texts find different items. So each is trained alone, kept as it is, and their cosines are added:

  s(u, i) = sum_m w_m cos(u_m, v_m,i) = <[sqrt(w_m) norm(u_m)]_m, [sqrt(w_m) norm(v_m,i)]_m>

The right side is one inner product, so the ensemble is one index and one search. Its parametric family

  log sum_m w_m exp(s_m / tau)

ranks as this sum for large tau and as the largest cosine for small tau; it is no inner product, and scores the whole catalogue.
What we changed: any number of members (two seeds of one model are the paper's control), and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.method import FROM_DATA, Batch, Encoder, Method, Scorer, Vectors
from jaxrec.methods.sequential import sasrec
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.norm import unit
from jaxrec.param import freeze


@dataclass(frozen=True)
class EnsRec(Method, Encoder):
    """Frozen members whose cosines are added. They come from `Experiment.init_from` by name, and `steps=0` leaves them so.

    Attributes:
      members: the models. They share the catalogue and nothing else.
      names: of the members: the prefixes of their parameters.
      weights: of their cosines; () = 1 each.
    """

    members: tuple[NextItem, ...]
    names: tuple[str, ...] = ("id", "text")
    weights: tuple[float, ...] = ()

    def __post_init__(self):
        if not len(self.members) == len(set(self.names)) == len(self.names):
            raise ValueError(f"names={self.names} must be {len(self.members)} different names, one for each member")
        if self.weights and (len(self.weights) != len(self.members) or min(self.weights) < 0 or not sum(self.weights)):
            raise ValueError(f"weights={self.weights} must be {len(self.members)} numbers of at least 0, not all 0, one for each member; or () for equal ones")

    def spec(self) -> dict[str, Any]:
        return {name: freeze(member.spec()) for name, member in zip(self.names, self.members, strict=True)}

    def shares(self) -> tuple[float, ...]:
        """The weights, one for each member."""
        return self.weights or (1.0,) * len(self.members)

    def query_directions(self, params: Any, batch: Batch) -> list[jax.Array]:
        """[B, D] unit vectors of the batch's histories, by each member."""
        return [unit(member.encode_query(params[name], batch).values[:, 0]) for name, member in zip(self.names, self.members, strict=True)]

    def item_directions(self, params: Any, batch: Batch) -> list[jax.Array]:
        """[C, D] unit vectors of the batch's items, by each member."""
        return [unit(member.encode_item(params[name], batch).values[:, 0]) for name, member in zip(self.names, self.members, strict=True)]

    def encode_query(self, params: Any, batch: Batch) -> Vectors:
        return self.joined(self.query_directions(params, batch))

    def encode_item(self, params: Any, batch: Batch) -> Vectors:
        return self.joined(self.item_directions(params, batch))

    def joined(self, vectors: list[jax.Array]) -> Vectors:
        """The members' vectors [B, D] beside each other, scaled so that an inner product of two weighs each member's cosine."""
        scaled = jnp.concatenate([weight**0.5 * part for weight, part in zip(self.shares(), vectors, strict=True)], axis=-1)
        return Vectors(scaled[:, None], jnp.ones((scaled.shape[0], 1), bool))


@dataclass(frozen=True)
class ParametricEnsRec(Method, Scorer):
    """The parametric family over an ensemble, with that ensemble's parameters.

    Attributes:
      ensemble: its members and weights.
      items: catalogue size N.
      tau: temperature of the family: `inf` ranks as the ensemble itself, towards 0 the largest cosine decides.
    """

    ensemble: EnsRec
    items: int = FROM_DATA
    tau: float = 1.0

    def spec(self) -> dict[str, Any]:
        return self.ensemble.spec()

    def score(self, params: Any, batch: Batch) -> jax.Array:
        """[B, N + 1] scores of all items, column = id."""
        queries = self.ensemble.query_directions(params, batch)
        items = self.ensemble.item_directions(params, {"item": jnp.arange(self.items + 1)})
        cosines = jnp.stack([jnp.matmul(query, table.T, precision="highest") for query, table in zip(queries, items, strict=True)])
        return ensemble_scores(cosines, self.ensemble.shares(), self.tau)


def ensemble_scores(scores: jax.Array, weights: tuple[float, ...], tau: float = inf) -> jax.Array:
    """tau log sum_m a_m exp(s_m / tau), with a = weights / sum(weights); the paper's sum of exponentials ranks the same.

    Between the largest score (tau towards 0) and the weighted mean (its limit, and the value for tau = inf). Computed as
    t + tau log1p(sum_m a_m expm1((s_m - t) / tau)) with t the largest score: nothing overflows for small tau, and no digits are lost for large.

    Args:
      scores: [M, ...] of M members, on one scale.
      weights: M numbers of at least 0; a member of weight 0 has no say for any tau.
      tau: above 0.

    Returns:
      [...] float32.
    """
    if tau <= 0:
        raise ValueError(f"tau={tau} must be above 0; math.inf gives the weighted mean")
    if len(weights) != len(scores) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"weights={weights} must be {len(scores)} numbers of at least 0, not all 0, one for each member")
    heard = [member for member, weight in enumerate(weights) if weight]
    share = jnp.asarray([weights[member] / sum(weights) for member in heard], jnp.float32)
    said = jnp.stack([jnp.asarray(scores[member], jnp.float32) for member in heard])
    if tau == inf:
        return jnp.tensordot(share, said, axes=1, precision="highest")
    top = jnp.max(said, axis=0, keepdims=True)
    return top[0] + tau * jnp.log1p(jnp.tensordot(share, jnp.expm1((said - top) / tau), axes=1, precision="highest"))


def tiny() -> tuple[EnsRec, Batch]:
    """An ensemble and a batch small enough for a test."""
    return EnsRec((sasrec.tiny()[0], sasrec.tiny()[0])), tiny_batch()
