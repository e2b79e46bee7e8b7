"""Runs: what they may be continued, evaluated and exported with."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrec.data.builders.table import Table
from jaxrec.data.sequences import Sequences
from jaxrec.data.splits import TimeSplit
from jaxrec.evals.validation import NextItemRetrieval
from jaxrec.experiment import Experiment
from jaxrec.method import bind
from jaxrec.methods.sequential.bert4rec import BERT4Rec
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.param import create
from jaxrec.stages.runs import baseline_ranks, evaluate_run, load_run
from jaxrec.train.checkpoint import fill
from jaxrec.train.loop import train


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """An experiment on a small CSV, with a brand, a price and a code per item."""
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    events = [f"u{user},p{random.integers(12)},{user + 40 * step}" for user in range(30) for step in range(6)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time", *events]) + "\n")
    (tmp_path / "items.csv").write_text("\n".join(["item,title,brand,price,code", *(f"p{i},Item {i},b{i % 3},{i}.5,{i % 4}" for i in range(12))]) + "\n")
    source = Table(str(tmp_path / "events.csv"), items_path=str(tmp_path / "items.csv"))
    features = (Feature("brand"), Feature("price", kind="numeric"))
    return Experiment(method=SASRec(dim=8, layers=1, negatives=4, features=features), data=Sequences(source, batch=8, length=8), steps=2, name="shop")


def test_features_are_filled_from_the_data_without_being_listed(shop, tmp_path):
    train(shop, tmp_path / "run")
    experiment, params, step = load_run(shop, tmp_path / "run")
    assert step == 2 and sorted(experiment.tables) == ["features.brand.table", "features.price.table"]
    assert sorted(np.unique(params.features["brand"].table)) == [0, 1, 2, 3]
    assert np.abs(params.features["price"].table[1:].mean()) < 1e-6 and params.features["price"].table[1:].std() > 0.9


def test_a_run_is_not_continued_or_read_with_another_content_of_the_same_file(shop, tmp_path):
    train(shop, tmp_path / "run")
    evaluate_run(shop, tmp_path / "run")
    path = tmp_path / "events.csv"
    path.write_text(path.read_text().replace("p3,", "p4,"))
    for use in (lambda: train(shop, tmp_path / "run"), lambda: load_run(shop, tmp_path / "run")):
        with pytest.raises(ValueError, match=r"content\.data.*has changed"):
            use()


def test_a_feature_of_another_kind_than_its_column_is_refused(shop):
    for feature, message in (
        (Feature("price"), "kind='categorical', but the column is 'numeric'"),
        (Feature("brand", kind="numeric"), "kind='numeric', but the column is 'categorical'"),
        (Feature("brand", of="user"), "of='user', but the column is 'item'"),
    ):
        with pytest.raises(ValueError, match=message):
            bind(dataclasses.replace(shop.method, features=(feature,)), shop.data.info())


def test_codes_can_be_declared_categorical(shop):
    source = dataclasses.replace(shop.data.source, categorical=("code",))
    assert shop.data.info()["columns"]["code"]["kind"] == "numeric"
    assert Sequences(source).info()["columns"]["code"] == {"of": "item", "kind": "categorical", "rows": 13, "width": 1, "size": 4}
    with pytest.raises(ValueError, match="categorical names colour, and the items and users files have brand, price, code, title"):
        dataclasses.replace(source, categorical=("colour",)).get()


def test_the_mask_of_a_cloze_model_has_no_features(shop):
    experiment = dataclasses.replace(shop, method=BERT4Rec(dim=8, layers=1, negatives=4, features=shop.method.features)).resolve()
    params = fill(create(experiment.method.spec(), jax.random.key(0)), {name: table.get() for name, table in experiment.tables.items()})
    mask = experiment.method.items + 1
    np.testing.assert_array_equal(params.vectors(np.array([mask])), params.item.table[mask][None])


@pytest.mark.parametrize("metric", ["NDCG@5", "Recall@5", "MRR@10"])
def test_the_metric_that_was_chosen_comes_first(shop, metric):
    experiment = shop.resolve()
    params = fill(create(experiment.method.spec(), jax.random.key(0)), {name: table.get() for name, table in experiment.tables.items()})
    name, value = next(iter(NextItemRetrieval(metric=metric)(experiment.method, params, experiment.data)))
    assert name == f"validation {metric}" and 0 <= value <= 1


def test_a_split_that_asks_nobody_says_so(shop, tmp_path):
    """Every user's events lie on one side of both cuts."""
    path = tmp_path / "events.csv"
    path.write_text("user,item,time\n" + "".join(f"u{user},p{(user + step) % 12},{100 * user + step}\n" for user in range(40) for step in range(5)))
    experiment = dataclasses.replace(shop, data=dataclasses.replace(shop.data, split=TimeSplit(0.1, 0.1)), evals=(NextItemRetrieval(),))
    with pytest.raises(ValueError, match="validation asks nobody"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "experiment.json").exists()  # before any work


def test_an_unknown_metric_is_refused_before_work_starts(shop, tmp_path):
    with pytest.raises(ValueError, match="metric 'NDCG@7' is not measured; choose one of Recall@5"):
        train(dataclasses.replace(shop, evals=(NextItemRetrieval(metric="NDCG@7"),)), tmp_path / "run")
    assert not (tmp_path / "run" / "experiment.json").exists()


def test_baselines_are_counted_once_and_see_the_same_questions(shop):
    ranks = baseline_ranks(shop.data, "test")
    assert list(ranks) == ["Popularity", "LastItem", "Markov", "ItemKNN"]
    assert all(len(each) == 30 and each.baseline for each in ranks.values())
    assert baseline_ranks(dataclasses.replace(shop.data, batch=16, seed=5), "test")["Markov"].kept.tolist() == ranks["Markov"].kept.tolist()
