"""Table: your own files, in every format, and every way in which they can be wrong."""

from __future__ import annotations

import datetime
import decimal
import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as arrow_parquet
import pytest

from jaxrec.data.builders.table import Table, core
from jaxrec.data.features import FeatureTable, column_info

EVENTS = "user,item,time,stars\n10,b,30,5\n9,a,20,4\n10,a,10,3.5\n9,b,20,1\n10,b,30,2\n"
USERS = "user,age,region,title\n11,,5,Dr\n10,30,7,\n9,20,5,Ms\n"
ITEMS = 'item,title,price,code,brand\nc,"Third, with\na line",,007,x\na,First,1.5,010,\nb,Ünlü,2,100,z\n'


def _write(path: Path, text: str | bytes) -> str:
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def _parquet(path: Path, **columns: Any) -> str:
    arrow_parquet.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"])
def test_formats_agree(tmp_path: Path, suffix: str):
    if suffix == ".parquet":
        path = _parquet(tmp_path / "e.parquet", user=[10, 9, 10, 9, 10], item=["b", "a", "a", "b", "b"], time=[30, 20, 10, 20, 30], stars=[5, 4, 3.5, 1, 2])
    else:
        path = _write(tmp_path / f"e{suffix}", "\ufeff" + (EVENTS.replace(",", "\t") if "tsv" in suffix else EVENTS) + "\n\n")
    got = Table(path, rating="stars").read()
    assert (got.users, got.items) == (["9", "10"], ["a", "b"])  # integers sort as integers
    np.testing.assert_array_equal(got.offsets, [0, 2, 5])
    np.testing.assert_array_equal(got.sequence, [1, 2, 1, 2, 2])
    np.testing.assert_array_equal(got.times, [20, 20, 10, 30, 30])
    np.testing.assert_array_equal(got.ratings, np.array([4, 1, 3.5, 5, 2], np.float32))  # ties keep the order of the file


def test_items_file_gives_catalogue_and_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    source = Table(_write(tmp_path / "e.csv", EVENTS), items_path=_write(tmp_path / "i.csv", ITEMS))
    got = source.get()
    assert got.items == ["a", "b", "c"]  # c was never touched and can still be recommended
    assert got.item_fields == {
        "price": [1.5, 2.0, None],
        "code": ["010", "100", "007"],
        "brand": ["", "z", "x"],
        "title": ["First", "Ünlü", "Third, with\na line"],
    }
    only_touched = Table(source.path, items_path=source.items_path, min_item=1).read()
    assert only_touched.items == ["a", "b"] and only_touched.item_fields["price"] == [1.5, 2.0]
    moved = Table(_write(tmp_path / "e2.csv", EVENTS), items_path=source.items_path)
    assert moved.fingerprint() == source.fingerprint()
    assert Table(_write(tmp_path / "e3.csv", EVENTS + "1,a,1,1\n"), items_path=source.items_path).fingerprint() != source.fingerprint()


def test_users_file_gives_users_and_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    source = Table(_write(tmp_path / "e.csv", EVENTS), users_path=_write(tmp_path / "u.csv", USERS), categorical=("region",))
    got = source.get()
    assert got.users == ["9", "10", "11"]  # 11 has no events and can still be asked about
    np.testing.assert_array_equal(got.offsets, [0, 2, 5, 5])
    np.testing.assert_array_equal(got.sequence, [1, 2, 1, 2, 2])
    assert got.user_fields == {"age": [20, 30, None], "region": ["5", "7", "5"], "title": ["Ms", "", "Dr"]} and not got.item_fields
    assert {name: (column["of"], column["kind"]) for name, column in column_info(got).items()} == {
        "age": ("user", "numeric"),
        "region": ("user", "categorical"),
        "title": ("user", "categorical"),  # of a person, and no name of an item
    }
    np.testing.assert_array_equal(FeatureTable(source, "region", of="user").get(), [[1], [2], [1]])
    active = Table(source.path, users_path=source.users_path, min_user=3).read()
    assert active.users == ["10"] and active.user_fields["age"] == [30]
    assert Table(source.path, users_path=_write(tmp_path / "u2.csv", USERS + "12,1,1,\n"), categorical=("region",)).fingerprint() != source.fingerprint()
    renamed = Table(source.path, users_path=_write(tmp_path / "u3.csv", USERS.replace("user", "customer")), user_id="customer").read()
    assert renamed.users == got.users and renamed.user_fields["region"] == [5, 7, 5]


