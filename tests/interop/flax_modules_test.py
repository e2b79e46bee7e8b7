"""Flax modules behind our contract: their own numbers, their own initialisation, our loop, checkpoints and sharding."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from flax import nnx
from flax.errors import ScopeParamNotFoundError
from jax.sharding import PartitionSpec

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment, describe
from jaxrec.interop.flax_modules import FlaxPart, from_linen, from_nnx
from jaxrec.method import FROM_DATA, Loss, Method, bind
from jaxrec.optimizer import Adam
from jaxrec.param import Param, count, create, flatten, freeze, stack, unflatten
from jaxrec.sharding import TABLES, Layout
from jaxrec.train.checkpoint import read_params
from jaxrec.train.loop import train
from jaxrec.train.step import initial_state, make_runner, update

X = jax.ShapeDtypeStruct((1, 6), jnp.float32)
WIDE = ("embed", "hidden")


class LinenMLP(nn.Module):
    width: int = 8
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width, kernel_init=nn.with_logical_partitioning(nn.initializers.normal(0.3), WIDE), name="up")(x)
        return nn.Dense(1, name="down")(nn.Dropout(self.rate, deterministic=not train)(nn.relu(x)))

    def twice(self, x):
        return 2 * self(x)


class NNXMLP(nnx.Module):
    def __init__(self, inputs, width=8, rate=0.0, *, rngs):
        self.up = nnx.Linear(inputs, width, kernel_init=nnx.with_partitioning(nnx.initializers.normal(0.3), WIDE), rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.down = nnx.List([nnx.Linear(width, 1, rngs=rngs)])

    def __call__(self, x):
        return self.down[0](self.dropout(nnx.relu(self.up(x))))

    def twice(self, x):
        return 2 * self(x)


def constructed(key):
    with nnx.use_eager_sharding(False):
        return NNXMLP(6, rngs=nnx.Rngs(key))


LINEN, NNX = from_linen(LinenMLP(), X), from_nnx(NNXMLP, 6)
BOTH = pytest.mark.parametrize("part", [LINEN, NNX], ids=["linen", "nnx"])


@dataclass(frozen=True)
class Regression(Method):
    """(net(x) - y)^2."""

    net: FlaxPart = LINEN

    def spec(self):
        return {"net": self.net.spec()}

    def loss(self, params, batch, key):
        return Loss({"error": (((self.net(params["net"], batch["x"])[:, 0] - batch["y"]) ** 2).sum(), jnp.asarray(float(len(batch["x"]))))})


def points(rows=32):
    x = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    return {"x": x, "y": np.abs(x[:, 0]) - x[:, 1]}


# --- One step's world ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "shapes"),
    [
        (LINEN, {"up.kernel": (6, 8), "up.bias": (8,), "down.kernel": (8, 1), "down.bias": (1,)}),
        (NNX, {"up.kernel": (6, 8), "up.bias": (8,), "down.0.kernel": (8, 1), "down.0.bias": (1,)}),
    ],
    ids=["linen", "nnx"],
)
def test_a_spec_has_the_modules_names_shapes_and_axes(part, shapes):
    spec = flatten(part.spec())
    assert {name: param.shape for name, param in spec.items()} == shapes and count(part.spec()) == 65
    assert all(isinstance(param, Param) and param.dtype == jnp.float32 and param.trainable for param in spec.values())
    assert spec["up.kernel"].axes == WIDE and spec["up.bias"].axes == (None,) and spec[next(n for n in spec if n.startswith("down"))].axes == (None,)
    assert count(freeze(part.spec()), trainable=True) == 0


def test_a_spec_allocates_nothing():
    petabyte = jax.ShapeDtypeStruct((1, 2**20), jnp.float32)
    assert count(from_linen(nn.Dense(2**28), petabyte).spec()) == 2**48 + 2**28
    assert count(from_nnx(nnx.Linear, 2**20, 2**28).spec()) == 2**48 + 2**28


@BOTH
def test_twenty_steps_lower_the_loss(part):
    method, tx, batch = Regression(part), optax.adam(0.03), points()
    state, losses = initial_state(method, tx, jax.random.key(0)), []
    step = jax.jit(functools.partial(update, method, tx))
    for _ in range(20):
        state, values = step(state, batch)
        losses.append(float(values["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_linen_outputs_are_those_of_apply():
    params, x = create(LINEN.spec(), jax.random.key(0)), points()["x"]
    np.testing.assert_array_equal(LINEN(params, x), LinenMLP().apply({"params": params}, x))
    np.testing.assert_array_equal(LINEN(params, x, method="twice"), LinenMLP().apply({"params": params}, x, method="twice"))
    noisy, key = from_linen(LinenMLP(rate=0.5), X), jax.random.key(1)
    expected = LinenMLP(rate=0.5).apply({"params": params}, x, train=True, rngs={"dropout": key})
    np.testing.assert_array_equal(noisy(params, x, train=True, rngs={"dropout": key}), expected)
    np.testing.assert_array_equal(noisy(params, x, train=True, rngs=key), expected)


def test_nnx_outputs_are_those_of_the_module():
    params, x, module = create(NNX.spec(), jax.random.key(0)), points()["x"], constructed(jax.random.key(7))
    nnx.update(module, params)
    np.testing.assert_array_equal(NNX(params, x), module(x))
    np.testing.assert_array_equal(NNX(params, x, method="twice"), module.twice(x))


def test_all_parameters_from_one_key_are_the_modules_own():
    key = jax.random.key(3)
    jax.tree.map(np.testing.assert_array_equal, LINEN.initial(key), nn.meta.unbox(LinenMLP().init(key, jnp.zeros((1, 6)))["params"]))
    jax.tree.map(np.testing.assert_array_equal, NNX.initial(key), nnx.to_pure_dict(nnx.state(constructed(key), nnx.Param)))


@pytest.mark.parametrize("part", [from_linen(LinenMLP(4000), X), from_nnx(NNXMLP, 6, width=4000)], ids=["linen", "nnx"])
def test_leaves_are_drawn_by_the_modules_initialisers_each_from_its_own_key(part):
    leaves = flatten(jax.jit(functools.partial(create, part.spec()))(jax.random.key(0)))
    up, down = leaves["up.kernel"], next(leaf for name, leaf in leaves.items() if name.startswith("down") and name.endswith("kernel"))
    np.testing.assert_allclose([up.mean(), up.std()], [0, 0.3], atol=0.01)
    np.testing.assert_allclose(down.std(), 4000**-0.5, rtol=0.05)  # lecun_normal
    assert not leaves["up.bias"].any()
    assert not np.array_equal(up, flatten(part.initial(jax.random.key(0)))["up.kernel"])
    stacked = create(stack(part.spec(), 2), jax.random.key(0))["up"]["kernel"]
    assert stacked.shape == (2, 6, 4000) and not np.array_equal(stacked[0], stacked[1])


def test_dtypes_are_the_modules():
    spec = from_linen(nn.Dense(4, param_dtype=jnp.bfloat16), X).spec()
    assert spec["kernel"].dtype == jnp.bfloat16 == create(spec, jax.random.key(0))["kernel"].dtype


@pytest.mark.parametrize(("part", "options"), [(from_linen(LinenMLP(rate=0.5), X), {"train": True}), (from_nnx(NNXMLP, 6, rate=0.5), {})], ids=["linen", "nnx"])
def test_a_key_decides_the_dropout(part, options):
    params, x = create(part.spec(), jax.random.key(0)), points()["x"]
    call = jax.jit(lambda key: part(params, x, rngs=key, **options))
    one, same, other = (np.asarray(call(jax.random.key(number))) for number in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, part(params, x))  # without a key: evaluation


def test_streams_of_one_module_differ():
    class Noise(nnx.Module):
        def __init__(self, *, rngs):
            self.a, self.b = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.a(x), self.b(x), self.a(x)

    a, b, again = map(np.asarray, from_nnx(Noise)({}, jnp.ones(64), rngs=jax.random.key(0)))
    assert not np.array_equal(a, b) and not np.array_equal(a, again)


def test_tied_parameters_are_one():
    class Tied(nnx.Module):
        def __init__(self, *, rngs):
            self.embed = nnx.Embed(5, 3, rngs=rngs)
            self.again = self.embed

        def __call__(self, ids):
            return self.again.attend(self.embed(ids))

    part = from_nnx(Tied)
    assert count(part.spec()) == 15
    table = create(part.spec(), jax.random.key(0))
    (embedding,) = jax.tree.leaves(table)
    np.testing.assert_array_equal(part(table, jnp.arange(5)), embedding @ embedding.T)


def test_inputs_may_be_trees_arrays_and_static_options():
    class Takes(nn.Module):
        @nn.compact
        def __call__(self, batch, train):
            assert train is False
            return nn.Dense(2)(batch["x"])

    shaped, given = from_linen(Takes(), {"x": X}, train=False), from_linen(Takes(), {"x": np.ones((1, 6), np.float32)}, train=False)
    assert shaped == given and hash(shaped) == hash(given)
    assert shaped.spec()["Dense_0"]["kernel"].shape == (6, 2)


# --- The whole loop -----------------------------------------------------------------------------------------------------------------------


class LinenMarkov(nn.Module):
    """Scores of the next item from the present one."""

    rows: int
    rate: float = 0.1

    @nn.compact
    def __call__(self, history, train=False):
        table = nn.Embed(self.rows, 16, embedding_init=nn.with_logical_partitioning(nn.initializers.normal(0.1), ("vocab", "embed")))
        return table.attend(nn.Dense(16)(nn.Dropout(self.rate, deterministic=not train)(table(history))))


class NNXMarkov(nnx.Module):
    def __init__(self, rows, *, rngs):
        self.table = nnx.Embed(rows, 16, embedding_init=nnx.with_partitioning(nnx.initializers.normal(0.1), ("vocab", "embed")), rngs=rngs)
        self.dropout, self.dense = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, history):
        return self.table.attend(self.dense(self.dropout(self.table(history))))


def linen_markov(rows):
    return from_linen(LinenMarkov(rows), jax.ShapeDtypeStruct((1, 1), jnp.int32), axes={"vocab": "vocabulary"})


def nnx_markov(rows):
    return from_nnx(NNXMarkov, rows, axes={"vocab": "vocabulary"})


@dataclass(frozen=True)
class Markov(Method):
    """A module made anew from the method's own fields, which the data fills in."""

    make: Callable[[int], FlaxPart]
    items: int = FROM_DATA

    def net(self):
        return self.make(-(-(self.items + 1) // 8) * 8)

    def spec(self):
        return {"net": self.net().spec()}

    def loss(self, params, batch, key):
        options = {"train": True} if self.make is linen_markov else {}
        scores = self.net()(params["net"], batch["history"], rngs=key, **options)  # [B, T, N]
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["target"])
        return Loss({"loss": ((losses * batch["mask"]).sum(), batch["mask"].sum())})


DATA = Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24)
MARKOV = pytest.mark.parametrize("make", [linen_markov, nnx_markov])


