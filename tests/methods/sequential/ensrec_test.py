"""EnsRec: one index serves the sum of cosines, the parametric family keeps its limits, and members of different kinds gain by being added."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.examples import Examples, pad_histories
from jaxrec.data.features import RandomVectors
from jaxrec.data.sequences import Sequences
from jaxrec.evals.complementarity import complementarity
from jaxrec.evals.retrieval import rank
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA, bind
from jaxrec.methods.sequential import ensrec, sasrec
from jaxrec.methods.sequential.ensrec import EnsRec, ParametricEnsRec, ensemble_scores
from jaxrec.methods.sequential.next_item import tiny_batch
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.param import count, create, flatten
from jaxrec.serve.bundle import Bundle
from jaxrec.serve.export import export
from jaxrec.stages.runs import Trained, load_run
from jaxrec.train.checkpoint import fill
from jaxrec.train.loop import train
from jaxrec.train.step import initial_state, update

TEXT = Feature("text", kind="vector", rows=31, width=6)


def cosines(method, params, batch):
    """[M, B, N + 1] by each member, in float64."""

    def unit(x):
        x = np.asarray(x, np.float64)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    found = []
    for name, member in zip(method.names, method.members, strict=True):
        query = member.encode_query(params[name], batch).values[:, 0]
        items = member.encode_item(params[name], {"item": np.arange(31)}).values[:, 0]
        found.append(unit(query) @ unit(items).T)
    return np.stack(found)


@pytest.fixture(scope="module")
def ensemble():
    """(method, params, batch) of two members, one by cosines and one by inner products, of different widths."""
    method = EnsRec((sasrec.tiny()[0], dataclasses.replace(sasrec.tiny()[0], dim=8, temperature=0.1)))
    histories = [np.random.default_rng(b).integers(1, 31, 3 + b) for b in range(4)]
    return method, create(method.spec(), jax.random.key(0)), pad_histories(histories, 8)


class TestOneIndex:
    @pytest.mark.parametrize("weights", [(), (0.3, 0.7), (1.0, 0.0)])
    def test_an_inner_product_is_the_weighted_sum_of_cosines(self, ensemble, weights):
        method, params, batch = ensemble
        method = dataclasses.replace(method, weights=weights)
        query = np.asarray(method.encode_query(params, batch).values[:, 0])
        items = np.asarray(method.encode_item(params, {"item": np.arange(31)}).values[:, 0])
        assert query.shape == (4, 16 + 8) and items.shape == (31, 24)
        wanted = np.tensordot(weights or (1, 1), cosines(method, params, batch), axes=1)
        np.testing.assert_allclose(query @ items.T, wanted, atol=1e-6)
        half = items.astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(query @ half.T, wanted, atol=2e-3)

    def test_nothing_of_it_is_trained(self, ensemble):
        assert count(ensemble[0].spec(), trainable=True) == 0 and count(ensemble[0].spec()) > 0

    @pytest.mark.parametrize(("changes", "message"), [
        ({"names": ("id",)}, r"names=\('id',\) must be 2 different names"),
        ({"names": ("id", "id")}, "must be 2 different names"),
        ({"weights": (1.0,)}, r"weights=\(1.0,\) must be 2 numbers"),
        ({"weights": (1.0, -1.0)}, "of at least 0"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
    ])  # fmt: skip
    def test_what_cannot_be_is_refused(self, ensemble, changes, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(ensemble[0], **changes)


class TestParametricFamily:
    scores = np.random.default_rng(0).uniform(-1, 1, (2, 5, 200)).astype(np.float32)

    @pytest.mark.parametrize("tau", [0.05, 1.0, 20.0])
    @pytest.mark.parametrize("share", [0.5, 0.2])
    def test_is_the_papers_equation(self, tau, share):
        wanted = np.log(share * np.exp(self.scores[0].astype(np.float64) / tau) + (1 - share) * np.exp(self.scores[1].astype(np.float64) / tau))
        np.testing.assert_allclose(ensemble_scores(self.scores, (share, 1 - share), tau), tau * wanted, atol=2e-6)

    @pytest.mark.parametrize("tau", [1e2, 1e5, 1e9])
    def test_large_tau_ranks_as_the_plain_sum(self, tau):
        got, plain = ensemble_scores(self.scores, (1, 1), tau), ensemble_scores(self.scores, (1, 1))
        np.testing.assert_allclose(plain, self.scores.mean(0), atol=1e-7)
        np.testing.assert_allclose(got, plain, atol=0.5 / tau + 1e-6)  # the next term of the series is the variance / 2 tau
        places = np.argsort(np.argsort(np.asarray(got[0]))), np.argsort(np.argsort(np.asarray(plain[0])))
        assert np.corrcoef(*places)[0, 1] > 0.9999

    def test_small_tau_is_the_larger_score_and_does_not_overflow(self):
        np.testing.assert_allclose(ensemble_scores(self.scores, (0.5, 0.5), 1e-3), self.scores.max(0), atol=1e-3)

    @pytest.mark.parametrize("tau", [1e-3, 1.0, 1e5, math.inf])
    def test_a_share_of_all_or_nothing_leaves_one_member(self, tau):
        np.testing.assert_array_equal(ensemble_scores(self.scores, (1, 0), tau), self.scores[0])
        np.testing.assert_array_equal(ensemble_scores(self.scores, (0, 1), tau), self.scores[1])

    def test_scores_the_catalogue_with_the_ensembles_parameters(self, ensemble):
        method, params, batch = ensemble
        soft = bind(ParametricEnsRec(dataclasses.replace(method, weights=(0.3, 0.7)), tau=0.5), {"items": 30, "length": 8})
        assert soft.items == 30 and flatten(soft.spec()).keys() == flatten(params).keys()
        wanted = 0.5 * np.log(np.tensordot((0.3, 0.7), np.exp(cosines(method, params, batch) / 0.5), axes=1))
        np.testing.assert_allclose(jax.jit(soft.score)(params, batch), wanted, atol=2e-6)

    @pytest.mark.parametrize(("weights", "tau", "message"), [
        ((1, 1), 0.0, "tau=0.0 must be above 0; math.inf gives the weighted mean"),
        ((1, 1, 1), 1.0, "must be 2 numbers"),
        ((1, -1), 1.0, "of at least 0"),
        ((0, 0), 1.0, "not all 0"),
    ])  # fmt: skip
    def test_what_cannot_be_is_refused(self, weights, tau, message):
        with pytest.raises(ValueError, match=message):
            ensemble_scores(self.scores, weights, tau)


def test_a_run_of_no_steps_is_the_trained_members_as_they_are(tmp_path):
    source = Synthetic(users=64, items=50)
    data = Sequences(source, batch=8, length=8, row=24, columns=(RandomVectors(source, 6),))
    one = SASRec(dim=8, layers=1, dropout=0.0, negatives=8, temperature=0.1)
    two = dataclasses.replace(one, ids=False, features=(Feature("text", kind="vector"),))
    parts = {name: Trained(Experiment(method, data, steps=3, log_every=0, save_every=0)) for name, method in (("id", one), ("text", two))}
    experiment = Experiment(EnsRec((one, two)), data, steps=0, evals=(NextItemRetrieval(),), init_from=parts, name="ensemble")
    result = train(experiment, tmp_path / "run")
    assert result["step"] == 0 and 0 <= result["best_validation NDCG@10"] <= 1
    assert train(experiment, tmp_path / "run")["best_validation NDCG@10"] == result["best_validation NDCG@10"]  # again: nothing is left to do

    resolved, params, step = load_run(experiment, tmp_path / "run")
    wanted = {f"{name}.{leaf}": array for name, part in parts.items() for leaf, array in part.get().items()}
    assert step == 0 and wanted.keys() == flatten(params).keys() and np.abs(wanted["text.features.text.table"]).max() > 0
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, wanted[name])

    export(resolved, params, step, tmp_path / "bundle")
    history = [3, 7, 9]
    query = resolved.method.encode_query(params, pad_histories([np.array(history)], 8)).values[0, 0]
    items = resolved.method.encode_item(params, {"item": np.arange(51)}).values[:, 0]
    names = source.get().items
    served = Bundle.open(tmp_path / "bundle").recommend([[names[item - 1] for item in history]], k=5, keep_seen=True, exact=True)[0]
    best = np.argsort(-np.asarray(items[1:] @ query), kind="stable")[:5]
    assert [each.item for each in served] == [names[item] for item in best]


# --- Users of two kinds: some follow items, some follow what the texts say ----------------------------------------------------------------

CHAINED, CLUSTERS, SIZE, LENGTH = 40, 8, 12, 8
ITEMS = CHAINED + CLUSTERS * SIZE


def shop():
    """(training histories [R, LENGTH + 1], questions, texts [ITEMS + 1, 8]).

    Items 1..40 share one text and follow each other in a fixed order. The others lie in clusters that their texts tell, and the next item
    is any of the next cluster; a quarter of them is never sold in training.
    """
    random = np.random.default_rng(0)
    text = np.zeros((ITEMS + 1, CLUSTERS + 2), np.float32)
    text[1 : CHAINED + 1, 0] = 1
    cluster = np.arange(CLUSTERS * SIZE) % CLUSTERS
    text[CHAINED + 1 + np.arange(CLUSTERS * SIZE), 1 + cluster] = 1
    text[CHAINED + 1 :] += 0.1 * random.normal(size=(CLUSTERS * SIZE, CLUSTERS + 2))
    order = random.permutation(CHAINED)

    def chains(users):
        return 1 + order[(random.integers(CHAINED, size=(users, 1)) + np.arange(LENGTH + 1)) % CHAINED]

    def readers(users, size):
        steps = (random.integers(CLUSTERS, size=(users, 1)) + np.arange(LENGTH + 1)) % CLUSTERS
        return CHAINED + 1 + steps + CLUSTERS * random.integers(size, size=steps.shape)

    train_rows = np.concatenate([chains(60), readers(30, SIZE * 3 // 4)]).astype(np.int32)
    asked = np.concatenate([chains(100), readers(100, SIZE)]).astype(np.int32)
    cold = ~np.isin(asked[:, -1], train_rows)
    offsets = np.arange(len(asked) + 1) * LENGTH
    examples = Examples(asked[:, :-1].reshape(-1), offsets, asked[:, -1], np.arange(len(asked), dtype=np.int32), cold, None)
    return train_rows, examples, text


def fitted(method, rows, text, seed):
    """The parameters of a model trained alone."""
    batch = {"history": rows[:, :-1], "target": rows[:, 1:], "mask": np.ones((len(rows), LENGTH), np.float32)}
    batch |= {"segment": np.ones((len(rows), LENGTH), np.int32), "position": np.tile(np.arange(LENGTH, dtype=np.int32), (len(rows), 1))}
    tx = optax.adam(1e-2)
    state = initial_state(method, tx, jax.random.key(seed))
    if method.features:
        state = state.replace(params=fill(state.params, {"features.text.table": text}))
    return jax.jit(lambda state: jax.lax.scan(lambda s, _: (update(method, tx, s, batch)[0], None), state, None, length=150)[0])(state).params


@functools.cache
def measured():
    """Ranks by system."""
    rows, examples, text = shop()
    one = SASRec(ITEMS, LENGTH, dim=16, layers=1, dropout=0.1, loss_name="softmax", temperature=0.1)
    two = dataclasses.replace(one, ids=False, features=(dataclasses.replace(TEXT, rows=ITEMS + 1, width=text.shape[1]),))
    ids = [fitted(one, rows, text, seed) for seed in (0, 1)]
    texts = fitted(two, rows, text, 0)
    systems = {
        "id": (one, ids[0]),
        "other id": (one, ids[1]),
        "text": (two, texts),
        "id + text": (EnsRec((one, two)), {"id": ids[0], "text": texts}),
        "id + id": (EnsRec((one, one), names=("a", "b")), {"a": ids[0], "b": ids[1]}),
    }
    return {name: rank(method, params, examples, items=ITEMS, length=LENGTH) for name, (method, params) in systems.items()}


def recall(name, chosen=slice(None)):
    return float((measured()[name].kept[chosen] <= 10).mean())


def test_id_and_text_beat_both_members_and_two_seeds_of_one():
    assert recall("id", slice(100)) > 0.9 and recall("text", slice(100, 200)) > recall("id", slice(100, 200)) + 0.1  # each has users of its own
    assert recall("id + text") > max(recall("id"), recall("text"), recall("id + id")) + 0.1
    pair, seeds = (complementarity(measured()["id"], measured()[other])[0] for other in ("text", "other id"))
    assert pair.jaccard < seeds.jaccard and pair.genie > seeds.genie


def test_the_ensemble_finds_cold_items_that_ids_alone_cannot():
    cold = measured()["id"].cold  # ids know nothing of them: their cosines are noise, which costs the text model many, but not all
    assert 20 < cold.sum() < 60 and recall("text", cold) > 0.6
    assert recall("id + text", cold) > recall("id", cold) + 0.1


def test_members_take_what_they_need_from_the_data():
    member = dataclasses.replace(sasrec.tiny()[0], items=FROM_DATA)
    text = dataclasses.replace(member, ids=False, features=(Feature("text", kind="vector"),))
    columns = {"text": {"of": "item", "kind": "vector", "rows": 31, "width": 6, "size": 0}}
    bound = bind(EnsRec((member, text)), {"items": 30, "length": 8, "columns": columns})
    assert [each.items for each in bound.members] == [30, 30] and bound.members[1].features == (dataclasses.replace(TEXT, size=0),)
    assert "id.item.table" in flatten(bound.spec()) and "text.item.table" not in flatten(bound.spec())


def test_tiny_has_a_query_for_each_history():
    method, _ = ensrec.tiny()
    params = create(method.spec(), jax.random.key(0))
    vectors = jax.jit(method.encode_query)(params, {key: jnp.asarray(value) for key, value in tiny_batch().items()})
    np.testing.assert_allclose(jnp.sum(vectors.values**2, axis=-1), 2, rtol=1e-5)
