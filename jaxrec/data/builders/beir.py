"""BEIR's form of a set for text retrieval, in JSON lines or Parquet, and two sets in forms near to it: Cranfield and ViDoRe V3.

BEIR: Thakur et al., 2021, arXiv:2104.08663. Cranfield: Cleverdon, 1967. ViDoRe V3: 2026, arXiv:2601.08620.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifact import checksum, say
from jaxrec.data.builders.parquet_rows import read_parquet
from jaxrec.data.builders.text_lines import line_of, read_json_lines, read_lines
from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries, check_ids, check_texts
from jaxrec.data.source import locate

SPLITS = {"train": "train", "dev": "validation", "test": "test"}  # the stem of a qrels file, and what jaxrec calls the split
_HEADERS = ("query-id", "query_id", "qid")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents or queries as a file has them; `where(row)` is the file and line of a row. `reasoning`: the steps of each query, where the file has some."""

    ids: list[str]
    texts: list[str]
    titles: list[str]
    where: Callable[[int], str]
    reasoning: list[list[str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Judgements:
    """Lines (query id, document id, grade) of one split; `where(row)` is the file and line of a row."""

    rows: list[tuple[str, str, int]]
    where: Callable[[int], str]


@dataclasses.dataclass(frozen=True)
class Beir(CollectionSource):
    """A folder in BEIR's form: `corpus.jsonl`, `queries.jsonl` and `qrels/{train,dev,test}.tsv`; the first two may end in `.gz`.

    - `corpus.jsonl`: a line per document, `{"_id": "31715818", "title"?: text, "text"?: text}`; either text may be empty.
    - `queries.jsonl`: a line per query of any split, `{"_id": "1", "text": text, "reasoning"?: texts}`, the last being steps of thought towards an answer.
    - `qrels/test.tsv`: a line per judgement, `query id, document id, grade` apart by tabs, with or without BEIR's header line.

    `dev` becomes the split "validation". The queries of a split are those that its qrels name, in the order of the queries' file.

    Attributes:
      name: of the folder in `$JAXREC_DATA_DIR`, or its absolute path.
      queries: name of the file of queries, for the same set in another language, say.
      drop_unknown: whether judgements of documents or queries that the files do not hold are left out, with a message. Translated
        sets have such holes. Otherwise they are an error.
      data_dir: the folder itself, in place of the one in `$JAXREC_DATA_DIR`.

    Raises (when read):
      FileNotFoundError: names the file that is missing.
      ValueError: names file, line and fix.
    """

    name: str
    queries: str = "queries.jsonl"
    drop_unknown: bool = False
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for path in (self._file("corpus.jsonl"), self._file(self.queries), *self._qrels())}

    def read(self) -> Collection:
        documents, queries = read_documents(self._file("corpus.jsonl")), read_queries(self._file(self.queries))
        judgements = {SPLITS[path.stem]: read_qrels(path) for path in self._qrels()}
        return join(documents, queries, judgements, drop_unknown=self.drop_unknown)

    def _file(self, file: str) -> Path:
        packed = self._folder() / f"{file}.gz"
        return packed if packed.exists() else self._folder(file) / file

    def _qrels(self) -> list[Path]:
        names = [f"qrels/{stem}.tsv" for stem in SPLITS]
        found = [path for name in names if (path := self._folder() / name).exists()]
        return found or [self._folder(*names)]  # an error that names all three

    def _folder(self, *files: str) -> Path:
        hint = "Beir reads corpus.jsonl, queries.jsonl (or .gz) and at least one of qrels/{train,dev,test}.tsv; its docstring gives the form."
        return locate(self.data_dir, files, dataset=self.name, hint=hint)


@dataclasses.dataclass(frozen=True)
class Cranfield(CollectionSource):
    """Cranfield: 1,400 abstracts of aerodynamics, 225 queries, graded judgements; all one split, "test".

    Folder `cranfield`: `corpus.jsonl.gz` and `queries.jsonl` in BEIR's form, and `qrels.tsv`, whose codes 1 (a complete answer) to 4 (of
    minimum interest) become the grades 4 to 1.
    """

    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for path in self._files()}

    def read(self) -> Collection:
        corpus, queries, qrels = self._files()
        codes = read_qrels(qrels)
        if wrong := [row for row, (_, _, code) in enumerate(codes.rows) if not 1 <= code <= 4]:
            raise ValueError(f"{codes.where(wrong[0])}: the code must be 1 (best) to 4, got {codes.rows[wrong[0]][2]}; correct or remove the line")
        graded = Judgements([(query, document, 5 - code) for query, document, code in codes.rows], codes.where)
        return join(read_documents(corpus), read_queries(queries), {"test": graded})

    def _files(self) -> list[Path]:
        names = ("corpus.jsonl.gz", "queries.jsonl", "qrels.tsv")
        hint = "They are Cleverdon's 1,400 abstracts with the qrels of Harman; the docstring of Cranfield gives the form."
        return [locate(self.data_dir, names, dataset="cranfield", hint=hint) / name for name in names]


