"""Text files: fast reading, and errors that name file, line and fix."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders.text_lines import Sequences, read_bytes, read_integers, read_json_lines, read_lines, read_separated, repeated


def _write(path: Path, text: str | bytes) -> Path:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["s.txt", "s.txt.gz"])
def test_sequences(tmp_path: Path, name: str):
    got = Sequences.read(_write(tmp_path / name, "7 1 2 3\r\n2 3 3\r\n\r\n"))
    np.testing.assert_array_equal(got.users, [7, 2])
    np.testing.assert_array_equal(got.offsets, [0, 3, 5])
    np.testing.assert_array_equal(got.items, [1, 2, 3, 3, 3])
    np.testing.assert_array_equal(got.rows_in(np.array([1, 2, 3, 9]), tmp_path / "items"), [0, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n2 4 x5\n", r"s\.txt:2: the item id must be an integer of at most 18 digits, got 'x5'; correct or remove the line"),
        ("1 2 3\n-2 4\n", r"s\.txt:2: the user id must be an integer .* got '-2'"),
        ("1 2 3\n2 1_0\n", r"s\.txt:2: the item id .* got '1_0'"),
        ("1 2 3\n2 " + "9" * 30, r"s\.txt:2: the item id must be an integer of at most 18 digits"),
        ("1 2 3\n2\n3 1\n", r"s\.txt:2: user 2 has no items; .*remove the line, or give it items"),
        ("1 2 3\n\n3 1\n", r"s\.txt:2: the line is blank"),
        ("1 2\n2 3\n1 4\n", r"s\.txt:3: user 1 appears a second time; join the lines"),
        ("", r"s\.txt:1: the file is empty; fetch it again"),
        (" \n\n", r"s\.txt:1: the file is empty"),
    ],
)
def test_bad_sequences_name_the_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Sequences.read(_write(tmp_path / "s.txt", text))


def test_unknown_item_names_the_line(tmp_path: Path):
    sequences = Sequences.read(_write(tmp_path / "s.txt", "1 1 2\n2 2 1\n3 1 9 2\n"))
    with pytest.raises(ValueError, match=r"s\.txt:3: item 9 is not in .*items\.txt; the two files must belong together"):
        sequences.rows_in(np.array([1, 2]), tmp_path / "items.txt")


def test_truncated_gzip_names_the_line(tmp_path: Path):
    lines = "".join(f"{user} {' '.join(str((user * 7919 + step * 104729) % 100003) for step in range(40))}\n" for user in range(8_000))
    packed = gzip.compress(lines.encode())
    path = tmp_path / "s.txt.gz"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"s\.txt\.gz:\d+: the gzip data is truncated or damaged .*; fetch the file again") as error:
        Sequences.read(path)
    whole = zlib.decompressobj(wbits=31).decompress(packed[: len(packed) // 2]).count(b"\n")  # lines that survive
    assert whole > 1000
    assert abs(int(str(error.value).split("gz:")[1].split(":")[0]) - (whole + 1)) <= 50  # gzip holds back a few kilobytes


def test_damaged_gzip_is_refused(tmp_path: Path):
    packed = bytearray(gzip.compress(b"1 2 3\n" * 1000))
    packed[-6] ^= 255  # the checksum
    (tmp_path / "s.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"s\.gz:\d+: the gzip data is truncated or damaged"):
        read_bytes(tmp_path / "s.gz")
    packed = bytearray(gzip.compress(b"1 2 3\n" * 1000))
    packed[12] ^= 255  # the compressed data
    (tmp_path / "s.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"s\.gz:\d+: the gzip data is truncated or damaged"):
        read_bytes(tmp_path / "s.gz")


def test_gz_that_was_unpacked_on_the_way_still_reads(tmp_path: Path):
    (tmp_path / "s.txt.gz").write_bytes(b"1 2 3\n")
    assert read_lines(tmp_path / "s.txt.gz") == ["1 2 3"]


def test_lines_end_at_newlines_only(tmp_path: Path):
    assert read_lines(_write(tmp_path / "l.txt", "\ufeffone\u2028still one\r\n\ntwo\x0bstill two\n\n")) == ["one\u2028still one", "", "two\x0bstill two"]


def test_wrong_encoding_names_line_and_byte(tmp_path: Path):
    path = _write(tmp_path / "l.txt", "fine\nM\xe9xico\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"l\.txt:2: byte 0xe9 is not utf-8 text; save the file as utf-8"):
        read_lines(path)
    assert read_lines(path, "latin-1") == ["fine", "México"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1}\n{"id": 2', r"j:2: not a JSON object .*each line must be one complete object"),
        ('{"id": 1}\n[2]', r"j:2: expected a JSON object, got '\[2\]'"),
        ('{"id": 1}\n{"ids": 2}', r"j:2: 'id' must be int, got None; its keys are ids"),
        ('{"id": 1}\n{"id": "2"}', r"j:2: 'id' must be int, got '2'"),
    ],
)
def test_bad_json_lines_name_the_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_json_lines(_write(tmp_path / "j", text), {"id": int})


def test_pairs_of_surrogates_are_one_character(tmp_path: Path):
    assert read_json_lines(_write(tmp_path / "j", '{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}'), {}) == [{"a": "\U0001f600", "b": "\\ud800"}]


def test_empty_text_in_json_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"j:1: 'asin' must be non-empty str, got ''"):
        read_json_lines(_write(tmp_path / "j", '{"asin": ""}'), {"asin": str})


def test_separated_and_integer_tables(tmp_path: Path):
    path = _write(tmp_path / "t", "1::2::3\r\n4::5::6\n")
    assert read_separated(path, "::", ("a", "b", "c"), "utf-8") == [["1", "2", "3"], ["4", "5", "6"]]
    np.testing.assert_array_equal(read_integers(path, b"::", ("a", "b", "c")), [[1, 2, 3], [4, 5, 6]])
    for read in (lambda p: read_separated(p, "::", ("a", "b"), "utf-8"), lambda p: read_integers(p, b"::", ("a", "b"))):
        with pytest.raises(ValueError, match=r"t:1: expected a::b, got '1::2::3' with 3 fields; is a separator missing\?"):
            read(path)
    with pytest.raises(ValueError, match=r"t:2: the b must be an integer .* got ''"):
        read_integers(_write(tmp_path / "t", "1::2\n3::\n4::5"), b"::", ("a", "b"))


def test_repeated():
    np.testing.assert_array_equal(repeated(np.array([3, 1, 3, 2, 1, 3])), [False, False, True, False, True, True])
