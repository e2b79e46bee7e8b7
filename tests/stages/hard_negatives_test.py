"""Hard negatives: the rule by hand, and both miners on a collection whose answers are known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries, SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.sequences import Sequences
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import search
from jaxrec.experiment import Experiment
from jaxrec.index.bm25 import BM25Index
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.param import abstract, unflatten
from jaxrec.stages.hard_negatives import BM25Negatives, EncoderNegatives, positive_aware
from jaxrec.stages.runs import Trained

SOURCE = SyntheticCollection(documents=60, queries=12, words=120)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXREC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_what_scores_nearly_as_well_as_the_relevant_one_is_dropped():
    rows = np.array([[4, 0, 5, 6, 7, -1]])
    scores = np.array([[12.0, 10.0, 9.6, 9.4, 1.0, 0.5]])
    qrels = Qrels.gather([0], [0], [1], count=1)
    assert positive_aware(rows, scores, qrels, count=3, threshold=0.95).tolist() == [[6, 7, -1]]
    assert positive_aware(rows, scores, qrels, count=1, threshold=0.95).tolist() == [[6]]
    assert positive_aware(rows, scores, qrels, count=3, threshold=1.0).tolist() == [[5, 6, 7]]  # a higher threshold lets more pass


def test_the_lowest_relevant_document_decides_and_none_of_them_is_a_negative():
    rows, scores = np.array([[3, 0, 4, 1, 2]]), np.array([[20.0, 10.0, 8.0, 5.0, 4.0]])
    two = Qrels.gather([0, 0, 0], [0, 1, 4], [2, 1, 0], count=1)  # 4 is judged, and irrelevant
    assert positive_aware(rows, scores, two, count=2, threshold=0.95).tolist() == [[2, -1]]
    unseen = Qrels.gather([0, 0], [0, 9], [1, 1], count=1)  # 9 was not found: everything here may be better than it
    assert positive_aware(rows, scores, unseen, count=2, threshold=0.95).tolist() == [[-1, -1]]


def test_scores_below_zero_are_compared_by_their_distance():
    rows, scores = np.array([[5, 0, 6, 7]]), np.array([[-9.0, -10.0, -10.2, -10.6]])
    assert positive_aware(rows, scores, Qrels.gather([0], [0], [1], count=1), count=2, threshold=0.95).tolist() == [[7, -1]]


def test_a_query_without_relevant_documents_has_no_negatives():
    qrels = Qrels.gather([0, 1], [0, 1], [1, 0], count=3)
    mined = positive_aware(np.tile([0, 1, 2], (3, 1)), np.tile([3.0, 2.0, 1.0], (3, 1)), qrels, count=1, threshold=0.9)
    assert mined.tolist() == [[1], [-1], [-1]]


def violations(mined, scores, qrels, threshold):
    """How many negatives of how many queries are relevant, or score as a negative must not; scores [Q, N] of all documents."""
    wrong = 0
    for query in range(len(mined)):
        relevant = qrels.of(query)[0]
        limit = scores[query, relevant].min()
        wrong += np.isin(mined[query], relevant).sum() + (scores[query, mined[query]] >= limit - (1 - threshold) * abs(limit)).sum()
    return wrong


def test_bm25_negatives_are_hard_and_below_the_threshold(capsys):
    miner = BM25Negatives(SOURCE, count=8, depth=30)
    mined, collection = np.asarray(miner.get()), SOURCE.get()
    qrels = collection.qrels["train"]
    assert mined.shape == (12, 8) and mined.dtype == np.int32
    rows, found = BM25Index(collection.passages()).search(collection.queries["train"].texts, 60)
    scores = np.zeros((12, 60))
    np.put_along_axis(scores, rows, found, axis=1)
    assert violations(mined, scores, qrels, 0.95) == 0
    chosen = np.take_along_axis(scores, mined, axis=1)
    assert (np.diff(chosen[:, :3], axis=1) <= 0).all()  # hardest first
    everything = scores.mean(axis=1)
    assert (chosen[:, 0] > 2 * everything).all()
    looser = np.asarray(dataclasses.replace(miner, threshold=1.0, count=3).get())
    assert (np.take_along_axis(scores, looser, axis=1).sum(axis=1) >= chosen[:, :3].sum(axis=1)).all()


@dataclass(frozen=True)
class Fruit(CollectionSource):
    """Five documents; the second query shares no word with what answers it."""

    def read(self):
        texts = ["red apple", "apple pie", "green pear", "ripe apple tree", "plum"]
        queries = Queries(["a", "b"], ["red apple", "apple"])
        return Collection(list("01234"), [""] * 5, texts, {"train": queries}, {"train": Qrels.gather([0, 1], [0, 4], [1, 1], count=2)})


def test_where_the_search_finds_too_few_the_rest_is_drawn_at_random(capsys):
    mined = np.asarray(BM25Negatives(Fruit(), count=3, depth=5).get())
    assert set(mined[0, :2]) == {1, 3} and mined[0, 2] in (2, 4)  # two that share a word, one that does not
    assert sorted(mined[1]) == [-1, -1, 2] or sorted(mined[1]) == [-1, 2, 2]  # 4 answers it, 0, 1 and 3 were found before it
    assert "2 of 2 queries have fewer than 3 candidates below the threshold; the rest is drawn at random" in capsys.readouterr().err


def trained():
    encoder = BERT(vocabulary=512, length=24, dim=16, layers=1, heads=2, hidden=16, types=1)
    data = Passages(SOURCE, WordPiece(SOURCE, size=512), batch=8, query_length=8, document_length=24)
    return Trained(Experiment(method=ColBERT(encoder=encoder, dim=8), data=data, steps=1))


def test_encoder_negatives_are_those_of_its_exact_search():
    run = trained()
    mined = np.asarray(EncoderNegatives(run, count=4, depth=40, threshold=0.99).get())
    experiment = run.experiment.resolve()
    params = unflatten(abstract(experiment.method.spec()), run.get())
    rows, found = search(experiment.method, params, experiment.data, "train", 60)
    scores = np.zeros((12, 60))
    np.put_along_axis(scores, rows, found, axis=1)
    expected = positive_aware(rows[:, :40], found[:, :40], SOURCE.get().qrels["train"], count=4, threshold=0.99)
    assert (expected >= 0).any()
    np.testing.assert_array_equal(mined[expected >= 0], expected[expected >= 0])
    assert (mined >= 0).all() and not any(np.isin(mined[q], SOURCE.get().qrels["train"].of(q)[0]).any() for q in range(12))


def test_passages_train_on_them():
    data = dataclasses.replace(trained().experiment.data, negatives=BM25Negatives(SOURCE, count=4, depth=30), hard=2)
    batch = data.batches()[0]
    assert batch["negative"].shape == (8, 2, 24)
    mined = np.asarray(data.negatives.get())
    np.testing.assert_array_equal(batch["negative_row"], mined[batch["query_row"], :2])


def test_errors():
    for options in ({"count": 0}, {"count": 9, "depth": 8}, {"threshold": 0.0}, {"threshold": 1.1}):
        with pytest.raises(ValueError, match="need 1 <= count <= depth, and threshold above 0 and at most 1"):
            BM25Negatives(SOURCE, **options)
    experiment = dataclasses.replace(trained().experiment, data=Sequences(Synthetic(users=8, items=20)))
    with pytest.raises(ValueError, match="negatives are mined from Passages, and the data of encoder is Sequences"):
        EncoderNegatives(Trained(experiment))
