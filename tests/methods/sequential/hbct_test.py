"""HBCT: one query vector for the old index, the new one and a mixed one; a frozen old model; and an upgrade that pays before any item is encoded anew."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.examples import Examples, pad_histories
from jaxrec.data.sequences import Sequences
from jaxrec.evals.report import measure
from jaxrec.evals.upgrade import Upgrade, UpgradeRetrieval, rank_pairs
from jaxrec.experiment import Experiment, columns_of
from jaxrec.index.exact import ExactIndex
from jaxrec.methods.sequential import hbct
from jaxrec.methods.sequential.bert4rec import BERT4Rec
from jaxrec.methods.sequential.hbct import HBCT, OldIndex
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.param import create, flatten
from jaxrec.stages.runs import Trained, evaluate_beside, load_run
from jaxrec.train.loop import train
from jaxrec.train.step import initial_state, update

METHOD, BATCH = hbct.tiny()


@pytest.fixture(scope="module")
def params():
    """Of the tiny upgrade, with old vectors of many lengths."""
    params = create(METHOD.spec(), jax.random.key(0))
    old = params["old"]
    lengths = np.random.default_rng(0).uniform(0.3, 2, (len(old.item.table), 1)).astype(np.float32)
    return METHOD.start({**params, "old": old.replace(item=old.item.replace(table=old.item.table * lengths))}, [], jax.random.key(0))


def lorentz(x, y):
    """[B, N] <x, y>_L of points [., W] given by their space coordinates, curvature -1, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return x @ y.T - np.sqrt(1 + (x**2).sum(-1))[:, None] * np.sqrt(1 + (y**2).sum(-1))[None]


def test_one_query_searches_the_old_index_the_new_one_and_a_mixed_one(params):
    ids = np.arange(1, 31)
    history = pad_histories([np.array([3, 1, 4]), np.array([5, 9, 2, 6])], 8)

    @jax.jit
    def encoded(params):
        state = METHOD.new.encode_query(params["new"], history).values[:, 0]
        points = METHOD.queries(params, state), METHOD.new_items(params, ids), METHOD.old_items(params, ids)
        system = OldIndex(METHOD)
        vectors = METHOD.encode_query(params, history), METHOD.encode_item(params, {"item": ids}), system.encode_item(params, {"item": ids})
        return points, [each.values[:, 0] for each in vectors], system.encode_query(params, history).values[:, 0]

    (query, new, old), (asked, new_index, old_index), again = encoded(params)
    np.testing.assert_array_equal(asked, again)
    assert asked.shape == (2, 17) and old_index.shape == (30, 17)
    assert not np.any(old_index[:, 8:16])  # the old model has 8 numbers for an item
    filled = np.where(np.arange(30)[:, None] < 10, new_index, old_index)  # ten items are encoded anew so far
    for index, points in ((new_index, new), (old_index, old), (filled, np.where(np.arange(30)[:, None] < 10, new, old))):
        found, scores = ExactIndex(ids, index).search(np.asarray(asked), 30)
        distances = np.arccosh(-lorentz(query, points))
        np.testing.assert_array_equal(found, ids[np.argsort(distances, axis=1)])
        np.testing.assert_allclose(scores, -np.cosh(np.sort(distances, axis=1)), rtol=1e-5)


def test_the_alignment_is_the_formula(params):
    ids, drawn = np.array([3, 7, 7, 12]), np.array([7, 1, 12, 30, 5])

    @jax.jit
    def measured(params):
        points = METHOD.new_items(params, ids)
        positive, others = METHOD.old_items(params, ids), METHOD.old_items(params, drawn)
        return points, positive, others, METHOD.uncertainty(params, positive), METHOD.alignment(params, points, positive, ids, others, drawn)

    points, positive, others, uncertainty, got = measured(params)
    table = np.asarray(params["old"].item.table, np.float64)[1:31]
    norms = np.linalg.norm(table, axis=1)
    time = np.cosh(norms / norms.max() * METHOD.radius)
    np.testing.assert_allclose(uncertainty, 1 - ((time - time.min()) / (time.max() - time.min()))[ids - 1], atol=1e-5)
    lifted = table * (np.sinh(norms / norms.max() * METHOD.radius) / norms)[:, None]
    np.testing.assert_allclose(np.asarray(positive)[:, :8], lifted[ids - 1], atol=1e-6)
    q = METHOD.q[0] + (METHOD.q[1] - METHOD.q[0]) * np.asarray(uncertainty, np.float64)
    own = (1 + np.diagonal(lorentz(points, positive))) / METHOD.temperature
    against = np.where(ids[:, None] == drawn[None], -np.inf, (1 + lorentz(points, others)) / METHOD.temperature)
    total = np.exp(own) + np.exp(against).sum(1)
    np.testing.assert_allclose(got, (-np.exp(q * own) + total**q) / q, rtol=1e-4)


