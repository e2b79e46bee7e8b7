"""LoCoV1's published files: a task's rows, what is left out, and errors that name file, line and fix."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxrec.data.builders.loco import TASKS, LoCo

DOCUMENTS = [
    {"dataset": "qmsum", "pid": "qmsum_Passage_0", "passage": "A long meeting."},
    {"dataset": "qmsum", "pid": "qmsum_Passage_1", "passage": "A longer meeting."},
    {"dataset": "gov_report", "pid": "gov_report_Passage_0", "passage": "A report."},
    {"dataset": "qmsum", "pid": "qmsum_Passage_2", "passage": None},
]
QUERIES = [
    {"dataset": "qmsum", "qid": "qmsum_Query_0", "query": "Who was there?", "answer_pids": ["qmsum_Passage_1"]},
    {"dataset": "gov_report", "qid": "gov_report_Query_0", "query": "What is it?", "answer_pids": ["gov_report_Passage_0"]},
    {"dataset": "qmsum", "qid": "qmsum_Query_1", "query": "Who talked?", "answer_pids": ["qmsum_Passage_2", "qmsum_Passage_0"]},
    {"dataset": "qmsum", "qid": "qmsum_Query_2", "query": "And then?", "answer_pids": ["qmsum_Passage_2"]},
]


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def folder(path: Path, documents=DOCUMENTS, queries=QUERIES) -> str:
    """JSON lines, the documents in a file for each task and packed."""
    for part in ("documents", "queries"):
        (path / part).mkdir(parents=True, exist_ok=True)
    for task in ("qmsum", "gov_report"):
        (path / "documents" / f"{task}_test.jsonl.gz").write_bytes(gzip.compress(lines(row for row in documents if row.get("dataset", "qmsum") == task)))
    (path / "queries" / "test.jsonl").write_bytes(lines(queries))
    (path / "queries" / "README.md").write_text("not data")
    return str(path)


def parquet(path: Path) -> str:
    for part, rows in (("documents", DOCUMENTS), ("queries", QUERIES)):
        (path / part).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path / part / "0000.parquet")
    return str(path)


@pytest.mark.parametrize("write", [folder, parquet])
def test_a_task_is_read(tmp_path: Path, capsys, write):
    collection = LoCo("qmsum", data_dir=write(tmp_path)).read()
    assert (collection.ids, collection.texts) == (["qmsum_Passage_0", "qmsum_Passage_1"], ["A long meeting.", "A longer meeting."])
    assert dict(collection.queries) == {"test": (["qmsum_Query_0", "qmsum_Query_1"], ["Who was there?", "Who talked?"])}
    assert [part.tolist() for part in (collection.qrels["test"].documents, collection.qrels["test"].grades)] == [[1, 0], [1, 1]]
    assert "qmsum: 1 documents without text and 1 queries without an answer are left out" in capsys.readouterr().err
    assert LoCo("gov_report", data_dir=str(tmp_path)).read().ids == ["gov_report_Passage_0"]


def test_files_are_found_in_the_folder_of_datasets(tmp_path: Path, monkeypatch):
    folder(tmp_path / "loco")
    monkeypatch.setenv("JAXREC_DATA_DIR", str(tmp_path))
    assert set(LoCo("qmsum").inputs()) == {"documents/gov_report_test.jsonl.gz", "documents/qmsum_test.jsonl.gz", "queries/test.jsonl"}
    assert LoCo("qmsum").get().queries["test"].ids == ["qmsum_Query_0", "qmsum_Query_1"]


def test_there_are_twelve_tasks():
    assert len(set(TASKS)) == 12
    with pytest.raises(ValueError, match="task='qasper' is none of LoCoV1's; choose one of summ_screen_fd, .*qasper_title"):
        LoCo("qasper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": [*DOCUMENTS, DOCUMENTS[0]]}, r"qmsum_test\.jsonl\.gz:4: document id 'qmsum_Passage_0' appears a second time"),
        ({"documents": [*DOCUMENTS, {"dataset": "qmsum", "pid": "p"}]}, r"qmsum_test\.jsonl\.gz:4: has no 'passage'; a row has dataset, pid, passage"),
        ({"documents": [*DOCUMENTS, {"dataset": "qmsum", "pid": "p", "passage": 7}]}, r"qmsum_test\.jsonl\.gz:4: passage must be text, got 7; write it as a"),
        ({"queries": [*QUERIES, {**QUERIES[0], "qid": "q", "query": None}]}, r"test\.jsonl:5: query must be text, got None; write it as a string"),
        ({"documents": [*DOCUMENTS, {"pid": "p", "passage": "x"}]}, r"qmsum_test\.jsonl\.gz:4: 'dataset' must be non-empty str, got None"),
        ({"queries": [*QUERIES, {**QUERIES[0], "qid": "q", "query": " "}]}, r"test\.jsonl:5: the query has no text"),
        (
            {"queries": [*QUERIES, {**QUERIES[0], "qid": "q", "answer_pids": "p"}]},
            r"test\.jsonl:5: answer_pids must be a list of the ids of documents, got 'p'",
        ),
        ({"queries": [{**QUERIES[0], "answer_pids": ["p"]}]}, r"test\.jsonl:1: document 'p' is not in the collection"),
        ({"queries": QUERIES[1:2]}, r"queries: no row has dataset='qmsum'; put the published file of this task there"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, changes, message: str):
    with pytest.raises(ValueError, match=message):
        LoCo("qmsum", data_dir=folder(tmp_path, **changes)).read()


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="loco: documents not found in .*hazyresearch/LoCoV1-Documents"):
        LoCo("qmsum", data_dir=str(tmp_path)).inputs()
    folder(tmp_path)
    (tmp_path / "queries" / "test.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"loco: no \.jsonl and no \.parquet in .*queries"):
        LoCo("qmsum", data_dir=str(tmp_path)).read()
    (tmp_path / "queries" / "0000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"0000\.parquet: not a readable Parquet file"):
        LoCo("qmsum", data_dir=str(tmp_path)).read()
    pq.write_table(pa.table({"dataset": ["qmsum"], "qid": ["q"], "query": ["?"]}), tmp_path / "queries" / "0000.parquet")
    with pytest.raises(ValueError, match=r"0000\.parquet has no column 'answer_pids'; it has dataset, qid, query"):
        LoCo("qmsum", data_dir=str(tmp_path)).read()
