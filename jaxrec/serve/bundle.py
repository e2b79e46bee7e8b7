"""Bundle: a folder that recommends. It needs jax and numpy, and neither the experiment's code nor its data.

manifest.json     what the bundle is, with size and SHA-256 of every other file;  manifest.sha256: its own
experiment.json   the configuration that was trained, for the record
params.npz        parameters by dotted name (`Bundle.open` reads them without pickle)
items.jsonl       outside id, title and columns of item 1, 2, ...
users.jsonl       outside ids of users, where the model has features of users

The programs are for any b, by jax.export. The bundle of an encoder has

query*.stablehlo  the query encoder: (parameters, {"history": [b, T], ...}) -> [b, D]
items.npy         [N + 1, D] the vectors of the items, row = item
index/            a `ScannIndex` over the items

and that of a generator (of semantic IDs)

generate.deny*.stablehlo, generate.allow*.stablehlo
                  the search under a list: (parameters, {"history": [b, T], "deny" or "allow": [b, S], ...}) -> items [b, K], log-probabilities [b, K]
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from jaxrec.artifact import checksum
from jaxrec.index import ExactIndex, ScannIndex

KIND, SCHEMA = "jaxrec bundle", 2
MANIFEST, SEAL = "manifest.json", "manifest.sha256"
BATCH = 256  # histories that are encoded at once; smaller batches are padded to a power of two, so that few programs are compiled
COMPARED = 50_000  # the largest catalogue in which near misses of an id are looked for: each comparison takes some microseconds
AGAIN = "the bundle is damaged; export it again, or copy it again"


@dataclass(frozen=True)
class Recommendation:
    """One recommended item: its outside id, its title and its score, an encoder's inner product or a generator's log-probability of the item's ID."""

    item: str
    title: str
    score: float


