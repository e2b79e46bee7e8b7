"""Rows of Parquet files: some columns of all the files of a table, and for each row the file that it is from."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class ParquetRows:
    """The rows of files, one file after another.

    Attributes:
      columns: by name, the values as Python has them.
      paths: the files.
      starts: the first row of each file.
    """

    columns: dict[str, list[Any]]
    paths: Sequence[Path]
    starts: list[int]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, row: int) -> str:
        """The file of a row, and its number there, from 0."""
        file = bisect.bisect_right(self.starts, row) - 1
        return f"{self.paths[file]}, row {row - self.starts[file]}"

    def ids(self, column: str) -> list[str]:
        """A column of texts or integers as texts, "" where there is nothing."""
        for row, value in enumerate(self.columns[column]):
            if not (value is None or isinstance(value, str | int)):
                raise ValueError(f"{self.where(row)}: {column!r} must be text or an integer, got {value!r}; correct or remove the row")
        return ["" if value is None else str(value) for value in self.columns[column]]

    def texts(self, column: str) -> list[str]:
        """A column of texts, "" where there is nothing."""
        for row, value in enumerate(self.columns[column]):
            if not (value is None or isinstance(value, str)):
                raise ValueError(f"{self.where(row)}: {column!r} must be text, got {value!r}; correct or remove the row")
        return [value or "" for value in self.columns[column]]

    def judgements(self, query: str, document: str, grade: str) -> list[tuple[str, str, int]]:
        """(query id, document id, grade) of each row, of the columns of these names; a grade is a whole number, perhaps written as 1.0."""
        for row, value in enumerate(self.columns[grade]):
            if not (isinstance(value, int | float) and value == value // 1):
                raise ValueError(f"{self.where(row)}: the grade must be an integer (0 = irrelevant, 1, 2 ... = relevant), got {value!r}; correct the row")
        return list(zip(self.ids(query), self.ids(document), map(int, self.columns[grade]), strict=True))


def read_parquet(paths: Sequence[Path], required: Sequence[str], optional: Sequence[str] = ()) -> ParquetRows:
    """The `required` columns of all files, and those `optional` ones that all of them have.

    Raises:
      ValueError: a file is no whole Parquet file, or lacks a column; names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in paths:
        try:
            names = pq.read_schema(path).names
            if missing := set(required) - set(names):
                raise ValueError(f"{path}: has no column {', '.join(sorted(missing))}; there must be {', '.join(required)}")
            tables.append(pq.read_table(path, columns=[name for name in (*required, *optional) if name in names]))
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not a whole Parquet file ({error}); fetch it again") from None
    shared = [name for name in (*required, *optional) if all(name in table.column_names for table in tables)]
    starts = [sum(table.num_rows for table in tables[:file]) for file in range(len(tables))]
    return ParquetRows({name: [value for table in tables for value in table[name].to_pylist()] for name in shared}, paths, starts)
