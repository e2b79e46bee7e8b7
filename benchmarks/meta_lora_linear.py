"""Meta-LoRA's linear theory in numbers: what is left to adapt after retraining for later adapters, and after retraining for the tasks at hand.

    python -m benchmarks.meta_lora_linear

Tasks are linear maps W_t = A* + U*_t U*_t^T of rank-k differences, of which the loss of infinitely many samples is seen (Block et al. 2024, arXiv
2410.22264):

    standard    min_A sum_t |A - W_t|^2                     A = mean of W_t; a new task is rank k (T + 1) away
    Meta-LoRA   min_A sum_t min_{U_t} |A + U_t U_t^T - W_t|^2   A = A* for T >= 3, so rank k away; for T = 2 rank(A - A*) <= 2 k, so rank 3 k

Then a new task is fitted from n samples with a rank-k adapter, in closed form (reduced-rank regression). No time is measured.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import record
from jaxrec.artifact import say

RATE, STEPS, START = 0.02, 20_000, 0.1
NOISE = 0.1  # standard deviation of what is observed of a new task


class Tasks(NamedTuple):
    """Retraining tasks `maps` [T, d, d], a `new` one [d, d], and the `core` A* [d, d] that they are all k ranks away from."""

    core: np.ndarray
    maps: np.ndarray
    new: np.ndarray


def tasks(d: int, count: int, k: int, seed: int) -> Tasks:
    """Random tasks, with differences of length about one."""
    random = np.random.default_rng(seed)
    core = random.normal(size=(d, d)) / np.sqrt(d)
    factors = random.normal(size=(count + 1, d, k)) / np.sqrt(d)
    maps = core + factors @ factors.swapaxes(1, 2)
    return Tasks(core, maps[:-1], maps[-1])


def residuals(base: jax.Array, factors: jax.Array, maps: jax.Array) -> jax.Array:
    """R_t = A + U_t U_t^T - W_t, [T, d, d], of A [d, d] and U [T, d, k]."""
    return base[None] + jnp.einsum("tik,tjk->tij", factors, factors, precision="highest") - maps


def objective(base: jax.Array, factors: jax.Array, maps: jax.Array) -> jax.Array:
    """sum_t |R_t|^2."""
    return jnp.sum(residuals(base, factors, maps) ** 2)


@partial(jax.jit, static_argnames=("k", "steps"))
def retrain(maps: jax.Array, key: jax.Array, *, k: int, steps: int = STEPS) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradient descent on A and all U_t at once, from A = 0 and small random U: (A [d, d], U [T, d, k], the loss)."""
    T, d, _ = maps.shape
    slope = jax.grad(objective, argnums=(0, 1))

    def step(now: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        return jax.tree.map(lambda leaf, gradient: leaf - RATE * gradient, now, slope(*now, maps)), None

    first = jnp.zeros((d, d)), START * jax.random.normal(key, (T, d, k))
    (base, factors), _ = jax.lax.scan(step, first, None, length=steps)
    return base, factors, objective(base, factors, maps)


def standard(maps: np.ndarray) -> np.ndarray:
    """The minimiser without adapters: the mean."""
    return maps.mean(axis=0)


def rank(matrix: np.ndarray, tolerance: float = 1e-3) -> int:
    """Singular values above `tolerance` times the largest."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > tolerance * values[0]).sum())


def excess(base: np.ndarray, target: np.ndarray, adapter: int) -> float:
    """The loss of infinitely many samples that the best adapter of this rank leaves: the squares of the other singular values (Eckart and Young 1936)."""
    return float((np.linalg.svd(target - base, compute_uv=False)[adapter:] ** 2).sum())


def fitted_excess(base: np.ndarray, target: np.ndarray, adapter: int, samples: int, seed: int) -> float:
    """The same of an adapter that is the least-squares fit to noisy samples: |A + U V^T - W|^2."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(samples, len(base)))
    y = x @ target.T + NOISE * random.normal(size=(samples, len(base))) - x @ base.T  # what the adapter has to explain
    full = np.linalg.lstsq(x, y, rcond=None)[0]  # [inputs, outputs]
    kept = np.linalg.svd(x @ full, full_matrices=False)[2][:adapter]  # the outputs' main directions
    return float(((base + (full @ kept.T @ kept).T - target) ** 2).sum())


def main() -> None:
    rows = []
    d, k = 10, 1
    for count in (2, 3, 5):
        drawn = tasks(d, count, k, seed=0)
        base, _, loss = retrain(jnp.asarray(drawn.maps, jnp.float32), jax.random.key(0), k=k)
        learnt = {"Meta-LoRA": np.asarray(base, np.float64), "standard": standard(drawn.maps)}
        far = {name: rank(drawn.new - found) for name, found in learnt.items()}
        say(f"  T={count}: loss {float(loss):.1e}, |A - A*| / |A*| {np.linalg.norm(learnt['Meta-LoRA'] - drawn.core) / np.linalg.norm(drawn.core):.1e}")
        rows.append({"name": f"rank to a new task, T={count}, k={k}, d={d}", "ours": far["Meta-LoRA"], "peer": far["standard"], "unit": "rank"})
        for samples in (100, 1000, 10_000):
            left = {name: np.mean([fitted_excess(found, drawn.new, k, samples, seed) for seed in range(5)]) for name, found in learnt.items()}
            name = f"excess error of a rank-{k} adapter from {samples} samples, T={count}, k={k}, d={d}"
            rows.append({"name": name, "ours": round(left["Meta-LoRA"], 6), "peer": round(left["standard"], 6), "unit": "squared error"})
    record("meta_lora_linear", rows)


if __name__ == "__main__":
    main()