def test_certainty_is_the_length_of_the_old_vector(params):
    norms = np.linalg.norm(np.asarray(params["old"].item.table)[1:31], axis=1)
    u = np.asarray(METHOD.uncertainty(params, METHOD.old_items(params, jnp.arange(1, 31))))
    np.testing.assert_array_equal(np.argsort(u), np.argsort(-norms))
    np.testing.assert_allclose((u.min(), u.max()), (0, 1), atol=1e-5)
    level = {**params, "norm": {"smallest": params["norm"]["largest"], "largest": params["norm"]["largest"]}}
    assert np.isfinite(METHOD.uncertainty(level, METHOD.old_items(level, jnp.arange(1, 31)))).all()


def test_no_gradient_reaches_the_old_model(params):
    @jax.jit
    def gradient(params):
        return jax.grad(lambda p: sum(METHOD.coefficients.get(n, 1.0) * s / w for n, (s, w) in METHOD.loss(p, BATCH, jax.random.key(0)).terms.items()))(params)

    leaves = flatten(gradient(params))  # of all leaves, as if nothing were frozen
    assert any(name.startswith("old.") for name in leaves)
    for name, leaf in leaves.items():
        assert np.any(leaf) == (not name.startswith(("old.", "norm."))), name


def test_its_models_take_their_columns_from_the_data():
    text = Feature("text", kind="vector")
    method = HBCT(SASRec(), SASRec(features=(text,)))
    assert columns_of(method) == {"new.features.text.table": "text"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"new": BERT4Rec(items=30, length=8)}, "new=BERT4Rec is not causal"),
    ({"new": dataclasses.replace(METHOD.new, loss_name="bce")}, "new.loss_name='bce' needs scores around 0"),
    ({"old": dataclasses.replace(METHOD.old, temperature=0.1)}, "old.temperature=0.1 and new.temperature=0.0 must be 0"),
    ({"old": dataclasses.replace(METHOD.old, items=29)}, "old.items=29 and new.items=30 must be one catalogue"),
    ({"q": (0.5, 0.1)}, r"q=\(0.5, 0.1\) must be two numbers, 0 <= q_low <= q_high <= 1"),
    ({"q": (0.1,)}, r"q=\(0.1,\) must be two numbers"),
    ({"growth": 0.9}, "growth=0.9 must be at least 1$"),
    ({"temperature": 0.0}, "temperature=0.0 must be above 0$"),
    ({"curvature": np.nan, "negatives": 0}, "^HBCT: negatives=0 must be at least 1; curvature=nan must be above 0$"),
    ({"align": -1.0}, "align=-1.0 must be at least 0$"),
    ({"radius": 3.0}, r"curvature=1.0, growth=5.0 and radius=3.0 let points lie .* = 15 from the origin, .*; keep it at most 10, better 5"),
])  # fmt: skip
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(METHOD, **changes)


def test_a_run_starts_from_the_trained_old_model_and_measures_its_norms(tmp_path):
    data = Sequences(Synthetic(users=64, items=50), batch=8, length=8, row=24)
    small = SASRec(dim=4, layers=1, dropout=0.0, negatives=8)
    old = Trained(Experiment(small, data, steps=0, seed=3))
    experiment = Experiment(HBCT(small, dataclasses.replace(small, dim=8), negatives=8), data, steps=0, init_from={"old": old})
    train(experiment, tmp_path / "run")
    found, wanted = flatten(load_run(experiment, tmp_path / "run")[1]), old.get()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[f"old.{name}"], leaf)
    norms = np.linalg.norm(wanted["item.table"][1:51], axis=1)
    np.testing.assert_allclose((found["norm.smallest"], found["norm.largest"]), (norms.min(), norms.max()), rtol=1e-6)
    systems = evaluate_beside(experiment, tmp_path / "run")
    assert list(systems)[:3] == [experiment.name, "M(n,o)", "M(o,o)"] and systems["Markov"].baseline
    assert not np.array_equal(systems["M(n,o)"].kept, systems["M(o,o)"].kept)