@MARKOV
def test_the_loop_trains_stores_and_continues_a_module(make, tmp_path):
    experiment = Experiment(method=Markov(make), data=DATA, steps=40, optimizer=Adam(peak=0.03, warmup=0.0), log_every=1, save_every=20)
    result = train(experiment, tmp_path)
    rows = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 40 and np.mean(rows[-5:]) < 0.8 * np.mean(rows[:5])
    method = experiment.resolve().method
    leaves, step = read_params(tmp_path)
    assert step == 40 and leaves.keys() == flatten(method.spec()).keys() and all(name.startswith("net.") for name in leaves)
    params = unflatten(method.spec(), leaves)
    batch = DATA.batches()[0]
    alone = float(jnp.divide(*method.loss(params, batch, jax.random.key(0)).terms["loss"]))
    assert alone < np.mean(rows[:5])
    assert train(experiment, tmp_path) == result and result["step"] == 40  # the same run, known again by its experiment.json


@MARKOV
def test_axes_are_laid_on_the_mesh(make):
    method = bind(Markov(make), {"items": 50})
    runner = make_runner(method, optax.sgd(0.1), Layout(mesh=(("data", 4), ("model", 2)), rules=TABLES))
    state, values = runner.run(runner.start(), [DATA.batches()[0]])
    (table,) = (leaf for leaf in jax.tree.leaves(state.params) if leaf.shape == (56, 16))
    assert table.sharding.spec == PartitionSpec("model", None) and table.addressable_shards[0].data.shape == (28, 16)
    single, expected = jax.jit(functools.partial(update, method, optax.sgd(0.1)))(initial_state(method, optax.sgd(0.1), jax.random.key(0)), DATA.batches()[0])
    np.testing.assert_allclose(values["loss"][0], expected["loss"], rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), state.params, single.params)


