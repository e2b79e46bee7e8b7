"""Exact search against sorting all scores, and every message of the contract."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.index import ExactIndex, exact


def naive(ids, vectors, queries, k, *, allowed=None, exclude=None):
    """Sorts every candidate by (score, -id), one query at a time."""
    found_ids, found_scores = [], []
    for row, query in enumerate(queries):
        barred = set() if exclude is None else set(exclude[row])
        pairs = [(-float(query @ v), int(i)) for i, v in zip(ids, vectors, strict=True) if i not in barred and (allowed is None or i in allowed)]
        pairs = (sorted(pairs) + [(np.inf, -1)] * k)[:k]
        found_ids.append([i for _, i in pairs])
        found_scores.append([-s for s, _ in pairs])
    return np.array(found_ids), np.array(found_scores, np.float32)


def whole_numbers(rng, *shape):
    """Small integers: their inner products are exact in float32 and often equal, so that ties are real."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    ids = rng.permutation(1000)[:300] * 7
    return ids, whole_numbers(rng, 300, 4), whole_numbers(rng, 9, 4)


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[0].dtype == np.int64
    assert found[1].dtype == np.float32


@pytest.mark.parametrize(("block", "queries"), [(16_384, 256), (70, 4), (300, 9), (299, 1)])
def test_equals_brute_force_with_ties_filters_and_exclusions(data, monkeypatch, block, queries):
    monkeypatch.setattr(exact, "BLOCK", block)
    monkeypatch.setattr(exact, "QUERIES", queries)
    ids, vectors, asked = data
    index = ExactIndex(ids, vectors)
    rng = np.random.default_rng(1)
    allowed = np.concatenate([rng.choice(ids, 40), [5]])  # with repeats, and one that is not there
    exclude = np.concatenate([rng.choice(ids, (9, 60)), np.full((9, 1), -1)], axis=1)
    for k in (1, 10, 300):
        same(index.search(asked, k), naive(ids, vectors, asked, k))
        same(index.search(asked, k, filter=allowed), naive(ids, vectors, asked, k, allowed=set(allowed)))
        same(index.search(asked, k, exclude=exclude), naive(ids, vectors, asked, k, exclude=exclude))
        same(index.search(asked, k, filter=allowed, exclude=exclude), naive(ids, vectors, asked, k, allowed=set(allowed), exclude=exclude))


def test_equal_scores_go_to_the_lower_id():
    index = ExactIndex([9, 4, 7, 2], [[1, 0], [1, 0], [2, 0], [1, 0]])
    ids, scores = index.search([[3, 5]], 3)
    assert ids.tolist() == [[7, 2, 4]]
    assert scores.tolist() == [[6, 3, 3]]


def test_too_few_candidates_are_padded():
    index = ExactIndex([1, 2, 3], np.eye(3))
    ids, scores = index.search([[1, 2, 3], [3, 2, 1]], 3, exclude=[[3, 1], [-1, -1]])
    assert ids.tolist() == [[2, -1, -1], [1, 2, 3]]
    assert scores.tolist() == [[2, -np.inf, -np.inf], [3, 2, 1]]
    for wrong in ([True], [1.5], ["1"]):
        with pytest.raises(ValueError, match="filter must be a list of ids, got"):
            index.search([[1, 2, 3]], 1, filter=wrong)
    with pytest.raises(ValueError, match="k=2.0 is no number of answers"):
        index.search([[1, 2, 3]], 2.0)  # type: ignore[arg-type]
    ids, scores = index.search([[1, 2, 3]], 2, filter=[])
    assert ids.tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()


def test_one_document_and_no_query():
    index = ExactIndex([0], [[2.0]])
    assert index.search([[3.0]], 1)[0].tolist() == [[0]]
    assert index.search(np.zeros((0, 1)), 1)[0].shape == (0, 1)


