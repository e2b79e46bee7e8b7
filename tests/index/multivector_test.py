"""Multi-vector engines: one contract for all."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from jaxrec.index.compress import unit
from jaxrec.index.multivector import ExactMultiVector, MultiVectorIndex, Muvera, Plaid, Warp, multivector
from tests.index.multivector_documents import D, close, collection, exact_maxsim, identical, naive, recall

ENGINES = {
    "exact": (ExactMultiVector, {}),
    "exact float16": (ExactMultiVector, {"storage": "float16"}),
    "exact int8": (ExactMultiVector, {"storage": "int8"}),
    "muvera": (Muvera, {"repetitions": 20, "bits": 4, "projection": 8, "depth": 60}),
    "muvera sketched": (Muvera, {"repetitions": 20, "bits": 4, "projection": 0, "final": 1024, "depth": 60}),
    "plaid": (Plaid, {"bits": 4, "centroids": 64, "probes": 8, "candidates": 60, "decoded": 40}),
    "plaid float32": (Plaid, {"bits": 32, "centroids": 64, "probes": 8, "candidates": 60, "decoded": 40}),
    "warp": (Warp, {"bits": 4, "centroids": 64, "probes": 24}),
}
EXACT = {"exact", "muvera", "muvera sketched", "plaid float32"}  # scores are those of the vectors that were given, if the document is found


ERRORS = [
    (lambda index, e: index.search([e], 4), "k=4 is more than the 3 items of the index; ask for k <= 3"),
    (lambda index, e: index.search([e], 0), "k=0 asks for nothing"),
    (lambda index, e: index.search(e, 1), r"queries must be a list of arrays \[n, 16\], or one array \[B, N, 16\], got an array of shape \[16, 16\]"),
    (lambda index, e: index.search([e, e[:, :3]], 1), r"queries\[1\] must have shape \[n, 16\].* got \[16, 3\]"),
    (lambda index, e: index.search([e, e[:0]], 1), r"queries\[1\] has no tokens"),
    (lambda index, e: index.search([e, e * np.nan], 1), r"queries\[1\] holds NaN or infinity in token 0"),
    (lambda index, e: index.search([e], 1, mask=np.ones((1, 3), bool)), r"mask be booleans of shape \[B, N\], got \[1, 16, 16\] and bool of \[1, 3\]"),
    (lambda index, e: index.search([e], 1, mask=np.ones((1, 16))), "mask be booleans"),
    (lambda index, e: index.score([e], [1, 2]), r"candidates must be integers of shape \[1, S\]"),
    (lambda index, e: index.add([4, 2, 1], [e] * 3), "already holds ids 1, 2; delete them first"),
    (lambda index, e: index.add([4, 4], [e] * 2), "id 4 is given 2 times"),
    (lambda index, e: index.add([-4], [e]), "id -4 is negative"),
    (lambda index, e: index.add([4], [e] * 2), "there are 1 ids and 2 documents"),
    (lambda index, e: index.add([4, 5], [e, e[:, :7]]), r"vectors\[1\] must have shape \[n, 16\], also where it has no tokens, got \[16, 7\]"),
    (lambda index, e: index.add([4], [[]]), r"vectors\[0\] must have shape \[n, 16\]"),
    (lambda index, e: index.add([4, 8], [e, np.where(np.arange(16)[:, None] == 2, np.inf, e)]), "document 8 holds NaN or infinity in token 2"),
    (lambda index, e: index.add([4], e, [3]), "lengths add up to 3, but there are 16 token vectors"),
    (lambda index, e: index.add([4], e, [-3]), "lengths must be integers >= 0"),
    (lambda index, e: index.add([4], e[:, :5], [16]), r"vectors must have shape \[T, 16\]"),
    (lambda index, e: index.delete([1, 8]), "does not hold id 8; only ids that were added"),
    (lambda index, e: index.tune(seed=3), "cannot change seed once it holds vectors"),
]


@pytest.fixture(scope="module")
def data():
    return collection()


@pytest.mark.parametrize("name", ENGINES)
class TestContract:
    def build(self, name, ids=(), vectors=None, **more) -> MultiVectorIndex:
        engine, options = ENGINES[name]
        return engine(ids, vectors, **(options | more))

    def least(self, name):
        """Recall at 10; vectors so noisy are hard to code, and WARP imputes."""
        return 1 if name == "exact" else 0.7 if name == "warp" else 0.8

    def test_finds_what_exact_search_finds(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids, documents)
        found, scores = index.search(queries, 10)
        expected = naive(ids, documents, queries, 10)
        assert (found.dtype, scores.dtype, found.shape) == (np.int64, np.float32, (5, 10))
        assert recall(found, expected[0]) >= self.least(name)
        assert (np.diff(scores, axis=1) <= 0).all()
        lookup = dict(zip(ids.tolist(), documents, strict=True))
        true = np.array([[exact_maxsim(q, lookup[i]) for i in row] for q, row in zip(queries, found.tolist(), strict=True)])
        tolerance = 1e-5 if name in EXACT else 0.02 if name.startswith("exact") else 0.15
        if name != "warp":  # whose imputed scores are no MaxSim; see below
            np.testing.assert_allclose(scores, true, rtol=tolerance, atol=tolerance)
        assert index.nbytes > 0 and len(index) == 200 and index.dim == D

    def test_all_documents_come_back_those_without_tokens_last(self, name, data):
        ids, documents, queries = data
        found, scores = self.build(name, ids, documents).search(queries, 200)
        for row, score in zip(found, scores, strict=True):
            assert sorted(row.tolist()) == sorted(ids.tolist())
            assert row[-2:].tolist() == sorted(ids[[3, 77]].tolist())
            assert np.isneginf(score[-2:]).all() and np.isfinite(score[:-2]).all()

    def test_a_mask_and_a_list_are_the_same_query(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids, documents)
        padded, mask = np.full((5, 14, D), np.nan, np.float32), np.zeros((5, 14), bool)
        for row, query in enumerate(queries):
            padded[row, 1 : len(query) + 1], mask[row, 1 : len(query) + 1] = query, True  # what is masked may be anything and anywhere
        identical(index.search(padded, 7, mask=mask), index.search(queries, 7))
        close([array[2:3] for array in index.search(queries, 7)], index.search([queries[2]], 7))
        close(index.search(np.stack([queries[0], queries[4]]), 7), index.search([queries[0], queries[4]], 7))

    def test_filters(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids, documents)
        few = np.concatenate([ids[:6], ids[:2], [99_999]])  # with repeats, one without tokens, and one that is not there
        found, scores = index.search(queries, 8, filter=few)
        assert (found[:, 5] == ids[3]).all() and (found[:, 6:] == -1).all() and np.isneginf(scores[:, 5:]).all()
        assert all(set(row.tolist()) == set(ids[:6].tolist()) for row in found[:, :6])
        many = ids[40:160]
        found, _ = index.search(queries, 10, filter=many)
        assert np.isin(found, many).all()
        assert recall(found, naive(ids, documents, queries, 10, set(many.tolist()))[0]) >= self.least(name)
        np.testing.assert_array_equal(index.search(queries, 8, filter={int(one) for one in few})[0], index.search(queries, 8, filter=few)[0])
        for wrong in (np.isin(np.arange(len(index)), few), [1.5], ["1"], [[1]]):
            with pytest.raises(ValueError, match="filter must be a list of ids, got"):
                index.search(queries, 2, filter=wrong)
        found, scores = index.search(queries, 2, filter=[])
        assert (found == -1).all() and np.isneginf(scores).all()

    def test_one_document_and_one_token(self, name):
        vector = unit(np.arange(1, D + 1, dtype=np.float32))[None]
        index = self.build(name, [7], [vector])
        found, scores = index.search([vector], 1)
        assert found.tolist() == [[7]]
        np.testing.assert_allclose(scores, 1, atol=0.02)
        assert index.search([], 1)[0].shape == (0, 1)

    def test_equal_documents_go_by_the_lower_id(self, name, data):
        _, documents, queries = data
        index = self.build(name, [9, 4, 7, 2], [documents[0]] * 4)
        assert index.search(queries, 4)[0].tolist() == [[2, 4, 7, 9]] * 5

    def test_add_in_parts_is_encoded_by_the_first_codec(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids[:100], documents[:100])
        index.add(ids[100:150], documents[100:150])
        index.add(ids[150:], np.concatenate(documents[150:]), [len(d) for d in documents[150:]])
        assert recall(index.search(queries, 10)[0], naive(ids, documents, queries, 10)[0]) >= self.least(name)
        found, scores = index.search([documents[170][:1]], 1, filter=[ids[170]])
        assert found[0, 0] == ids[170]
        np.testing.assert_allclose(scores, 1, atol=0.15)

    def test_deletions_count_at_once_and_adding_back_restores(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids, documents)
        before = index.search(queries, 10)
        gone = np.unique(before[0])
        index.delete(gone)
        assert len(index) == 200 - len(gone)
        after, _ = index.search(queries, 10)
        assert not np.isin(after, gone).any()
        kept = ~np.isin(ids, gone)
        remaining = naive(ids[kept], [d for d, k in zip(documents, kept, strict=True) if k], queries, 10)
        assert recall(after, remaining[0]) >= self.least(name)
        index.add(gone, [documents[int(np.flatnonzero(ids == i)[0])] for i in gone])
        identical(index.search(queries, 10), before)
        index.delete(ids)
        assert len(index) == 0
        index.add(ids[:5], documents[:5])
        assert sorted(index.search(queries[:1], 5)[0][0].tolist()) == sorted(ids[:5].tolist())

    def test_documents_without_tokens_may_come_first(self, name, data):
        ids, documents, queries = data
        hollow = self.build(name, [5, 3], np.zeros((2, 0, D)))
        assert hollow.search(queries[:1], 2)[0].tolist() == [[3, 5]]
        hollow.add(ids[:3] + 10, documents[:3])
        found, scores = hollow.search(queries[:1], 5)
        assert found[0, 3:].tolist() == [3, 5] and np.isfinite(scores[0, :3]).all()
        hollow.add([1], np.zeros((1, 0, D)))
        assert hollow.search(queries[:1], 6)[0][0, 3:].tolist() == [1, 3, 5]

    def test_score_is_the_second_stage(self, name, data):
        ids, documents, queries = data
        index = self.build(name, ids, documents)
        candidates = np.stack([np.r_[ids[[8, 3, 20]], -1, 99_999, ids[8]]] * 5)
        scores = index.score(queries, candidates)
        assert np.isneginf(scores[:, [1, 3, 4]]).all()
        np.testing.assert_array_equal(scores[:, 0], scores[:, 5])
        true = np.array([[exact_maxsim(query, documents[row]) for row in (8, 20)] for query in queries])
        np.testing.assert_allclose(scores[:, [0, 2]], true, rtol=1e-5 if name in EXACT else 0.15, atol=1e-5 if name in EXACT else 0.15)

    def test_save_and_load_are_identical(self, name, data, tmp_path):
        ids, documents, queries = data
        index = self.build(name, ids[:150], documents[:150], fingerprint="encoder 1")
        index.add(ids[150:], documents[150:])
        index.save(tmp_path / "index")
        loaded = type(index).load(tmp_path / "index", fingerprint="encoder 1")
        assert all(isinstance(array, np.memmap) for array in loaded._arrays().values())
        identical(loaded.search(queries, 20), index.search(queries, 20))
        assert (loaded.nbytes, loaded.fingerprint) == (index.nbytes, "encoder 1")
        loaded.delete(ids[:10])
        index.delete(ids[:10])
        loaded.add([5000], [documents[0]])
        index.add([5000], [documents[0]])
        loaded.save(tmp_path / "index")  # over the files that it is mapped from
        identical(type(index).load(tmp_path / "index").search(queries, 20), index.search(queries, 20))
        assert [path.name for path in tmp_path.iterdir()] == ["index"]

    def test_an_empty_index_is_saved_and_filled_later(self, name, data, tmp_path):
        ids, documents, queries = data
        self.build(name).save(tmp_path / "index")
        loaded = type(self.build(name)).load(tmp_path / "index")
        with pytest.raises(ValueError, match="k=1 is more than the 0 items of the index; add vectors first"):
            loaded.search(queries, 1)
        loaded.add(ids, documents)
        identical(loaded.search(queries, 5), self.build(name, ids, documents).search(queries, 5))

    def test_folders_that_are_not_whole_or_not_its_own(self, name, data, tmp_path, monkeypatch):
        ids, documents, _ = data
        index = self.build(name, ids[:20], documents[:20], fingerprint="encoder 1")
        engine, folder = type(index), tmp_path / "index"
        index.save(folder)
        with pytest.raises(ValueError, match="was built from encoder 'encoder 1', not 'encoder 2'"):
            engine.load(folder, fingerprint="encoder 2")
        with monkeypatch.context() as patch:
            patch.setattr(multivector, "write_header", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                self.build(name, ids[:5], documents[:5]).save(folder)
        assert len(engine.load(folder)) == 20  # a failed save leaves the old one
        largest = max((path for path in folder.glob("*.npy")), key=lambda path: path.stat().st_size)
        whole = largest.read_bytes()
        largest.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=rf"is not whole \({largest.name}"):
            engine.load(folder)
        largest.unlink()
        with pytest.raises(ValueError, match=rf"is not whole \({largest.name}"):
            engine.load(folder)
        np.save(largest, np.zeros(3))
        with pytest.raises(ValueError, match=rf"is not whole: {largest.name} holds float64 of \[3\]"):
            engine.load(folder)
        for damaged, message in (
            ("", "is not whole: its index.json is damaged"),
            (json.dumps({"index": engine.__name__, "schema": 1}), "index.json lacks dim"),
        ):
            (folder / "index.json").write_text(damaged)
            with pytest.raises(ValueError, match=message):
                engine.load(folder)
        (folder / "index.json").write_text(json.dumps({"index": "ExactIndex", "schema": 1}))
        with pytest.raises(ValueError, match=f"holds ExactIndex of schema 1, not {engine.__name__}"):
            engine.load(folder)
        (folder / "index.json").unlink()
        with pytest.raises(FileNotFoundError, match="holds no index"):
            engine.load(folder)
        with pytest.raises(FileExistsError, match="is not an index"):
            index.save(folder)

    def test_errors_name_the_fix_and_change_nothing(self, name):
        index, eye = self.build(name, [1, 2, 3], [np.eye(D)[:5], np.eye(D)[5:], np.eye(D)[:1]]), np.eye(D)
        for call, message in ERRORS:
            with pytest.raises(ValueError, match=message):
                call(index, eye)
            assert index.ids.tolist() == [1, 2, 3] and index.lengths.tolist() == [5, 11, 1]


def test_encodings_of_other_documents_are_refused(tmp_path):
    for number in (3, 4):
        Muvera(np.arange(number), list(np.eye(D)[:number, None])).save(tmp_path / str(number))
    shutil.rmtree(tmp_path / "4" / "encodings")
    shutil.copytree(tmp_path / "3" / "encodings", tmp_path / "4" / "encodings")
    with pytest.raises(ValueError, match="4 is not whole: encodings holds the encodings of other documents"):
        Muvera.load(tmp_path / "4")
