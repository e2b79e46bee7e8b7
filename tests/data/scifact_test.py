"""SciFact's evidence: which sentences a claim gets, what is left out, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxrec.data.builders.scifact import SciFactEvidence

DOCUMENTS = {"d1": ("First one. Then two. At last three.", 3), "d2": ("Only one here.", 1), "d3": ("One. Two.", 5)}
HEADER = "claim-id\tcorpus-id\tlabel\tsentences\n"
EVIDENCE = HEADER + "q1\td1\tSUPPORT\t[2 0]\nq1\td2\tCONTRADICT\t[0]\nq1\td1\tSUPPORT\t[2]\nq2\td3\tSUPPORT\t[1]\nq9\td1\tSUPPORT\t[1]\n"


def folder(path: Path, evidence: str = EVIDENCE) -> str:
    (path / "qrels").mkdir(exist_ok=True)
    rows = [{"_id": name, "text": text, "n_sentences": count} for name, (text, count) in DOCUMENTS.items()]
    (path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "queries.jsonl").write_text("".join(f'{{"_id": "q{number}", "text": "claim {number}"}}\n' for number in range(1, 5)))
    (path / "qrels" / "train.tsv").write_text("q1\td1\t1\nq1\td2\t1\nq2\td3\t1\nq3\td2\t1\n")
    (path / "qrels" / "test.tsv").write_text("q4\td1\t1\n")
    (path / "evidence_train.tsv").write_text(evidence)
    return str(path)


def test_the_reasoning_of_a_claim_is_its_evidence(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    source = SciFactEvidence(data_dir=folder(tmp_path))
    collection = source.get()
    assert collection.queries["train"].ids == ["q1", "q2", "q3"] and set(collection.queries) == {"train", "test"}
    assert collection.reasoning == {"train": [["First one.", "At last three.", "Only one here."], [], []]}
    assert "1 of 3 training claims have evidence; 1 lines are left out" in capsys.readouterr().err
    before = source.fingerprint()
    folder(tmp_path, HEADER + "q3\td2\tSUPPORT\t[0]\n")
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ("q1\td1\tSUPPORT\t[2]\n", r"evidence_train\.tsv:1: expected the header"),
        (HEADER + "q1\td1\tSUPPORT\t2\n", r"evidence_train\.tsv:2: expected claim id, document id, label and sentences as in \[2 5\]"),
        (HEADER + "q1\td1\t[2]\n", r"evidence_train\.tsv:2: expected claim id"),
        (HEADER + "q1\td9\tSUPPORT\t[2]\n", r"evidence_train\.tsv:2: document 'd9' is not in .*corpus\.jsonl; the two files must belong together"),
        (HEADER + "q1\td1\tSUPPORT\t[1 3]\n", r"evidence_train\.tsv:2: sentence 3 is none of the 3 of document 'd1'; they are numbered from 0"),
    ],
)
def test_bad_evidence_names_the_line(tmp_path: Path, evidence: str, message: str):
    with pytest.raises(ValueError, match=message):
        SciFactEvidence(data_dir=folder(tmp_path, evidence)).read()


def test_the_published_set_has_evidence(data_dir: Path):
    if not (data_dir / "scifact" / "evidence_train.tsv").exists():
        pytest.skip("needs scifact/evidence_train.tsv")
    collection = SciFactEvidence(data_dir=str(data_dir / "scifact")).read()
    steps = collection.reasoning["train"]
    assert (len(steps), sum(map(bool, steps))) == (809, 475)
    texts = set(collection.texts)
    some = next(step for step in steps if step)
    assert any(some[0] in text for text in texts)