def test_columns_of_events_that_nobody_uses_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _write(tmp_path / "e.csv", "user,item,time,device,stars\n1,a,1,ios,5\n")
    Table(path).read()
    assert f"{path}: columns not used: device, stars; features are columns of the items and users files" in capsys.readouterr().err
    Table(_write(tmp_path / "e2.csv", EVENTS), rating="stars").read()
    assert not capsys.readouterr().err


def test_parquet_item_columns_keep_their_types(tmp_path: Path):
    items = _parquet(
        tmp_path / "i.parquet",
        asin=["a", "b"],
        name=["A", None],
        tags=[["x", "y"], []],
        count=[3, None],
        released=[datetime.date(2020, 1, 2), None],
        brand=[None, "z"],
        cost=[decimal.Decimal("1.50"), None],
        small=pa.array([[1.0, 2.0], None], pa.list_(pa.float16())),
        large=pa.array([[1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float32())),
        fixed=pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
        words=pa.array([[None, "x"], []], pa.large_list(pa.large_string())),
        shelf=pa.array(["q", None]).dictionary_encode(),
        codes=[[7, 8], [9]],
    )
    got = Table(_write(tmp_path / "e.csv", EVENTS), items_path=items, item_id="asin", title="name", categorical=("codes",)).read()
    dated = {"tags": [["x", "y"], []], "count": [3, None], "released": ["2020-01-02", None], "brand": ["", "z"], "title": ["A", ""]}
    vectors = {"small": [[1.0, 2.0], None], "large": [[1.0, 2.0], [3.0, 4.0]], "fixed": [[1, 2], None]}
    assert got.item_fields == dated | vectors | {"cost": [1.5, None], "words": [[None, "x"], []], "shelf": ["q", ""], "codes": [["7", "8"], ["9"]]}
    kinds = {name: column["kind"] for name, column in column_info(got).items()}
    assert kinds == dict.fromkeys(("tags", "released", "brand", "words", "shelf", "codes"), "categorical") | dict.fromkeys(("count", "cost"), "numeric") | (
        dict.fromkeys(vectors, "vector")
    )


@pytest.mark.parametrize("ids", [["b", "a"], [10, 9]])
def test_categoricals_of_pandas_are_ids(tmp_path: Path, ids: list[Any]):
    path = _parquet(tmp_path / "e.parquet", user=pa.array(ids).dictionary_encode(), item=pa.array(["x", "x"]).dictionary_encode(), time=[1, 2])
    assert Table(path).read().users == [str(one) for one in ids[::-1]]


@pytest.mark.parametrize("column", [[{"a": 1}, None], [[{"a": 1}], []], [[[1.0]], None], [b"\xff", b""]])
def test_columns_that_are_no_features_are_refused(tmp_path: Path, column: list[Any]):
    items = _parquet(tmp_path / "i.parquet", item=["a", "b"], odd=column)
    with pytest.raises(
        ValueError, match=r"i\.parquet: column 'odd' is (struct|list|binary).*; a column must hold text, numbers, dates, or lists of text or of n"
    ):
        Table(_write(tmp_path / "e.csv", EVENTS), items_path=items).read()


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["1.9", " 0 ", "3e9"], [1, 0, 3_000_000_000]),
        (["2024-05-01", "1970-01-01T00:00:01Z", "1970-01-01 02:00:00.9+01:00"], [1_714_521_600, 1, 3600]),
    ],
)
def test_times_of_text(tmp_path: Path, texts: list[str], seconds: list[int]):
    path = _write(tmp_path / "e.csv", "user,item,time\n" + "".join(f"{row},a,{text}\n" for row, text in enumerate(texts)))
    np.testing.assert_array_equal(Table(path).read().times, seconds)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2 * 86_400], pa.int64()),
        pa.array([1.5, 2 * 86_400.5], pa.float64()),
        pa.array([1_999, 2 * 86_400_000], pa.timestamp("ms")),
        pa.array([1_000_000_000, 2 * 86_400 * 10**9], pa.timestamp("ns", "Europe/Istanbul")),
        pa.array(["1970-01-01T00:00:01", "1970-01-03"], pa.large_string()),
    ],
)
def test_times_of_parquet(tmp_path: Path, column: pa.Array):
    path = _parquet(tmp_path / "e.parquet", user=["u", "v"], item=["a", "a"], time=column)
    got = Table(path).read().times
    assert got is not None and got.dtype == np.int64
    assert got[0] == 1 and got[1] // 86_400 == 2


