"""BEIR's folders, in lines and in Parquet, Cranfield and ViDoRe V3: what is read, and errors that name file, line and fix."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxrec.data.builders.beir import Beir, Cranfield, ParquetBeir, ViDoReV3

CORPUS = '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": ""}\n{"_id": "d3", "title": null, "text": "three"}\n'
QUERIES = '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n{"_id": "q3", "text": "third"}\n{"_id": "q4", "text": "nobody judges"}\n'
FILES = {
    "corpus.jsonl": CORPUS,
    "queries.jsonl": QUERIES,
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq3\td3\t2\nq1\td1\t1\nq3\td1\t0\n",
    "qrels/dev.tsv": "q2\td2\t-1\nq2\td2\t-1\nq2\td3\t1\n",
}


def folder(path: Path, **changes: str) -> Path:
    """A BEIR folder of `FILES`; `changes` are texts by file name, "" to leave a file out, `__` for what a keyword cannot hold."""
    for name, text in (FILES | {key.replace("__", "/") if "/" not in key else key: text for key, text in changes.items()}).items():
        if text:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            data = text.encode()
            (path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_is_read(tmp_path: Path, monkeypatch, packed: bool):
    changes = {"corpus.jsonl": "", "corpus.jsonl.gz": CORPUS, "queries.jsonl": "", "queries.jsonl.gz": QUERIES} if packed else {}
    folder(tmp_path / "mine", **changes)
    monkeypatch.setenv("JAXREC_DATA_DIR", str(tmp_path))
    source = Beir("mine")
    assert set(source.inputs()) == {*(f"{name}.jsonl{'.gz' * packed}" for name in ("corpus", "queries")), "test.tsv", "dev.tsv"}
    collection = source.get()
    assert (collection.ids, collection.titles, collection.texts) == (["d1", "d2", "d3"], ["T", "", ""], ["one", "", "three"])
    assert dict(collection.queries) == {"test": (["q1", "q3"], ["first", "third"]), "validation": (["q2"], ["second"])}
    assert [part.tolist() for part in collection.qrels["test"].of(1)] == [[0, 2], [0, 2]]
    assert [part.tolist() for part in collection.qrels["validation"].of(0)] == [[1, 2], [-1, 1]]


def test_queries_of_another_file_over_the_same_documents(tmp_path: Path):
    folder(tmp_path, **{"queries-tr.jsonl": QUERIES.replace("first", "birinci")})
    source = Beir("mine", queries="queries-tr.jsonl", data_dir=str(tmp_path))
    assert source.read().queries["test"].texts == ["birinci", "third"]
    assert source.fingerprint() != Beir("mine", data_dir=str(tmp_path)).fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus.jsonl": CORPUS + '{"_id": "d1"}'}, r"corpus\.jsonl:4: document id 'd1' appears a second time, first at .*corpus\.jsonl:1"),
        ({"corpus.jsonl": CORPUS + '{"_id": ""}'}, r"corpus\.jsonl:4: '_id' must be non-empty str, got ''"),
        ({"corpus.jsonl": CORPUS + '{"_id": "d4", "text": 7}'}, r"corpus\.jsonl:4: 'text' must be text, got 7; put it in quotes"),
        ({"corpus.jsonl": CORPUS + '{"_id": "d4", "te'}, r"corpus\.jsonl:4: not a JSON object"),
        ({"queries.jsonl": QUERIES + '{"_id": "q5", "text": " "}'}, r"queries\.jsonl:5: the query has no text"),
        ({"queries.jsonl": QUERIES + '{"_id": "q1", "text": "again"}'}, r"queries\.jsonl:5: query id 'q1' appears a second time"),
        (
            {"qrels/test.tsv": "q1\td1\t1\nq3\td9\t1\nq9\td1\t1"},
            r"test\.tsv:2: document 'd9' is not in the collection; so it is with 2 of the 3 .*drop_unknown=True",
        ),
        ({"qrels/test.tsv": "qid\tdid\tgrade\nq1\td1\t1\nq9\td1\t1"}, r"test\.tsv:3: query 'q9' is not in the collection; so it is with 1 of the 2"),
        ({"qrels/test.tsv": "q1\td1\t1\nq1\td3\t0.5"}, r"test\.tsv:2: the grade must be an integer .* got '0\.5'; correct or remove the line"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t"}, r"test\.tsv:2: the grade must be an integer .* got ''"),
        ({"corpus.jsonl": CORPUS + '{"_id": "d4", "text": "a\\uD800b"}'}, r"corpus\.jsonl:4: '\\ud800' is half a character \(a lone surrogate\); remove it"),
        ({"queries.jsonl": QUERIES + '{"_id": "q\\udc00", "text": "nobody judges"}'}, r"queries\.jsonl:5: '\\udc00' is half a character"),
        ({"corpus.jsonl": CORPUS + '{"_id": "d4", "more": ' + "[" * 10**5}, r"corpus\.jsonl:4: lists or objects are nested too deeply to be read; remove"),
        ({"corpus.jsonl": CORPUS + '{"_id": "d4", "more": %s}' % ("9" * 5000)}, r"corpus\.jsonl:4: a number is too long to be read .*; shorten it"),
        ({"qrels/test.tsv": "query-id\tcorpus-id\tscore\n"}, r"test\.tsv: there is a header and no judgement; write a line .* or remove the file"),
        ({"qrels/test.tsv": "q1 d1 1"}, r"test\.tsv:1: expected query id, document id and grade apart by tabs, got 'q1 d1 1' with 1 fields"),
        ({"qrels/test.tsv": "q1\td1\t1\nq1\td1\t2"}, r"test\.tsv:2: document 'd1' has grade 2 for query 'q1', and another grade above; remove one line"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, changes, message: str):
    with pytest.raises(ValueError, match=message):
        Beir("mine", data_dir=str(folder(tmp_path, **changes))).read()


def test_unknown_ids_are_left_out_on_request_and_said(tmp_path: Path, capsys):
    folder(tmp_path, **{"qrels/test.tsv": "q9\td1\t1\nq1\td1\t1\nq3\td9\t1", "qrels/dev.tsv": ""})
    collection = Beir("mine", drop_unknown=True, data_dir=str(tmp_path)).read()
    assert collection.queries["test"].ids == ["q1"]
    assert "test.tsv:1: query 'q9' is not in the collection; so it is with 2 of the 3 judgements of test: left out" in capsys.readouterr().err
    (tmp_path / "qrels/test.tsv").write_text("q9\td1\t1\n")
    with pytest.raises(ValueError, match=r"test\.tsv:1: no judgement of test names a known query and document"):
        Beir("mine", drop_unknown=True, data_dir=str(tmp_path)).read()


def test_truncated_gzip_names_the_line(tmp_path: Path):
    folder(tmp_path, **{"corpus.jsonl": ""})
    packed = gzip.compress(b"".join(b'{"_id": "%d", "text": "%d"}\n' % (n, n * 7919 % 10007) for n in range(20_000)))
    (tmp_path / "corpus.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz:\d+: the gzip data is truncated or damaged .*; fetch the file again"):
        Beir("mine", data_dir=str(tmp_path)).read()


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_files_are_named(tmp_path: Path, missing: str):
    folder(tmp_path, **({missing: "", "qrels/dev.tsv": ""}))
    with pytest.raises(FileNotFoundError, match=rf"mine: .*{missing}.* not found in .*Beir reads corpus\.jsonl"):
        Beir("mine", data_dir=str(tmp_path)).read()


def test_cranfield_codes_become_grades(tmp_path: Path):
    files = {"corpus.jsonl": "", "queries.jsonl": QUERIES, "qrels/test.tsv": "", "qrels/dev.tsv": "", "corpus.jsonl.gz": CORPUS}
    folder(tmp_path, **files, **{"qrels.tsv": "query-id\tcorpus-id\tcode\nq1\td1\t1\nq1\td2\t4\n"})
    collection = Cranfield(data_dir=str(tmp_path)).read()
    assert [part.tolist() for part in collection.qrels["test"].of(0)] == [[0, 1], [4, 1]]
    (tmp_path / "qrels.tsv").write_text("q1\td1\t5\n")
    with pytest.raises(ValueError, match=r"qrels\.tsv:1: the code must be 1 \(best\) to 4, got 5"):
        Cranfield(data_dir=str(tmp_path)).read()


def vidore(path: Path) -> Path:
    parts = {
        "corpus": {"corpus_id": [0, 1, 2], "image": [b"", b"", b""], "doc_id": ["a", "a", "b"], "markdown": ["# one", None, "three"]},
        "queries": {"query_id": [7, 8, 9], "query": ["who?", "qui ?", "what?"], "language": ["english", "french", "english"]},
        "qrels": {"query_id": [7, 8, 9, 9], "corpus_id": [0, 0, 2, 1], "score": [2, 2, 1, 2]},
    }
    for part, columns in parts.items():
        (path / part).mkdir(parents=True)
        pq.write_table(pa.table(columns), path / part / "test-00000-of-00001.parquet")
    return path


def test_vidore_pages_queries_of_one_language_and_grades(tmp_path: Path):
    vidore(tmp_path)
    collection = ViDoReV3("hr", data_dir=str(tmp_path)).read()
    assert (collection.ids, collection.texts) == (["0", "1", "2"], ["# one", "", "three"])
    assert collection.queries["test"] == (["7", "9"], ["who?", "what?"])
    assert [part.tolist() for part in collection.qrels["test"].of(1)] == [[1, 2], [2, 1]]
    assert ViDoReV3("hr", language="french", data_dir=str(tmp_path)).read().queries["test"].texts == ["qui ?"]


def test_vidore_errors_name_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"vidore_v3_hr: corpus not found"):
        ViDoReV3("hr", data_dir=str(tmp_path)).inputs()
    vidore(tmp_path)
    with pytest.raises(ValueError, match=r"no query has language='german'; there are english, french"):
        ViDoReV3("hr", language="german", data_dir=str(tmp_path)).read()
    file = tmp_path / "qrels" / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"query_id": [7], "corpus_id": [5], "score": [1]}), file)
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet, row 0: document '5' is not in the collection"):
        ViDoReV3("hr", data_dir=str(tmp_path)).read()
    pq.write_table(pa.table({"query_id": [7], "score": [1]}), file)
    with pytest.raises(ValueError, match=r"has no column corpus_id; there must be query_id, corpus_id, score"):
        ViDoReV3("hr", data_dir=str(tmp_path)).read()
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"test-00000-of-00001\.parquet: not a whole Parquet file"):
        ViDoReV3("hr", data_dir=str(tmp_path)).read()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"vidore_v3_hr: no \*\.parquet in .*qrels"):
        ViDoReV3("hr", data_dir=str(tmp_path)).read()


TABLES = {
    "corpus/corpus-00000-of-00002.parquet": {"_id": ["d1", "d2"], "title": ["Başlık", None], "text": ["bir", None]},
    "corpus/corpus-00001-of-00002.parquet": {"_id": ["d3"], "title": [""], "text": ["üç"]},
    "queries/queries-00000-of-00001.parquet": {"_id": ["q1", "q2", "q3"], "text": ["ilk", "ikinci", "kimse"]},
    "data/test-00000-of-00001.parquet": {"query-id": ["q2", "q1"], "corpus-id": ["d3", "d1"], "score": [2.0, 1.0]},
    "data/dev-00000-of-00001.parquet": {"query-id": ["q1"], "corpus-id": ["d2"], "score": [1.0]},
}


def parquet(path: Path, flat: bool = False, **changes: dict) -> Path:
    """A folder of `TABLES`; `changes` by the first word of a file's name; `flat` puts all into `data/`."""
    for name, columns in TABLES.items():
        file = path / (Path("data") / Path(name).name if flat else name)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns | changes.get(file.name.split("-")[0], {})), file)
    return path