def test_the_evaluator_says_what_rank_pairs_says(params):
    data = Sequences(Synthetic(users=64, items=30), length=8)
    pairs = rank_pairs(METHOD, params, data.examples("validation"), items=30, length=8)
    said = dict(UpgradeRetrieval("MRR@5")(METHOD, params, data))
    assert said == {f"validation {name} MRR@5": measure(pairs[name].kept)["MRR@5"].mean() for name in ("M(n,o)", "M(o,o)")}
    assert len({round(value, 6) for value in said.values()}) == 2


# --- A shop in which each item has one successor: the old model has learned some, the new one learns all ------------------------------------

ITEMS, LENGTH = 60, 6


def fitted(method, params, rows, steps):
    """The parameters after some steps on all rows at once."""
    batch = {"history": rows[:, :-1], "target": rows[:, 1:], "mask": np.ones((len(rows), LENGTH), np.float32)}
    batch |= {"segment": np.ones((len(rows), LENGTH), np.int32), "position": np.tile(np.arange(LENGTH, dtype=np.int32), (len(rows), 1))}
    tx = optax.adam(1e-2)
    state = initial_state(method, tx, jax.random.key(1))
    state = state.replace(params={**state.params, **params} if params else state.params)
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: (update(method, tx, s, batch)[0], None), state, None, length=steps)[0])(state).params


@functools.cache
def upgraded() -> dict[str, Upgrade]:
    """The upgrade of an old model that was trained little, and that of a new one trained as if there were no old one."""
    random = np.random.default_rng(0)
    order = random.permutation(ITEMS)
    rows = (1 + order[(np.arange(ITEMS)[:, None] + np.arange(LENGTH + 1)) % ITEMS]).astype(np.int32)
    offsets, users = np.arange(ITEMS + 1) * LENGTH, np.arange(ITEMS, dtype=np.int32)
    examples = Examples(rows[:, :-1].reshape(-1), offsets, rows[:, -1], users, np.zeros(ITEMS, bool))
    small = SASRec(ITEMS, LENGTH, dim=8, layers=1, dropout=0.0, loss_name="softmax")
    old = fitted(small, None, rows, 15)
    method = HBCT(small, dataclasses.replace(small, dim=16), negatives=32)
    free = dataclasses.replace(method, entail=0.0, align=0.0)
    ranks = {}
    for name, system in (("compatible", method), ("free", free)):
        start = system.start({"old": old}, [], jax.random.key(0))
        ranks[name] = rank_pairs(system, fitted(system, start, rows, 120), examples, items=ITEMS, length=LENGTH)
    return {name: Upgrade.of(pairs, ranks["free"]["M(n,n)"], "Recall@5") for name, pairs in ranks.items()}


def test_new_queries_find_more_in_the_old_index_than_the_old_ones_did():
    found = upgraded()["compatible"]
    assert 0.1 < found.old_old < 0.7
    assert found.compatible and found.new_old > found.old_old + 0.2
    assert found.new_new > 0.9 and found.gain > 0.5 and abs(found.cost) < 0.1


def test_a_new_model_that_ignores_the_old_one_finds_next_to_nothing_in_its_index():
    found = upgraded()["free"]
    assert found.new_new > 0.9 and found.new_old < 0.25 and found.cost == 0  # by chance: 5 of 60
    assert not found.compatible and found.gain < 0


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_an_old_model_without_vectors_is_refused(params, value):
    old = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params["old"])
    with pytest.raises(ValueError, match=rf"the longest of the old items' vectors has length {value}; start them from a trained model: init_from="):
        METHOD.start({**params, "old": old}, [], jax.random.key(0))
