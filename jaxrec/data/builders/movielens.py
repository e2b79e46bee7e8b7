"""MovieLens, GroupLens Research (Harper and Konstan, 2015, doi:10.1145/2827872): films rated by volunteers, 1995 to 2019."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import re
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.artifact import cache_dir, checksum, locked, say, write_atomically
from jaxrec.data.builders.tabular_files import TabularFile
from jaxrec.data.builders.text_lines import Sequences, integer, line_of, read_integers, read_separated
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source, locate

_ORIGIN = "https://files.grouplens.org/datasets/movielens"
_ARCHIVES = {  # SHA-256 of the published archives, as TFDS records them
    "ml-100k": "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "ml-1m": "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "ml-20m": "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "ml-25m": "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
}
_FILES = {
    "100k": ("u.data", "u.item", "u.user"),
    "1m": ("ratings.dat", "movies.dat", "users.dat"),
    "20m": ("ratings.csv", "movies.csv"),
    "25m": ("ratings.csv", "movies.csv"),
}
_SEQUENCES = ("sequences.txt", "movies.dat", "users.dat")
_YEAR = re.compile(r"\((\d{4})\)\s*$")  # at the end of a title
_GENRES_100K = (  # the flags of u.item, in order
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


@dataclasses.dataclass(frozen=True)
class MovieLens(Source):
    """MovieLens: films rated by volunteers.

    Read from the folder `ml-<size>`; downloaded from GroupLens where it is not there and there is a network.

    The original files (plain or `.gz`) give times and ratings; events of one second keep the order of the file. For 1m, a file `sequences.txt` (a line
    per user, `user movie movie ...` in time order) stands in for `ratings.dat`, without times and ratings. Internal item ids follow the movie ids.

    Attributes:
      min_item: films with fewer ratings are left out. 5 gives the 3,416 films and 999,611 ratings of 1m that SASRec and BERT4Rec report.

    Item fields: `title`, `genres` (list), `year` (None where the title has none). User fields of 100k and 1m: `gender`, `age`, `occupation`, `zip`.
    """

    size: Literal["100k", "1m", "20m", "25m"]
    min_item: int = 5
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def __post_init__(self):
        if self.size not in _FILES:
            raise ValueError(f"size={self.size!r} is not a MovieLens set known here; choose one of {', '.join(_FILES)}")

    def inputs(self) -> dict[str, Any]:
        # Asking for the fingerprint must not download: the archive's published checksum says as much as its files.
        found = self._local()
        return {path.name: checksum(path) for path in found} if found else {"archive": _ARCHIVES[f"ml-{self.size}"]}

    def read(self) -> Interactions:
        events, movies, *users = self._paths()
        films = _read_movies(movies)
        raw_ids = np.array(sorted(films))  # [M]
        user, row, times, ratings = _read_events(events, raw_ids, movies)
        kept = np.flatnonzero(np.bincount(row, minlength=len(raw_ids))[row] >= self.min_item)
        if not len(kept):
            raise ValueError(f"{events}: no film has min_item={self.min_item} ratings; lower it")
        kept = kept[np.lexsort((user[kept],) if times is None else (times[kept], user[kept]))]  # stable
        raw_users, user = np.unique(user[kept], return_inverse=True)
        rows, item = np.unique(row[kept], return_inverse=True)
        kept_ids = raw_ids[rows].tolist()
        titles = [films[i][0] for i in kept_ids]
        return Interactions(
            users=[str(u) for u in raw_users],
            items=[str(i) for i in kept_ids],
            offsets=np.concatenate([[0], np.cumsum(np.bincount(user))]).astype(np.int64),
            sequence=(item + 1).astype(np.int32),
            times=None if times is None else times[kept],
            ratings=None if ratings is None else ratings[kept].astype(np.float32),
            item_fields={
                "title": titles,
                "genres": [films[i][1] for i in kept_ids],
                "year": [int(found[1]) if (found := _YEAR.search(title)) else None for title in titles],
            },
            user_fields=_read_users(users[0], raw_users) if users else {},
        )

    def _paths(self) -> list[Path]:
        """Events, movies and, where the set has them, users. The original files come first, then the sequences, then a download."""
        if found := self._local():
            return found
        name = f"ml-{self.size}"
        files, folder, failure = _FILES[self.size], None, ""
        if not self.data_dir:
            try:
                folder = download(name, files)
            except OSError as error:
                failure = f" Downloading it failed: {error}."
        folder = folder or locate(self.data_dir, files, dataset=name, hint=f"They are in {_ORIGIN}/{name}.zip.{failure}")
        return [folder / file for file in files]

    def _local(self) -> list[Path]:
        """The same files where they are on this machine already, else nothing."""
        name = f"ml-{self.size}"
        for wanted in (_FILES[self.size], _SEQUENCES) if self.size == "1m" else (_FILES[self.size],):
            for names in itertools.product(*((file, f"{file}.gz") for file in wanted)):
                try:
                    folder = locate(self.data_dir, names, dataset=name, hint="")
                except FileNotFoundError:
                    continue
                return [folder / file for file in names]
        return []


def download(name: str, files: tuple[str, ...]) -> Path:
    """The folder in the cache with `files` of GroupLens's archive `<name>.zip`, fetched unless it is there.

    Raises:
      OSError: there is no network, or it failed.
      ValueError: the archive is not the published one.
    """
    folder = cache_dir() / "downloads" / name
    with locked(folder.with_suffix(".lock")):
        if not all((folder / file).exists() for file in files):
            url = f"{_ORIGIN}/{name}.zip"
            say(f"downloading {url}")
            with urllib.request.urlopen(url, timeout=30) as response:
                data = response.read()
            if (found := hashlib.sha256(data).hexdigest()) != _ARCHIVES[name]:
                raise ValueError(f"{url}: SHA-256 is {found}, expected {_ARCHIVES[name]}; the download is damaged or altered: try again, or fetch it by hand")
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                for file in files:
                    write_atomically(folder / file, archive.read(f"{name}/{file}"))
    return folder


def _read_events(path: Path, raw_ids: np.ndarray, movies: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """[R] raw user ids, [R] positions in `raw_ids`, [R] times and [R] ratings (None, None of sequences), in the order of the file."""
    plain = path.name.removesuffix(".gz")
    if plain == "sequences.txt":
        sequences = Sequences.read(path)
        return np.repeat(sequences.users, np.diff(sequences.offsets)), sequences.rows_in(raw_ids, movies), None, None
    if plain == "ratings.csv":
        file = TabularFile.read(path)
        user, movie = (file.numbers(name).astype(np.int64) for name in ("userId", "movieId"))
        ratings, times = file.numbers("rating"), np.floor(file.seconds("timestamp")).astype(np.int64)
        where = file.where
    else:
        user, movie, ratings, times = read_integers(path, b"\t" if plain == "u.data" else b"::", ("user", "movie", "rating", "time")).T
        where = line_of(path)
    rows = np.searchsorted(raw_ids, movie).clip(max=len(raw_ids) - 1)
    if len(unknown := np.flatnonzero(raw_ids[rows] != movie)):
        raise ValueError(f"{where(int(unknown[0]))}: movie {movie[unknown[0]]} is not in {movies}; the two files must belong together")
    return user, rows, times, ratings


def _read_movies(path: Path) -> dict[int, tuple[str, list[str]]]:
    """Title and genres by raw movie id."""
    plain = path.name.removesuffix(".gz")
    where = line_of(path)
    if plain == "movies.csv":
        file = TabularFile.read(path)
        rows = zip(*(file.column(name).to_pylist() for name in ("movieId", "title", "genres")))
        where = file.where
    elif plain == "u.item":
        flags = [f"is {genre}" for genre in _GENRES_100K]
        wide = read_separated(path, "|", ("movie", "title", "date", "video date", "link", *flags), "latin-1")
        rows = ((row[0], row[1], "|".join(g for g, flag in zip(_GENRES_100K, row[-len(flags) :]) if flag == "1")) for row in wide)
    else:
        rows = read_separated(path, "::", ("movie", "title", "genres"), "latin-1")
    movies: dict[int, tuple[str, list[str]]] = {}
    for position, (raw, title, genres) in enumerate(rows):
        movie = integer(raw, "movie id", where, position)
        if movie in movies:
            raise ValueError(f"{where(position)}: movie {movie} appears a second time; each film must have one line")
        movies[movie] = (title, [] if genres == "(no genres listed)" else [genre for genre in genres.split("|") if genre])
    return movies


def _read_users(path: Path, raw_users: np.ndarray) -> dict[str, list[Any]]:
    """The columns of the users file, in the order of `raw_users`. An age of 1m is the lower end of its bracket."""
    small = path.name.startswith("u.user")
    columns = ("user", "age", "gender", "occupation", "zip") if small else ("user", "gender", "age", "occupation", "zip")
    rows = [dict(zip(columns, row)) for row in read_separated(path, "|" if small else "::", columns, "latin-1")]
    where = line_of(path)
    known: dict[int, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        known[integer(row["user"], "user id", where, position)] = row | {"age": integer(row["age"], "age", where, position)}
    if missing := [int(user) for user in raw_users if int(user) not in known]:
        raise ValueError(f"{path}: user {missing[0]} has ratings but no line here ({len(missing)} such users); the files must belong together")
    return {name: [known[int(user)][name] for user in raw_users] for name in ("gender", "age", "occupation", "zip")}
