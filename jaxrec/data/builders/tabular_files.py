"""CSV, TSV and Parquet files as columns of ids, numbers and times; what cannot be read is refused by file, line and reason."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import difflib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as arrow_parquet

from jaxrec.artifact import say
from jaxrec.data.builders.text_lines import decode, read_bytes

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")  # 007 is a name, not a number
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_LATEST = 100_000_000_000  # seconds: the year 5138; larger numbers are milliseconds


@dataclasses.dataclass(frozen=True)
class TabularFile:
    """The columns of one file. Those of a text file are all text, so that `007` stays `007` and conversion errors are ours to explain."""

    path: Path
    table: pa.Table
    separator: str = ""  # of a text file

    @classmethod
    def read(cls, path: Path) -> TabularFile:
        """Reads `.csv`, `.tsv` (each plain or `.gz`) or `.parquet`.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: another suffix; an empty, truncated or damaged file; a line with too few or too many fields; no rows.
        """
        suffix = Path(existing(path).name.removesuffix(".gz")).suffix
        if suffix == ".parquet":
            file = cls(path, _read_parquet(path))
        elif suffix in _SEPARATORS:
            file = cls(path, _read_text(path, _SEPARATORS[suffix]), _SEPARATORS[suffix])
        else:
            raise ValueError(f"{path}: cannot tell the format from the suffix {suffix!r}; name it .csv, .tsv, .csv.gz, .tsv.gz or .parquet")
        if not file.table.num_rows:
            raise ValueError(f"{path}: there are columns ({', '.join(file.table.column_names)}) but no rows; write at least one")
        return file

    def where(self, row: int) -> str:
        """What to call row 0, 1 ... in a message: the line where it begins, counted from 1 with the header, or the row of a Parquet file."""
        if not self.separator:
            return f"{self.path}: row {row + 1}"
        return f"{self.path}:{_line(decode(read_bytes(self.path), self.path), self.separator, row + 1)}"

    def column(self, name: str) -> pa.Array:
        """The column `name`; a missing one is an error that lists the file's columns and the nearest."""
        columns = self.table.column_names
        if name not in columns:
            near = difflib.get_close_matches(name.lower(), [column.lower() for column in columns], n=1)
            meant = [column for column in columns if near and column.lower() == near[0]]
            raise ValueError(f"{self.path} has no column {name!r}; it has {', '.join(columns)}{f'. Did you mean {meant[0]!r}?' if meant else ''}")
        column = self.table.column(name)
        if pa.types.is_dictionary(column.type):  # a categorical of pandas
            column = column.cast(column.type.value_type)
        elif pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        return column.combine_chunks()

    def ids(self, name: str) -> tuple[list[str], np.ndarray]:
        """The distinct ids of a column, sorted (as numbers if all are integers), and [R] int64, the position of each row's id among them."""
        column = self.column(name)
        if not (pa.types.is_integer(column.type) or _is_text(column.type)):
            raise ValueError(f"{self.path}: column {name!r} is {column.type}; ids must be integers or text: write the column as one of these")
        encoded = column.cast(pa.string()).fill_null("").dictionary_encode()
        distinct = [text.strip() for text in encoded.dictionary.to_pylist()]
        rows = encoded.indices.to_numpy()  # [R]
        self.refuse(np.array([not text for text in distinct])[rows], lambda row: f"the {name!r} is empty; fill it in or remove the row")
        integers = all(_INTEGER.fullmatch(text) for text in distinct)
        ids = sorted(set(distinct), key=int if integers else str)
        rank = {text: position for position, text in enumerate(ids)}
        return ids, np.array([rank[text] for text in distinct])[rows]

    def numbers(self, name: str) -> np.ndarray:
        """[R] float64 of a column of finite numbers."""
        column = self.column(name)
        values = _as_float(column)
        if values is None and not _is_text(column.type):
            raise ValueError(f"{self.path}: column {name!r} is {column.type}; expected numbers")
        if values is None:
            values = np.array([np.nan if _as_float(column.slice(row, 1)) is None else 0.0 for row in range(len(column))])
        self.refuse(~np.isfinite(values), lambda row: f"the {name!r} must be a finite number, got {column[row].as_py()!r}; correct or remove the row")
        return values

    def seconds(self, name: str) -> np.ndarray:
        """[R] float64 of a column of seconds since 1970, of timestamps, or of ISO 8601 text (UTC unless it says otherwise)."""
        column = self.column(name)
        if pa.types.is_temporal(column.type) and not pa.types.is_time(column.type):
            values = _from_timestamps(column)
            self.refuse(np.isnan(values), lambda row: f"the {name!r} is missing; fill it in or remove the row")
        elif _is_text(column.type) and _as_float(column.slice(0, 1)) is None:  # the first row tells which of the two it is
            values = self._from_iso(name, column)
        else:
            values = self.numbers(name)
        self.refuse(values < 0, lambda row: f"the {name!r} {column[row].as_py()} is before 1970; give seconds since 1970")
        self.refuse(values > _LATEST, lambda row: f"the {name!r} {column[row].as_py()} is after the year 5138; if these are milliseconds, divide by 1000")
        return values

    def values(self, name: str, *, codes: bool = False) -> list[Any]:
        """A column as Python values that JSON can hold: integers, numbers (None where missing), text, lists. With `codes`, numbers are text too."""
        column = self.column(name)
        if self.separator:
            values = self._guessed(name, column.to_pylist())
        elif _is_text(column.type):
            values = [value or "" for value in column.to_pylist()]
        elif _is_plain(column.type.value_type if _is_list(column.type) else column.type):
            values = column.to_pylist()
        else:
            try:
                values = column.cast(pa.string()).to_pylist()  # dates and times
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
                what = f"{column.type}; a column must hold text, numbers, dates, or lists of text or of numbers"
                raise ValueError(f"{self.path}: column {name!r} is {what}: write its parts as columns of their own, or leave it out") from None
        return [_as_text(value) for value in values] if codes else values

    def refuse(self, bad: np.ndarray, message: Callable[[int], str]) -> None:
        """Raises ValueError with the message for the first true row of `bad` [R], if there is one."""
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"{self.where(row)}: {message(row)}")

    def _from_iso(self, name: str, column: pa.Array) -> np.ndarray:
        seconds: dict[str, float] = {}
        texts = column.to_pylist()
        for row, text in enumerate(texts):
            if text not in seconds:
                try:
                    moment = datetime.datetime.fromisoformat((text or "").strip())
                except ValueError:
                    expected = "seconds since 1970, or ISO 8601 such as 2024-05-01T12:00:00Z, in all rows"
                    raise ValueError(f"{self.where(row)}: the {name!r} must be {expected}, got {text!r}; correct or remove the row") from None
                seconds[text] = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
        return np.array([seconds[text] for text in texts])

    def _guessed(self, name: str, texts: list[str]) -> list[Any]:
        """Text as integers if all are, as numbers if all are, as text otherwise; an empty cell is None among numbers."""
        texts = [text.strip() for text in texts]
        distinct = set(texts) - {""}
        odd = {text for text in distinct if not _NUMBER.fullmatch(text)}
        if odd or not distinct:
            row = next((row for row, text in enumerate(texts) if text in odd), 0)
            if len(odd) == 1 < len(distinct):
                say(f"{self.where(row)}: {texts[row]!r} makes a category of each {name!r}, and all others are numbers; leave the cell empty if it is unknown")
            return texts
        convert = int if all(_INTEGER.fullmatch(text) for text in distinct) else float
        return [convert(text) if text else None for text in texts]


