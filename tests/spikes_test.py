"""Four systems of about sixty lines that the contracts must carry: a quantiser, a two-gradient loss, a frozen reference, in-batch negatives."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.batches import Batches
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Evaluator, Experiment
from jaxrec.method import FROM_DATA, Balancer, Loss, Method, Settler, Starter
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.linear import Linear
from jaxrec.optimizer import Adam
from jaxrec.param import Param, create, flatten, freeze, normal, ones, zeros
from jaxrec.sharding import Layout
from jaxrec.stages.runs import Trained
from jaxrec.train.checkpoint import Checkpoints
from jaxrec.train.loop import train
from jaxrec.train.step import initial_state, make_runner, update


@dataclass(frozen=True)
class Clusters:
    """Points around `centres` random centres: what a quantiser is good at."""

    batch: int = 32
    rows: int = 128
    width: int = 6
    centres: int = 8

    capacity: ClassVar[int] = 1

    def points(self):
        random = np.random.default_rng(0)
        centre = random.normal(size=(self.centres, self.width))[random.integers(self.centres, size=self.rows)]
        return (centre + 0.01 * random.normal(size=(self.rows, self.width))).astype(np.float32)

    def batches(self, process=0, processes=1):
        return Batches({"x": self.points(), "mask": np.ones(self.rows, np.float32)}, self.batch, 0, process, processes)

    def info(self):
        return {"width": self.width}

    def examples_per_row(self):
        return 1.0


class Watch(Evaluator):
    """Keeps the parameters that it is shown, by name."""

    def __init__(self):
        self.seen = []

    def __call__(self, method, params, data):
        self.seen.append({name: np.asarray(leaf) for name, leaf in flatten(params).items()})
        yield "score", 0.0


# --- RQ-VAE: codebooks that start from data and settle without a gradient -------------------------------------------------------------


@dataclass(frozen=True)
class RQVAE(Method, Starter, Settler):
    """Residual quantisation with k-means starts, codebooks as moving averages, and revival of codes that nothing uses."""

    width: int = FROM_DATA
    levels: int = 2
    codes: int = 8
    decay: float = 0.9
    least: float = 0.1

    def spec(self):
        def book(*shape, init):
            return Param((self.levels, self.codes, *shape), ("level", "codebook", "embed")[: 2 + len(shape)], init, trainable=False)

        return {
            "encoder": Linear.spec(self.width, 4, axes=("feature", "embed")),
            "decoder": Linear.spec(4, self.width, axes=("embed", "feature")),
            "codebook": book(4, init=normal(1.0)),
            "used": book(init=ones),
            "total": book(4, init=normal(1.0)),
        }

    def quantize(self, codebook, z):
        """([B, L] codes, [B, L, 4] residuals that each level quantised, [B, 4] their sum)."""
        codes, residuals, residual = [], [], z
        for level in range(self.levels):
            distance = jnp.sum((residual[:, None] - codebook[level][None]) ** 2, axis=-1)  # [B, K]
            codes.append(jnp.argmin(distance, axis=-1))
            residuals.append(residual)
            residual = residual - codebook[level][codes[-1]]
        return jnp.stack(codes, 1), jnp.stack(residuals, 1), z - residual

    def loss(self, params, batch, key):
        z = params["encoder"](batch["x"])
        codes, residuals, quantized = self.quantize(params["codebook"], z)
        decoded = params["decoder"](z + jax.lax.stop_gradient(quantized - z))
        rows, weight = batch["mask"], batch["mask"].sum()
        one_hot = jax.nn.one_hot(codes, self.codes) * rows[:, None, None]  # [B, L, K]
        return Loss(
            terms={
                "reconstruction": (((decoded - batch["x"]) ** 2).sum(-1) @ rows, weight),
                "commitment": (((z - jax.lax.stop_gradient(quantized)) ** 2).sum(-1) @ rows, weight),
            },
            stats={"used": one_hot.sum(0), "total": jnp.einsum("blk,bld->lkd", one_hot, residuals)},
        )

    def start(self, params, batches, key):
        x = np.concatenate([batch["x"] for batch in batches])
        residual, books = params["encoder"](jnp.asarray(x)), []
        for level in range(self.levels):
            centres = jax.random.choice(jax.random.fold_in(key, level), residual, (self.codes,), replace=False)
            for _ in range(10):
                nearest = jax.nn.one_hot(jnp.argmin(jnp.sum((residual[:, None] - centres[None]) ** 2, -1), -1), self.codes)  # [B, K]
                centres = jnp.where(nearest.sum(0)[:, None] > 0, nearest.T @ residual / jnp.maximum(nearest.sum(0), 1)[:, None], centres)
            books.append(centres)
            residual = residual - centres[jnp.argmin(jnp.sum((residual[:, None] - centres[None]) ** 2, -1), -1)]
        return {**params, "codebook": jnp.stack(books), "total": jnp.stack(books), "used": jnp.ones_like(params["used"])}

    def settle(self, params, stats, batch, key):
        used = self.decay * params["used"] + (1 - self.decay) * stats["used"]
        total = self.decay * params["total"] + (1 - self.decay) * stats["total"]
        _, residuals, _ = self.quantize(params["codebook"], params["encoder"](batch["x"]))  # [B, L, 4]
        revived = jnp.stack([jax.random.choice(jax.random.fold_in(key, level), residuals[:, level], (self.codes,)) for level in range(self.levels)])
        dead = (used < self.least)[..., None]
        codebook = jnp.where(dead, revived, total / used[..., None])
        return {**params, "codebook": codebook, "total": jnp.where(dead, revived, total), "used": jnp.where(dead[..., 0], 1.0, used)}


def test_a_quantiser_starts_from_data_and_settles():
    method, data = RQVAE(width=6), Clusters()
    batches = [data.batches()[number] for number in range(4)]
    key, tx = jax.random.key(0), optax.adam(3e-3)
    plain = initial_state(method, tx, key)
    started = plain.replace(params=method.start(plain.params, batches, key))
    reconstruction = jax.jit(lambda params: method.loss(params, batches[0], key).terms["commitment"][0])
    assert reconstruction(started.params) < 0.1 * reconstruction(plain.params)

    lost = started.params["codebook"].at[0, 3].set(100.0)  # a code that nothing is near
    started = started.replace(params={**started.params, "codebook": lost, "used": started.params["used"].at[0, 3].set(0.05)})
    after, values = jax.jit(functools.partial(update, method, tx))(started, batches[0])
    z = started.params["encoder"](jnp.asarray(batches[0]["x"]))
    codes = np.asarray(method.quantize(lost, z)[0])[:, 0]
    for code in range(8):  # the moving average in NumPy; the encoder moved before `settle`, so revivals are of its new outputs
        mine = np.asarray(z)[codes == code]
        used = 0.9 * float(started.params["used"][0, code]) + 0.1 * len(mine)
        total = 0.9 * np.asarray(started.params["total"])[0, code] + 0.1 * mine.sum(0)
        if code != 3:
            np.testing.assert_allclose(after.params["codebook"][0, code], total / used, rtol=1e-4, atol=1e-5)
    moved = np.asarray(after.params["encoder"](jnp.asarray(batches[0]["x"])))
    assert np.abs(moved - np.asarray(after.params["codebook"])[0, 3]).max(1).min() < 1e-5 and after.params["used"][0, 3] == 1
    assert values.keys() == {"reconstruction", "commitment", "loss"}


def test_the_loop_starts_and_trains_a_quantiser(tmp_path):
    watch = Watch()
    experiment = Experiment(method=RQVAE(), data=Clusters(), steps=60, optimizer=Adam(peak=1e-2), evals=(watch,), eval_every=30, log_every=1)  # type: ignore[arg-type]
    result = train(experiment, tmp_path)
    rows = [row for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))]
    assert rows[0]["commitment"] < 1e-3  # the loop started the codebooks from the data
    losses = [row["reconstruction"] for row in rows]
    assert len(losses) == 60 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5]) and result["step"] == 60
    assert not np.array_equal(watch.seen[0]["codebook"], watch.seen[1]["codebook"])


# --- Two gradients: coefficients from the gradients themselves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoGoals(Method, Balancer):
    """(w - a)^2 / 2 and (w - b)^2 / 2, weighed so that the step descends both (Desideri 2012: the smallest convex combination)."""

    def spec(self):
        return {"w": Param((2,), (None,), zeros)}

    def loss(self, params, batch, key):
        rows = batch["mask"].sum()
        return Loss({name: (0.5 * (((params["w"][None] - batch[name]) ** 2).sum(-1) @ batch["mask"]), rows) for name in ("a", "b")})

    def balance(self, values, gradients):
        a, b = gradients["a"]["w"], gradients["b"]["w"]
        share = jnp.clip((b - a) @ b / jnp.maximum((a - b) @ (a - b), 1e-12), 0, 1)
        return {"a": share, "b": 1 - share}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("a", "b", "share"),
    [
        ([2.0, 0.0], [0.0, 2.0], 0.5),  # as far: the middle
        ([4.0, 0.0], [0.0, 2.0], 0.2),  # min |c (4, 0) + (1 - c) (0, 2)|: 16 c = 4 (1 - c)
        ([6.0, 0.0], [1.0, 0.5], 0.0),  # the shorter one alone descends both
    ],
)
def test_coefficients_come_from_the_gradients(a, b, share, accumulate):
    method, tx = TwoGoals(), optax.sgd(1.0)
    mask = np.array([1, 1, 0.5, 0], np.float32)
    batch = {"a": np.tile(np.float32(a), (4, 1)), "b": np.tile(np.float32(b), (4, 1)), "mask": mask}
    state = initial_state(method, tx, jax.random.key(0))
    after, values = jax.jit(functools.partial(update, method, tx, accumulate=accumulate))(state, batch)
    np.testing.assert_allclose(after.params["w"], share * np.array(a) + (1 - share) * np.array(b), rtol=1e-6)  # w = 0: the gradients are -a and -b
    halves = {"a": np.dot(a, a) / 2, "b": np.dot(b, b) / 2}
    assert float(values["loss"]) == pytest.approx(share * halves["a"] + (1 - share) * halves["b"]) and float(values["a"]) == pytest.approx(halves["a"])


# --- A frozen reference: a second parameter set from a trained run -----------------------------------------------------------------------


MODEL = SASRec(dim=16, layers=1, dropout=0.0, negatives=8)


@dataclass(frozen=True)
class Anchored(Method):
    """A policy that starts as a trained model and is held near it: (state - reference state)^2 beside its own loss."""

    model: SASRec = MODEL

    def spec(self):
        return {"policy": self.model.spec(), "reference": freeze(self.model.spec())}

    def loss(self, params, batch, key):
        own = self.model.loss(params["policy"], batch, key)
        apart = (params["policy"](batch, None) - params["reference"](batch, None)) ** 2  # [B, T, D]
        return own.replace(terms={**own.terms, "apart": ((apart.sum(-1) * batch["mask"]).sum(), batch["mask"].sum())})


def test_a_reference_is_the_trained_checkpoint_and_stays_it(tmp_path):
    data = Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24)
    first = Experiment(method=MODEL, data=data, steps=6, log_every=0, save_every=0)
    train(first, tmp_path / "first")
    trained = Trained(first)
    checkpoint = {name: np.asarray(leaf) for name, leaf in trained.get().items()}
    watch = Watch()
    sources = {"policy": trained, "reference": str(tmp_path / "first")}  # an artifact, and the folder of a run
    experiment = Experiment(method=Anchored(), data=data, steps=5, init_from=sources, evals=(watch,), eval_every=1, log_every=1)
    train(experiment, tmp_path / "second")
    for params in watch.seen:
        for name, leaf in checkpoint.items():
            np.testing.assert_array_equal(params[f"reference.{name}"], leaf)
    assert any(not np.array_equal(watch.seen[-1][f"policy.{name}"], leaf) for name, leaf in checkpoint.items())
    first_row = json.loads((tmp_path / "second" / "metrics.jsonl").read_text().splitlines()[0])
    assert first_row["apart"] == 0  # the policy starts as the reference, exactly

    runner = make_runner(experiment.resolve().method, experiment.optimizer.build(5), Layout())
    moments = [name for name in flatten(runner.abstract.optimizer) if "reference" in name]
    assert moments == []  # a frozen branch has no optimiser state
    assert Checkpoints(tmp_path / "second").latest_step() == 5


# --- In-batch negatives: examples that couple --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InBatch(Method):
    """Each row's `x` should find its own `y` among all of the batch. Encoding in chunks, recomputed on the way back, saves memory."""

    chunks: int = 1

    couples: ClassVar[bool] = True

    def spec(self):
        return {"query": Linear.spec(6, 4, axes=("feature", "embed")), "item": Linear.spec(6, 4, axes=("feature", "embed"))}

    def encode(self, tower, x):
        parts = x.reshape(self.chunks, -1, x.shape[-1])
        return jax.lax.map(jax.checkpoint(lambda part: jnp.tanh(tower(part))), parts).reshape(len(x), -1)

    def loss(self, params, batch, key):
        scores = self.encode(params["query"], batch["x"]) @ self.encode(params["item"], batch["y"]).T  # [B, B]
        return Loss({"loss": (-jnp.trace(jax.nn.log_softmax(scores)), jnp.asarray(float(len(scores))))})


