"""Reasoning: how it is kept with a collection, read from BEIR's files, and laid out behind a query."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders.beir import Beir
from jaxrec.data.collection import Collection, CollectionSource, SyntheticCollection
from jaxrec.data.reasoned_passages import ReasonedPassages, TokenizedReasoning
from jaxrec.data.tokenizers import WordPiece

PLAIN = SyntheticCollection(documents=12, queries=4, words=100)


@dataclasses.dataclass(frozen=True)
class Reasoned(CollectionSource):
    """The synthetic collection; of the four training queries the first thinks two steps, the third one long one, and the others none."""

    def read(self) -> Collection:
        collection = PLAIN.get()
        return dataclasses.replace(collection, reasoning={"train": [["ba be", "bi"], [], ["bo bu da " * 9], []]})


TOKENIZER = WordPiece(PLAIN, size=300)
DATA = ReasonedPassages(Reasoned(), TOKENIZER, batch=4, query_length=8, document_length=12, reasoning_length=20)


def ids(text: str) -> list[int]:
    return TOKENIZER.get().encode(text, add_special_tokens=False).ids


def test_reasoning_stays_with_its_collection(tmp_path: Path):
    collection = Reasoned().read()
    (tmp_path / "it").mkdir()
    collection.save(tmp_path / "it")
    assert Collection.open(tmp_path / "it").reasoning == collection.reasoning
    assert PLAIN.get().reasoning == {}
    for wrong, message in (({"train": [[]]}, "train: reasoning for 1 queries, and there are 4 queries"), ({"dev": []}, "dev: .* and there are no such split")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(collection, reasoning=wrong)


def test_a_row_is_the_query_as_it_is_alone_and_its_steps():
    table = TokenizedReasoning(Reasoned(), TOKENIZER, 8, 20).get()
    tokens, end = DATA.tokens()["train"], TOKENIZER.get().token_to_id("[SEP]")
    for query, row, step in zip(tokens, table["reasoning"], table["step"], strict=True):
        alone = query[query != 0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert (row[step] == end).all() and row.shape == (20,)
    first = tokens[0][tokens[0] != 0].tolist()
    wanted = [*first, *ids("ba be"), end, *ids("bi"), end]
    assert table["reasoning"][0].tolist() == (wanted + [0] * 20)[:20]
    assert np.flatnonzero(table["step"][0]).tolist() == [len(first) + len(ids("ba be")), len(wanted) - 1]
    assert table["step"][[1, 3]].sum() == 0 and (table["reasoning"][1] != 0).sum() == (tokens[1] != 0).sum()
    assert np.flatnonzero(table["step"][2]).tolist() == [19] and table["reasoning"][2, -1] == end  # cut, and still ended


def test_a_step_without_a_place_is_left_out(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    length = int((DATA.tokens()["train"][0] != 0).sum()) + len(ids("ba be")) + 2  # one place too few for the second step
    table = TokenizedReasoning(Reasoned(), TOKENIZER, 8, length).get()
    assert np.flatnonzero(table["step"][0]).tolist() == [length - 2]
    assert "2 of 4 training queries have reasoning, and 2 do not fit into" in capsys.readouterr().err


def test_batches_hold_the_reasoning_of_their_queries():
    table = TokenizedReasoning(Reasoned(), TOKENIZER, 8, 20).get()
    batch = DATA.batches()[0]
    for name in ("reasoning", "step"):
        np.testing.assert_array_equal(batch[name], table[name][batch["query_row"]])
    assert batch["step"].dtype == bool and DATA.capacity == 8 + 12 + 20 and DATA.examples_per_row() == 3
    small = DATA.smoke()
    assert isinstance(small, ReasonedPassages) and small.reasoning_length == 24
    assert not small.batches()[0]["step"].any()
    with pytest.raises(ValueError, match="reasoning_length=9 has no place for reasoning behind query_length=8; use 10 or more"):
        dataclasses.replace(DATA, reasoning_length=9)


def test_beirs_queries_may_hold_reasoning(tmp_path: Path):
    def write(**reasoning) -> Path:
        (tmp_path / "qrels").mkdir(exist_ok=True)
        (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "one"}\n')
        queries = [{"_id": name, "text": name, **({"reasoning": steps} if steps else {})} for name, steps in reasoning.items()]
        (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
        (tmp_path / "qrels" / "train.tsv").write_text("q2\td1\t1\nq3\td1\t1\n")
        return tmp_path

    read = lambda folder: Beir("mine", data_dir=str(folder)).read().reasoning  # noqa: E731
    assert read(write(q1=["not judged"], q2=None, q3=["a", "b"])) == {"train": [[], ["a", "b"]]}
    assert read(write(q1=None, q2=None, q3=None)) == {}
    for wrong in ("a text", ["a", ""], ["a", 3]):
        with pytest.raises(ValueError, match=r"queries\.jsonl:2: 'reasoning' must be a list of texts, one for each step"):
            read(write(q1=None, q2=wrong, q3=None))