# --- Identity -----------------------------------------------------------------------------------------------------------------------------


def test_parts_made_from_the_same_things_are_equal():
    assert from_linen(LinenMLP(), X) == LINEN and hash(from_linen(LinenMLP(), X)) == hash(LINEN)
    assert from_nnx(NNXMLP, 6) == NNX and hash(from_nnx(NNXMLP, 6)) == hash(NNX)
    others = [from_linen(LinenMLP(9), X), from_linen(LinenMLP(), X, axes={"a": None}), from_nnx(NNXMLP, 7), from_nnx(NNXMLP, 6, rate=0.0), 6]
    assert len({LINEN, NNX, *others}) == 7


def test_a_run_knows_a_part_by_text_without_addresses():
    named = describe(Regression(from_linen(nn.Dense(8, kernel_init=nn.initializers.normal(0.1), dot_general=lambda *_: 0), X)))["net"]
    assert named.startswith("Linen(Dense( features = 8 ") and "float32" in named and "0x" not in named and "\n" not in named
    assert describe(Regression(from_nnx(NNXMLP, 6, width=9)))["net"].endswith("NNXMLP'>, 6, width=9)")
    assert "0x" not in describe(Regression(from_nnx(lambda rngs: NNXMLP(6, rngs=rngs))))["net"]
    assert bind(Regression(from_linen(nn.LayerNorm(), X)), {}) == Regression(from_linen(nn.LayerNorm(), X))  # whose axis -1 is no FROM_DATA


