from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.tokenizers import WordPiece
from jaxrec.evals.document_retrieval import search
from jaxrec.experiment import Experiment
from jaxrec.method import FROM_DATA, Method, Vectors
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.bert import BERT
from jaxrec.param import create
from jaxrec.serve import export as export_module
from jaxrec.serve.bundle import Bundle
from jaxrec.serve.export import export
from jaxrec.serve.search_bundle import SearchBundle, is_search_bundle

SOURCE = SyntheticCollection(documents=40, queries=12)
DATA = Passages(SOURCE, WordPiece(SOURCE, size=400), query_length=12, document_length=24)
ENCODER = BERT(vocabulary=FROM_DATA, length=24, dim=16, layers=1, heads=2, hidden=32, types=1, dropout=0.1)
EXPERIMENT = Experiment(method=ColBERT(encoder=ENCODER, dim=8), data=DATA, steps=0, name="tiny")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, method, params) of an untrained ColBERT."""
    experiment = EXPERIMENT.resolve()
    params = jax.jit(lambda key: create(experiment.method.spec(), key))(jax.random.key(0))
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export(experiment, params, 0, folder, metrics={"nDCG@10": 0.5})
    return folder, experiment.method, params


def test_it_finds_what_the_evaluation_finds(exported):
    folder, method, params = exported
    bundle = SearchBundle.open(folder)
    texts = SOURCE.get().queries["test"].texts
    found = bundle.search(texts, 5)
    rows, scores = search(method, params, DATA, "test", 5)
    np.testing.assert_allclose([[answer.score for answer in row] for row in found], scores, rtol=1e-5)
    ids = SOURCE.get().ids
    assert [[answer.document for answer in row] for row in found] == [[ids[row] for row in line] for line in rows]
    assert found[0][0].text == SOURCE.get().texts[ids.index(found[0][0].document)]
    one = bundle.search(texts[3:4], 5)[0]
    assert [answer.document for answer in one] == [answer.document for answer in found[3]]  # alone or in a batch


def test_lists_of_documents(exported):
    bundle = SearchBundle.open(exported[0])
    everyone = bundle.search(["ba be"], 40)[0]
    assert len({answer.document for answer in everyone}) == 40
    few = bundle.search(["ba be"], 5, allow=["document-3", "document-9", "document-4"], deny=["document-9"])[0]
    assert {answer.document for answer in few} == {"document-3", "document-4"}
    without = bundle.search(["ba be"], 3, deny=[answer.document for answer in everyone[:2]])[0]
    assert [answer.document for answer in without] == [answer.document for answer in everyone[2:5]]


@dataclass(frozen=True)
class Stretched(ColBERT):
    """A ColBERT whose document vectors have another length."""

    length: float = 1.0

    def encode_item(self, params, batch, key=None):
        vectors = super().encode_item(params, batch, key)
        return Vectors(self.length * vectors.values, vectors.mask)


def test_many_documents_are_searched_through_centroids_if_they_are_directions(monkeypatch, tmp_path):
    monkeypatch.setattr(export_module, "EXACT", 10)
    for length, engine in ((1.0, "Plaid"), (2.0, "ExactMultiVector")):
        experiment = dataclasses.replace(EXPERIMENT, method=Stretched(encoder=ENCODER, dim=8, length=length)).resolve()
        params = jax.jit(lambda key, method=experiment.method: create(method.spec(), key))(jax.random.key(0))
        export(experiment, params, 0, tmp_path / engine)
        bundle = SearchBundle.open(tmp_path / engine)
        assert bundle.manifest["engine"] == engine and len(bundle.search(["ba be"], 3)[0]) == 3


def test_bad_questions_are_refused(exported):
    bundle = SearchBundle.open(exported[0])
    assert bundle.search([], 3) == []
    with pytest.raises(ValueError, match="query 1 has no text"):
        bundle.search(["ba", " "], 3)
    with pytest.raises(ValueError, match="the queries are the text 'ba'; give a list"):
        bundle.search("ba", 3)
    with pytest.raises(ValueError, match=r"holds no document 'document-44' \(did you mean .*\); its ids are like document-0"):
        bundle.search(["ba"], 3, deny=["document-44"])
    with pytest.raises(ValueError, match="k=41 is more than the 40"):
        bundle.search(["ba"], 41)


def test_damage_and_strangers_are_refused(exported, tmp_path):
    folder, *_ = exported
    assert is_search_bundle(folder)
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        SearchBundle.open(tmp_path)
    with pytest.raises(ValueError, match="finds documents and recommends no items; open it with SearchBundle.open"):
        Bundle.open(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["system"], manifest["documents"], manifest["engine"], manifest["metrics"]) == ("retriever", 40, "ExactMultiVector", {"nDCG@10": 0.5})
    header = folder / "index" / "index.json"
    before = header.read_bytes()
    try:
        header.write_bytes(before.replace(manifest["encoder"].encode(), b"0" * 16))
        with pytest.raises(ValueError, match=r"index.json is not the file that was exported"):
            SearchBundle.open(folder)
        with pytest.raises(ValueError, match="was built from encoder '0000000000000000', not"):
            SearchBundle.open(folder, verify=False)
    finally:
        header.write_bytes(before)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"half/manifest.json cannot be read; the bundle is damaged; export it again"):
        is_search_bundle(tmp_path / "half")
    with pytest.raises(TypeError, match="Silent does not encode texts"):
        export(Experiment(method=Silent(), data=DATA, steps=0), {}, 0, tmp_path / "other")


@dataclass(frozen=True)
class Silent(Method):
    """A method that encodes nothing."""
