"""What the sequence models share, and what sets each apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.examples import pad_histories
from jaxrec.method import FROM_DATA, bind
from jaxrec.methods.sequential import bert4rec, esasrec, hstu, sasrec
from jaxrec.methods.sequential.next_item import tiny_batch
from jaxrec.nn.context import Context, visible
from jaxrec.nn.features import Feature
from jaxrec.param import create, flatten

CAUSAL = {"sasrec": sasrec, "esasrec": esasrec, "hstu": hstu}
ALL = {**CAUSAL, "bert4rec": bert4rec}


def made(module, **changes):
    method = dataclasses.replace(module.tiny()[0], **changes)
    return method, create(method.spec(), jax.random.key(0))


def alone(batch, segment):
    """The histories of one segment number of each packed row as rows of their own."""
    picked = [np.flatnonzero(row == segment) for row in batch["segment"]]
    rows = pad_histories([history[index] for history, index in zip(batch["history"], picked, strict=True)], 8)
    times = pad_histories([time[index] for time, index in zip(batch["time"], picked, strict=True)], 8)["history"]
    return {**rows, "time": times, "user": np.zeros_like(times)}


@pytest.mark.parametrize("name", ALL)
def test_a_packed_history_is_encoded_as_if_it_were_alone(name):
    _, params = made(ALL[name])
    batch = tiny_batch()
    packed = jax.jit(lambda b: params(b, None))(batch)
    for segment, places in ((1, slice(0, 5)), (2, slice(5, 8))):
        separate = jax.jit(lambda b: params(b, None))(alone(batch, segment))
        np.testing.assert_allclose(packed[:, places], separate[:, : places.stop - places.start], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_only_the_cloze_model_sees_the_future(name):
    _, params = made(ALL[name])
    batch = alone(tiny_batch(), 1)
    changed = {**batch, "history": batch["history"].copy()}
    changed["history"][:, 4] = changed["history"][:, 4] % 30 + 1
    before, after = (jax.jit(lambda b: params(b, None))(b) for b in (batch, changed))
    if name == "bert4rec":
        assert np.abs(before[:, :4] - after[:, :4]).max() > 1e-3
    else:
        np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4] - after[:, 4]).max() > 1e-3


@pytest.mark.parametrize("name", ALL)
def test_no_histories_have_no_vectors_and_no_loss(name):
    method, params = made(ALL[name])
    nothing = {column: rows[:0] for column, rows in tiny_batch().items()}
    assert jax.jit(method.encode_query)(params, nothing).values.shape == (0, 1, method.dim)
    value, weight = jax.jit(method.loss)(params, nothing, jax.random.key(0)).terms["loss"]
    assert (value, weight) == (0, 0)


@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_change_a_query(name):
    method, params = made(ALL[name], length=16)
    history = [np.array([3, 7, 9])]
    queries = []
    for length in (4, 9, 16):
        batch = pad_histories(history, length) | {"user": np.zeros((1, length), np.int32), "time": np.zeros((1, length), np.int32)}
        queries.append(jax.jit(method.encode_query)(params, batch).values[0, 0])
    np.testing.assert_allclose(queries[0], queries[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(queries[0], queries[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_name", ["softmax", "sampled_softmax", "bce", "gbce"])
def test_every_loss_is_finite_and_trains_the_whole_model(loss_name):
    method, params = made(sasrec, loss_name=loss_name)

    def objective(params):
        total, weight = method.loss(params, tiny_batch(), jax.random.key(0)).terms["loss"]
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(objective))(params)
    assert np.isfinite(value)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_softmax_is_the_cross_entropy_over_the_items_alone():
    method, params = made(sasrec, loss_name="softmax")
    batch = tiny_batch()
    total, weight = jax.jit(lambda p: method.loss(p, batch, jax.random.key(0)).terms["loss"])(params)
    encode, _ = jax.random.split(jax.random.key(0))
    logits = np.asarray(jnp.einsum("btd,vd->btv", params(batch, encode), params.item.table[1:31]), np.float64)
    chosen = np.take_along_axis(logits, batch["target"][..., None] - 1, axis=-1)[..., 0]
    np.testing.assert_allclose(total / weight, (np.log(np.exp(logits).sum(-1)) - chosen).mean(), rtol=1e-5)


def test_hstu_layer_is_the_papers_equation():
    method, params = made(hstu)
    layer = jax.tree.map(lambda leaf: leaf[0], params.stack.layers)
    random = np.random.default_rng(0)
    layer = dataclasses.replace(
        layer, position_bias=jnp.asarray(random.normal(size=8), jnp.float32), time_bias=jnp.asarray(random.normal(size=64), jnp.float32)
    )
    batch = alone(tiny_batch(), 1)
    x = random.normal(size=(4, 8, 16)).astype(np.float32)
    context = Context(jnp.asarray(batch["segment"]), visible(jnp.asarray(batch["segment"]), causal=True), None, jnp.asarray(batch["time"]))
    got = jax.jit(lambda x: layer(x, context))(x)

    def silu(z):
        return z / (1 + np.exp(-z))

    def standard(z):
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)

    W1, W2, b2 = (np.asarray(a, np.float64) for a in (layer.inner.kernel, layer.outer.kernel, layer.outer.bias))
    for b in range(4):
        length = int(batch["segment"][b].sum())
        U, V, Q, K = np.split(silu(standard(x[b, :length].astype(np.float64)) @ W1), 4, axis=-1)
        mixed = np.zeros_like(U)
        for h in (slice(0, 8), slice(8, 16)):
            for i in range(length):
                for j in range(i + 1):
                    seconds = abs(int(batch["time"][b, i]) - int(batch["time"][b, j]))
                    bias = layer.position_bias[i - j] + layer.time_bias[int(np.clip(np.log1p(np.float32(seconds)) / 0.301, 0, 63))]
                    mixed[i, h] += silu(Q[i, h] @ K[j, h] + bias) / 8 * V[j, h]
        np.testing.assert_allclose(got[b, :length], x[b, :length] + (standard(mixed) * U) @ W2 + b2, rtol=2e-4, atol=2e-4)


def test_hstu_with_times_says_when_there_are_none():
    _, params = made(hstu)
    batch = {key: value for key, value in tiny_batch().items() if key != "time"}
    with pytest.raises(ValueError, match="timed=False"):
        params(batch, None)


def test_a_closed_gate_makes_a_gated_block_the_identity():
    _, params = made(esasrec)
    layer = jax.tree.map(lambda leaf: leaf[0], params.stack.layers)
    shut = dataclasses.replace(
        layer,
        attention_gate=dataclasses.replace(layer.attention_gate, bias=jnp.full(16, -1e9)),
        feed_gate=dataclasses.replace(layer.feed_gate, bias=jnp.full(16, -1e9)),
    )
    segment = jnp.ones((2, 8), jnp.int32)
    x = jax.random.normal(jax.random.key(1), (2, 8, 16))
    context = Context(segment, visible(segment, causal=True))
    np.testing.assert_array_equal(shut(x, context), x)
    assert np.abs(layer(x, context) - x).max() > 1e-2


class TestCloze:
    def test_masks_only_predictions_with_weight_and_about_the_asked_share(self):
        method, _ = made(bert4rec, mask_share=0.3, last_share=0.0)
        batch = {key: np.tile(value, (100, 1)) for key, value in tiny_batch().items()}
        batch["mask"][:, 0] = 0
        items, masked = method.cloze(batch, jax.random.key(0))
        np.testing.assert_array_equal(items, batch["target"])
        assert not masked[:, 0].any()
        assert abs(float(masked[:, 1:].mean()) - 0.3) < 0.03

    def test_a_share_of_the_histories_has_only_its_last_item_masked(self):
        method, _ = made(bert4rec, last_share=1.0)
        _, masked = method.cloze(tiny_batch(), jax.random.key(0))
        np.testing.assert_array_equal(masked, np.tile([0, 0, 0, 0, 1, 0, 0, 1], (4, 1)).astype(bool))

    def test_a_query_ends_with_the_mask_and_a_full_row_loses_its_oldest_item(self):
        method, _ = made(bert4rec)
        batch = method.appended({key: jnp.asarray(value) for key, value in pad_histories([np.array([3, 4]), np.arange(1, 9)], 8).items()})
        np.testing.assert_array_equal(batch["history"], [[3, 4, 31, 0, 0, 0, 0, 0], [2, 3, 4, 5, 6, 7, 8, 31]])
        np.testing.assert_array_equal(batch["segment"], [[1, 1, 1, 0, 0, 0, 0, 0], [1] * 8])


class TestFeatures:
    columns = {
        "brand": {"of": "item", "kind": "categorical", "rows": 31, "width": 2, "size": 4},
        "price": {"of": "item", "kind": "numeric", "rows": 31, "width": 1, "size": 0},
        "age": {"of": "user", "kind": "numeric", "rows": 3, "width": 1, "size": 0},
    }

    def bound(self):
        features = (Feature("brand"), Feature("price", kind="numeric"), Feature("age", of="user", kind="numeric"))
        method = dataclasses.replace(sasrec.tiny()[0], items=FROM_DATA, features=features)
        return bind(method, {"items": 30, "users": 3, "length": 8, "columns": self.columns})

    def test_are_bound_from_the_data_and_change_vectors_and_queries(self):
        method = self.bound()
        assert (method.items, method.features[0].size, method.features[2].rows) == (30, 4, 3)
        params = create(method.spec(), jax.random.key(0))
        random = np.random.default_rng(0)
        brand = np.zeros((31, 2), np.int32)
        brand[1:, 0] = random.integers(1, 5, 30)
        brand[1:10, 1] = 2
        filled = {"brand": brand, "price": random.normal(size=(31, 1)), "age": np.array([[-1.0], [0.0], [1.0]])}
        features = {name: dataclasses.replace(part, table=jnp.asarray(filled[name], part.table.dtype)) for name, part in params.features.items()}
        params = dataclasses.replace(params, features=features)
        got = params.vectors(jnp.arange(31))
        codes = np.asarray(params.features["brand"].codes.table)
        mean = np.stack([codes[row[row > 0]].mean(0) if (row > 0).any() else np.zeros(16) for row in brand])
        price = filled["price"] @ np.asarray(params.features["price"].projection.kernel)
        np.testing.assert_allclose(got, np.asarray(params.item.table[:31]) + mean + price, rtol=1e-5, atol=1e-6)
        one, other = (params({**tiny_batch(), "user": np.full((4, 8), user, np.int32)}, None) for user in (0, 2))
        assert np.abs(one - other).max() > 1e-3

    def test_the_frozen_tables_are_not_trained(self):
        frozen = [name for name, param in flatten(self.bound().spec()).items() if not param.trainable]
        assert sorted(frozen) == ["features.age.table", "features.brand.table", "features.price.table"]

    def test_an_unknown_column_is_named(self):
        method = dataclasses.replace(sasrec.tiny()[0], features=(Feature("colour"),))
        with pytest.raises(ValueError, match="no column 'colour'; it has brand, price, age"):
            bind(method, {"items": 30, "users": 3, "length": 8, "columns": self.columns})


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads=3 does not divide dim=16"):
        dataclasses.replace(sasrec.tiny()[0], heads=3).spec()


@pytest.mark.parametrize("loss_name", ["softmax", "sampled_softmax", "bce", "gbce"])
def test_with_a_temperature_every_loss_sees_cosines_divided_by_it(loss_name):
    plain, params = made(sasrec, loss_name=loss_name)
    random = np.random.default_rng(0)
    hidden = jnp.asarray(random.normal(size=(2, 3, 16)), jnp.float32)
    target, mask = jnp.asarray([[4, 7, 7], [1, 30, 2]]), jnp.asarray([[1.0, 1.0, 0.0], [1.0, 0.5, 1.0]])

    def loss(method, table, hidden):
        whole = dataclasses.replace(params, item=dataclasses.replace(params.item, table=table))
        return method.catalogue_loss(whole, hidden, target, mask, jax.random.key(0)).terms["loss"][0]

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    cosine = dataclasses.replace(plain, temperature=0.07)
    wanted, (table_gradient, gradient) = jax.value_and_grad(loss, (1, 2))(plain, unit(params.item.table), unit(hidden) / 0.07)
    got, (got_table, got_hidden) = jax.value_and_grad(loss, (1, 2))(cosine, params.item.table, hidden)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)

    def through_length(x, gradient):  # d unit(x) / d x projects on the tangent, divided by |x|
        return (gradient - unit(x) * np.sum(unit(x) * gradient, -1, keepdims=True)) / np.linalg.norm(x, axis=-1, keepdims=True)

    np.testing.assert_allclose(got_table, through_length(params.item.table, table_gradient), atol=1e-4)
    np.testing.assert_allclose(got_hidden, through_length(hidden, gradient / 0.07), atol=1e-4)


def test_the_full_softmax_of_cosines_is_the_sampled_one_with_every_item_a_negative(monkeypatch):
    method, params = made(sasrec, loss_name="softmax", temperature=0.1)
    hidden, target = jax.random.normal(jax.random.key(1), (1, 5, 16)), jnp.asarray([[1, 2, 30, 4, 4]])
    full = method.catalogue_loss(params, hidden, target, jnp.ones((1, 5)), jax.random.key(0)).terms["loss"][0]
    unit = np.asarray(params.item.table[1:31], np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = np.asarray(hidden[0], np.float64) @ unit.T / 0.1 / np.linalg.norm(hidden[0], axis=1, keepdims=True)
    np.testing.assert_allclose(full, (np.log(np.exp(scores).sum(1)) - scores[np.arange(5), target[0] - 1]).sum(), rtol=1e-5)
    monkeypatch.setattr("jaxrec.ops.negatives.uniform", lambda key, count, items: jnp.arange(1, items + 1))
    sampled = dataclasses.replace(method, loss_name="sampled_softmax", negatives=30)
    np.testing.assert_allclose(sampled.catalogue_loss(params, hidden, target, jnp.ones((1, 5)), jax.random.key(0)).terms["loss"][0], full, rtol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_with_a_temperature_vectors_are_of_unit_length(name):
    method, params = made(ALL[name], temperature=0.05)
    batch = pad_histories([np.array([3, 7, 9]), np.array([2])], 8)
    for vectors in (method.encode_query(params, batch).values, method.encode_item(params, {"item": np.arange(31)}).values):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="temperature=-1.0 must be at least 0"):
        dataclasses.replace(method, temperature=-1.0)


@pytest.mark.parametrize(
    ("name", "value", "limits"),
    [
        ("items", -3, "least 1"),
        ("length", 0, "least 1"),
        ("dim", -3, "least 1"),
        ("layers", 0, "least 1"),
        ("heads", 0, "least 1"),
        ("hidden", -1, "least 0"),
        ("negatives", 0, "least 1"),
        ("dropout", float("nan"), "least 0 and below 1"),
        ("dropout", 1.0, "least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, value, limits):
    with pytest.raises(ValueError, match=f"^SASRec: {name}={value} must be at {limits}$"):
        sasrec.SASRec(**{name: value})


@pytest.mark.parametrize("value", [1.5, float("nan"), "half"])
def test_the_calibration_of_gbce_is_a_share(value):
    with pytest.raises(ValueError, match=f"^SASRec: gbce_t={value!r} must be from 0 to 1$"):
        sasrec.SASRec(loss_name="gbce", gbce_t=value)


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="^SASRec: loss_name='hinge' must be one of softmax, sampled_softmax, bce, gbce$"):
        sasrec.SASRec(loss_name="hinge")


@pytest.mark.parametrize(("stddev", "wanted"), [(0.0, 16**-0.5), (0.02, 0.02)])
def test_item_and_position_vectors_begin_as_large_as_asked(stddev, wanted):
    spec = sasrec.SASRec(items=2000, length=200, dim=16, stddev=stddev).spec()
    tables = [create(part, jax.random.key(0)).table for part in (spec.item, spec.position)]
    np.testing.assert_allclose([np.std(table) for table in tables], wanted, rtol=0.05)


def test_the_whole_catalogue_needs_no_negatives():
    assert sasrec.SASRec(loss_name="softmax", negatives=0).negatives == 0


class TestItemsWithoutIds:
    text = Feature("text", kind="vector", rows=31, width=6)

    def made(self, module, **changes):
        method, params = made(module, ids=False, features=(self.text,), **changes)
        table = np.random.default_rng(0).normal(size=(31, 6)).astype(np.float32) * (np.arange(31) > 0)[:, None]
        return method, dataclasses.replace(params, features={"text": dataclasses.replace(params.features["text"], table=jnp.asarray(table))})

    def test_are_their_projected_features(self):
        method, params = self.made(sasrec, temperature=0.05)
        assert params.item is None and not [name for name in flatten(method.spec()) if name.startswith("item")]
        wanted = np.asarray(params.features["text"].table) @ np.asarray(params.features["text"].projection.kernel)
        np.testing.assert_allclose(params.vectors(jnp.arange(31)), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(method.encode_item(params, {"item": np.arange(1)}).values, np.zeros((1, 1, 16)))  # no text, no direction

    @pytest.mark.parametrize("loss_name", ["softmax", "sampled_softmax"])
    @pytest.mark.parametrize("name", ["sasrec", "bert4rec"])  # the mask of a cloze model is no item: a zero vector at its position
    def test_train_all_but_the_frozen_vectors(self, name, loss_name):
        method, params = self.made(ALL[name], temperature=0.05, loss_name=loss_name)
        (total, _), gradient = jax.jit(jax.value_and_grad(lambda p: method.loss(p, tiny_batch(), jax.random.key(0)).terms["loss"], has_aux=True))(params)
        assert np.isfinite(total) and all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
        assert [path for path, param in flatten(method.spec()).items() if not param.trainable] == ["features.text.table"]

    def test_a_cloze_model_still_tells_histories_apart(self):
        method, params = self.made(bert4rec)
        queries = method.encode_query(params, pad_histories([np.array([3, 7]), np.array([3, 8])], 8)).values[:, 0]
        assert np.isfinite(queries).all() and np.abs(queries[0] - queries[1]).max() > 1e-3

    def test_need_features(self):
        for features in ((), (Feature("age", of="user", kind="numeric", rows=3, width=1),)):
            with pytest.raises(ValueError, match="ids=False leaves an item only its features, and there are none; set features="):
                dataclasses.replace(sasrec.tiny()[0], ids=False, features=features).spec()
