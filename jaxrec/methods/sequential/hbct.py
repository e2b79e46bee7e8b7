"""HBCT: a new recommender whose queries search the item vectors that the old one left in the index (ICML 2025, arXiv 2506.05826).

An index of vectors that an old model computed cannot be asked by a new model, and computing all of them anew ("back-filling") takes time. HBCT trains the new
model to be backward compatible. Of the paper its abstract is what we could verify: both models' vectors are lifted into hyperbolic space; each new one
is to lie in the entailment cone of its old one; an old vector's time coordinate says how certain it is; and a robust contrastive loss aligns new with
old, weighted by that. All formulas here, what is aligned with what, and the weights are ours:

  o_i = lift(radius / max_j |v_j| * v_j of the old model), padded with zeros      an index can be lifted so without the old model
  n_i, x = lift(W_i * item vector), lift(W_x * state after a history)              of the new model
  score(x, i) = c <x, n_i>_L, and against the old index c <x, o_i>_L              inner products, so any index serves them

  objective = next item(x; n) + entail * max(0, ext(o_i, n_i) - aper(o_i)) + align * (R(x, o_target; q) + R(n_i, o_i; q))

with R the robust InfoNCE against other old vectors, of scores (1 + c <., .>_L) / temperature (0 at most), q_i = q_low + (q_high - q_low) u_i, and
u_i = 1 - (t_i - t_min) / (t_max - t_min) of the old time coordinates over the catalogue. In recommendation two things are to be compatible: R(x, o) makes
new queries find old items, which is what serving needs at once; R(n, o) and the cone keep each item's new vector with its old one, so that
an index may hold both kinds while it is filled. Items of the latter two are drawn uniformly, so that those which nobody buys stay as well.

A short vector is an uncertain one only if training made it so: that holds for scores by inner product and not for cosines, and items that the old model
rarely saw are not distinguished from those it could not tell. Our next-item loss is hyperbolic too, for queries have one vector and two indexes. An
inner product prefers long item vectors and a distance does not, so the old ones are lifted close to the origin (small `radius`), where the space is nearly
flat, and the new ones get the room outside (`growth`); cones are wide there as well. For q > 0 the robust loss fades with distance, so it does the near first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxrec.limits import POSITIVE, check
from jaxrec.method import Batch, Encoder, Loss, Method, Starter, Vectors
from jaxrec.methods.sequential import sasrec
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.linear import Linear
from jaxrec.nn.sequence import last_state
from jaxrec.ops import hyperbolic, negatives
from jaxrec.ops.robust_contrastive import robust_info_nce
from jaxrec.param import Param, Tree, freeze, normal, ones, zeros

FARTHEST = 10  # from the origin, in units of the curvature: scores there are about cosh(10)^2 = 1e8, of which float32 has no decimals left


@dataclass(frozen=True)
class HBCT(Method, Encoder, Starter):
    """A new model trained beside a frozen old one, whose parameters come from `Experiment.init_from={"old": ...}`.

    Attributes:
      old: the model of the deployed index; it scores by inner products.
      new: the model to train, causal, of any width; its softmax, full or sampled, is taken over hyperbolic scores. Both share the catalogue.
      entail: weight of the cones.
      align: weight of the two alignments; with `entail` 0 as well, the new model is trained as if there were no old one.
      curvature: -c of the space is the curvature.
      radius: distance from the origin of the old item farthest from it.
      growth: new vectors may lie `growth` times as far: a cone opens outwards, and needs room.
      temperature: divides scores in the losses.
      boundary: K of the cones' apertures.
      negatives: items drawn for the alignments and the cones.
      q: of robust InfoNCE for the most certain and the most uncertain old item.
      density: lambda of robust InfoNCE.
    """

    old: NextItem
    new: NextItem
    entail: float = 0.1
    align: float = 1.0
    curvature: float = 1.0
    radius: float = 0.3
    growth: float = 5.0
    temperature: float = 0.04
    boundary: float = 0.1
    negatives: int = 256
    q: tuple[float, float] = (0.01, 0.05)
    density: float = 1.0

    names: ClassVar[tuple[str, ...]] = ("old", "new")

    def __post_init__(self):
        if not self.new.causal:
            raise ValueError(f"new={type(self.new).__name__} is not causal, and HBCT learns from the state after each item; take SASRec, eSASRec or HSTU")
        if self.new.loss_name not in ("softmax", "sampled_softmax"):
            raise ValueError(f"new.loss_name={self.new.loss_name!r} needs scores around 0, and hyperbolic ones are negative; choose softmax or sampled_softmax")
        if self.new.temperature or self.old.temperature:
            raise ValueError(
                f"old.temperature={self.old.temperature} and new.temperature={self.new.temperature} must be 0: cosines leave the old norms without a "
                "meaning, and HBCT has a temperature of its own"
            )
        if self.old.items != self.new.items:
            raise ValueError(f"old.items={self.old.items} and new.items={self.new.items} must be one catalogue")
        above = dict.fromkeys(("curvature", "radius", "temperature", "boundary", "density"), POSITIVE)
        check(self, entail=0, align=0, growth=1, negatives=1, **above)
        if not (isinstance(self.q, tuple) and len(self.q) == 2 and 0 <= self.q[0] <= self.q[1] <= 1):
            raise ValueError(f"q={self.q} must be two numbers, 0 <= q_low <= q_high <= 1")
        if (farthest := math.sqrt(self.curvature) * self.growth * self.radius) > FARTHEST:
            raise ValueError(
                f"curvature={self.curvature}, growth={self.growth} and radius={self.radius} let points lie sqrt(curvature) * growth * radius = {farthest:g} "
                f"from the origin, where float32 cannot tell them apart; keep it at most {FARTHEST}, better 5"
            )

    @property
    def coefficients(self) -> Mapping[str, float]:  # type: ignore[override] - they are fields
        return {"entailment": self.entail, "align_query": self.align, "align_item": self.align}

    @property
    def members(self) -> tuple[NextItem, NextItem]:
        """The models by `names`, whose columns the data fills."""
        return self.old, self.new

    @property
    def width(self) -> int:
        """Space coordinates of all points; the shorter vectors are padded, or mapped up."""
        return max(self.old.dim, self.new.dim)

    def spec(self) -> dict[str, Any]:
        return {
            "old": freeze(self.old.spec()),
            "new": self.new.spec(),
            # States have norms of about sqrt(D), vectors of items of about 1: queries are to start at about 1, items where the old ones are.
            "query": Linear.spec(self.new.dim, self.width, bias=False, init=normal((self.new.dim * self.width) ** -0.5)),
            "item": Linear.spec(self.new.dim, self.width, bias=False, init=normal(self.radius * self.width**-0.5)),
            "norm": {  # of the old items' vectors
                "smallest": Param((), (), zeros, trainable=False),
                "largest": Param((), (), ones, trainable=False),
            },
        }

    def start(self, params: Tree, batches: Iterable[Batch], key: jax.Array) -> Tree:
        """Measures the norms of the old items' vectors, which are to fill the space.

        Raises:
          ValueError: they are all zero, or not finite.
        """
        norms = jnp.linalg.norm(params["old"].vectors(jnp.arange(1, self.old.items + 1)), axis=-1)
        smallest, largest = jnp.min(norms), jnp.max(norms)
        if not 0 < float(largest) < math.inf:
            raise ValueError(f"the longest of the old items' vectors has length {float(largest)}; start them from a trained model: init_from={{'old': ...}}")
        return {**params, "norm": {"smallest": smallest, "largest": largest}}

    # --- points: space coordinates [..., W] ---------------------------------------------------------------------------------------------

    def queries(self, params: Tree, hidden: jax.Array) -> jax.Array:
        """Of the new model's states [..., D]."""
        return hyperbolic.lift(params["query"](hidden), self.curvature, self.growth * self.radius)

    def new_items(self, params: Tree, ids: jax.Array) -> jax.Array:
        """Of items as the new model has them."""
        return hyperbolic.lift(params["item"](params["new"].vectors(ids)), self.curvature, self.growth * self.radius)

    def old_items(self, params: Tree, ids: jax.Array) -> jax.Array:
        """Of items as the deployed index has them; no gradient."""
        vectors = params["old"].vectors(ids) * (self.radius / params["norm"]["largest"])
        points = hyperbolic.lift(vectors, self.curvature, self.radius)
        return jax.lax.stop_gradient(jnp.pad(points, [(0, 0)] * (points.ndim - 1) + [(0, self.width - self.old.dim)]))

    def uncertainty(self, params: Tree, old: jax.Array) -> jax.Array:
        """0..1 for the points of old items [..., W]: 0 for that farthest from the origin, 1 for the nearest."""
        bounds = jnp.stack([params["norm"]["smallest"] / params["norm"]["largest"], jnp.ones(())]) * self.radius
        low, high = hyperbolic.time(hyperbolic.lift(bounds[:, None].astype(jnp.float32), self.curvature), self.curvature)
        certain = jnp.clip((hyperbolic.time(old, self.curvature) - low) / jnp.maximum(high - low, 1e-6), 0, 1)
        return jax.lax.stop_gradient(1 - certain)

    # --- training -----------------------------------------------------------------------------------------------------------------------

    def loss(self, params: Tree, batch: Batch, key: jax.Array) -> Loss:
        encode, sample, draw = jax.random.split(key, 3)
        hidden = params["new"](batch, encode)  # [B, T, D]
        query = self.queries(params, hidden)
        scaled = hyperbolic.query_form(query, self.curvature) * (self.curvature / self.temperature)
        with jax.default_matmul_precision("highest"):  # 1 + c <x, y> is a small difference of numbers near 1, which accelerators would round away
            own = self.new.catalogue_loss(_Lifted(params, self), scaled, batch["target"], batch["mask"], sample)  # type: ignore[arg-type]

        target, weight = batch["target"].reshape(-1), batch["mask"].reshape(-1).astype(jnp.float32)
        drawn = negatives.uniform(draw, self.negatives, self.new.items)  # [K]
        old, new = self.old_items(params, drawn), self.new_items(params, drawn)  # [K, W]
        by_query = self.alignment(params, query.reshape(-1, self.width), self.old_items(params, target), target, old, drawn)
        by_item = self.alignment(params, new, old, drawn, old, drawn)
        outside = hyperbolic.entailment(old, new, self.curvature, self.boundary)
        count = jnp.full((), self.negatives, jnp.float32)
        terms = {
            "next_item": own.terms["loss"],
            "entailment": (jnp.sum(outside), count),
            "align_query": (jnp.sum(by_query * weight), jnp.sum(weight)),
            "align_item": (jnp.sum(by_item), count),
        }
        return Loss(terms, metrics={"in_cone": (jnp.sum(outside == 0).astype(jnp.float32), count)})

    def alignment(self, params: Tree, points: jax.Array, positive: jax.Array, ids: jax.Array, others: jax.Array, other_ids: jax.Array) -> jax.Array:
        """Robust InfoNCE of points [N, W] with the old vectors [N, W] of items [N], against the old vectors [K, W] of others [K]. [N]."""
        query = hyperbolic.query_form(points, self.curvature)
        own = jnp.sum(query * hyperbolic.item_form(positive, self.curvature), axis=-1)  # [N]
        against = jnp.matmul(query, hyperbolic.item_form(others, self.curvature).T, precision="highest")  # [N, K]
        own, against = ((1 + self.curvature * inner) / self.temperature for inner in (own, against))
        low, high = self.q
        q = low + (high - low) * self.uncertainty(params, positive)
        return robust_info_nce(own, against, other_ids[None] == ids[:, None], q, self.density)

    # --- search -------------------------------------------------------------------------------------------------------------------------

    def encode_query(self, params: Tree, batch: Batch) -> Vectors:
        """[x_s, -x_t], for the old index, the new one, or one that holds vectors of both."""
        state = last_state(params["new"](batch, None), batch["segment"])
        return _one(hyperbolic.query_form(self.queries(params, state), self.curvature))

    def encode_item(self, params: Tree, batch: Batch) -> Vectors:
        """[n_s, n_t]."""
        return _one(hyperbolic.item_form(self.new_items(params, batch["item"]), self.curvature))

    def encode_old_item(self, params: Tree, batch: Batch) -> Vectors:
        """[o_s, o_t]: what becomes of the deployed index."""
        return _one(hyperbolic.item_form(self.old_items(params, batch["item"]), self.curvature))