@pytest.mark.parametrize("flat", [False, True])
def test_parquet_files_of_the_same_form_are_read(tmp_path: Path, monkeypatch, flat: bool):
    parquet(tmp_path / "nfcorpus-tr", flat)
    monkeypatch.setenv("JAXREC_DATA_DIR", str(tmp_path))
    collection = ParquetBeir("nfcorpus-tr").get()
    assert (collection.ids, collection.titles, collection.texts) == (["d1", "d2", "d3"], ["Başlık", "", ""], ["bir", "", "üç"])
    assert dict(collection.queries) == {"test": (["q1", "q2"], ["ilk", "ikinci"]), "validation": (["q1"], ["ilk"])}
    assert [part.tolist() for part in collection.qrels["test"].of(1)] == [[2], [2]]
    assert ParquetBeir("nfcorpus-tr", titles=False).get().titles == ["", "", ""]


def test_parquet_ids_may_be_numbers_and_titles_may_be_missing(tmp_path: Path):
    parquet(tmp_path, test={"query-id": ["q1", "q1"], "corpus-id": [7, 8]}, dev={"corpus-id": [7]})
    pq.write_table(pa.table({"_id": [7], "text": ["yedi"]}), tmp_path / "corpus/corpus-00000-of-00002.parquet")
    pq.write_table(pa.table({"_id": [8], "text": ["sekiz"]}), tmp_path / "corpus/corpus-00001-of-00002.parquet")
    collection = ParquetBeir("mine", data_dir=str(tmp_path)).read()
    assert (collection.ids, collection.titles) == (["7", "8"], ["", ""])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": {"score": [2.0, 0.5]}}, r"test-00000-of-00001\.parquet, row 1: the grade must be an integer .* got 0\.5"),
        ({"test": {"score": [2.0, None]}}, r"test-00000-of-00001\.parquet, row 1: the grade must be an integer .* got None"),
        ({"test": {"corpus-id": ["d3", "d9"]}}, r"test-00000-of-00001\.parquet, row 1: document 'd9' is not in the collection.*drop_unknown=True"),
        ({"queries": {"_id": ["q1", None, "q3"]}}, r"queries-00000-of-00001\.parquet, row 1: the query id must be non-empty text, got ''"),
        ({"queries": {"_id": [0.5, 1.5, 2.5]}}, r"queries-00000-of-00001\.parquet, row 0: '_id' must be text or an integer, got 0\.5"),
        ({"queries": {"text": [1, 2, 3]}}, r"queries-00000-of-00001\.parquet, row 0: 'text' must be text, got 1"),
    ],
)
def test_bad_parquet_names_the_row(tmp_path: Path, changes, message: str):
    parquet(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        ParquetBeir("mine", data_dir=str(tmp_path)).read()


def test_a_row_is_counted_in_its_own_file(tmp_path: Path):
    parquet(tmp_path)
    pq.write_table(pa.table({"_id": ["d1"], "text": [""]}), tmp_path / "corpus/corpus-00001-of-00002.parquet")
    with pytest.raises(
        ValueError, match=r"corpus-00001-of-00002\.parquet, row 0: document id 'd1' appears .* first at .*corpus-00000-of-00002\.parquet, row 0"
    ):
        ParquetBeir("mine", data_dir=str(tmp_path)).read()


@pytest.mark.parametrize(("part", "named"), [("queries", r"queries/queries-\*\.parquet"), ("data", r"data/\{train,dev,test\}-\*\.parquet")])
def test_missing_parquet_files_are_named(tmp_path: Path, part: str, named: str):
    for file in (parquet(tmp_path) / part).iterdir():
        file.unlink()
    for call in (ParquetBeir("mine", data_dir=str(tmp_path)).read, ParquetBeir("mine", data_dir=str(tmp_path)).inputs):
        with pytest.raises(FileNotFoundError, match=rf"mine: {named} not found in .*MTEB's form is"):
            call()


def test_scifact_has_beirs_numbers(data_dir: Path):
    collection = Beir("scifact").get()
    assert len(collection.ids) == 5183
    assert {split: (len(queries.ids), len(collection.qrels[split])) for split, queries in collection.queries.items()} == {
        "train": (809, 919),
        "test": (300, 339),
    }


def test_cranfield_has_its_grades(data_dir: Path):
    collection = Cranfield().get()
    grades = collection.qrels["test"].grades.tolist()
    assert (len(collection.ids), len(collection.queries["test"].ids)) == (1400, 225)
    assert [grades.count(grade) for grade in (4, 3, 2, 1)] == [353, 387, 734, 363]
    assert [name for name, text in zip(collection.ids, collection.passages(), strict=True) if not text.strip()] == ["471", "995"]