@pytest.mark.parametrize(
    "times",
    [[9.9, 9.5, 9.1], ["1970-01-01T00:00:09.900Z", "1970-01-01T00:00:09.5Z", "1970-01-01T00:00:09.1Z"], pa.array([9900, 9500, 9100], pa.timestamp("ms"))],
)
def test_parts_of_a_second_order_events(tmp_path: Path, times: Any):
    got = Table(_parquet(tmp_path / "e.parquet", user=["u"] * 3, item=["c", "b", "a"], time=times)).read()
    np.testing.assert_array_equal(got.sequence, [1, 2, 3])
    np.testing.assert_array_equal(got.times, [9, 9, 9])


def test_numbers_may_have_spaces_signs_and_no_leading_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = _write(tmp_path / "e.csv", "user,item,time\n1,a,1\n1,b,2\n1,c,3\n")
    items = "item,price,size,code,colour\na, 4.5 ,+3,007,red\nb,.5,N/A,1,blue \nc,2.,7,2,red\n"
    got = Table(path, items_path=_write(tmp_path / "i.csv", items)).read().item_fields
    assert got == {"price": [4.5, 0.5, 2.0], "size": ["+3", "N/A", "7"], "code": ["007", "1", "2"], "colour": ["red", "blue", "red"]}
    said = capsys.readouterr().err
    assert "i.csv:3: 'N/A' makes a category of each 'size', and all others are numbers; leave the cell empty if it is unknown" in said
    assert "colour" not in said


def test_dates_of_parquet(tmp_path: Path):
    path = _parquet(tmp_path / "e.parquet", user=[1], item=[1], time=[datetime.date(1970, 1, 3)])
    np.testing.assert_array_equal(Table(path).read().times, [2 * 86_400])


def test_without_times_the_file_gives_the_order(tmp_path: Path):
    got = Table(_write(tmp_path / "e.csv", "user,item\n1,c\n2,b\n1,a\n1,b\n"), time="").read()
    assert got.times is None
    np.testing.assert_array_equal(got.sequence, [3, 1, 2, 2])


def test_ids_sort_as_numbers_only_if_all_are(tmp_path: Path):
    assert Table(_write(tmp_path / "e.csv", "user,item\n1,10\n1, 9 \n1,9\n"), time="").read().items == ["9", "10"]
    assert Table(_write(tmp_path / "e.csv", "user,item\n1,10\n1,9\n1,09\n"), time="").read().items == ["09", "10", "9"]


def test_min_rating_filters_before_counting(tmp_path: Path):
    got = Table(_write(tmp_path / "e.csv", EVENTS), rating="stars", min_rating=3.5, min_user=2).read()
    assert got.users == ["10"]
    np.testing.assert_array_equal(got.times, [10, 30])