def test_encoding_in_chunks_gives_the_same_gradient():
    random = np.random.default_rng(0)
    batch = {name: random.normal(size=(16, 6)).astype(np.float32) for name in "xy"}
    params = create(InBatch().spec(), jax.random.key(0))
    gradients = [jax.jit(jax.grad(lambda p, m=InBatch(chunks): m.loss(p, batch, jax.random.key(0)).terms["loss"][0]))(params) for chunks in (1, 4)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *gradients)
    whole, _ = make_runner(InBatch(4), optax.sgd(0.1), Layout()).run(make_runner(InBatch(4), optax.sgd(0.1), Layout()).start(), [batch])
    single, _ = jax.jit(functools.partial(update, InBatch(), optax.sgd(0.1)))(initial_state(InBatch(), optax.sgd(0.1), jax.random.key(0)), batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), whole.params, single.params)  # negatives of all devices


def test_what_would_change_a_coupled_loss_is_refused():
    experiment = Experiment(method=InBatch(), data=Clusters(), steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="InBatch couples the examples of a batch, so accumulate=2"):
        dataclasses.replace(experiment, accumulate=2)
    with pytest.raises(ValueError, match="compile='pmap' would change its loss"):
        dataclasses.replace(experiment, layout=Layout(compile="pmap"))