class Bundle:
    """What `jaxrec export` wrote, opened. Immutable, so threads may share it."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        """Use `open`, which checks the files first."""
        self.folder, self.manifest = folder, manifest
        rows = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
        self.items: list[str] = [row["id"] for row in rows]
        self.titles: list[str] = [row["title"] for row in rows]
        self._number = {item: number for number, item in enumerate(self.items, 1)}
        files = manifest["programs"].get(platform := jax.default_backend().replace("gpu", "cuda"))
        if files is None:
            raise ValueError(f"the bundle has no program for {platform}, only for {', '.join(manifest['programs'])}; set JAX_PLATFORMS to one of these")
        files = files if self.generates else {"query": files}
        programs = {name: jax.export.deserialize(bytearray((folder / file).read_bytes())) for name, file in files.items()}
        self._programs = {name: jax.jit(program.call) for name, program in programs.items()}
        self._found: int = programs["deny"].out_avals[0].shape[1] if self.generates else len(self.items)  # K: items that an answer has at most
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            # NumPy knows the names of bfloat16 and its like since jax was imported, but its files hold only their bits.
            self._params = jax.device_put({name: file[name].view(np.dtype(kind)) for name, kind in manifest["dtypes"].items()})

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Bundle:
        """Opens a bundle after checking that every file is the one that was exported.

        Args:
          folder: what `export` wrote.
          verify: False skips the checksums of the files listed in the manifest, for large bundles on storage that is trusted.

        Raises:
          FileNotFoundError: no bundle there.
          ValueError: a file is missing, damaged or was added, or the schema is another one; names it and what to do.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{folder} is no bundle (it has no {MANIFEST}); make one: jaxrec export experiments/NAME.py --to {folder}")
        manifest = read_manifest(folder, verify)
        if manifest.get("system") == "retriever":
            raise ValueError(
                f"{folder} finds documents and recommends no items; open it with SearchBundle.open, ask it with jaxrec query {folder} --text WORDS"
            )
        return cls(folder, manifest)

    @property
    def length(self) -> int:
        """The longest history that the model sees; of longer ones it sees the end."""
        return self.manifest["length"]

    @property
    def generates(self) -> bool:
        """Whether the model generates items, instead of encoding queries that an index is searched with."""
        return self.manifest.get("system") == "generator"  # encoders were alone once, and said nothing

    def find(self, text: str) -> list[tuple[str, str]]:
        """(id, title) of the items whose title contains `text`, upper and lower case alike."""
        wanted = text.casefold()
        return [(item, title) for item, title in zip(self.items, self.titles, strict=True) if wanted in title.casefold()]

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        *,
        keep_seen: bool = False,
        exact: bool = False,
        users: Sequence[str] | None = None,
        times: Sequence[Sequence[float]] | None = None,
        deny: Sequence[str] | None = None,
        allow: Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """The k best next items for each history, best first; fewer where `deny` and `allow` leave no more.

        Args:
          histories: outside ids of items, oldest first; of more than `length` the last ones count.
          k: how many.
          keep_seen: items of the history may be recommended again.
          exact: score every item instead of searching the index; not for a generator, which has none.
          users: outside id of each history's user; only for models that use features of users.
          times: when each item was met, in seconds since 1970; only for models that use times.
          deny: outside ids that no history may be given.
          allow: the only outside ids that may be given, less those denied and, unless `keep_seen`, seen. None: all; an empty list: none.

        Raises:
          ValueError: an empty history, an unknown id, more items asked for than there are or than a generator's beams find, or a list longer
            than a generator takes (`listed` in the manifest); names them and what to do.
        """
        numbers = [self._history(history, place) for place, history in enumerate(histories)]
        seen = [np.zeros(0, np.int64) if keep_seen else np.unique(history) for history in numbers]
        for place, items in enumerate(seen):
            self._check_k(k, len(items), place)
        denied, allowed = (None if ids is None else np.unique(self._numbers(ids, name)) for name, ids in (("deny", deny), ("allow", allow)))
        barred = seen if denied is None else [np.union1d(items, denied) for items in seen]
        if self.generates:
            self._check_search(k, exact)
        if not numbers:
            return []
        if self.generates:
            found, scores = self._generate(self._columns(numbers, users, times), barred, allowed)
        else:
            queries = self.encode(numbers, users=users, times=times)  # [B, D]
            index = self._all_items if exact else self._index
            found, scores = index.search(queries, k, filter=allowed, exclude=_padded(barred, max(map(len, barred)), fill=-1))
        return [
            [Recommendation(self.items[number - 1], self.titles[number - 1], float(score)) for number, score in zip(*answer, strict=True) if number > 0][:k]
            for answer in zip(found, scores, strict=True)
        ]

    def encode(self, histories: Sequence[np.ndarray], *, users: Sequence[str] | None = None, times: Sequence[Sequence[float]] | None = None) -> np.ndarray:
        """[B, D] float32 query vectors of histories of internal item numbers 1..N. `users` and `times` as in `recommend`."""
        if self.generates:
            raise ValueError(f"{self.manifest['method']} generates items and has no query vectors; ask recommend(histories, k)")
        columns = self._columns(histories, users, times)
        return self._run("query", columns) if histories else np.zeros((0, self.manifest["dim"]), np.float32)

    def _generate(self, columns: dict[str, np.ndarray], barred: list[np.ndarray], allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """items [B, K], best first and then 0, and their log-probabilities [B, K], without those `barred` for each history."""
        name, lists = ("deny", barred) if allowed is None else ("allow", [np.setdiff1d(allowed, items) for items in barred])
        longest, most = max(map(len, lists)), self.manifest["listed"][name]
        if longest > most:
            raise ValueError(
                f"{longest} items are to be {'denied, with those of the history' if name == 'deny' else 'allowed'}; a generator takes {most}; {name} fewer"
                + (", or leave seen items in (keep_seen)" if name == "deny" else "")
            )
        return self._run(name, {**columns, name: _padded(lists, most)})

    def _run(self, program: str, columns: dict[str, np.ndarray]) -> Any:
        """What a program gives for inputs [B, ...], at least one, in batches of few sizes."""
        answers = []
        for begin in range(0, len(columns["history"]), BATCH):
            batch = {name: column[begin : begin + BATCH] for name, column in columns.items()}
            rows = len(batch["history"])
            width = 1 << (rows - 1).bit_length()
            batch = {name: np.concatenate([column, np.zeros((width - rows, *column.shape[1:]), np.int32)]) for name, column in batch.items()}
            answers.append(jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[:rows], self._programs[program](self._params, batch)))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *answers)

    def _columns(self, histories: Sequence[np.ndarray], users: Sequence[str] | None, times: Sequence[Sequence[float]] | None) -> dict[str, np.ndarray]:
        """The inputs of the programs [B, ...] int32, by name."""
        columns = {"history": _padded(histories, self.length)}
        wanted, given = self.manifest["inputs"], {"user": users, "time": times}
        for name, values in given.items():
            if (values is not None) != (name in wanted):
                raise ValueError(f"this model {'needs' if name in wanted else 'does not use'} {name}s; {'pass' if name in wanted else 'leave out'} {name}s=")
            if values is not None and len(values) != len(histories):
                raise ValueError(f"{name}s= has {len(values)} entries for {len(histories)} histories; give one for each")
        if users is not None:
            columns["user"] = np.array([self._user_row(user) for user in users], np.int32)
        if times is not None:
            if wrong := [place for place, (a, b) in enumerate(zip(histories, times, strict=True)) if len(a) != len(b)]:
                raise ValueError(f"history {wrong[0]} has {len(histories[wrong[0]])} items but {len(times[wrong[0]])} times; give one for each")
            seconds = [np.asarray(row, np.float64) - self.manifest["time_origin"] for row in times]
            if wrong := [place for place, row in enumerate(seconds) if not (np.abs(row) < 2**31).all()]:  # NaN, too
                fix = "seconds since 1970, within 68 years of the data that the model was trained on; divide milliseconds by 1000"
                raise ValueError(f"the times of history {wrong[0]}, {list(times[wrong[0]])}, must be {fix}")
            columns["time"] = _padded(seconds, self.length)
        return columns

    @functools.cached_property
    def _index(self) -> ScannIndex:
        try:
            return ScannIndex.load(self.folder / "index")
        except ImportError as error:
            raise ImportError(f"{error}: recommend(..., exact=True), or --exact on the command line") from error

    @functools.cached_property
    def _all_items(self) -> ExactIndex:
        vectors = np.load(self.folder / "items.npy", mmap_mode="r", allow_pickle=False)
        return ExactIndex(np.arange(1, len(vectors)), vectors[1:])

    @functools.cached_property
    def _users(self) -> dict[str, int]:
        return {json.loads(line): row for row, line in enumerate((self.folder / "users.jsonl").read_text().splitlines())}

    def _user_row(self, user: str) -> int:
        if user not in self._users:
            raise ValueError(f"the bundle does not know user {user!r}{near(user, self._users)}; its model has features of the users that it was trained on")
        return self._users[user]

    def _history(self, history: Sequence[str], place: int) -> np.ndarray:
        """[L] int64 internal numbers of a history's outside ids."""
        if not len(history):
            raise ValueError(f"history {place} is empty; give at least one item id (find(text), or --find TEXT, looks ids up by title)")
        return self._numbers(history, f"history {place}")

    def _numbers(self, ids: Sequence[str], what: str) -> np.ndarray:
        """[L] int64 internal numbers of outside ids; errors begin with `what` they are."""
        if isinstance(ids, str):
            raise ValueError(f"{what} is the text {ids!r}; give a list of item ids")
        if unknown := [item for item in dict.fromkeys(ids) if item not in self._number]:
            lines = [f"{item!r}{self._suggest(item)}" for item in unknown[:5]] + (["..."] if len(unknown) > 5 else [])
            raise ValueError(f"{what}: {len(unknown)} of {len(ids)} items are not in the catalogue of {len(self.items)}: " + "; ".join(lines))
        return np.array([self._number[item] for item in ids], np.int64)

    def _suggest(self, item: str) -> str:
        titled = [known for known, title in zip(self.items, self.titles, strict=True) if title.casefold() == item.casefold()]
        if titled:
            return f" (that is the title of {' and of '.join(titled[:3])})"
        return near(item, self.items)

    def _check_k(self, k: int, seen: int, place: int) -> None:
        left = len(self.items) - seen
        if k < 1:
            raise ValueError(f"k={k} asks for nothing; ask for k >= 1")
        if k > len(self.items):
            raise ValueError(f"k={k} is more than the {len(self.items)} items of the catalogue; ask for k <= {left}")
        if k > left:
            raise ValueError(
                f"k={k} is more than the {left} items that history {place} has not seen; ask for "
                + (f"k <= {left}, or " if left else "")
                + "seen items too (keep_seen)"
            )

    def _check_search(self, k: int, exact: bool) -> None:
        beams = self.manifest["beams"]
        if exact:
            raise ValueError(f"{self.manifest['method']} searches with {beams} beams and has no index to search exactly; leave out exact (--exact)")
        if k > self._found:
            wanted = -(-k * beams // self._found)
            raise ValueError(
                f"k={k} is more than the {self._found} items that {beams} beams find; ask for k <= {self._found}, or export again with --method.beams={wanted}"
            )


def _padded(rows: Sequence[Sequence[int] | np.ndarray], width: int, fill: int = 0) -> np.ndarray:
    """[B, width] int32: the last `width` of each row from the left, `fill` after."""
    padded = np.full((len(rows), width), fill, np.int32)
    for out, row in zip(padded, rows, strict=True):
        tail = row[-width:]
        out[: len(tail)] = tail
    return padded


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder` but the manifest and its seal, by relative path."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": checksum(folder / name)} for name in _files(folder)}


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Seals a bundle: the manifest with the checksums of all files, and its own."""
    text = json.dumps({"kind": KIND, "schema": SCHEMA, **fields, "files": describe_files(folder)}, indent=1)
    (folder / MANIFEST).write_text(text)
    (folder / SEAL).write_text(_seal(text.encode()))


def read_manifest(folder: Path, verify: bool) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there, no more and, with `verify`, no byte different; else ValueError."""
    data = (folder / MANIFEST).read_bytes()
    seal = (folder / SEAL).read_bytes() if (folder / SEAL).is_file() else b""
    if seal != _seal(data).encode():
        raise ValueError(f"{folder / MANIFEST} does not match {SEAL}; {AGAIN}")
    manifest = json.loads(data)
    if (manifest.get("kind"), manifest.get("schema")) != (KIND, SCHEMA):
        raise ValueError(
            f"{folder} is a {manifest.get('kind')!r} of schema {manifest.get('schema')}; this jaxrec reads {KIND!r} of schema {SCHEMA}; export it again"
        )
    listed, there = manifest["files"], set(_files(folder))
    if missing := sorted(listed.keys() - there):
        raise ValueError(f"{folder} lacks {', '.join(missing)}; {AGAIN}")
    if extra := sorted(there - listed.keys()):
        raise ValueError(f"{folder} has files that were not exported: {', '.join(extra)}; remove them, or export it again")
    for name, expected in listed.items() if verify else ():
        if (folder / name).stat().st_size != expected["size"] or checksum(folder / name) != expected["sha256"]:
            raise ValueError(f"{folder / name} is not the file that was exported (its size or SHA-256 differs); {AGAIN}")
    return manifest


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [name for name in names if name not in (MANIFEST, SEAL)]


def _seal(manifest: bytes) -> str:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"  # as sha256sum writes and checks it


def near(name: str, known: Iterable[str]) -> str:
    """Words that offer the known names most like `name`, or "" where none is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3) if len(known) <= COMPARED else []
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
