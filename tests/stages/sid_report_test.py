"""The report on semantic IDs, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxrec.stages.semantic_ids import SidTable
from jaxrec.stages.sid_report import characteristic, plot, report, text, tree, word_counts

CODES = np.array([[-1, -1, -1], [0, 0, 1], [0, 0, 2], [0, 1, 0], [1, 0, 0]])
TABLE = SidTable(CODES, (4, 2, 3), levels=2, dedup="digit")
VECTORS = np.array([[0, 0], [1, 0], [3, 0], [5, 0], [-9, 0]], np.float32)
TITLES = ["red lipstick", "dark red lipstick", "lipstick brush", "hair brush"]


def test_the_facts_by_hand():
    facts = report(TABLE, VECTORS, TITLES, [VECTORS[1:] + [1, 1], VECTORS[1:] + [1, 0]])
    assert json.loads(json.dumps(facts)) == facts
    first, second = facts["levels"]
    assert (facts["items"], first["width"], first["used"], second["used"], facts["shared"]) == (4, 4, 2, 2, 2)
    wanted = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert first["perplexity"] == pytest.approx(wanted) and second["perplexity"] == pytest.approx(wanted)
    assert (first["unique"], second["unique"]) == (0.5, 0.75)
    total = 1 + 9 + 25 + 81  # the mean is 0
    assert first["within"] == pytest.approx((4 + 0 + 4) / total) and second["within"] == pytest.approx((1 + 1) / total)
    assert (first["relative_mse"], second["relative_mse"]) == (pytest.approx(8 / total), pytest.approx(4 / total))
    assert facts["largest"] == {"codes": [0, 0], "items": 2, "titles": TITLES[:2]}


def test_more_codes_tell_more_items_apart_and_leave_less_variance():
    random = np.random.default_rng(0)
    codes = np.concatenate([np.full((1, 4), -1), random.integers(5, size=(300, 4))])
    facts = report(SidTable(codes, (5,) * 4), random.normal(size=(301, 3)), ["x"] * 300)
    unique, within = ([level[name] for level in facts["levels"]] for name in ("unique", "within"))
    assert unique == sorted(unique) and within == sorted(within, reverse=True) and unique[-1] < 1
    assert all(level["relative_mse"] is None for level in facts["levels"])


def test_the_text_has_a_line_for_each_level():
    lines = text(report(TABLE, VECTORS, TITLES, [VECTORS[1:]] * 2)).splitlines()
    assert lines[0] == "4 items" and len(lines) == 2 + 2 + 1 + 2
    assert "2 / 4" in lines[2] and "50.0%" in lines[2] and "75.0%" in lines[3]
    assert "2 items share their codes" in lines[4] and "red lipstick" in lines[5] and lines[2].endswith(" 0.0%")


def test_the_tree_shows_the_largest_branches_first():
    lines = tree(TABLE, TITLES, depth=2, branches=1, examples=1).splitlines()
    assert lines == [
        "all: 4 items",
        "  0: 3 items  lipstick, red, dark",
        "    0-0: 2 items  red, dark, lipstick",
        "      red lipstick",
        "    and 1 more branch",
        "  and 1 more branch",
    ]
    assert tree(TABLE, TITLES, (1,), depth=0) == "  1: 1 items  hair, brush\n    hair brush"


def test_characteristic_words_are_frequent_here_and_rare_elsewhere():
    everywhere = word_counts(["the a-b soap", "the nail art", "the Nail file", "the oil"])
    assert everywhere["nail"] == 2 and "a" not in everywhere
    assert characteristic(["the nail art", "the Nail file"], everywhere, 4, 1) == ["nail"]


def test_the_picture_is_a_png(tmp_path):
    for name, titles, table in (("a", TITLES, TABLE), ("b", None, SidTable(CODES[:, :1], (4,)))):
        plot(table, tmp_path / f"{name}.png", titles)
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (tmp_path / f"{name}.png").stat().st_size > 20_000


def test_arrays_of_other_items_are_refused():
    with pytest.raises(ValueError, match="the table has 4 items, the embeddings 3 and the titles 4"):
        report(TABLE, VECTORS[:-1], TITLES)