@BOTH
def test_the_command_line_leaves_a_part_alone(part):
    @dataclass(frozen=True)
    class Scaled(Regression):
        scale: float = 1.0

    overridden = tyro.cli(Scaled, default=Scaled(part), args=["--scale", "2"])
    assert overridden.net is part and overridden.scale == 2


def test_a_lambda_constructs_too():
    part = from_nnx(lambda rngs: NNXMLP(6, width=3, rngs=rngs))
    assert part.spec()["up"]["kernel"].shape == (6, 3) and hash(part)


# --- What is refused ----------------------------------------------------------------------------------------------------------------------


class Normed(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(6, rngs=rngs)


class Constant(nnx.Module):
    def __init__(self, array, *, rngs):
        self.dense, self.scale = nnx.Linear(6, 2, rngs=rngs), array()


def test_state_beside_the_parameters_is_refused_by_name():
    with pytest.raises(ValueError, match=r"BatchNorm keeps 'batch_stats' beside its parameters.* use modules without such state \(LayerNorm or GroupNorm"):
        from_linen(nn.BatchNorm(use_running_average=False), X).spec()
    with pytest.raises(ValueError, match=r"Normed keeps norm.mean \(BatchStat\), norm.var \(BatchStat\) beside its parameters.* \(LayerNorm or GroupNorm"):
        from_nnx(Normed).spec()


@pytest.mark.parametrize("array", [lambda: jnp.ones(3), lambda: np.ones(3)], ids=["jax", "numpy"])
def test_arrays_that_are_no_parameters_are_refused_by_name(array):
    with pytest.raises(ValueError, match=r"Constant keeps scale \(a plain array\) beside its parameters.* make it an nnx.Param and `freeze` its spec"):
        from_nnx(Constant, array).spec()


def test_unknown_axes_are_refused_or_renamed():
    kernel_init = nn.with_logical_partitioning(nn.initializers.zeros, ("embed", "mlp"))
    message = r"Dense calls an axis of its parameter kernel 'mlp', which is none of batch, .*; pass axes=\{'mlp': <one of them>\}, or axes=\{'mlp': None\}"
    with pytest.raises(ValueError, match=message):
        from_linen(nn.Dense(4, kernel_init=kernel_init), X).spec()
    for ours in ("hidden", None):
        assert from_linen(nn.Dense(4, kernel_init=kernel_init), X, axes={"mlp": ours}).spec()["kernel"].axes == ("embed", ours)
    with pytest.raises(ValueError, match="Linear calls an axis of its parameter kernel 'mlp'"):
        from_nnx(nnx.Linear, 6, 4, kernel_init=nnx.with_partitioning(nnx.initializers.zeros, ("embed", "mlp"))).spec()


def test_what_cannot_be_hashed_is_refused():
    class Listed(nn.Module):
        widths: list

    with pytest.raises(ValueError, match="is not hashable, so jit cannot hold it; use tuples"):
        from_linen(Listed([1, 2]), X)
    with pytest.raises(ValueError, match="is not hashable"):
        from_nnx(NNXMLP, np.ones(3))


def test_randomness_without_a_key_is_refused():
    class Draws(nnx.Module):
        def __init__(self, *, rngs):
            self.rngs = rngs

        def __call__(self):
            return jax.random.normal(self.rngs.noise(), (2,))

    with pytest.raises(ValueError, match="the module draws random numbers and was called without rngs; pass rngs=key"):
        from_nnx(Draws)({})
    assert from_nnx(Draws)({}, rngs=jax.random.key(0)).shape == (2,)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):  # linen's own words
        from_linen(LinenMLP(rate=0.5), X)(create(LINEN.spec(), jax.random.key(0)), jnp.ones((1, 6)), train=True)


@BOTH
def test_parameters_of_another_structure_are_refused(part):
    params = dict(create(part.spec(), jax.random.key(0)))
    del params["up"]
    with pytest.raises((ScopeParamNotFoundError, ValueError), match="Could not find parameter|different numbers of pytree children"):
        part(params, jnp.ones((1, 6)))
