"""Index: the contract of every search over vectors, and what all of them check and write alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

HEADER = "index.json"  # marks a folder as an index and names its kind
SCHEMA = 1


class Index:
    """Vectors by id, searched by inner product.

    Ids are integers >= 0, each held once. Everything is float32 and finite.
    """

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Adds vectors [N, D] under ids [N]. Costs a copy of all vectors, so add many at once.

        Raises:
          ValueError: an id that the index holds already, or shapes or numbers that are not as above.
        """
        raise TypeError(f"{type(self).__name__} does not add")

    def delete(self, ids: ArrayLike) -> None:
        """Removes ids [N] and their vectors. Costs as much as `add`.

        Raises:
          ValueError: an id that the index does not hold.
        """
        raise TypeError(f"{type(self).__name__} does not delete")

    def search(self, queries: ArrayLike, k: int, *, filter: ArrayLike | None = None, exclude: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:  # noqa: A002
        """The k ids with the largest inner products for each query, best first, equal scores by the lower id.

        Args:
          queries: [B, D].
          k: 1 to the size of the index.
          filter: ids that may be found; None: all. Those that the index does not hold are ignored.
          exclude: [B, S] ids that may not be found, for each query its own. Those that the index does not hold are ignored, so pad with -1.

        Returns:
          ids [B, k] int64 and scores [B, k] float32. Where `filter` and `exclude` leave fewer than k, the row ends in id -1 with score -inf.

        Raises:
          ValueError: k is larger than the index or less than 1, or shapes or numbers that are not as above.
        """
        raise TypeError(f"{type(self).__name__} does not search")

    def save(self, path: Path) -> None:
        """Writes the folder `path`, whole or not at all. An index that is there already is replaced.

        Raises:
          FileExistsError: `path` is something else than an index.
        """
        raise TypeError(f"{type(self).__name__} does not save")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Opens what `save` wrote; the vectors are memory-mapped.

        Raises:
          FileNotFoundError, ValueError: no index, or one of another kind.
        """
        raise TypeError(f"{cls.__name__} does not load")


def write_header(folder: Path, kind: str, **fields: Any) -> None:
    """Writes the file that says what kind of index a folder holds."""
    (folder / HEADER).write_text(json.dumps({"index": kind, "schema": SCHEMA, **fields}, indent=1))


def read_header(folder: Path, kind: str) -> dict[str, Any]:
    """Reads what `write_header` wrote.

    Raises:
      FileNotFoundError, ValueError: no index there, or one of another kind or schema.
    """
    if not (folder / HEADER).is_file():
        raise FileNotFoundError(f"{folder} holds no index (it has no {HEADER}); make one with {kind}.save")
    try:
        header = json.loads((folder / HEADER).read_text())
        held, schema = header["index"], header["schema"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder} is not whole: its {HEADER} is damaged ({type(error).__name__}: {error}); build the index again") from None
    if (held, schema) != (kind, SCHEMA):
        raise ValueError(f"{folder} holds {held} of schema {schema}, not {kind} of schema {SCHEMA}; load it with its own class, or build it again")
    return header


def checked_ids(ids: ArrayLike) -> np.ndarray:
    """[N] int64 ids, each once and none negative; raises ValueError."""
    given = np.asarray(ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"ids must be a list of integers, got {given.dtype} of shape {given.shape}")
    values, counts = np.unique(given.astype(np.int64), return_counts=True)
    if len(values) and (values[0] < 0 or counts.max() > 1):
        wrong = f"{values[0]} is negative" if values[0] < 0 else f"{values[counts.argmax()]} is given {counts.max()} times"
        raise ValueError(f"id {wrong}; ids are integers >= 0, each given once")
    return given.astype(np.int64)


def checked_vectors(vectors: ArrayLike, rows: int | None, dim: int | None, what: str = "vectors") -> np.ndarray:
    """[rows, dim] float32 finite vectors, None where any number will do; raises ValueError."""
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or (rows is not None and len(array) != rows) or (dim is not None and array.shape[1] != dim):
        raise ValueError(f"{what} must have shape [{'B' if rows is None else rows}, {'D' if dim is None else dim}], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} hold NaN or infinity in row {int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])}; inner products need finite numbers")
    return array


def checked_filter(ids: Any) -> np.ndarray:
    """[S] int64 ids of a list or a set; raises ValueError for what is none, a mask of booleans above all."""
    given = np.asarray(list(ids) if isinstance(ids, set | frozenset) else ids)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"filter must be a list of ids, got {given.dtype} of shape {list(given.shape)}; of a mask give the ids where it is True")
    return given.astype(np.int64)


def checked_exclude(exclude: ArrayLike | None, queries: int) -> np.ndarray:
    """[B, S] int64 ids, S = 0 for None; raises ValueError."""
    if exclude is None:
        return np.zeros((queries, 0), np.int64)
    array = np.asarray(exclude)
    if array.ndim != 2 or len(array) != queries or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"exclude must be integers of shape [{queries}, S], one row per query, got {array.dtype} of shape {list(array.shape)}")
    return array.astype(np.int64)


def check_k(k: int, items: int) -> None:
    """Raises ValueError unless 1 <= k <= items."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise ValueError(f"k={k!r} is no number of answers; ask for a whole one")
    if k < 1:
        raise ValueError(f"k={k} asks for nothing; ask for k >= 1")
    if k > items:
        raise ValueError(f"k={k} is more than the {items} items of the index" + (f"; ask for k <= {items}" if items else "; add vectors first"))
