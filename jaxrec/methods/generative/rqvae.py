"""RQ-VAE: residual-quantised autoencoder of item vectors (Zeghidour et al. 2021, arXiv 2107.03312; for semantic IDs Rajput et al. 2023, arXiv 2305.05065).

    h = sum_m Enc_m(x_m);   (c_1..c_L) = residual codes of h;   loss = sum_m |x_m - Dec_m(q)|^2 + sum_l |sg(r_l) - C_l[c_l]|^2 + beta |r_l - sg(C_l[c_l])|^2

What keeps the codes from collapsing: inputs standardised with the statistics of the data set, not of a batch, then of norm 1; codebooks that start as residual
k-means of the encoded data; codes that fall out of use start again at what they failed to code. Several embeddings of an item (text, image, behaviour)
are fused in the encoder's output, and each is decoded from it, after Snap's semantic IDs (2026, arXiv 2604.03949), which also give the dense estimator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrec.method import FROM_DATA, Array, Batch, Loss, Method, Predictor, Settler, Starter
from jaxrec.nn.linear import Linear
from jaxrec.ops.quantize import dense_straight_through, gumbel, nearest, residual_codes, residual_kmeans, rotate, straight_through, unit, vq_losses
from jaxrec.ops.quantize import reconstruct as sum_codes
from jaxrec.param import Param, Tree, normal, ones, zeros

ROWS_TO_START = 65_536


@dataclass(frozen=True)
class RQVAE(Method, Predictor, Starter, Settler):
    """An autoencoder whose middle is a sum of codes.

    Batches hold `vector` [B, E], the embeddings of an item side by side; one that is all zero is missing and changes neither code nor loss.

    Attributes:
      width: E, of all embeddings together.
      parts: the width of each embedding; () = there is one.
      levels: L.
      codes: W of each level.
      dim: of the encoded vector and of the codes.
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
      estimator: of the gradient through the choice: "ste" (straight-through), "rotation", "gumbel" or "dense".
      similarity: of the dense estimator.
      temperature: of gumbel and dense; 0 = 0.7 for gumbel, 0.1 for dense.
      commitment: beta.
      revive: a code starts again when its moving share of use falls below this part of an even share; 0 = never.
      decay: of the moving share, per step.
      missing: the probability that training hides all but one of several embeddings of an item, so that codes can be had from one.
    """

    width: int = FROM_DATA
    parts: tuple[int, ...] = ()
    levels: int = 3
    codes: int = 256
    dim: int = 64
    hidden: tuple[int, ...] = (768, 256, 128)
    estimator: Literal["ste", "rotation", "gumbel", "dense"] = "ste"
    similarity: Literal["softmax", "cosine"] = "softmax"
    temperature: float = 0.0
    commitment: float = 0.25
    revive: float = 0.05
    decay: float = 0.99
    missing: float = 0.0

    def __post_init__(self):
        if self.estimator not in ("ste", "rotation", "gumbel", "dense"):
            raise ValueError(f"estimator={self.estimator!r} is not one of ste, rotation, gumbel, dense")
        if self.levels < 1 or self.codes < 2:
            raise ValueError(f"levels={self.levels} and codes={self.codes}: an item needs at least one level of at least two codes")
        if self.parts and self.width != FROM_DATA and sum(self.parts) != self.width:
            raise ValueError(f"parts={self.parts} add up to {sum(self.parts)}, but the vectors have width {self.width}; give the width of each embedding")

    @property
    def coefficients(self) -> Mapping[str, float]:  # type: ignore[override] - beta is a field
        return {"commitment": self.commitment}

    def spec(self) -> Tree:
        parts = self.parts or (self.width,)
        shape = (self.levels, self.codes, self.dim)
        statistics = {
            "mean": Param((sum(parts),), ("feature",), zeros, trainable=False),
            "deviation": Param((sum(parts),), ("feature",), ones, trainable=False),
        }
        usage = {"share": Param(shape[:2], ("level", "codebook"), _even, trainable=False)} if self.revive else {}
        return {
            "input": statistics,
            "encoder": [_layers((width, *self.hidden, self.dim)) for width in parts],
            "decoder": [_layers((self.dim, *reversed(self.hidden), width)) for width in parts],
            "codebook": Param(shape, ("level", "codebook", "embed"), normal(self.dim**-0.5)),
            **usage,
        }

    # --- Vectors to codes and back ---

    def inputs(self, params: Tree, vectors: Array) -> list[Array]:
        """Each embedding [B, E_m] standardised, of norm 1; zero where it is missing. vectors [B, E]."""
        edges = list(itertools.accumulate(self.parts or (self.width,), initial=0))
        scaled = (vectors - params["input"]["mean"][None]) / params["input"]["deviation"][None]
        known = self._known(vectors)
        return [jnp.where(known[:, low:high], unit(scaled[:, low:high])[0], 0) for low, high in itertools.pairwise(edges)]

    def _known(self, vectors: Array) -> Array:
        """[B, E] bool: the entries of embeddings that are not missing."""
        parts = jnp.split(vectors, list(itertools.accumulate(self.parts or (self.width,)))[:-1], axis=1)
        return jnp.concatenate([jnp.broadcast_to(jnp.any(part != 0, axis=1, keepdims=True), part.shape) for part in parts], axis=1)

    def encode(self, params: Tree, inputs: list[Array]) -> Array:
        """[B, D]: the sum of the encoded embeddings that are there."""
        return sum((_present(x) * _perceptron(layers, x) for layers, x in zip(params["encoder"], inputs)), jnp.zeros(()))

    def predict(self, params: Tree, batch: Batch) -> Array:
        """[B, L] codes of `vector`."""
        return residual_codes(self.encode(params, self.inputs(params, batch["vector"])), params["codebook"])[0]

    def decode(self, params: Tree, codes: Array) -> Array:
        """[B, E] vectors that stand for codes [B, L]; the norms of the embeddings are not coded, so only directions of standardised vectors come back."""
        quantized = sum_codes(codes, params["codebook"])
        directions = jnp.concatenate([_perceptron(layers, quantized) for layers in params["decoder"]], axis=1)
        scale = jnp.repeat(
            jnp.sqrt(jnp.asarray(self.parts or (self.width,), jnp.float32)), jnp.asarray(self.parts or (self.width,)), total_repeat_length=directions.shape[1]
        )
        return directions * (scale * params["input"]["deviation"])[None] + params["input"]["mean"][None]

    # --- Training ---

    def loss(self, params: Tree, batch: Batch, key: Array) -> Loss:
        rows = batch["mask"]  # [B]
        inputs = self.inputs(params, batch["vector"])
        hidden = self.encode(params, self._hide(inputs, jax.random.fold_in(key, self.levels)))
        quantized, codes, residuals, chosen = self.quantize(params["codebook"], hidden, key)
        decoded = [_perceptron(layers, quantized) for layers in params["decoder"]]
        errors = sum((_present(x)[:, 0] * jnp.sum((x - y) ** 2, axis=-1) for x, y in zip(inputs, decoded)), jnp.zeros(()))  # [B]
        codebook, commitment = (term.sum(axis=1) for term in vq_losses(residuals, chosen))  # [B]
        used = jax.nn.one_hot(codes, self.codes) * rows[:, None, None]  # [B, L, W]
        weight = rows.sum()
        return Loss(
            terms={name: (value @ rows, weight) for name, value in (("reconstruction", errors), ("codebook", codebook), ("commitment", commitment))},
            stats={"used": used.sum(axis=0)} if self.revive else {},
        )

    def quantize(self, codebook: Array, hidden: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        """(what the decoder sees [B, D], codes [B, L], residuals [B, L, D], chosen codes' vectors [B, L, D]) of hidden [B, D]."""
        codes, residuals, chosen, passed = [], [], [], []
        temperature = self.temperature or {"gumbel": 0.7}.get(self.estimator, 0.1)
        residual = hidden
        for level in range(self.levels):
            book = codebook[level]
            residuals.append(residual)
            if self.estimator == "gumbel":
                code, drawn = gumbel(residual, book, jax.random.fold_in(key, level), temperature=temperature)
                passed.append(drawn)
            else:
                code = nearest(jax.lax.stop_gradient(residual), jax.lax.stop_gradient(book))
                if self.estimator == "dense":
                    passed.append(dense_straight_through(residual, book, code, similarity=self.similarity, temperature=temperature))
            codes.append(code)
            chosen.append(book[code])
            residual = residual - jax.lax.stop_gradient(chosen[-1])
        total = sum(chosen, jnp.zeros_like(hidden))
        through = {"ste": straight_through, "rotation": rotate}.get(self.estimator)
        quantized = sum(passed, jnp.zeros_like(hidden)) if through is None else through(hidden, total)
        return quantized, jnp.stack(codes, axis=1), jnp.stack(residuals, axis=1), jnp.stack(chosen, axis=1)

    def start(self, params: Tree, batches: Iterable[Batch], key: Array) -> Tree:
        """Statistics of the input, and codebooks by residual k-means of the encoded data (its first 65,536 rows)."""
        collected, rows = [], 0
        for batch in batches:
            collected.append(np.asarray(batch["vector"])[np.asarray(batch["mask"]) > 0])
            rows += len(collected[-1])
            if rows >= ROWS_TO_START:
                break
        return jax.jit(self._started)(params, np.concatenate(collected), key)

    def _started(self, params: Tree, vectors: Array, key: Array) -> Tree:
        known = self._known(vectors)
        mean, deviation = vectors.mean(axis=0, where=known), vectors.std(axis=0, where=known)
        params = {**params, "input": {"mean": jnp.nan_to_num(mean), "deviation": jnp.where(deviation > 0, deviation, 1)}}
        return {**params, "codebook": residual_kmeans(self.encode(params, self.inputs(params, vectors)), self.levels, self.codes, key)}

    def settle(self, params: Tree, stats: Mapping[str, Array], batch: Batch, key: Array) -> Tree:
        """Codes out of use start again as residuals that rows of the batch leave at their level."""
        if not self.revive:
            return params
        total = stats["used"].sum(axis=1, keepdims=True)  # [L, 1]
        share = jnp.where(total > 0, self.decay * params["share"] + (1 - self.decay) * stats["used"] / jnp.maximum(total, 1), params["share"])
        dead = share < self.revive / self.codes  # [L, W]

        def revived() -> Array:
            hidden = self.encode(params, self.inputs(params, batch["vector"]))
            residuals = self.quantize(params["codebook"], hidden, key)[2]  # [B, L, D]
            keys = jax.random.split(key, self.levels)
            rows = jnp.stack([jax.random.choice(k, len(residuals), (self.codes,), p=batch["mask"] / jnp.maximum(batch["mask"].sum(), 1e-12)) for k in keys])
            drawn = jnp.stack([residuals[rows[level], level] for level in range(self.levels)])  # [L, W, D]
            return jnp.where(dead[..., None], drawn, params["codebook"])

        codebook = jax.lax.cond(jnp.any(dead), revived, lambda: params["codebook"])
        return {**params, "codebook": codebook, "share": jnp.where(dead, 1 / self.codes, share)}

    def _hide(self, inputs: list[Array], key: Array) -> list[Array]:
        """The embeddings with all but one, drawn at random, hidden for a share `missing` of the rows."""
        if not self.missing or len(inputs) < 2:
            return inputs
        coin, draw = jax.random.split(key)
        hide = jax.random.uniform(coin, (len(inputs[0]), 1)) < self.missing
        keep = jax.random.randint(draw, (len(inputs[0]), 1), 0, len(inputs))
        return [jnp.where(hide & (keep != number), 0, x) for number, x in enumerate(inputs)]


def _even(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return jnp.full(shape, 1 / shape[-1], dtype)


def _layers(widths: tuple[int, ...]) -> list[Linear]:
    return [Linear.spec(inputs, outputs, axes=(None, "hidden")) for inputs, outputs in itertools.pairwise(widths)]


def _perceptron(layers: list[Linear], x: Array) -> Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(layer(x))
    return layers[-1](x)


def _present(x: Array) -> Array:
    """[B, 1] 1 where an embedding is there."""
    return jnp.any(x != 0, axis=1, keepdims=True).astype(x.dtype)


def tiny() -> tuple[RQVAE, Batch]:
    """A model and a batch small enough for a test."""
    vectors = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    method = RQVAE(width=8, parts=(5, 3), levels=2, codes=4, dim=6, hidden=(16,), revive=0)  # revival changes a frozen leaf, the moving share
    return method, {"vector": vectors, "mask": np.ones(16, np.float32)}
