"""ScaNN against exact search: recall where it may differ, equality where it may not."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxrec.index import ExactIndex, ScannIndex, scann

needs_scann = pytest.mark.skipif(not scann.installed(), reason="the scann package exists for Linux only")
N = 2000


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    vectors, queries = (centres[rng.integers(40, size=n)] + 0.5 * rng.normal(size=(n, 16)) for n in (N, 50))
    return rng.permutation(5 * N)[:N], vectors.astype(np.float32), queries.astype(np.float32)


def build(data, rows=slice(None)):
    return ScannIndex(data[0][rows], data[1][rows], exact_below=500)


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


@needs_scann
def test_recall_and_scores(data):
    ids, vectors, queries = data
    index, exactly = build(data), ExactIndex(ids, vectors)
    found, scores = index.search(queries, 10)
    assert index._searcher is not None
    assert (found.dtype, scores.dtype) == (np.int64, np.float32)
    assert recall(found, exactly.search(queries, 10)[0]) > 0.95
    lookup = dict(zip(ids.tolist(), vectors, strict=True))
    expected = [[query @ lookup[i] for i in row] for query, row in zip(queries, found.tolist(), strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    assert (np.diff(scores, axis=1) <= 0).all()


@needs_scann
def test_more_probes_find_more_and_all_of_them_everything(data):
    ids, vectors, queries = data
    expected = ExactIndex(ids, vectors).search(queries, 10)[0]
    found = [recall(ScannIndex(ids, vectors, exact_below=500, leaves=20, probes=p, reorder=N).search(queries, 10)[0], expected) for p in (1, 5, 20)]
    assert found[0] < found[2] == 1 and found[0] <= found[1]  # ScaNN's partition is random: five leaves may happen to hold everything


@needs_scann
def test_k_of_all_items_and_exclusion_of_most_are_exact(data):
    ids, vectors, queries = data
    index, exactly = build(data), ExactIndex(ids, vectors)
    narrow = ScannIndex(ids, vectors, exact_below=500, probes=1)  # its one leaf holds too few, so all is searched
    most = np.tile(ids[:1990], (50, 1))
    for one, k, exclude in ((index, N, None), (narrow, N, None), (index, 5, most), (index, 20, most), (narrow, 20, most)):
        found, expected = (i.search(queries, k, exclude=exclude) for i in (one, exactly))
        np.testing.assert_array_equal(np.sort(found[0]), np.sort(expected[0]))  # the last bits of scores differ, and so may neighbours' places
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)


@needs_scann
def test_excluded_ids_never_come_back_and_filters_are_exact(data):
    ids, vectors, queries = data
    index, exactly = build(data), ExactIndex(ids, vectors)
    best = index.search(queries, 30)[0]
    found = index.search(queries, 10, exclude=best[:, :20])[0]
    assert not any(set(a) & set(b) for a, b in zip(found.tolist(), best[:, :20].tolist(), strict=True))
    assert recall(found, exactly.search(queries, 10, exclude=best[:, :20])[0]) > 0.95
    np.testing.assert_array_equal(index.search(queries, 10, filter=ids[:100])[0], exactly.search(queries, 10, filter=ids[:100])[0])


@needs_scann
def test_additions_and_deletions_count_at_once(data):
    ids, vectors, queries = data
    index = build(data, slice(0, 1500))
    index.search(queries, 1)
    built = index._searcher
    index.add(ids[1500:], vectors[1500:])
    gone = np.unique(index.search(queries, 3)[0])
    index.delete(gone)
    index.add(gone[:5], 100 * queries[:5])  # back, with other vectors
    assert index._searcher is built
    found = index.search(queries, 10)[0]
    assert not np.isin(found, gone[5:]).any()
    assert found[np.arange(5), 0].tolist() == gone[:5].tolist()
    assert recall(found, index.exact.search(queries, 10)[0]) > 0.95


@needs_scann
def test_many_changes_build_again_and_few_vectors_are_searched_exactly(data, monkeypatch):
    ids, vectors, queries = data
    monkeypatch.setattr(scann, "SLACK", 10)
    index = build(data, slice(0, 1000))
    index.search(queries, 1)
    built = index._searcher
    index.add(ids[1000:], vectors[1000:])
    index.search(queries, 1)
    assert index._searcher is not built
    assert len(index._fresh) == 0
    index.delete(ids[100:])
    np.testing.assert_array_equal(index.search(queries, 100)[0], ExactIndex(ids[:100], vectors[:100]).search(queries, 100)[0])
    assert index._searcher is None


@needs_scann
def test_save_and_load_are_identical(data, tmp_path):
    ids, vectors, queries = data
    index = build(data, slice(0, 1900))
    index.search(queries, 1)
    index.add(ids[1900:], vectors[1900:])
    index.save(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")  # nothing in it names its place
    loaded = ScannIndex.load(tmp_path / "there")
    for found, expected in zip(loaded.search(queries, 20), index.search(queries, 20), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(loaded.exact.vectors, index.exact.vectors)
    assert isinstance(loaded.exact.vectors, np.memmap)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".pkl"]


@needs_scann
def test_load_unpickles_nothing(data, tmp_path):
    build(data).save(tmp_path / "index")
    (tmp_path / "index" / "scann" / "scann_docids.pkl").write_bytes(b"cos\nabort\n(tR.")  # would end this process
    with pytest.raises(ValueError, match=r"holds scann_docids.pkl, which ScannIndex never writes"):
        ScannIndex.load(tmp_path / "index")


def test_small_sets_need_no_scann(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)  # importing it raises ImportError
    index = ScannIndex([7], [[1.0, 2.0]])
    index.save(tmp_path / "index")
    for one in (index, ScannIndex.load(tmp_path / "index")):
        ids, scores = one.search([[3.0, 4.0]], 1)
        assert (ids.tolist(), scores.tolist()) == ([[7]], [[11.0]])


def test_errors_name_the_fix(data, monkeypatch):
    with pytest.raises(ValueError, match=r"exact_below=10: .* use 256 or more"):
        ScannIndex(exact_below=10)
    with pytest.raises(ValueError, match=r"ScannIndex: leaves=-1 must be at least 0; reorder='x' must be a whole number of at least 1"):
        ScannIndex(leaves=-1, reorder="x")  # pyright: ignore[reportArgumentType]
    index = build(data, slice(0, 100))
    with pytest.raises(ValueError, match="k=101 is more than the 100 items"):
        index.search(data[2], 101)
    with pytest.raises(ValueError, match="already holds id"):
        index.add(data[0][:1], data[1][:1])
    with pytest.raises(ValueError, match="does not hold id"):
        index.delete(data[0][100:101])
    assert len(index) == 100
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with pytest.raises(ImportError, match="needs the scann package, which exists for Linux only"):
        build(data).search(data[2], 1)


@needs_scann
@pytest.mark.parametrize(("k", "queries", "message"), [(2001, 16, "k=2001 is more than the 2000 items"), (1, 3, r"queries must have shape \[B, 16\]")])
def test_a_built_index_checks_its_questions(data, k, queries, message):
    with pytest.raises(ValueError, match=message):
        build(data).search(np.ones((1, queries)), k)
