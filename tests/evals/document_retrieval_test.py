from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.sequences import Sequences
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import DocumentRetrieval, best, sample, search
from jaxrec.evals.encoding import TokenVectors, encode
from jaxrec.method import Encoder, Vectors

SOURCE = SyntheticCollection(documents=150, queries=40, words=4000)
DATA = Passages(SOURCE, WordPiece(SOURCE, size=600), query_length=16, document_length=40)


@dataclass(frozen=True)
class Pieces(Encoder):
    """A word piece is its row of a random orthonormal table, so MaxSim counts the pieces of a query that stand in a document."""

    pad: int = 0

    def encode_query(self, params, batch):
        return Vectors(params[batch["query"]], batch["query"] != self.pad)

    def encode_item(self, params, batch):
        return Vectors(params[batch["document"]], batch["document"] != self.pad)


@pytest.fixture(scope="module")
def params():
    vocabulary = DATA.info()["vocabulary"]
    return jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(vocabulary, vocabulary)))[0], jnp.float32)


def overlap(query, document):
    return sum(piece in set(document.tolist()) for piece in query[query != 0])


def test_encoding_leaves_no_padding(params):
    documents = DATA.tokens()["documents"]
    vectors = encode(Pieces(), params, documents, "document", pad=0, batch=32)
    assert len(vectors) == 150
    for row in (0, 7, 149):
        np.testing.assert_array_equal(vectors[row], params[documents[row][documents[row] != 0]])
    values, mask = vectors.padded()
    np.testing.assert_array_equal(values[mask], vectors.values)
    assert not values[~mask].any() and mask.sum() == vectors.offsets[-1]


def test_search_is_exact_and_breaks_ties_by_the_lower_row(params):
    tokens = DATA.tokens()
    rows, scores = search(Pieces(), params, DATA, "test", 5)
    counts = np.array([[overlap(query, document) for document in tokens["documents"]] for query in tokens["test"]])
    order = np.argsort(-counts, axis=1, kind="stable")[:, :5]
    np.testing.assert_allclose(scores, np.take_along_axis(counts, order, axis=1), atol=1e-4)
    vectors = TokenVectors(np.ones((6, 2), np.float32), np.array([0, 1, 3, 6]))
    rows, scores = best(vectors, vectors, 3)
    assert rows.tolist() == [[0, 1, 2]] * 3 and scores[2].tolist() == [6, 6, 6]


def test_the_evaluator_finds_what_words_can_find(params):
    values = dict(DocumentRetrieval(split="test")(Pieces(), params, DATA))
    assert next(iter(values)) == "test nDCG@10" and values["test nDCG@10"] > 0.8
    few = dict(DocumentRetrieval(split="test", queries=10, documents=60)(Pieces(), params, DATA))
    assert 0.8 < few["test nDCG@10"] <= 1
    asked, among = sample(DATA, "test", 10, 60)
    assert len(asked) == 10 and len(among) == 60
    qrels = SOURCE.get().qrels["test"]
    assert np.isin(np.concatenate([qrels.of(query)[0] for query in asked]), among).all()


def test_what_can_never_be_measured_is_said_first(monkeypatch):
    with pytest.raises(ValueError, match="metric 'recall' is not measured; choose one of nDCG@10"):
        DocumentRetrieval(metric="recall").check(DATA)
    with pytest.raises(ValueError, match="the collection has no dev queries; it has test, train, validation"):
        DocumentRetrieval(split="dev").check(DATA)
    with pytest.raises(ValueError, match="searches the documents of Passages, and this data is Sequences"):
        DocumentRetrieval().check(Sequences(source=None))  # type: ignore[arg-type]
    collection = SOURCE.get()
    qrels = collection.qrels["validation"]
    unanswered = dataclasses.replace(collection, qrels={**collection.qrels, "validation": dataclasses.replace(qrels, grades=np.zeros_like(qrels.grades))})
    monkeypatch.setattr(Passages, "collection", lambda _: unanswered)
    DocumentRetrieval(split="test").check(DATA)
    with pytest.raises(ValueError, match="no validation query of the collection has a relevant document"):
        DocumentRetrieval().check(DATA)
