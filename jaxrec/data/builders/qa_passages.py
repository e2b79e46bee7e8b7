"""Questions and the passage that answers each, in Turkish and in African languages: XQuAD, TQuAD and AfriQA.

All three were made for reading comprehension. As sets for retrieval, passages are documents, each different text once, and a question is
a query whose passage is relevant; a question that is asked of several passages is one query, and all of them are relevant.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from jaxrec.artifact import checksum, say
from jaxrec.data.builders.text_lines import decode, read_bytes, read_json_lines
from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries
from jaxrec.data.source import locate


class Passage(NamedTuple):
    """A passage and the questions that it answers; there may be none."""

    title: str
    text: str
    questions: list[str]


@dataclasses.dataclass(frozen=True)
class XQuAD(CollectionSource):
    """XQuAD: 240 paragraphs of Wikipedia and 1,190 questions, in parallel in each language (Artetxe et al., 2020, arXiv:1910.11856); one split, "test".

    Folder `xquad`: `xquad.<language>.json.gz`, SQuAD's JSON.

    Attributes:
      language: of paragraphs and questions: "tr", "en", "de", "es", "ar" ...
      questions: language of the questions, if it is another: the files are parallel, so this asks across languages.
    """

    language: str = "tr"
    questions: str = ""
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    lexical: ClassVar[Mapping[str, bool]] = {"plurals": False}

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for path in self._files()}

    def read(self) -> Collection:
        passages, others = (list(_squad(path)) for path in self._files())
        here, there = ([len(passage.questions) for passage in some] for some in (passages, others))
        if here != there:
            raise ValueError(f"{self._files()[1]} has other numbers of questions than {self._files()[0]}; only parallel files can be mixed")
        return _collection({"test": [passage._replace(questions=other.questions) for passage, other in zip(passages, others, strict=True)]})

    def _files(self) -> list[Path]:
        names = [f"xquad.{language}.json.gz" for language in (self.language, self.questions or self.language)]
        return [locate(self.data_dir, names, dataset="xquad", hint="XQuAD is a JSON file per language, here with gzip.") / name for name in names]


@dataclasses.dataclass(frozen=True)
class TQuAD(CollectionSource):
    """TQuAD: 9,200 Turkish questions on the history of science, by Turkish speakers (2018).

    Folder `tquad`: `train-v0.1.json.gz` (split "train") and `dev-v0.1.json.gz` (split "test"), SQuAD's JSON. The two files repeat each
    other: a question in both is asked in the test only. The passages of the test are among those that training asks other questions of.
    """

    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    lexical: ClassVar[Mapping[str, bool]] = {"plurals": False}

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for path in self._files().values()}

    def read(self) -> Collection:
        return _collection({split: _squad(path) for split, path in self._files().items()})

    def _files(self) -> dict[str, Path]:
        names = {"train": "train-v0.1.json.gz", "test": "dev-v0.1.json.gz"}
        folder = locate(self.data_dir, tuple(names.values()), dataset="tquad", hint="They are TQuAD's files, here with gzip.")
        return {split: folder / name for split, name in names.items()}


@dataclasses.dataclass(frozen=True)
class AfriQA(CollectionSource):
    """AfriQA: questions in an African language, answered by passages of the English (or French) Wikipedia (Ogundepo et al., 2023, arXiv:2305.06897).

    Folder `afriqa`: `gold_passages/<language>/gold_span_passages.afriqa.<language>.<pivot>.{train,dev,test}.json.gz`, a line of JSON per
    question; `dev` becomes the split "validation". Documents are the passages of all splits together, a small pool: hard
    for its crossing of languages, not for its size. Questions without a passage are left out; a question in several splits stays in the last.

    Attributes:
      language: "kin" (Kinyarwanda), "hau", "ibo", "bem", "fon", "twi", "zul" ...
      pivot: language of the passages, "fr" for "fon".
      translated: whether people's translations of the questions into the pivot language are asked: what a perfect translator would give.
    """

    language: str = "kin"
    pivot: Literal["en", "fr"] = "en"
    translated: bool = False
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    lexical: ClassVar[Mapping[str, bool]] = {"plurals": False}

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for path in self._files().values()}

    def read(self) -> Collection:
        key = "question_translated" if self.translated else "question_lang"
        passages = {}
        for split, path in self._files().items():
            rows = read_json_lines(path, {key: str})
            passages[split] = [Passage(row.get("title") or "", row["context"], [row[key]]) for row in rows if row.get("context")]
            if absent := len(rows) - len(passages[split]):
                say(f"  {path.name}: {absent} of {len(rows)} questions have no passage and are left out")
        return _collection(passages)

    def _files(self) -> dict[str, Path]:
        splits = {"train": "train", "validation": "dev", "test": "test"}
        names = {s: f"gold_passages/{self.language}/gold_span_passages.afriqa.{self.language}.{self.pivot}.{file}.json.gz" for s, file in splits.items()}
        folder = locate(self.data_dir, tuple(names.values()), dataset="afriqa", hint="They are AfriQA's gold passages, here with gzip.")
        return {split: folder / name for split, name in names.items()}


def _squad(path: Path) -> Iterator[Passage]:
    """The passages of a file of SQuAD's JSON (version 1.1), in order."""
    try:
        articles = json.loads(decode(read_bytes(path), path))["data"]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not whole JSON ({error.msg}); fetch the file again") from None
    except (KeyError, TypeError):
        raise ValueError(f'{path}:1: SQuAD\'s JSON is an object with a list "data"; is it another file?') from None
    for number, article in enumerate(articles):
        try:
            for paragraph in article["paragraphs"]:
                yield Passage(article.get("title") or "", paragraph["context"], [asked["question"] for asked in paragraph["qas"]])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: article {number} lacks {error}; SQuAD's articles have paragraphs of context and qas of question") from None


def _collection(passages: Mapping[str, Iterable[Passage]]) -> Collection:
    """Each passage where it first occurs, and each question in the last split that asks it."""
    rows: dict[str, int] = {}  # of passages
    titles: list[str] = []
    answers: dict[str, set[int]] = {}  # rows of passages by question
    split_of: dict[str, str] = {}
    for split, some in passages.items():
        for title, text, questions in some:
            row = rows.setdefault(_plain(text), len(rows))
            titles += [_plain(title)] * (row == len(titles))
            for question in map(_plain, questions):
                answers.setdefault(question, set()).add(row)
                split_of[question] = split
    queries, qrels = {}, {}
    asking = set(split_of.values())  # another split may have taken all questions of one
    for split in filter(asking.__contains__, passages):
        asked = [question for question in answers if split_of[question] == split]
        judged = np.array([(query, row, 1) for query, question in enumerate(asked) for row in answers[question]])  # [J, 3]
        queries[split] = Queries([f"{split}-{query}" for query in range(len(asked))], asked)
        qrels[split] = Qrels.gather(*judged.T, count=len(asked))
    return Collection([f"passage-{row}" for row in range(len(rows))], titles, list(rows), queries, qrels)


def _plain(text: str) -> str:
    """Without byte order marks and with single spaces, so that the same text twice is the same."""
    return " ".join(text.replace("\ufeff", "").split())
