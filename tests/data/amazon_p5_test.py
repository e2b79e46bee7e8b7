"""AmazonP5: small files made here, and the published sets where JAXREC_DATA_DIR has them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxrec.data.builders.amazon_p5 import AmazonP5

ITEMS: list[dict[str, Any]] = [
    {"id": 1, "asin": "B01", "title": "Soap", "categories": [["Beauty", "Bath", "Soap"]], "attribute_ids": [4, 2]},
    {"id": 2, "asin": "B02", "title": "Şampuan", "categories": [["Beauty", "Bath", "Hair"], ["Clothing", "Hair", "Caps"]], "attribute_ids": []},
    {"id": 3, "asin": "B03", "title": "", "categories": []},
]


def _folder(path: Path, sequences: str = "1 1 2 3\n2 3 1\n", items: list[dict[str, Any]] = ITEMS) -> str:
    (path / "sequences.txt.gz").write_bytes(gzip.compress(sequences.encode(), mtime=0))
    (path / "items.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(item) + "\n" for item in items).encode(), mtime=0))
    return str(path)


def test_small_set_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    source = AmazonP5("toys", data_dir=_folder(tmp_path))
    for _ in range(2):  # built, then mapped
        got = source.get()
        assert (got.users, got.items) == (["1", "2"], ["B01", "B02", "B03"])
        np.testing.assert_array_equal(got.offsets, [0, 3, 5])
        np.testing.assert_array_equal(got.sequence, [1, 2, 3, 3, 1])
        assert got.times is None and got.ratings is None
        assert got.item_fields["title"] == ["Soap", "Şampuan", ""]
        assert got.item_fields["categories"] == [["Bath", "Soap"], ["Bath", "Hair", "Caps"], []]
        assert got.item_fields["attributes"] == [["4", "2"], [], []]
    assert (source.folder() / "tfds" / "amazon_p5" / "interactions").is_dir()


def test_sets_without_text_have_no_text_fields(tmp_path: Path):
    items = [{"id": item["id"], "asin": item["asin"], "attribute_ids": []} for item in ITEMS]
    assert set(AmazonP5("sports", data_dir=_folder(tmp_path, items=items)).read().item_fields) == {"attributes"}


def test_fingerprint_follows_content_not_place(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = (AmazonP5("toys", data_dir=_folder(tmp_path / name)) for name in "ab")
    assert one.fingerprint() == two.fingerprint()
    changed = AmazonP5("toys", data_dir=_folder(tmp_path / "b", sequences="1 1 2\n"))
    assert changed.fingerprint() != one.fingerprint()


def test_errors_name_file_and_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"sequences\.txt\.gz:2: item 4 is not in .*items\.jsonl\.gz"):
        AmazonP5("toys", data_dir=_folder(tmp_path, sequences="1 1 2\n2 4\n")).read()
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz:2: expected id 2, got 3; ids must be 1, 2, 3 \.\.\. in order"):
        AmazonP5("toys", data_dir=_folder(tmp_path, items=[ITEMS[0], ITEMS[2]])).read()
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz:2: ASIN B01 appears a second time"):
        AmazonP5("toys", data_dir=_folder(tmp_path, items=[ITEMS[0], ITEMS[1] | {"asin": "B01"}])).read()
    with pytest.raises(ValueError, match=r"items\.jsonl\.gz:1: categories must be a list of paths .* got \['Beauty'\]"):
        AmazonP5("toys", data_dir=_folder(tmp_path, items=[ITEMS[0] | {"categories": ["Beauty"]}])).read()
    with pytest.raises(FileNotFoundError, match=r"amazon_toys_p5: sequences\.txt\.gz, items\.jsonl\.gz not found in .*S3Rec.*JAXREC_DATA_DIR"):
        AmazonP5("toys", data_dir=str(tmp_path / "nowhere")).read()
    with pytest.raises(ValueError, match="category='toy' is not one of beauty, sports, toys"):
        AmazonP5("toy")  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(not os.environ.get("JAXREC_DATA_DIR"), reason="JAXREC_DATA_DIR is not set")
@pytest.mark.parametrize(
    ("category", "users", "items", "events", "first", "fields"),
    [
        ("beauty", 22_363, 12_101, 198_502, "B004756YJA", {"title", "categories", "attributes"}),
        ("sports", 35_598, 18_357, 296_337, "1881509818", {"attributes"}),
    ],
)
def test_published_counts(category: Any, users: int, items: int, events: int, first: str, fields: set[str]):
    got = AmazonP5(category).read()
    assert (len(got.users), len(got.items), len(got.sequence)) == (users, items, events)
    assert got.items[0] == first
    assert set(got.item_fields) == fields
    assert got.lengths().min() == 5  # five-core
    assert np.bincount(got.sequence, minlength=items + 1)[1:].min() >= 5
    np.testing.assert_array_equal(got.sequence[:5], [1, 2, 3, 4, 5])
