"""Quantizers: vectors to short tuples of codes, learned from the vectors of all items.

A quantizer learns arrays by name (`fit`), and with these codes any vector of the same kind (`encode`) and gives back a vector for codes (`reconstruct`).
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.data.item_vectors import GivenVectors, ItemVectorRows
from jaxrec.experiment import Experiment
from jaxrec.method import bind
from jaxrec.methods.generative.rqvae import RQVAE
from jaxrec.ops.quantize import lloyd, nearest, reconstruct, residual_codes, residual_kmeans, seed_codes, unit, vq_losses
from jaxrec.optimizer import Adam
from jaxrec.param import Tree, abstract, unflatten
from jaxrec.train.checkpoint import read_params
from jaxrec.train.loop import train

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantizer:
    """What semantic IDs need. What a subclass learns holds its codebooks under the name `codebook`, [L, W, ...]."""

    @property
    def widths(self) -> tuple[int, ...]:
        """W of each level."""
        raise TypeError(f"{type(self).__name__} has no widths")

    def fit(self, vectors: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """What is learned from vectors [N, E], by name."""
        raise TypeError(f"{type(self).__name__} does not fit")

    def encode(self, params: Arrays, vectors: np.ndarray) -> np.ndarray:
        """[N, L] int32 codes of vectors [N, E]."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def reconstruct(self, params: Arrays, codes: np.ndarray) -> np.ndarray:
        """[N, E] float32: what codes [N, L] stand for, or the first codes [N, l] of them alone."""
        raise TypeError(f"{type(self).__name__} does not reconstruct")

    def renumber(self, params: Arrays, numbers: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The same quantizer whose level l calls `numbers[l][w]` what it called w."""
        per_code = [name for name in ("codebook", "norms", "share") if name in params]
        places = [np.argsort(number) for number in numbers]
        return {**params, **{name: np.stack([level[place] for level, place in zip(params[name], places, strict=True)]) for name in per_code}}

    def smoke(self) -> Quantizer:
        """The same kind, small and quick."""
        raise TypeError(f"{type(self).__name__} has no miniature")


@dataclass(frozen=True)
class ResidualKMeans(Quantizer):
    """k-means of the vectors, then of what it left, level by level: RK-Means (GRID, Ju et al. 2025, arXiv 2507.22224).

    Attributes:
      levels: L.
      codes: W of each level.
      normalize: residuals are scaled to norm 1 before each level. Then the codes do not add up to the vector; `reconstruct` scales each by the mean norm
        that the vectors of this code had.
      iterations: of Lloyd's algorithm for each level.
    """

    levels: int = 3
    codes: int = 256
    normalize: bool = False
    iterations: int = 20

    def __post_init__(self):
        _check(self.levels, self.codes)

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.codes,) * self.levels

    def fit(self, vectors: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        given = jnp.asarray(vectors, jnp.float32)
        codebooks = residual_kmeans(given, self.levels, self.codes, jax.random.key(seed), iterations=self.iterations, normalize=self.normalize)
        return _described(given, codebooks, self.normalize)

    def encode(self, params: Arrays, vectors: np.ndarray) -> np.ndarray:
        return np.asarray(_residual_codes(jnp.asarray(vectors, jnp.float32), jnp.asarray(params["codebook"]), normalize=self.normalize)[0])

    def reconstruct(self, params: Arrays, codes: np.ndarray) -> np.ndarray:
        levels = codes.shape[1]
        norms = np.stack([norms[code] for norms, code in zip(params["norms"][:levels], codes.T, strict=True)], axis=1)
        return np.asarray(reconstruct(jnp.asarray(codes), jnp.asarray(params["codebook"][:levels]), jnp.asarray(norms)))

    def smoke(self) -> ResidualKMeans:
        return dataclasses.replace(self, levels=min(2, self.levels), codes=4)


@dataclass(frozen=True)
class ResidualVQ(ResidualKMeans):
    """Codebooks by gradient, layer-wise: minimises the mean of |sg(r) - C|^2 + beta |r - sg(C)|^2 with Adam (R-VQ of GRID, arXiv 2507.22224).

    Nothing encodes the vectors, so beta is absent: its term has no gradient. The fixed points of residual k-means are stationary here.

    Attributes:
      normalize: see `ResidualKMeans`; on, as in the paper. (`iterations` are Lloyd's before the descent.)
      steps: of Adam for each level.
      batch: vectors of a step.
      rate: of learning.
    """

    normalize: bool = True
    iterations: int = 0
    steps: int = 3000
    batch: int = 2048
    rate: float = 1e-3

    def fit(self, vectors: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        given = residual = jnp.asarray(vectors, jnp.float32)
        codebooks = []
        for level in range(self.levels):
            residual = unit(residual)[0] if self.normalize else residual
            codebooks.append(_descend(self, residual, jax.random.fold_in(jax.random.key(seed), level)))
            residual = residual - codebooks[-1][nearest(residual, codebooks[-1])]
        return _described(given, jnp.stack(codebooks), self.normalize)


@dataclass(frozen=True)
class LearnedRQVAE(Quantizer):
    """The quantizer of an RQ-VAE that the training loop trains on the vectors.

    Attributes:
      method: the model.
      steps: of training.
      batch: vectors of a step.
      optimizer: of training.
    """

    method: RQVAE = field(default_factory=RQVAE)
    steps: int = 3000
    batch: int = 1024
    optimizer: Adam = field(default_factory=lambda: Adam(peak=1e-3, warmup=1 / 3))

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps={self.steps} and batch={self.batch} must be at least 1: an untrained RQ-VAE has nothing to say")

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.method.codes,) * self.method.levels

    def fit(self, vectors: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        rows = np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype(np.float32)
        data = ItemVectorRows(GivenVectors(rows), self.batch, seed)
        experiment = Experiment(
            method=self.method,
            data=data,  # type: ignore[arg-type] - has what the loop asks of data
            steps=self.steps,
            optimizer=self.optimizer,
            seed=seed,
            log_every=max(self.steps // 10, 1),
            save_every=0,
            name="rqvae",
        )
        with tempfile.TemporaryDirectory() as folder:
            train(experiment, Path(folder))
            return read_params(Path(folder))[0]

    def encode(self, params: Arrays, vectors: np.ndarray) -> np.ndarray:
        method, tree = self._bound(params)
        blocks = np.array_split(np.asarray(vectors, np.float32), max(-(-len(vectors) // 16_384), 1))
        return np.concatenate([np.asarray(_predict(method, tree, block)) for block in blocks])

    def reconstruct(self, params: Arrays, codes: np.ndarray) -> np.ndarray:
        method, tree = self._bound(params)
        return np.asarray(method.decode({**tree, "codebook": tree["codebook"][: codes.shape[1]]}, jnp.asarray(codes)))

    def smoke(self) -> LearnedRQVAE:
        small = dataclasses.replace(self.method, levels=min(2, self.method.levels), codes=4, dim=8, hidden=(16,), parts=())
        return dataclasses.replace(self, method=small, steps=4, batch=16)

    def _bound(self, params: Arrays) -> tuple[RQVAE, Tree]:
        method = bind(self.method, {"width": len(params["input.mean"])})
        return method, jax.tree.map(jnp.asarray, unflatten(abstract(method.spec()), dict(params)))


def _check(levels: int, codes: int) -> None:
    if levels < 1 or codes < 2:
        raise ValueError(f"levels={levels} and codes={codes}: an item needs at least one level of at least two codes (with one code all items are the same)")


_residual_codes = jax.jit(residual_codes, static_argnames=("normalize",))


@functools.partial(jax.jit, static_argnums=0)
def _predict(method: RQVAE, params: Tree, vectors: jax.Array) -> jax.Array:
    return method.predict(params, {"vector": vectors})


def _described(vectors: jax.Array, codebooks: jax.Array, normalize: bool) -> dict[str, np.ndarray]:
    """The codebooks [L, W, E], and the mean norm [L, W] that each code's vectors had before they were scaled (1 where none were)."""
    codes, norms = (np.asarray(array) for array in residual_codes(vectors, codebooks, normalize=normalize))
    means = np.ones(codebooks.shape[:2], np.float32)
    for level in range(len(codebooks) if normalize else 0):
        count = np.bincount(codes[:, level], minlength=codebooks.shape[1])
        total = np.bincount(codes[:, level], norms[:, level], minlength=codebooks.shape[1])
        means[level] = np.where(count > 0, total / np.maximum(count, 1), 1)
    return {"codebook": np.asarray(codebooks), "norms": means}


@functools.partial(jax.jit, static_argnums=0)
def _descend(quantizer: ResidualVQ, vectors: jax.Array, key: jax.Array) -> jax.Array:
    """[W, E] one level's codebook from vectors [N, E]: greedy k-means++, Lloyd's iterations if any, then Adam."""
    start, draw = jax.random.split(key)
    tx = optax.adam(quantizer.rate)

    def objective(codebook: jax.Array, batch: jax.Array) -> jax.Array:
        return vq_losses(batch, codebook[nearest(batch, codebook)])[0].mean()

    def step(carry: tuple[jax.Array, optax.OptState], key: jax.Array) -> tuple[tuple[jax.Array, optax.OptState], None]:
        codebook, state = carry
        batch = vectors[jax.random.randint(key, (min(quantizer.batch, len(vectors)),), 0, len(vectors))]
        changes, state = tx.update(jax.grad(objective)(codebook, batch), state)
        return (optax.apply_updates(codebook, changes), state), None  # type: ignore[return-value] - an array in, an array out

    codebook = seed_codes(vectors, quantizer.codes, start)
    codebook = lloyd(vectors, codebook, quantizer.iterations) if quantizer.iterations else codebook
    (codebook, _), _ = jax.lax.scan(step, (codebook, tx.init(codebook)), jax.random.split(draw, quantizer.steps))
    return codebook
