"""Collection: what it holds, what it refuses, and that it comes back from a folder as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries, SyntheticCollection


def small(**changes) -> Collection:
    """Three documents, the second empty; two test queries, of which the second has no judgements."""
    fields = {
        "ids": ["a", "b", "c"],
        "titles": ["A title", "", ""],
        "texts": ["and text\u2028 of ü", "", "only text"],
        "queries": {"test": Queries(["x", "y"], ["first?", "second?"])},
        "qrels": {"test": Qrels.gather([0, 0], [2, 0], [1, -1], count=2)},
    }
    return Collection(**(fields | changes))


def same(a: Collection, b: Collection) -> None:
    assert (a.ids, a.titles, a.texts, dict(a.queries)) == (b.ids, b.titles, b.texts, dict(b.queries))
    for split in a.qrels:
        for name in ("offsets", "documents", "grades"):
            np.testing.assert_array_equal(getattr(a.qrels[split], name), getattr(b.qrels[split], name))


def test_judgements_are_gathered_by_query_and_document():
    qrels = Qrels.gather([2, 0, 2, 0], [1, 5, 0, 4], [1, 2, 3, 0], count=4)
    assert (qrels.offsets.tolist(), qrels.documents.tolist(), qrels.grades.tolist()) == ([0, 2, 2, 4, 4], [4, 5, 0, 1], [0, 2, 3, 1])
    assert qrels.queries.tolist() == [0, 0, 2, 2] and len(qrels) == 4
    documents, grades = qrels.of(2)
    assert (documents.tolist(), grades.tolist()) == ([0, 1], [3, 1])
    assert not len(qrels.of(3)[0])


def test_passages_join_title_and_text():
    assert small().passages() == ["A title and text\u2028 of ü", "", "only text"]


def test_a_folder_gives_back_what_was_saved_in_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        small().save(tmp_path / name)
    same(small(), Collection.open(tmp_path / "one"))
    for path in (tmp_path / "one").glob("*.gz"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("file", "message"), [("documents.jsonl.gz", r"documents\.jsonl\.gz:\d+: the gzip data"), ("test.npz", r"test\.npz: the qrels are damaged")]
)
def test_a_half_written_file_is_named(tmp_path: Path, file: str, message: str):
    small().save(tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=message + r".*remove it, and it is built again"):
        Collection.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titles": []}, "3 ids, 0 titles, 3 texts; every document has one of each"),
        ({"ids": ["a", "b", "a"]}, r"document 2: document id 'a' appears a second time, first at document 0; .*remove one"),
        ({"ids": ["a", " ", "c"]}, r"document 1: the document id must be non-empty text, got ' '; give it one"),
        ({"ids": [], "titles": [], "texts": []}, "there is no document; a collection needs one at least"),
        ({"queries": {}}, "queries have the splits , qrels test"),
        ({"queries": {"test": Queries(["x", "y"], ["first?", "\n"])}}, r"test query 1: the query has no text; write one, or remove"),
        ({"queries": {"test": Queries(["x", "x"], ["first?", "second?"])}}, r"test query 1: query id 'x' appears a second time"),
        ({"queries": {"test": Queries(["x", "y"], ["first?"])}}, r"test: 2 ids and 1 texts of queries"),
        ({"qrels": {"test": Qrels.gather([0], [0], [1], count=1)}}, r"test: offsets of qrels must rise from 0 to the 1 judgements in 3 entries"),
        ({"qrels": {"test": Qrels.gather([0], [3], [1], count=2)}}, r"test: qrels name rows 3\.\.3 of 3 documents"),
        ({"qrels": {"test": Qrels.gather([0, 0], [2, 2], [1, 1], count=2)}}, r"test: document 'c' is judged twice for query 'x'"),
    ],
)
def test_what_is_wrong_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_synthetic_queries_are_words_of_their_documents():
    collection = SyntheticCollection(documents=30, queries=10).get()
    assert set(collection.queries) == {"train", "validation", "test"} and len(collection.ids) == 30
    for split, (ids, texts) in collection.queries.items():
        assert len(ids) == 10
        for query, text in enumerate(texts):
            (answer,), (grade,) = collection.qrels[split].of(query)
            assert grade == 1 and set(text.split()) <= set(collection.texts[answer].split())
    same(collection, SyntheticCollection(documents=30, queries=10).read())
    assert SyntheticCollection(documents=30, queries=10, seed=1).read().texts != collection.texts


def test_every_source_has_a_miniature():
    @dataclasses.dataclass(frozen=True)
    class Mine(CollectionSource):
        pass

    assert len(Mine().smoke().get().ids) == 60
    with pytest.raises(TypeError, match="Mine is a source of a collection without a read method"):
        Mine().read()
    with pytest.raises(ValueError, match=r"need documents, queries, words and asked of 1 or more"):
        SyntheticCollection(queries=0)