@dataclasses.dataclass(frozen=True)
class ParquetBeir(CollectionSource):
    """A set in BEIR's form as Parquet files, as MTEB and TR-MTEB publish theirs: TurkColBERT's Turkish sets, for five (arXiv 2511.16528).

    - `corpus/corpus-*.parquet`: `_id`, `text` and perhaps `title`. TurkColBERT's evaluation leaves titles out.
    - `queries/queries-*.parquet`: `_id`, `text`.
    - `data/{train,dev,test}-*.parquet`: `query-id`, `corpus-id`, `score`.

    All three may lie in `data/`, as SciFact-TR's do, which is published as two sets, one of documents and queries and one of judgements.

    Attributes:
      name: of the folder in `$JAXREC_DATA_DIR`, or its absolute path.
      titles: whether they are read, where there are some.
      drop_unknown: as of `Beir`.
      data_dir: the folder itself, in place of the one in `$JAXREC_DATA_DIR`.
    """

    name: str
    titles: bool = True
    drop_unknown: bool = False
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {path.name: checksum(path) for part in ("corpus", "queries", *self._splits()) for path in self._parts(part)}

    def read(self) -> Collection:
        splits = self._splits()
        pages = read_parquet(self._parts("corpus"), ("_id", "text"), ("title",))
        asked = read_parquet(self._parts("queries"), ("_id", "text"))
        titles = pages.texts("title") if self.titles and "title" in pages.columns else [""] * len(pages)
        documents = Texts(pages.ids("_id"), pages.texts("text"), titles, pages.where)
        queries = Texts(asked.ids("_id"), asked.texts("text"), [], asked.where)
        judged = {SPLITS[split]: read_parquet(self._parts(split), ("query-id", "corpus-id", "score")) for split in splits}
        judgements = {split: Judgements(rows.judgements("query-id", "corpus-id", "score"), rows.where) for split, rows in judged.items()}
        return join(documents, queries, judgements, drop_unknown=self.drop_unknown)

    def _parts(self, part: str) -> list[Path]:
        root = locate(self.data_dir, (), dataset=self.name, hint="")
        return next((found for folder in (part, "data") if (found := sorted((root / folder).glob(f"{part}-*.parquet")))), [])

    def _splits(self) -> list[str]:
        """The splits that have judgements; raises FileNotFoundError where files are missing."""
        found = [split for split in SPLITS if self._parts(split)]
        missing = [f"{part}/{part}-*.parquet" for part in ("corpus", "queries") if not self._parts(part)]
        hint = "MTEB's form is corpus/corpus-*, queries/queries-* and data/{train,dev,test}-*.parquet, or all of them in data/."
        locate(self.data_dir, missing or ([] if found else ["data/{train,dev,test}-*.parquet"]), dataset=self.name, hint=hint)
        return found


@dataclasses.dataclass(frozen=True)
class ViDoReV3(CollectionSource):
    """One of ViDoRe V3's sets as text: pages in Markdown, queries in one of six languages, grades 1 and 2; one split, "test".

    Folder `vidore_v3_<name>`, as published: `corpus/*.parquet` (`corpus_id`, `markdown`; the image is not read), `queries/*.parquet` (`query_id`,
    `query`, `language`) and `qrels/*.parquet` (`query_id`, `corpus_id`, `score`). All its queries of `language` are kept.

    Attributes:
      name: "hr", "finance_en", "computer_science" ...
      language: of the queries, as the file calls it.
    """

    name: str
    language: str = "english"
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {f"{part}/{path.name}": checksum(path) for part in ("corpus", "queries", "qrels") for path in self._parts(part)}

    def read(self) -> Collection:
        pages = read_parquet(self._parts("corpus"), ("corpus_id", "markdown"))
        asked = read_parquet(self._parts("queries"), ("query_id", "query", "language"))
        judged = read_parquet(self._parts("qrels"), ("query_id", "corpus_id", "score"))
        languages = asked.texts("language")
        kept = [row for row, language in enumerate(languages) if language == self.language]
        if not kept:
            raise ValueError(f"{self._parts('queries')[0]}: no query has language={self.language!r}; there are {', '.join(sorted(set(languages)))}")
        documents = Texts(pages.ids("corpus_id"), pages.texts("markdown"), [""] * len(pages), pages.where)
        ids, texts = asked.ids("query_id"), asked.texts("query")
        queries = Texts([ids[row] for row in kept], [texts[row] for row in kept], [], lambda row: asked.where(kept[row]))
        others = set(ids) - set(queries.ids)  # judged, but asked in another language
        rows = judged.judgements("query_id", "corpus_id", "score")
        lines = [row for row, (query, _, _) in enumerate(rows) if query not in others]
        return join(documents, queries, {"test": Judgements([rows[row] for row in lines], lambda row: judged.where(lines[row]))})

    def _parts(self, part: str) -> list[Path]:
        dataset = f"vidore_v3_{self.name}"
        root = locate(self.data_dir, (part,), dataset=dataset, hint="ViDoRe V3 is published as folders of Parquet files, corpus, queries and qrels.")
        if found := sorted((root / part).glob("*.parquet")):
            return found
        raise FileNotFoundError(f"{dataset}: no *.parquet in {(root / part).absolute()}; put the published files of {part} there")