def existing(path: Path) -> Path:
    """`path`, if there is such a file; else an error that names the nearest one in its folder."""
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.is_file())
        raise IsADirectoryError(f"{path} is a folder; name a file{f' in it, such as {path / inside[0]}' if inside else ''}")
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise FileNotFoundError(f"{path} does not exist; {f'did you mean {near[0]!r}?' if near else 'correct the path'}")
    return path


def _read_parquet(path: Path) -> pa.Table:
    try:
        return arrow_parquet.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); write it again") from None


def _read_text(path: Path, separator: str) -> pa.Table:
    text = decode(read_bytes(path).rstrip(b"\r\n"), path)
    try:
        header = next(_records(text, separator))
    except csv.Error as error:
        raise ValueError(f"{path}:1: the header cannot be read ({error}); is a quote missing?") from None
    if len(header) == 1 and (other := next((mark for mark in ("\t", ";", "|", ",") if mark in header[0]), "")):
        fix = f"write it with {separator!r}" + (", or name it .tsv" if other == "\t" else ", or name it .csv" if other == "," else "")
        raise ValueError(
            f"{path}:1: the columns are separated by {other!r}, and those of a {'.csv' if separator == ',' else '.tsv'} file by {separator!r}; {fix}"
        )
    if len(set(header)) < len(header):
        raise ValueError(f"{path}:1: the header names a column twice: {', '.join(header)}; rename one")
    bad: list[Any] = []

    def note(row: Any) -> str:
        bad.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(f"{text}\n".encode()),
            read_options=arrow_csv.ReadOptions(use_threads=False),  # else bad rows come without their numbers
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}; correct the file") from None
    if bad:
        row = bad[0]
        where = f"{path}:{_line(text, separator, row.number - 1)}"
        what = f"expected {row.expected_columns} fields ({', '.join(header)}), got {row.actual_columns} in {row.text[:80]!r}"
        raise ValueError(f"{where}: {what}; is a quote or separator missing?")
    return table


def _line(text: str, separator: str, record: int) -> int:
    """The line, from 1, where record 0 (the header), 1 ... of a text file begins; a quoted value may hold line ends."""
    reader = _records(text, separator)
    for _ in range(record):
        next(reader)
    return reader.line_num + 1


def _records(text: str, separator: str) -> Any:
    """A reader of the records of a text file, whose cells may be of any length."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_plain(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind) or _is_text(kind)


def _as_text(value: Any) -> Any:
    """A value, or each part of a list, as text; None stays."""
    return [_as_text(part) for part in value] if isinstance(value, list) else None if value is None else str(value)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _as_float(column: pa.Array) -> np.ndarray | None:
    """[R] float64, NaN where missing; None if some value is no number."""
    try:
        trimmed = pc.call_function("utf8_trim_whitespace", [column]) if _is_text(column.type) else column
        return _numpy(trimmed.cast(pa.float64(), safe=False))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _from_timestamps(column: pa.Array) -> np.ndarray:
    """[R] float64 seconds since 1970, NaN where missing, of timestamps or dates."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    micros = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())
    return _numpy(micros) / 1e6
