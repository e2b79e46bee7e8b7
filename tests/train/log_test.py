"""The log: what it writes can be read back, and a disk that is full stops the records and not the run."""

from __future__ import annotations

import json
import resource

import pytest

from jaxrec.train.log import Board, Lines, Log

tensorboard = pytest.importorskip("tensorboardX")


def events(folder):
    """The events of the only file in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")  # then 4 bytes of checksum, the event, and 4 bytes of checksum
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_what_is_reported_is_recorded_twice(tmp_path, capsys):
    log = Log(tmp_path, 10, per_step=4)
    log.report(1, {"loss": 0.5})
    log.report(2, {"validation NDCG@10": 0.25, "loss": 0.125})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # before it is closed
    log.close()
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.125)] and list(rows[0]) == ["step", "seconds", "histories_per_second", "loss"]
    first, *others = events(tmp_path / "tensorboard")
    assert first.file_version == "brain.Event:2"
    values = [(event.step, value.tag, value.simple_value) for event in others for value in event.summary.value]
    assert values == [(1, "loss", 0.5), (2, "validation_NDCG_10", 0.25), (2, "loss", 0.125)]
    assert "step 2/10  validation NDCG@10 0.2500  loss 0.1250" in capsys.readouterr().err


@pytest.mark.parametrize("record", [Lines, Board])
def test_a_full_disk_ends_the_records_with_one_line(record, tmp_path, capsys, monkeypatch):
    log = Log(tmp_path, 10)
    log.report(1, {"loss": 0.5})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "write", full)
    for step in (2, 3):
        log.report(step, {"loss": 0.5})
    log.close()
    said = capsys.readouterr().err
    assert said.count(f"metrics are not recorded in {tmp_path} any more, only shown here: [Errno 28] No space left on device\n") == 1
    assert "step 3/10" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == (1 if record is Lines else 2)


def test_a_line_is_recorded_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = Lines(path)
    lines.write(1, {}, {"loss": 0.5})
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(OSError, match=r"metrics.jsonl took 10 of the 25 bytes of a line; is the disk full\?"):
            lines.write(2, {}, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == whole
    lines.write(3, {}, {"loss": 0.5})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_on_a_terminal_a_bar_that_fits_into_its_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    log = Log(tmp_path, 8)
    for step in (2, 8):
        log.report(step, {"loss": 0.5, "validation NDCG@10": 0.25})
    log.close()
    first, second, rest = capsys.readouterr().err.removeprefix("\r").replace("\n", "\r").split("\r")
    assert first.startswith("\033[K[#####...............]  25% step 2/8  loss 0.5000") and len(first.removeprefix("\033[K")) < 60
    assert second.startswith("\033[K[####################] 100% step 8/8") and not rest