def read_documents(path: Path) -> Texts:
    """Documents of a file of JSON lines `{"_id", "title"?, "text"?}`."""
    rows = read_json_lines(path, {"_id": str})
    columns = {}
    for key in ("text", "title"):
        columns[key] = [row.get(key) or "" for row in rows]
        if wrong := [line for line, text in enumerate(columns[key], start=1) if not isinstance(text, str)]:
            raise ValueError(f"{path}:{wrong[0]}: {key!r} must be text, got {columns[key][wrong[0] - 1]!r}; put it in quotes")
    return Texts([row["_id"] for row in rows], columns["text"], columns["title"], line_of(path))


def read_queries(path: Path) -> Texts:
    """Queries of a file of JSON lines `{"_id", "text", "reasoning"?}`."""
    rows = read_json_lines(path, {"_id": str, "text": str})
    reasoning = [row.get("reasoning") or [] for row in rows]
    for line, steps in enumerate(reasoning, start=1):
        if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError(f"{path}:{line}: 'reasoning' must be a list of texts, one for each step, got {steps!r}; correct or remove it")
    return Texts([row["_id"] for row in rows], [row["text"] for row in rows], [], line_of(path), reasoning if any(reasoning) else [])


def read_qrels(path: Path) -> Judgements:
    """Judgements of a file of lines `query id, document id, grade`, apart by tabs, with or without a header."""
    lines = read_lines(path)
    start = 1 if lines[0].split("\t")[0] in _HEADERS else 0
    if len(lines) == start:
        raise ValueError(f"{path}: there is a header and no judgement; write a line `query id, document id, grade` for each, or remove the file")
    rows = []
    for line, text in enumerate(lines[start:], start=start + 1):
        fields = text.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{path}:{line}: expected query id, document id and grade apart by tabs, got {text[:80]!r} with {len(fields)} fields")
        query, document, grade = fields
        if not re.fullmatch(r"-?[0-9]{1,9}", grade.strip()):
            raise ValueError(f"{path}:{line}: the grade must be an integer (0 = irrelevant, 1, 2 ... = relevant), got {grade!r}; correct or remove the line")
        rows.append((query, document, int(grade)))
    return Judgements(rows, lambda row: f"{path}:{start + row + 1}")


def join(documents: Texts, queries: Texts, judgements: Mapping[str, Judgements], *, drop_unknown: bool = False) -> Collection:
    """The collection of documents, queries and, by split, judgements that name both; queries that no split names are left out.

    Raises:
      ValueError: an id given twice, a query without text, a judgement that names what is not there (unless `drop_unknown`) or that
        contradicts another; names file and line.
    """
    check_ids(documents.ids, "document", documents.where)
    check_ids(queries.ids, "query", queries.where)
    check_texts(queries.texts, queries.where)
    document_rows, query_rows = ({name: row for row, name in enumerate(texts.ids)} for texts in (documents, queries))
    asked, qrels, reasoning = {}, {}, {}
    for split, given in judgements.items():
        known = _known(given, query_rows, document_rows, drop_unknown, split)
        grades: dict[tuple[int, int], int] = {}  # by rows of query and document
        for row in known:
            query, document, grade = given.rows[row]
            if grades.setdefault((query_rows[query], document_rows[document]), grade) != grade:
                raise ValueError(f"{given.where(row)}: document {document!r} has grade {grade} for query {query!r}, and another grade above; remove one line")
        pairs = np.array([*grades], np.int64).reshape(-1, 2)
        rows, place = np.unique(pairs[:, 0], return_inverse=True)
        if not len(rows):
            raise ValueError(f"{given.where(0)}: no judgement of {split} names a known query and document; the files must belong together")
        asked[split] = Queries([queries.ids[row] for row in rows], [queries.texts[row] for row in rows])
        qrels[split] = Qrels.gather(place, pairs[:, 1], [*grades.values()], count=len(rows))
        if queries.reasoning:
            reasoning[split] = [queries.reasoning[row] for row in rows]
    return Collection(documents.ids, documents.titles, documents.texts, asked, qrels, reasoning)


def _known(given: Judgements, queries: Mapping[str, int], documents: Mapping[str, int], drop_unknown: bool, split: str) -> list[int]:
    """The judgements whose query and document are known; the others are an error, or left out."""
    unknown = [row for row, (query, document, _) in enumerate(given.rows) if query not in queries or document not in documents]
    if not unknown:
        return list(range(len(given.rows)))
    query, document, _ = given.rows[unknown[0]]
    what = f"query {query!r}" if query not in queries else f"document {document!r}"
    message = f"{given.where(unknown[0])}: {what} is not in the collection; so it is with {len(unknown):,} of the {len(given.rows):,} judgements of {split}"
    if not drop_unknown:
        raise ValueError(f"{message}. The files must belong together; where holes are known, drop_unknown=True leaves those judgements out")
    say(f"  {message}: left out")
    dropped = set(unknown)
    return [row for row in range(len(given.rows)) if row not in dropped]