@dataclass(frozen=True)
class OldIndex(Method, Encoder):
    """The new model's queries against the old model's items, with the parameters of the upgrade."""

    upgrade: HBCT

    def spec(self) -> dict[str, Any]:
        return self.upgrade.spec()

    def encode_query(self, params: Tree, batch: Batch) -> Vectors:
        return self.upgrade.encode_query(params, batch)

    def encode_item(self, params: Tree, batch: Batch) -> Vectors:
        return self.upgrade.encode_old_item(params, batch)


@struct.dataclass
class _Lifted:
    """The items of the new model as `NextItem.catalogue_loss` asks for them."""

    params: Tree
    method: HBCT = struct.field(pytree_node=False)

    def vectors(self, ids: jax.Array) -> jax.Array:
        """[..., W + 1]"""
        return hyperbolic.item_form(self.method.new_items(self.params, ids), self.method.curvature)

    def table(self, rows: int) -> jax.Array:
        """[rows, W + 1]"""
        return self.vectors(jnp.arange(rows))


def _one(vectors: jax.Array) -> Vectors:
    return Vectors(vectors[:, None], jnp.ones((vectors.shape[0], 1), bool))


def tiny() -> tuple[HBCT, Batch]:
    """An upgrade and a batch small enough for a test."""
    new, _ = sasrec.tiny()
    old = sasrec.SASRec(items=30, length=8, dim=8, layers=1, dropout=0.0)
    return HBCT(old, new, negatives=16), tiny_batch()
