"""LoCoV1: retrieval of whole long documents, from laws, programs' questions, meetings, screenplays and papers.

Saad-Falcon et al., 2024, arXiv:2402.07440. Only the test part is published; nDCG@10 over each task's documents, averaged over the twelve tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxrec.artifact import checksum, say
from jaxrec.data.builders.beir import Judgements, Texts, join
from jaxrec.data.builders.tabular_files import TabularFile
from jaxrec.data.builders.text_lines import line_of, read_json_lines
from jaxrec.data.collection import Collection, CollectionSource
from jaxrec.data.source import locate

TASKS = (
    "summ_screen_fd", "gov_report", "qmsum", "qasper_title", "qasper_abstract", "multifieldqa", "2wikimqa", "passage_retrieval", "legal_case_reports",
    "courtlistener_HTML", "courtlistener_Plain_Text", "stackoverflow",
)  # fmt: skip

_COLUMNS = {"documents": ("dataset", "pid", "passage"), "queries": ("dataset", "qid", "query", "answer_pids")}


@dataclasses.dataclass(frozen=True)
class LoCo(CollectionSource):
    """One of LoCoV1's twelve tasks; one split, "test", and relevant or not.

    Folder `loco`: `documents/` with the published files of LoCoV1-Documents and `queries/` with those of LoCoV1-Queries, be they a `.jsonl` (or
    `.jsonl.gz`) for each task or `.parquet` for all. Rows are `{"dataset", "pid", "passage"}` and `{"dataset", "qid", "query", "answer_pids"}`; those
    whose `dataset` is the task are kept. A document without text is left out with the queries that only it answers, as the authors' evaluation does.

    Attributes:
      task: one of `TASKS`.
      data_dir: the folder itself, in place of `loco` in `$JAXREC_DATA_DIR`.

    Raises (when read):
      FileNotFoundError: names the folder that is missing or empty.
      ValueError: names file, line and fix.
    """

    task: str
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is none of LoCoV1's; choose one of {', '.join(TASKS)}")

    def inputs(self) -> dict[str, Any]:
        return {f"{part}/{path.name}": checksum(path) for part in _COLUMNS for path in self._files(part)}

    def read(self) -> Collection:
        (documents, in_documents), (queries, in_queries) = (self._rows(part) for part in _COLUMNS)
        kept = [row for row, (_, text) in enumerate(documents) if text and text.strip()]
        texts = Texts([documents[row][0] for row in kept], [documents[row][1] for row in kept], [""] * len(kept), lambda row: in_documents(kept[row]))
        empty = {pid for pid, _ in documents} - set(texts.ids)
        judged = [(row, [pid for pid in answers if pid not in empty]) for row, (_, _, answers) in enumerate(queries)]
        asked = [row for row, answers in judged if answers]
        if len(asked) < len(queries) or empty:
            say(f"  {self.task}: {len(empty)} documents without text and {len(queries) - len(asked)} queries without an answer are left out")
        pairs = [(row, pid) for row, answers in judged for pid in answers]
        judgements = Judgements([(queries[row][0], pid, 1) for row, pid in pairs], lambda pair: in_queries(pairs[pair][0]))
        return join(texts, Texts([queries[r][0] for r in asked], [queries[r][1] for r in asked], [], lambda row: in_queries(asked[row])), {"test": judgements})

    def _rows(self, part: str) -> tuple[list[list[Any]], Callable[[int], str]]:
        """The task's rows of a part, without their `dataset`, and what to call each in a message."""
        _, *columns = _COLUMNS[part]
        rows: list[list[Any]] = []
        places: list[tuple[Callable[[int], str], int]] = []
        for path in self._files(part):
            datasets, found, where = _table(path, _COLUMNS[part])
            mine = [row for row, dataset in enumerate(datasets) if dataset == self.task]
            rows += [found[row] for row in mine]
            places += [(where, row) for row in mine]
            text = str if part == "queries" else str | None
            if bad := [row for row in mine if not isinstance(found[row][1], text)]:
                raise ValueError(f"{where(bad[0])}: {columns[1]} must be text, got {found[bad[0]][1]!r}; write it as a string")
            if part == "queries" and (bad := [row for row in mine if not isinstance(found[row][-1], list)]):
                raise ValueError(f"{where(bad[0])}: {columns[-1]} must be a list of the ids of documents, got {found[bad[0]][-1]!r}")
        if not rows:
            raise ValueError(f"{self._files(part)[0].parent}: no row has dataset={self.task!r}; put the published file of this task there")
        return rows, lambda row: places[row][0](places[row][1])

    def _files(self, part: str) -> list[Path]:
        hint = "LoCoV1 is published as hazyresearch/LoCoV1-Documents and hazyresearch/LoCoV1-Queries: their files go into documents/ and queries/."
        folder = locate(self.data_dir, (part,), dataset="loco", hint=hint) / part
        if found := sorted(path for path in folder.iterdir() if path.name.removesuffix(".gz").endswith((".jsonl", ".parquet"))):
            return found
        raise FileNotFoundError(f"loco: no .jsonl and no .parquet in {folder.absolute()}. {hint}")


def _table(path: Path, columns: tuple[str, ...]) -> tuple[list[str], list[list[Any]], Callable[[int], str]]:
    """(the first column, rows of the others, what to call a row) of a file of JSON lines or a Parquet file."""
    if path.name.endswith(".parquet"):
        file = TabularFile.read(path)
        first, *others = (file.column(name).to_pylist() for name in columns)
        return first, [list(row) for row in zip(*others, strict=True)], file.where
    rows = read_json_lines(path, dict.fromkeys(columns[:2], str))
    where = line_of(path)
    for name in columns[2:]:
        if missing := [row for row, values in enumerate(rows) if name not in values]:
            raise ValueError(f"{where(missing[0])}: has no {name!r}; a row has {', '.join(columns)}")
    return [row[columns[0]] for row in rows], [[row[name] for name in columns[1:]] for row in rows], where
