"""MovieLens: every layout from small files made here, and the published 1m where JAXREC_DATA_DIR has it."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders import movielens
from jaxrec.data.builders.movielens import MovieLens

# Films 10 and 20 have two ratings, 30 has one. User 2's two events of second 50 must keep the order of the file.
RATINGS = "2::20::3::50\n2::10::4::50\n1::20::5::99\n1::10::1::7\n1::30::2::8\n"
MOVIES = "10::Misérables, Les (1995)::Drama|Musical\n30::Rare (2000)::Drama\n20::No Year::Comedy\n"
USERS = "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n"


def _write(folder: Path, **files: str) -> str:
    for name, text in files.items():
        data = text.encode("latin-1")
        name = name.replace("__", ".")
        (folder / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return str(folder)


def test_original_files_give_times_and_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    got = MovieLens("1m", min_item=2, data_dir=_write(tmp_path, ratings__dat=RATINGS, movies__dat=MOVIES, users__dat__gz=USERS)).get()
    assert (got.users, got.items) == (["1", "2"], ["10", "20"])
    np.testing.assert_array_equal(got.offsets, [0, 2, 4])
    np.testing.assert_array_equal(got.sequence, [1, 2, 2, 1])
    np.testing.assert_array_equal(got.times, [7, 99, 50, 50])
    np.testing.assert_array_equal(got.ratings, [1, 5, 3, 4])
    assert got.item_fields == {"title": ["Misérables, Les (1995)", "No Year"], "genres": [["Drama", "Musical"], ["Comedy"]], "year": [1995, None]}
    assert got.user_fields == {"gender": ["F", "M"], "age": [1, 56], "occupation": ["10", "16"], "zip": ["48067", "70072"]}


def test_sequences_stand_in_for_ratings_and_ratings_come_first(tmp_path: Path):
    folder = _write(tmp_path, sequences__txt__gz="1 10 30 20\n2 20 10\n", movies__dat__gz=MOVIES, users__dat__gz=USERS)
    source = MovieLens("1m", min_item=2, data_dir=folder)
    got = source.read()
    assert got.times is None and got.ratings is None
    np.testing.assert_array_equal(got.sequence, [1, 2, 2, 1])
    before = source.fingerprint()
    _write(tmp_path, ratings__dat=RATINGS)
    assert source.read().times is not None
    assert source.fingerprint() != before


def test_100k_layout(tmp_path: Path):
    flags = "|".join("1" if genre in ("Comedy", "War") else "0" for genre in movielens._GENRES_100K)
    film = "{}|{}|01-Jan-1995||http://x|" + flags + "\n"
    data_dir = _write(
        tmp_path,
        u__data="1\t5\t3\t20\n1\t4\t2\t10\n",
        u__item=film.format(5, "Five (1995)") + film.format(4, "Four (1994)"),
        u__user="1|24|M|technician|85711\n",
    )
    got = MovieLens("100k", min_item=0, data_dir=data_dir).read()
    assert got.items == ["4", "5"]
    np.testing.assert_array_equal(got.sequence, [1, 2])
    np.testing.assert_array_equal(got.ratings, [2, 3])
    assert got.item_fields["genres"] == [["Comedy", "War"]] * 2
    assert got.user_fields == {"gender": ["M"], "age": [24], "occupation": ["technician"], "zip": ["85711"]}


def test_csv_layout(tmp_path: Path):
    ratings = "userId,movieId,rating,timestamp\n7,2,3.5,20\n7,1,0.5,10\n"
    movies = 'movieId,title,genres\n1,"One, The (2001)",Sci-Fi|War\n2,Two,(no genres listed)\n'
    got = MovieLens("20m", min_item=1, data_dir=_write(tmp_path, ratings__csv=ratings, movies__csv=movies)).read()
    assert (got.users, got.items, got.user_fields) == (["7"], ["1", "2"], {})
    np.testing.assert_array_equal(got.ratings, np.array([0.5, 3.5], np.float32))
    assert got.item_fields == {"title": ["One, The (2001)", "Two"], "genres": [["Sci-Fi", "War"], []], "year": [2001, None]}
    with pytest.raises(ValueError, match=r"ratings\.csv:3: movie 3 is not in .*movies\.csv"):
        MovieLens("20m", data_dir=_write(tmp_path, ratings__csv=ratings.replace("7,1,", "7,3,"))).read()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ratings__dat", RATINGS + "1::40::3::5\n", r"ratings\.dat:6: movie 40 is not in .*movies\.dat; the two files must belong together"),
        ("ratings__dat", "1::10::3\n", r"ratings\.dat:1: expected user::movie::rating::time, got '1::10::3' with 3 fields"),
        ("ratings__dat", "1::10::3::5\n1::ten::3::5\n", r"ratings\.dat:2: the movie must be an integer .* got 'ten'"),
        ("movies__dat", MOVIES + "10::Again::Drama\n", r"movies\.dat:4: movie 10 appears a second time"),
        ("movies__dat", MOVIES + "x::Again::Drama\n", r"movies\.dat:4: the movie id must be an integer"),
        ("users__dat", "1::F::1::10::48067\n", r"users\.dat: user 2 has ratings but no line here \(1 such users\)"),
        ("users__dat", "1::F::young::10::48067\n", r"users\.dat:1: the age must be an integer"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, name: str, text: str, message: str):
    files = {"ratings__dat": RATINGS, "movies__dat": MOVIES, "users__dat": USERS} | {name: text}
    with pytest.raises(ValueError, match=message):
        MovieLens("1m", min_item=1, data_dir=_write(tmp_path, **files)).read()


def test_wrong_settings_and_missing_files(tmp_path: Path):
    data_dir = _write(tmp_path, ratings__dat=RATINGS, movies__dat=MOVIES, users__dat=USERS)
    with pytest.raises(ValueError, match="no film has min_item=3 ratings; lower it"):
        MovieLens("1m", min_item=3, data_dir=data_dir).read()
    with pytest.raises(ValueError, match="size='2m' is not a MovieLens set known here; choose one of 100k, 1m, 20m, 25m"):
        MovieLens("2m")  # pyright: ignore[reportArgumentType]
    (tmp_path / "movies.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"ml-1m: movies\.dat not found in .*They are in https://files\.grouplens\.org/datasets/movielens/ml-1m\.zip"):
        MovieLens("1m", data_dir=data_dir).read()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP in place of GroupLens's; no raw data elsewhere."""
    served = tmp_path / "served"
    served.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(movielens, "_ORIGIN", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAXREC_DATA_DIR", str(tmp_path / "nothing"))
    yield served
    server.shutdown()
    server.server_close()


def test_download(origin: Path, monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in (("ratings.dat", RATINGS), ("movies.dat", MOVIES), ("users.dat", USERS)):
            archive.writestr(f"ml-1m/{name}", text.encode("latin-1"))
    (origin / "ml-1m.zip").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"SHA-256 is .*, expected a6898adb.*; the download is damaged or altered"):
        MovieLens("1m").read()
    monkeypatch.setitem(movielens._ARCHIVES, "ml-1m", hashlib.sha256(buffer.getvalue()).hexdigest())
    assert len(MovieLens("1m", min_item=1).read().sequence) == 5
    (origin / "ml-1m.zip").unlink()
    assert len(MovieLens("1m", min_item=1).read().sequence) == 5  # from the cache


def test_failed_download_says_what_to_do(origin: Path):
    with pytest.raises(FileNotFoundError, match=r"ratings\.dat, movies\.dat, users\.dat not found .*Downloading it failed: HTTP Error 404.*JAXREC_DATA_DIR"):
        MovieLens("1m").read()


@pytest.mark.skipif(not os.environ.get("JAXREC_DATA_DIR"), reason="JAXREC_DATA_DIR is not set")
def test_published_counts():
    got = MovieLens("1m").read()
    assert (len(got.users), len(got.items), len(got.sequence)) == (6_040, 3_416, 999_611)
    assert got.users == [str(user) for user in range(1, 6041)]
    assert got.items == sorted(got.items, key=int)
    assert np.bincount(got.sequence)[1:].min() == 5
    assert got.item_fields["title"][0] == "Toy Story (1995)"
    assert got.item_fields["genres"][0] == ["Animation", "Children's", "Comedy"]
    assert None not in got.item_fields["year"]
    assert got.user_fields["zip"][0] == "48067"
