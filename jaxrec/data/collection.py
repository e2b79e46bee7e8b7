"""Collection: documents, queries and which document answers which query, the one form that every set for text retrieval is read into.

Inside jaxrec a document and a query are rows, 0, 1 ...; their outside ids, text, come back in every answer to the user.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxrec.artifact import Artifact, say
from jaxrec.data.builders.text_lines import read_json_lines

REBUILD = "this folder is in jaxrec's cache: remove it, and it is built again"


class Queries(NamedTuple):
    """The queries of one split: [Q] outside ids and [Q] texts."""

    ids: list[str]
    texts: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Qrels:
    """Who answers what: the judged documents of every query, flat.

    Attributes:
      offsets: [Q + 1] int64; query q's judgements are places `offsets[q]` to `offsets[q + 1]` of the others.
      documents: [J] int32 rows of documents, ascending within a query.
      grades: [J] int32; above 0 is relevant, and more is better.
    """

    offsets: np.ndarray
    documents: np.ndarray
    grades: np.ndarray

    @classmethod
    def gather(cls, queries: Sequence[int] | np.ndarray, documents: Sequence[int] | np.ndarray, grades: Sequence[int] | np.ndarray, *, count: int) -> Qrels:
        """From judgements in any order: rows of queries [J] out of `count`, rows of documents [J], grades [J]."""
        query, document, grade = (np.asarray(column, np.int64) for column in (queries, documents, grades))
        order = np.lexsort((document, query))
        offsets = np.searchsorted(query[order], np.arange(count + 1)).astype(np.int64)
        return cls(offsets, document[order].astype(np.int32), grade[order].astype(np.int32))

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def queries(self) -> np.ndarray:
        """[J] int64 the query of each judgement, ascending."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The judged documents of one query and their grades."""
        some = slice(self.offsets[query], self.offsets[query + 1])
        return self.documents[some], self.grades[some]


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """Documents, and per split its queries and their judgements.

    A document may be empty (BEIR's sets have some): it is a row like others, and nothing finds it by its words. A query may have no
    judgements: it can be asked, and evaluations leave it out and count it.

    Attributes:
      ids: [N] outside ids of documents.
      titles: [N] "" where there is none.
      texts: [N] "" where there is none.
      queries: by split, "train", "validation" or "test".
      qrels: by split, the same splits.
      reasoning: by split, where a set has it: [Q] the steps of thought from each query to what would answer it, each a text; none for a query
        without.

    Raises:
      ValueError: an id that is empty or given twice, a query without text, a document judged twice for a query, rows that do not
        exist; says which.
    """

    ids: list[str]
    titles: list[str]
    texts: list[str]
    queries: Mapping[str, Queries]
    qrels: Mapping[str, Qrels]
    reasoning: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not len(self.ids) == len(self.titles) == len(self.texts):
            raise ValueError(f"{len(self.ids)} ids, {len(self.titles)} titles, {len(self.texts)} texts; every document has one of each")
        check_ids(self.ids, "document", lambda row: f"document {row}")
        if self.queries.keys() != self.qrels.keys():
            raise ValueError(f"queries have the splits {', '.join(self.queries)}, qrels {', '.join(self.qrels)}; they must be the same")
        for split, (ids, texts) in self.queries.items():
            check_ids(ids, "query", lambda row, split=split: f"{split} query {row}")
            check_texts(texts, lambda row, split=split: f"{split} query {row}")
            if len(ids) != len(texts):
                raise ValueError(f"{split}: {len(ids)} ids and {len(texts)} texts of queries; every query has one of each")
            self._check_qrels(split, self.qrels[split])
        for split, reasoning in self.reasoning.items():
            if split not in self.queries or len(reasoning) != len(self.queries[split].ids):
                asked = f"{len(self.queries[split].ids)} queries" if split in self.queries else "no such split"
                raise ValueError(f"{split}: reasoning for {len(reasoning)} queries, and there are {asked}; give each query its steps, an empty list for none")

    def _check_qrels(self, split: str, qrels: Qrels) -> None:
        count, judged = len(self.queries[split].ids), len(qrels)
        offsets = qrels.offsets
        if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != judged or len(qrels.grades) != judged or (np.diff(offsets) < 0).any():
            raise ValueError(f"{split}: offsets of qrels must rise from 0 to the {judged} judgements in {count + 1} entries; make them with Qrels.gather")
        if judged and not (0 <= qrels.documents.min() and qrels.documents.max() < len(self.ids)):
            raise ValueError(f"{split}: qrels name rows {qrels.documents.min()}..{qrels.documents.max()} of {len(self.ids)} documents")
        query = qrels.queries
        wrong = (np.diff(query) == 0) & (np.diff(qrels.documents) <= 0)
        if wrong.any():
            place = int(np.argmax(wrong)) + 1
            name, document = self.queries[split].ids[query[place]], self.ids[qrels.documents[place]]
            raise ValueError(
                f"{split}: document {document!r} is judged twice for query {name!r}, or stands out of order; judge each pair once, and use Qrels.gather"
            )

    def passages(self) -> list[str]:
        """[N] what a retriever reads of each document: its title and its text, joined by a space."""
        return [f"{title} {text}" if title and text else title or text for title, text in zip(self.titles, self.texts, strict=True)]

    def save(self, folder: Path) -> None:
        """Writes the documents, and the queries and qrels of each split, into `folder`."""
        _write_lines(folder / "documents.jsonl.gz", zip(self.ids, self.titles, self.texts, strict=True), ("id", "title", "text"))
        for split, (ids, texts) in self.queries.items():
            steps = {"reasoning": self.reasoning[split]} if split in self.reasoning else {}
            _write_lines(folder / f"{split}.jsonl.gz", zip(ids, texts, *steps.values(), strict=True), ("id", "text", *steps))
            qrels = self.qrels[split]
            np.savez(folder / f"{split}.npz", offsets=qrels.offsets, documents=qrels.documents, grades=qrels.grades)

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Opens what `save` wrote.

        Raises:
          ValueError: a file is damaged; names it, and what to do.
        """
        qrels = {}
        for path in sorted(folder.glob("*.npz")):
            try:
                with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                    qrels[path.stem] = Qrels(file["offsets"], file["documents"], file["grades"])
            except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{path}: the qrels are damaged ({error}); {REBUILD}") from None
        try:
            documents = read_json_lines(folder / "documents.jsonl.gz", {"id": str})
            asked = {split: read_json_lines(folder / f"{split}.jsonl.gz", {"id": str, "text": str}) for split in qrels}
        except ValueError as error:
            raise ValueError(f"{error}; {REBUILD}") from None
        queries = {split: Queries([row["id"] for row in rows], [row["text"] for row in rows]) for split, rows in asked.items()}
        reasoning = {split: [row["reasoning"] for row in rows] for split, rows in asked.items() if "reasoning" in rows[0]}
        return cls(*([row[key] for row in documents] for key in ("id", "title", "text")), queries=queries, qrels=qrels, reasoning=reasoning)


class CollectionSource(Artifact):
    """A set for text retrieval: a frozen dataclass that reads raw files into a `Collection`, once; then `get()` only opens it.

    Attributes:
      lexical: how its words are best told apart, as keywords of `index.BM25Index`.
    """

    lexical: ClassVar[Mapping[str, bool]] = {}

    def read(self) -> Collection:
        """Reads the raw data. Errors name file, line and fix."""
        raise TypeError(f"{type(self).__name__} is a source of a collection without a read method")

    def build(self, folder: Path) -> None:
        collection = self.read()
        splits = (f"{len(ids):,} {split} queries ({len(collection.qrels[split]):,} judgements)" for split, (ids, _) in collection.queries.items())
        say(f"  {len(collection.ids):,} documents, {', '.join(splits)}")
        collection.save(folder)

    def load(self, folder: Path) -> Collection:
        return Collection.open(folder)

    def smoke(self) -> CollectionSource:
        """A tiny collection of the same form, with all three splits, for runs of a few steps."""
        return SyntheticCollection(documents=60, queries=20)


@dataclasses.dataclass(frozen=True)
class SyntheticCollection(CollectionSource):
    """Made-up words in made-up documents; a query is words drawn from the one document that answers it.

    Attributes:
      documents: how many.
      queries: in each split.
      words: of the vocabulary; they occur by Zipf's law.
      length: mean number of words in a document, 5 + Poisson(length - 5).
      asked: words in a query, fewer where the document has fewer different ones.
      seed: of the generator.
    """

    documents: int = 200
    queries: int = 50
    words: int = 2000
    length: float = 30.0
    asked: int = 4
    seed: int = 0

    def __post_init__(self):
        if self.documents < 1 or self.queries < 1 or self.words < 1 or self.asked < 1 or self.length < 5:
            raise ValueError(f"{self}: need documents, queries, words and asked of 1 or more, and length of 5 or more")

    def inputs(self) -> dict[str, Any]:
        return {"numpy": np.__version__.split(".")[0]}  # generators may change their streams only with a major release

    def read(self) -> Collection:
        random = np.random.default_rng(self.seed)
        share = 1 / np.arange(1, self.words + 1)
        share /= share.sum()
        bags = [random.choice(self.words, size=5 + random.poisson(self.length - 5), p=share) for _ in range(self.documents)]
        queries, qrels = {}, {}
        for split in ("train", "validation", "test"):
            answers = random.integers(self.documents, size=self.queries)
            drawn = [random.permutation(np.unique(bags[row]))[: self.asked] for row in answers]
            queries[split] = Queries([f"{split}-{q}" for q in range(self.queries)], [" ".join(map(_word, numbers)) for numbers in drawn])
            qrels[split] = Qrels.gather(np.arange(self.queries), answers, np.ones(self.queries, int), count=self.queries)
        texts = [" ".join(map(_word, bag)) for bag in bags]
        return Collection([f"document-{row}" for row in range(self.documents)], [""] * self.documents, texts, queries, qrels)


def check_ids(ids: Sequence[str], what: str, where: Callable[[int], str]) -> None:
    """Raises ValueError unless there are ids and each is non-empty text given once; `where(row)` places one that is not."""
    if not len(ids):
        raise ValueError(f"there is no {what}; a collection needs one at least")
    first: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not (isinstance(name, str) and name.strip()):
            raise ValueError(f"{where(row)}: the {what} id must be non-empty text, got {name!r}; give it one")
        if first.setdefault(name, row) != row:
            raise ValueError(f"{where(row)}: {what} id {name!r} appears a second time, first at {where(first[name])}; ids must be unique: remove one of them")


def check_texts(texts: Sequence[str], where: Callable[[int], str]) -> None:
    """Raises ValueError unless every query has words to ask; `where(row)` places one that has none."""
    for row, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"{where(row)}: the query has no text; write one, or remove the query and its judgements")


def _write_lines(path: Path, rows: Iterable[Sequence[str]], keys: Sequence[str]) -> None:
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, compresslevel=6, mtime=0) as packed:  # the same bytes whenever it is built
        file = io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
        file.writelines(json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        file.detach()


def _word(number: int) -> str:
    """A made-up word for a number: its digits in base 50, each a syllable, as in "bakelu"."""
    syllables = [consonant + vowel for consonant in "bdfgklmnrs" for vowel in "aeiou"]
    text = ""
    while number or not text:
        number, digit = divmod(int(number), len(syllables))
        text = syllables[digit] + text
    return text
