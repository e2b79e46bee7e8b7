"""XQuAD, TQuAD and AfriQA: passages once, questions once, and errors that name the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from jaxrec.data.builders.qa_passages import AfriQA, TQuAD, XQuAD


def squad(path: Path, *paragraphs: tuple[str, list[str]], title: str = "T") -> None:
    """Writes SQuAD's JSON of one article: contexts and their questions."""
    article = {"title": title, "paragraphs": [{"context": context, "qas": [{"question": q} for q in questions]} for context, questions in paragraphs]}
    path.write_bytes(gzip.compress(json.dumps({"data": [article]}).encode()))


def test_passages_and_questions_come_once(tmp_path: Path):
    squad(tmp_path / "train-v0.1.json.gz", ("\ufeffbir", ["q1", "q2"]), ("iki", ["q2", "q3"]), ("boş", []))
    squad(tmp_path / "dev-v0.1.json.gz", ("bir ", ["q1 ", "q4"]), ("üç", ["q5"]), title="U")
    collection = TQuAD(data_dir=str(tmp_path)).read()
    assert (collection.texts, collection.titles) == (["bir", "iki", "boş", "üç"], ["T", "T", "T", "U"])
    assert {split: queries.texts for split, queries in collection.queries.items()} == {"train": ["q2", "q3"], "test": ["q1", "q4", "q5"]}
    assert [collection.qrels["train"].of(query)[0].tolist() for query in range(2)] == [[0, 1], [1]]
    assert [collection.qrels["test"].of(query)[0].tolist() for query in range(3)] == [[0], [0], [3]]


def test_questions_of_another_language(tmp_path: Path):
    squad(tmp_path / "xquad.tr.json.gz", ("bir", ["soru 1", "soru 2"]), ("iki", ["soru 3"]))
    squad(tmp_path / "xquad.en.json.gz", ("one", ["question 1", "question 2"]), ("two", ["question 3"]))
    collection = XQuAD("tr", questions="en", data_dir=str(tmp_path)).read()
    assert (collection.texts, collection.queries["test"].texts) == (["bir", "iki"], ["question 1", "question 2", "question 3"])
    assert collection.qrels["test"].documents.tolist() == [0, 0, 1]
    assert XQuAD("tr", data_dir=str(tmp_path)).read().queries["test"].texts[0] == "soru 1"
    squad(tmp_path / "xquad.en.json.gz", ("one", ["question 1"]), ("two", ["question 2", "question 3"]))
    with pytest.raises(ValueError, match=r"xquad\.en\.json\.gz has other numbers of questions than .*xquad\.tr\.json\.gz; .*parallel"):
        XQuAD("tr", questions="en", data_dir=str(tmp_path)).read()


def test_afriqa_leaves_out_questions_without_passage(tmp_path: Path, capsys):
    folder = tmp_path / "gold_passages" / "kin"
    folder.mkdir(parents=True)
    splits = {
        "train": [("q0", "", "one"), ("q2", "T", None)],
        "dev": [("q3", "S", "one")],
        "test": [("q0", "S", "one"), ("q1", "S", "one"), ("q4", "T", "two")],
    }
    for file, rows in splits.items():
        lines = [json.dumps({"question_lang": q, "question_translated": f"en {q}", "title": title, "context": context}) for q, title, context in rows]
        (folder / f"gold_span_passages.afriqa.kin.en.{file}.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    collection = AfriQA(data_dir=str(tmp_path)).read()
    assert collection.passages() == ["one", "T two"]
    assert {split: queries.texts for split, queries in collection.queries.items()} == {"validation": ["q3"], "test": ["q0", "q1", "q4"]}
    assert "train.json.gz: 1 of 2 questions have no passage and are left out" in capsys.readouterr().err
    assert AfriQA(translated=True, data_dir=str(tmp_path)).read().queries["test"].texts == ["en q0", "en q1", "en q4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [', r"dev-v0\.1\.json\.gz:1: not whole JSON .*; fetch the file again"),
        ("[1]", r"dev-v0\.1\.json\.gz:1: SQuAD's JSON is an object with a list \"data\""),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"dev-v0\.1\.json\.gz: article 0 lacks 'context'"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str):
    squad(tmp_path / "train-v0.1.json.gz", ("bir", ["q1"]))
    (tmp_path / "dev-v0.1.json.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(ValueError, match=message):
        TQuAD(data_dir=str(tmp_path)).read()


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"xquad: xquad\.tr\.json\.gz, xquad\.en\.json\.gz not found"):
        XQuAD(questions="en", data_dir=str(tmp_path)).inputs()
    with pytest.raises(FileNotFoundError, match=r"afriqa: gold_passages/kin/.*train.*dev.*test"):
        AfriQA(data_dir=str(tmp_path)).inputs()


def test_public_sets_have_their_numbers(data_dir: Path):
    counts = {}
    for source in (XQuAD(), TQuAD(), AfriQA()):
        collection = source.get()
        counts[type(source).__name__] = (len(collection.ids), {split: len(queries.ids) for split, queries in collection.queries.items()})
    assert counts == {
        "XQuAD": (240, {"test": 1184}),
        "TQuAD": (2097, {"train": 7441, "test": 888}),
        "AfriQA": (721, {"train": 213, "validation": 228, "test": 344}),
    }
