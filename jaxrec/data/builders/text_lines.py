"""Text files of a line per record, gzip or plain: read fast, and when a line is bad, say which, why, and what to do."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 1 << 16
_LONGEST = 18  # digits of an integer that is sure to fit int64


def read_bytes(path: Path) -> bytes:
    """The whole file, decompressed if it is gzip (told by its first bytes, so that a `.gz` already unpacked by a browser reads too).

    Raises:
      ValueError: the file is empty, or its gzip data is truncated or damaged; names file and line.
    """
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    chunks: list[bytes] = []
    with gzip.open(path) if packed else open(path, "rb") as file:
        try:
            while chunk := file.read1(_CHUNK):  # read() would drop what came before the damage
                chunks.append(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            line = sum(chunk.count(b"\n") for chunk in chunks) + 1
            raise ValueError(f"{path}:{line}: the gzip data is truncated or damaged ({error}); fetch the file again") from None
    raw = b"".join(chunks)
    if not raw.strip():
        raise ValueError(f"{path}:1: the file is empty; fetch it again, or point to the right one")
    return raw


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file without their ends and without blank lines at the end of the file.

    Raises:
      ValueError: as `read_bytes`, or a line that is not text in `encoding`.
    """
    text = decode(read_bytes(path).rstrip(b"\r\n"), path, encoding)
    return [line.removesuffix("\r") for line in text.split("\n")]  # splitlines() would also split at U+2028 and the like


def decode(raw: bytes, path: Path, encoding: str = "utf-8") -> str:
    """The text of a file's bytes, without a byte order mark; a byte that is not `encoding` is an error that names its line."""
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not {encoding} text; save the file as {encoding}") from None


def read_json_lines(path: Path, required: dict[str, type]) -> list[dict[str, Any]]:
    """One JSON object per line, each with at least the `required` keys, of the given types."""
    rows = []
    for line, text in enumerate(read_lines(path), start=1):
        row = _json(text, f"{path}:{line}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{line}: expected a JSON object, got {text[:60]!r}")
        for key, kind in required.items():
            if not isinstance(row.get(key), kind) or row[key] == "":
                raise ValueError(
                    f"{path}:{line}: {key!r} must be {'non-empty ' * (kind is str)}{kind.__name__}, got {row.get(key)!r}; its keys are {', '.join(row)}"
                )
        rows.append(row)
    return rows


def _json(text: str, where: str) -> Any:
    """The value that a line is; what could not be written again as text is an error here, not later."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a pair, which JSON may hold alone and UTF-8 may not
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error.msg} at column {error.colno}); each line must be one complete object") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: {error.object[error.start]!r} is half a character (a lone surrogate); remove it") from None
    except RecursionError:
        raise ValueError(f"{where}: lists or objects are nested too deeply to be read; remove what is nested, or the line") from None
    except ValueError as error:
        raise ValueError(f"{where}: a number is too long to be read ({error}); shorten it, or put it in quotes") from None
    return value


def read_separated(path: Path, separator: str, columns: tuple[str, ...], encoding: str) -> list[list[str]]:
    """Rows of text split at `separator`, each with all the `columns`."""
    rows = [text.split(separator) for text in read_lines(path, encoding)]
    for line, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(
                f"{path}:{line}: expected {separator.join(columns)}, got {separator.join(row)[:80]!r} with {len(row)} fields; is a separator missing?"
            )
    return rows


def read_integers(path: Path, separator: bytes, columns: tuple[str, ...]) -> np.ndarray:
    """[R, C] int64: a table of non-negative integers, such as MovieLens's `user::movie::rating::time`."""
    rows = [text.removesuffix(b"\r").split(separator) for text in read_bytes(path).rstrip().split(b"\n")]
    for line, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            got = separator.join(row)[:80].decode(errors="replace")
            raise ValueError(f"{path}:{line}: expected {separator.decode().join(columns)}, got {got!r} with {len(row)} fields; is a separator missing?")
    return _integers(path, rows, columns).reshape(-1, len(columns))


def _integers(path: Path, rows: list[list[bytes]], names: tuple[str, ...]) -> np.ndarray:
    """All tokens of all rows, flat, int64. `names` call the tokens of a row in a message; its last calls all further ones."""
    tokens = [token for row in rows for token in row]
    if not (all(tokens) and b"".join(tokens).isdigit() and len(max(tokens, key=len)) <= _LONGEST):
        for row, texts in enumerate(rows):
            for position, token in enumerate(texts):
                integer(token.decode(errors="replace"), names[min(position, len(names) - 1)], line_of(path), row)
    return np.fromiter(map(int, tokens), np.int64, len(tokens))


def line_of(path: Path) -> Callable[[int], str]:
    """What to call row 0, 1 ... of a text file without header: its file and line."""
    return lambda row: f"{path}:{row + 1}"


def integer(text: str, name: str, where: Callable[[int], str], row: int) -> int:
    """One non-negative integer of a file; `name` calls it and `where(row)` places it, should it be none."""
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST):
        raise ValueError(f"{where(row)}: the {name} must be an integer of at most {_LONGEST} digits, got {text!r}; correct or remove the line")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A file of one line per user, `user item item ...` in time order, all integers.

    Attributes:
      users: [U] int64, distinct.
      offsets: [U + 1] int64; user u's items are `items[offsets[u]:offsets[u + 1]]`. User u stands in line u + 1.
      items: [E] int64, as written in the file.
    """

    path: Path
    users: np.ndarray
    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Sequences:
        """Reads the file; errors name the line that is not integers, has a user without items, or repeats a user."""
        rows = [text.split() for text in read_bytes(path).rstrip().split(b"\n")]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))  # [U]
        if lengths.min() < 2:
            line = int(np.argmax(lengths < 2)) + 1
            what = f"user {rows[line - 1][0].decode(errors='replace')} has no items" if rows[line - 1] else "the line is blank"
            raise ValueError(f"{path}:{line}: {what}; each line must be `user item item ...`: remove the line, or give it items")
        values = _integers(path, rows, ("user id", "item id"))
        starts = np.cumsum(lengths) - lengths  # [U] where each line's user id lies in `values`
        users = values[starts]
        _refuse(repeated(users), lambda row: f"{path}:{row + 1}: user {users[row]} appears a second time; join the lines of one user")
        return cls(path, users, np.concatenate([[0], np.cumsum(lengths - 1)]), np.delete(values, starts))

    def rows_in(self, known: np.ndarray, where: Path) -> np.ndarray:
        """[E] position of each item in the sorted ids `known`, which were read from the file `where`; an item not there is an error."""
        rows = np.searchsorted(known, self.items).clip(max=len(known) - 1)
        unknown = known[rows] != self.items
        _refuse(unknown, lambda event: f"{self.path}:{self._line(event)}: item {self.items[event]} is not in {where}; the two files must belong together")
        return rows

    def _line(self, event: int) -> int:
        return int(np.searchsorted(self.offsets, event, side="right"))


def repeated(ids: np.ndarray) -> np.ndarray:
    """[R] bool: true at every row whose id an earlier row already has."""
    again = np.ones(len(ids), bool)
    again[np.unique(ids, return_index=True)[1]] = False
    return again


def _refuse(bad: np.ndarray, message: Callable[[int], str]) -> None:
    """Raises ValueError with the message for the first true row of `bad`, if there is one."""
    if bad.any():
        raise ValueError(message(int(np.argmax(bad))))