def test_core_is_the_largest_subset_that_satisfies_both():
    rng = np.random.default_rng(0)
    for _ in range(30):
        user, item = rng.integers(0, 4, 9), rng.integers(0, 4, 9)
        min_user, min_item = rng.integers(0, 4, 2)
        got = core(user, item, min_user, min_item)
        largest = np.zeros(9, bool)
        for users, items in itertools.product(itertools.product([False, True], repeat=4), repeat=2):  # every choice of users and of items
            kept = np.array(users)[user] & np.array(items)[item]
            per_user, per_item = np.bincount(user[kept], minlength=4), np.bincount(item[kept], minlength=4)
            if (per_user[user[kept]] >= min_user).all() and (per_item[item[kept]] >= min_item).all() and kept.sum() > largest.sum():
                largest = kept
        np.testing.assert_array_equal(got, np.flatnonzero(largest))


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("usr,item,time\n1,a,1\n", {}, r"e\.csv has no column 'user'; it has usr, item, time\. Did you mean 'usr'\?"),
        ("User,item,time\n1,a,1\n", {}, r"Did you mean 'User'\?"),
        ("user,item\n1,a\n", {}, r"has no column 'time'; it has user, item"),
        ("user,item,time\n1,a,1\n", {"rating": "stars"}, "has no column 'stars'"),
        ("user,item,time\n1,a,1\n,b,2\n", {}, r"e\.csv:3: the 'user' is empty; fill it in or remove the row"),
        ("user,item,time\n1,a,1\n2, ,2\n", {}, r"e\.csv:3: the 'item' is empty"),
        ("user,item,time\n1,a,1\n\n2,a,2\n", {}, r"e\.csv:3: the 'user' is empty"),
        ("user,item,time\n1,a,1\n2,b,soon\n", {}, r"e\.csv:3: the 'time' must be a finite number, got 'soon'; correct or remove the row"),
        ("user,item,time\n1,a,2024-05-01\n2,b,soon\n", {}, r"e\.csv:3: the 'time' must be seconds since 1970, or ISO 8601 such as .*, got 'soon'"),
        ("user,item,time\n1,a,2024-05-01\n2,b,\n", {}, r"e\.csv:3: the 'time' must be seconds since 1970, or ISO 8601 .* got ''"),
        ("user,item,time\n1,a,1\n2,b,nan\n", {}, r"e\.csv:3: the 'time' must be a finite number, got 'nan'"),
        ("user,item,time\n1,a,1\n2,b,-5\n", {}, r"e\.csv:3: the 'time' -5 is before 1970; give seconds since 1970"),
        ("user,item,time\n1,a,1\n2,b,1714521600000\n", {}, r"e\.csv:3: the 'time' 1714521600000 is after the year 5138; .* divide by 1000"),
        ("user,item,time,stars\n1,a,1,five\n", {"rating": "stars"}, r"e\.csv:2: the 'stars' must be a finite number, got 'five'"),
        (
            'user,item,time\n"x\ny",a,1\n2,b,2,9\n',
            {},
            r"e\.csv:4: expected 3 fields \(user, item, time\), got 4 in '2,b,2,9'; is a quote or separator missing\?",
        ),
        ('user,item,time\n"x\ny",a,1\n2,,2\n', {}, r"e\.csv:4: the 'item' is empty"),
        ("user;item;time\n1;a;1,5\n", {}, r"e\.csv:1: the columns are separated by ';', and those of a \.csv file by ','; write it with ','$"),
        ('"user"\t"item"\t"time"\n1\ta\t1\n', {}, r"e\.csv:1: the columns are separated by '\\t', .* write it with ',', or name it \.tsv$"),
        ("user,item,item\n1,a,1\n", {}, r"e\.csv:1: the header names a column twice: user, item, item; rename one"),
        ("user,item,time\n", {}, r"e\.csv: there are columns \(user, item, time\) but no rows"),
        ("", {}, r"e\.csv:1: the file is empty"),
        (b"user,item,time\n1,\xe7ay,1\n", {}, r"e\.csv:2: byte 0xe7 is not utf-8 text; save the file as utf-8"),
        ("user,item,time\n1,a,1\n", {"min_user": 2}, r"none of 1 events is left after min_user=2, min_item=0, min_rating=0\.0; lower them"),
        ('user,item,time\n1,a,1\n2,"b,2\n3,c,3\n', {}, r"e\.csv:3: "),
        ('user,item,"time\n' + "1,a,1\n" * 30_000, {}, r"e\.csv"),
        ("user,item,time\n1,a," + "9" * 140_000 + "\n2,b\n", {}, r"e\.csv:3: expected 3 fields \(user, item, time\), got 2"),
    ],
)
def test_wrong_events_name_the_line_and_the_fix(tmp_path: Path, text: str | bytes, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Table(_write(tmp_path / "e.csv", text), **settings).read()


@pytest.mark.parametrize(
    ("items", "settings", "message"),
    [
        ("item,title\na,A\n", {}, r"e\.csv:2: item 'b' is not in .*i\.csv; add it there, or remove the row"),
        ("item,title\na,A\nb,B\na,C\n", {}, r"i\.csv:4: item 'a' appears a second time; each item must have one row"),
        ("asin,title\na,A\nb,B\n", {}, r"i\.csv has no column 'item'; it has asin, title"),
        ("item,titel\na,A\nb,B\n", {"title": "name"}, r"i\.csv has no column 'name'; it has item, titel"),
        ("item,title\na,A\n,B\n", {}, r"i\.csv:3: the 'item' is empty"),
    ],
)
def test_wrong_items_name_the_line_and_the_fix(tmp_path: Path, items: str, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Table(_write(tmp_path / "e.csv", EVENTS), items_path=_write(tmp_path / "i.csv", items), **settings).read()


@pytest.mark.parametrize(
    ("users", "settings", "message"),
    [
        ("user,age\n10,1\n", {}, r"e\.csv:3: user '9' is not in .*u\.csv; add it there, or remove the row"),
        ("user,age\n10,1\n9,2\n10,3\n", {}, r"u\.csv:4: user '10' appears a second time; each user must have one row"),
        ("id,age\n10,1\n9,2\n", {}, r"u\.csv has no column 'user'; it has id, age"),
        (
            "user,age\n10,1\n9,2\n",
            {"categorical": ("aged", "zip")},
            r"categorical names aged, zip, and the items and users files have price, code, brand, title, age",
        ),
        ("user,brand\n10,1\n9,2\n", {}, r"i\.csv and .*u\.csv both have a column brand; rename it in one of them"),
    ],
)
def test_wrong_users_name_the_line_and_the_fix(tmp_path: Path, users: str, settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Table(_write(tmp_path / "e.csv", EVENTS), items_path=_write(tmp_path / "i.csv", ITEMS), users_path=_write(tmp_path / "u.csv", users), **settings).read()


def test_wrong_files(tmp_path: Path):
    _write(tmp_path / "events.csv", EVENTS)
    (tmp_path / "folder").mkdir()
    _write(tmp_path / "folder" / "a.csv", EVENTS)
    for ask in ("read", "fingerprint"):
        with pytest.raises(FileNotFoundError, match=r"event\.csv does not exist; did you mean 'events\.csv'\?"):
            getattr(Table(str(tmp_path / "event.csv")), ask)()
        with pytest.raises(IsADirectoryError, match=r"folder is a folder; name a file in it, such as .*/folder/a\.csv$"):
            getattr(Table(str(tmp_path / "folder")), ask)()
    with pytest.raises(
        ValueError, match=r"e\.tsv:1: the columns are separated by ',', and those of a \.tsv file by '\\t'; write it with '\\t', or name it \.csv$"
    ):
        Table(_write(tmp_path / "e.tsv", EVENTS)).read()
    with pytest.raises(ValueError, match=r"e\.xlsx: cannot tell the format from the suffix '\.xlsx'; name it \.csv"):
        Table(_write(tmp_path / "e.xlsx", "x")).read()
    with pytest.raises(ValueError, match=r"e\.parquet: not a readable Parquet file .*; write it again"):
        Table(_write(tmp_path / "e.parquet", "PAR1 not really PAR1")).read()
    with pytest.raises(ValueError, match=r"empty\.parquet: not a readable Parquet file"):
        Table(_write(tmp_path / "empty.parquet", "")).read()
    packed = gzip.compress(EVENTS.encode())
    (tmp_path / "e.csv.gz").write_bytes(packed[:-12])
    with pytest.raises(ValueError, match=r"e\.csv\.gz:\d+: the gzip data is truncated or damaged"):
        Table(str(tmp_path / "e.csv.gz")).read()


def test_wrong_parquet_columns(tmp_path: Path):
    path = _parquet(tmp_path / "f.parquet", user=[1.0, None], item=[1, 2], time=[1, 2])
    with pytest.raises(ValueError, match=r"f\.parquet: column 'user' is double; ids must be integers or text"):
        Table(path).read()
    path = _parquet(tmp_path / "f.parquet", user=[1, None], item=[1, 2], time=[1, 2])
    with pytest.raises(ValueError, match=r"f\.parquet: row 2: the 'user' is empty"):
        Table(path).read()
    path = _parquet(tmp_path / "f.parquet", user=[1, 2], item=[1, 2], time=[datetime.datetime(2020, 1, 1), None])
    with pytest.raises(ValueError, match=r"f\.parquet: row 2: the 'time' is missing"):
        Table(path).read()
    path = _parquet(tmp_path / "f.parquet", user=[1, 2], item=[1, 2], time=[[1], [2]])
    with pytest.raises(ValueError, match=r"f\.parquet: column 'time' is list<.*>; expected numbers"):
        Table(path).read()


def test_wrong_settings():
    with pytest.raises(ValueError, match="min_user=-1 and min_item=0 must not be negative"):
        Table("e.csv", min_user=-1)
    with pytest.raises(ValueError, match="min_rating=3 needs ratings; name their column with rating="):
        Table("e.csv", min_rating=3)
