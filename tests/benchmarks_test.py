from __future__ import annotations

import json

import jax
import pytest

from benchmarks import record as recording
from benchmarks.readme import group
from benchmarks.record import record


def test_a_result_carries_its_circumstances(tmp_path, capsys):
    [row] = record("speed", [{"name": "a", "ours": 6.0, "peer": 4.0, "unit": "steps/s", "versions": {"torch": "2"}}], folder=tmp_path)
    assert row["ratio"] == 1.5
    assert row["versions"]["torch"] == "2" and row["versions"]["jax"] == jax.__version__
    assert {"device", "date", "commit", "load"} <= row.keys()
    assert json.loads(capsys.readouterr().out) == row
    assert json.loads((tmp_path / "speed.json").read_text()) == [row]


def test_runs_add_to_one_file_and_a_newer_result_replaces_the_older(tmp_path):
    record("speed", [{"name": "a", "ours": 1.0, "unit": "s"}, {"name": "b", "ours": 2.0, "unit": "s"}], folder=tmp_path)
    record("speed", [{"name": "c", "ours": 3.0, "unit": "s"}, {"name": "a", "ours": 9.0, "unit": "s"}], folder=tmp_path)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["name"], row["ours"]) for row in kept] == [("a", 9.0), ("b", 2.0), ("c", 3.0)]


def test_without_a_peer_there_is_no_ratio_and_a_given_ratio_stays(tmp_path):
    alone, given = record(
        "speed",
        [{"name": "a", "ours": 1.0, "unit": "s"}, {"name": "b", "ours": {"x": 2.0}, "peer": {"x": 1.0}, "ratio": {"x": 2.0}, "unit": "s"}],
        folder=tmp_path,
    )
    assert alone["peer"] is None and alone["ratio"] is None
    assert given["ratio"] == {"x": 2.0}


@pytest.mark.parametrize(
    ("rows", "message"),
    [([{"name": "a", "ours": 1.0}], "'a' lacks unit"), ([{"name": "a", "ours": 1.0, "unit": "s"}] * 2, "called the same")],
)
def test_a_result_that_cannot_be_kept_is_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        record("speed", rows, folder=tmp_path)
    assert not (tmp_path / "speed.json").exists()


def test_outside_of_a_repository_the_commit_is_unknown(monkeypatch):
    def absent(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(recording.subprocess, "run", absent)
    assert recording.commit() == "unknown"


@pytest.mark.parametrize(
    ("run", "table"),
    [("sasrec_beauty", "beauty"), ("tiger_decoder_beauty refit", "beauty refit"), ("Markov beauty refit", "beauty refit"), ("ItemKNN ml1m", "ml1m")],
)
def test_runs_and_baselines_of_a_data_set_share_a_table(run, table):
    assert group(run) == table