def test_add_and_delete(data):
    ids, vectors, asked = data
    index = ExactIndex()
    for begin in range(0, 300, 100):
        index.add(ids[begin : begin + 100], vectors[begin : begin + 100])
    same(index.search(asked, 10), naive(ids, vectors, asked, 10))
    index.delete(ids[50:120])
    kept = np.r_[0:50, 120:300]
    same(index.search(asked, 10), naive(ids[kept], vectors[kept], asked, 10))
    index.add(ids[50:60], -vectors[50:60])
    assert len(index) == 240
    now_ids, now = np.concatenate([ids[kept], ids[50:60]]), np.concatenate([vectors[kept], -vectors[50:60]])
    same(index.search(asked, 10), naive(now_ids, now, asked, 10))
    index.delete(now_ids)
    index.add([3], np.ones((1, 4)))
    assert index.search(asked, 1)[0].tolist() == [[3]] * 9


def test_save_and_load_are_identical(data, tmp_path):
    ids, vectors, asked = data
    index = ExactIndex(ids, vectors)
    index.save(tmp_path / "index")
    loaded = ExactIndex.load(tmp_path / "index")
    assert isinstance(loaded.vectors, np.memmap)
    same(loaded.search(asked, 20), index.search(asked, 20))
    loaded.delete(ids[:10])
    loaded.save(tmp_path / "index")  # over the files that it is mapped from
    same(ExactIndex.load(tmp_path / "index").search(asked, 20), naive(ids[10:], vectors[10:], asked, 20))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_failed_save_leaves_the_old_index(data, tmp_path, monkeypatch):
    ids, vectors, asked = data
    index = ExactIndex(ids, vectors)
    index.save(tmp_path / "index")
    before = index.search(asked, 5)
    index.delete(ids[:200])
    monkeypatch.setattr(exact, "write_header", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.save(tmp_path / "index")
    same(ExactIndex.load(tmp_path / "index").search(asked, 5), before)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_save_touches_no_other_folder(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is not an index \(it has no index.json\)"):
        ExactIndex([1], [[1.0]]).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_load_refuses_what_is_no_exact_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        ExactIndex.load(tmp_path)
    (tmp_path / "index.json").write_text('{"index": "ScannIndex", "schema": 1}')
    with pytest.raises(ValueError, match="holds ScannIndex of schema 1, not ExactIndex"):
        ExactIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda index: index.search([[1, 1]], 4), "k=4 is more than the 3 items of the index; ask for k <= 3"),
        (lambda index: index.search([[1, 1]], 0), "k=0 asks for nothing"),
        (lambda index: ExactIndex().search([[1, 1]], 1), "k=1 is more than the 0 items of the index; add vectors first"),
        (lambda index: index.search([1, 1], 1), r"queries must have shape \[B, 2\], got \[2\]"),
        (lambda index: index.search([[1, 1, 1]], 1), r"queries must have shape \[B, 2\], got \[1, 3\]"),
        (lambda index: index.search([[1, 1], [np.nan, 1]], 1), "queries hold NaN or infinity in row 1"),
        (lambda index: index.search([[1, 1]], 1, exclude=[1]), r"exclude must be integers of shape \[1, S\]"),
        (lambda index: index.add([4, 2, 1], np.ones((3, 2))), "already holds ids 1, 2; delete them first"),
        (lambda index: index.add([4, 4], np.ones((2, 2))), "id 4 is given 2 times"),
        (lambda index: index.add([-4], np.ones((1, 2))), "id -4 is negative"),
        (lambda index: index.add([0.5], np.ones((1, 2))), "ids must be a list of integers"),
        (lambda index: index.add([4], np.ones((2, 2))), r"vectors must have shape \[1, 2\], got \[2, 2\]"),
        (lambda index: index.add([4], [[1, np.inf]]), "vectors hold NaN or infinity in row 0"),
        (lambda index: index.delete([1, 8]), "does not hold id 8; only ids that were added"),
    ],
)
def test_errors_name_the_fix_and_change_nothing(call, message):
    index = ExactIndex([1, 2, 3], np.ones((3, 2)))
    with pytest.raises(ValueError, match=message):
        call(index)
    assert index.ids.tolist() == [1, 2, 3]
