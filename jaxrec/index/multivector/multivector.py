"""MultiVectorIndex: the contract of every search over documents of many vectors, and what all engines check and write alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.artifact import replacing
from jaxrec.index.exact import NOTHING, best
from jaxrec.index.index import HEADER, check_k, checked_filter, checked_ids, read_header, write_header
from jaxrec.index.multivector.packed import Packed, checked_documents, checked_queries
from jaxrec.limits import Limit, check_options

Vectors = Sequence[ArrayLike] | ArrayLike  # a list of [n, D] arrays, or an array


class MultiVectorIndex:
    """Documents by id, each of any number of vectors, searched by MaxSim: sum_i max_j <q_i, d_j>.

    Ids are integers >= 0, each held once. Vectors are float32 and finite; those of late-interaction encoders have norm 1. A document without tokens
    scores -inf. What an engine has to learn (a codec, for one) it learns from the first documents with tokens; later ones are encoded with it, so that
    to add is never to build again.

    Every engine takes `ids` and `vectors` to begin with, and `fingerprint`, which names the encoder that makes the vectors and which `load` compares.
    """

    TUNABLE: ClassVar[tuple[str, ...]] = ()  # options that a search reads and that storage does not depend on
    LIMITS: ClassVar[Mapping[str, Limit]] = {}  # of the options that are whole numbers

    def __init__(self, *, fingerprint: str = "", **options: Any):
        self.fingerprint = fingerprint
        self._options: dict[str, Any] = {}  # the engine's own arguments, which `save` keeps
        self._set(options)
        self._dim: int | None = None
        self._ids = np.zeros(0, np.int64)  # [N] ascending, so that a lower row is a lower id
        self._learned = False
        self._held = Packed.of(np.zeros(0, np.int64))  # the encoded tokens by row

    # --- The contract ---------------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """[N] int64, ascending."""
        return self._ids

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each document, in the order of `ids`."""
        return self._held.lengths

    @property
    def dim(self) -> int | None:
        """D, None before the first `add`."""
        return self._dim

    @property
    def nbytes(self) -> int:
        """Bytes of all that `save` writes and a search may read: ids, offsets, tokens, codebooks, lists."""
        return sum(array.nbytes for array in self._arrays().values())

    def add(self, ids: ArrayLike, vectors: Vectors, lengths: ArrayLike | None = None) -> None:
        """Adds documents under ids [N]. Costs a copy of the encoded tokens, so add many at once.

        Args:
          ids: [N].
          vectors: a list of N arrays [n, D]; or, with `lengths`, all of their rows in one array [T, D]. A document may have no tokens.
          lengths: [N] tokens of each document.

        Raises:
          ValueError: an id that the index holds already, or shapes or numbers that are not as above. The index is then as it was.
        """
        ids = checked_ids(ids)
        documents = checked_documents(vectors, lengths, ids, self._dim)
        if len(held := np.intersect1d(ids, self._ids)):
            raise ValueError(f"the index already holds {_some(held)}; delete them first to replace their vectors")
        self._check(documents, ids)
        if not self._learned and len(documents.vectors):
            self._learn(documents.vectors)
            self._learned = True
        self._dim = documents.vectors.shape[1] if len(ids) else self._dim
        merged = np.concatenate([self._ids, ids])
        order = np.argsort(merged)
        self._insert(documents, ids, order)
        self._ids = merged[order]

    def delete(self, ids: ArrayLike) -> None:
        """Removes documents ids [N]; no search finds them any more. Costs as much as `add`.

        Raises:
          ValueError: an id that the index does not hold.
        """
        ids = checked_ids(ids)
        if len(absent := np.setdiff1d(ids, self._ids)):
            raise ValueError(f"the index does not hold {_some(absent)}; only ids that were added can be deleted")
        keep = ~np.isin(self._ids, ids)
        self._remove(ids, keep)
        self._ids = self._ids[keep]

    def search(self, queries: Vectors, k: int, *, mask: ArrayLike | None = None, filter: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:  # noqa: A002
        """The k documents of the largest MaxSim for each query, best first, equal scores by the lower id.

        Args:
          queries: a list of B arrays [m, D], m >= 1; or [B, N, D], with `mask`.
          k: 1 to the number of documents.
          mask: [B, N] booleans, the real tokens of the queries; None: all.
          filter: ids that may be found; None: all. Those that the index does not hold are ignored.

        Returns:
          ids [B, k] int64 and scores [B, k] float32, always k of them: documents without tokens come last, with score -inf, and where `filter` leaves
          fewer than k the row ends in id -1 with score -inf.

        Raises:
          ValueError: k is larger than the index or less than 1, or shapes or numbers that are not as above.
        """
        check_k(k, len(self))
        asked = self._checked(queries, mask)
        allowed = np.ones(len(self), bool) if filter is None else np.isin(self._ids, checked_filter(filter))
        rows, hollow = np.flatnonzero(allowed & (self.lengths > 0)), np.flatnonzero(allowed & (self.lengths == 0))
        ids, scores = np.full((len(asked), k), NOTHING, np.int64), np.full((len(asked), k), -np.inf, np.float32)
        count = min(k, len(rows))
        if count:
            found, scores[:, :count] = self._search(asked, count, rows)
            ids[:, :count] = self._ids[found]
        rest = self._ids[hollow[: k - count]]
        ids[:, count : count + len(rest)] = rest
        return ids, scores

    def score(self, queries: Vectors, candidates: ArrayLike, *, mask: ArrayLike | None = None) -> np.ndarray:
        """[B, S] float32 MaxSim of each query with its own `candidates` [B, S]; -inf for ids that the index does not hold, such as -1.

        It is the second stage of a two-stage search. What is stored compressed is scored as its decompressed vectors.
        """
        asked, wanted = self._checked(queries, mask), np.asarray(candidates)
        if wanted.ndim != 2 or len(wanted) != len(asked) or (wanted.size and wanted.dtype.kind not in "iu"):
            raise ValueError(f"candidates must be integers of shape [{len(asked)}, S], one row per query, got {wanted.dtype} of shape {list(wanted.shape)}")
        scores = np.full(wanted.shape, -np.inf, np.float32)
        if not len(self):
            return scores
        row = np.minimum(np.searchsorted(self._ids, wanted), len(self) - 1)  # [B, S]
        known = (self._ids[row] == wanted) & (self.lengths[row] > 0)
        for query in np.flatnonzero(known.any(axis=1)):
            rows, back = np.unique(row[query, known[query]], return_inverse=True)
            scores[query, known[query]] = self._score(asked.take(np.array([query])), rows)[back]
        return scores

    def tune(self, **options: Any) -> None:
        """Changes options that only a search reads, such as how many candidates it looks at.

        Raises:
          ValueError: an option that decides what is stored, or is none, or a number outside its limits.
        """
        if wrong := sorted(options.keys() - set(self.TUNABLE)):
            raise ValueError(
                f"{type(self).__name__} cannot change {', '.join(wrong)} once it holds vectors; it can tune {', '.join(self.TUNABLE) or 'nothing'}"
            )
        self._set(options)

    def save(self, path: Path) -> None:
        """Writes the folder `path`, whole or not at all. An index that is there already is replaced.

        Raises:
          FileExistsError: `path` is something else than an index.
        """
        arrays = self._arrays()
        with replacing(Path(path), HEADER, "an index") as folder:
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            self._write(folder)
            fields = {"dim": self._dim, "fingerprint": self.fingerprint, "learned": self._learned, "options": self._options}
            shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
            write_header(folder, type(self).__name__, **fields, arrays=shapes)

    @classmethod
    def load(cls, path: Path, *, fingerprint: str | None = None) -> Self:
        """Opens what `save` wrote; its arrays are memory-mapped.

        Args:
          path: the folder.
          fingerprint: of the encoder that will make the queries; None: not compared.

        Raises:
          FileNotFoundError, ValueError: no index, one of another kind or of another encoder, or a folder that is not whole.
        """
        header = read_header(Path(path), cls.__name__)
        if missing := [name for name in ("dim", "fingerprint", "learned", "options", "arrays") if name not in header]:
            raise ValueError(f"{path} is not whole: its {HEADER} lacks {', '.join(missing)}; build the index again")
        if fingerprint is not None and header["fingerprint"] != fingerprint:
            raise ValueError(f"{path} was built from encoder {header['fingerprint']!r}, not {fingerprint!r}; search it with its own encoder, or build it again")
        index = cls(fingerprint=header["fingerprint"], **header["options"])
        index._dim, index._learned = header["dim"], header["learned"]
        index._restore({name: _mapped(Path(path) / f"{name}.npy", *promised) for name, promised in header["arrays"].items()})
        index._read(Path(path))
        return index

    # --- What an engine is: rows instead of ids, every row with tokens, everything checked -------------------------------------------------

    def _check(self, documents: Packed, ids: np.ndarray) -> None:
        """Raises ValueError for documents that the engine cannot hold."""

    def _learn(self, vectors: np.ndarray) -> None:
        """Learns what encoding needs from the first tokens [T, D]."""

    def _encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """The columns [T, ...] that stand for tokens [T, D]; called once something is learned."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def _insert(self, documents: Packed, ids: np.ndarray, order: np.ndarray) -> None:
        """Takes up documents `ids` [M]; `order` [N + M] sorts the rows held and then these."""
        columns = self._encode(documents.vectors) if self._learned else {}
        self._held = self._held.inserted(Packed(documents.offsets, columns), order)

    def _remove(self, ids: np.ndarray, keep: np.ndarray) -> None:
        """Forgets documents `ids`, and so keeps the rows where `keep` [N] is True."""
        self._held = self._held.take(np.flatnonzero(keep))

    def _score(self, query: Packed, rows: np.ndarray) -> np.ndarray:
        """[n] scores of one query with the documents `rows` [n], ascending."""
        raise TypeError(f"{type(self).__name__} does not score")

    def _candidates(self, query: Packed, k: int, rows: np.ndarray) -> np.ndarray:
        """At least k of `rows`, ascending, to be scored."""
        raise TypeError(f"{type(self).__name__} has no candidates")

    def _search(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and scores [B, k] of the best among `rows`, of which there are k at least."""
        return self._ranked(queries, k, rows)

    def _ranked(self, queries: Packed, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`_search` by the scores of candidates."""
        found, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for number in range(len(queries)):
            query = queries.take(np.array([number]))
            some = self._candidates(query, k, rows)
            found[[number]], scores[[number]] = best(some[None], self._score(query, some)[None], k)
        return found, scores

    def _arrays(self) -> dict[str, np.ndarray]:
        """All arrays that `_restore` needs, by name."""
        return {"ids": self._ids, "offsets": self._held.offsets, **self._held.columns}

    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes up what `_arrays` gave; an engine takes its own arrays out first."""
        self._ids = arrays.pop("ids")
        self._held = Packed(arrays.pop("offsets"), arrays)

    def _write(self, folder: Path) -> None:
        """Writes what is more than arrays."""

    def _read(self, folder: Path) -> None:
        """Reads what `_write` wrote."""

    def _set(self, options: Mapping[str, Any]) -> None:
        """Takes up options; raises ValueError for numbers outside `LIMITS`."""
        check_options(self, options, **{name: limit for name, limit in self.LIMITS.items() if name in options})
        self._options |= {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()}  # JSON knows no others

    def _checked(self, queries: Vectors, mask: ArrayLike | None) -> Packed:
        if self._dim is None:
            raise ValueError("the index is empty; add documents first")
        return checked_queries(queries, mask, self._dim)


def _mapped(path: Path, dtype: str, shape: list[int]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path.parent} is not whole ({path.name}: {error}); save or copy the index again") from None
    if (array.dtype.str, list(array.shape)) != (dtype, shape):
        raise ValueError(f"{path.parent} is not whole: {path.name} holds {array.dtype} of {list(array.shape)} where {shape} was saved; save or copy it again")
    return array


def _some(ids: np.ndarray) -> str:
    return f"id{'s' if len(ids) > 1 else ''} {', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''}"
