"""What defines each multi-vector engine, and two stages."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.index import ExactIndex
from jaxrec.index.compress import unit
from jaxrec.index.multivector import ExactMultiVector, FixedDimensionalEncoding, Muvera, Plaid, Warp, two_stage
from jaxrec.index.multivector import exact as exact_engine
from jaxrec.index.multivector.packed import VECTORS, Packed, maxsim_of
from jaxrec.index.multivector.plaid import guesses
from jaxrec.index.multivector.warp import imputed
from tests.index.multivector_documents import D, close, clustered, collection, exact_maxsim, identical, naive, recall


@pytest.fixture(scope="module")
def data():
    return collection()


# --- Exact --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "asked"), [(8192, 1024), (7, 3), (1, 1)])
def test_exact_search_equals_sorting_all_documents_with_real_ties(monkeypatch, tokens, asked):
    monkeypatch.setattr(exact_engine, "TOKENS", tokens)
    monkeypatch.setattr(exact_engine, "ASKED", asked)
    rng = np.random.default_rng(3)
    documents, queries = ([rng.integers(-1, 2, (n, 4)).astype(np.float32) for n in rng.integers(low, 5, count)] for low, count in ((0, 60), (1, 7)))
    ids = rng.permutation(90)[:60]  # whole numbers: scores are exact and often equal
    index = ExactMultiVector(ids, documents)
    for k, allowed in ((1, None), (9, None), (60, None), (20, ids[::3])):
        expected = naive(ids, documents, queries, k, None if allowed is None else set(allowed.tolist()))
        identical(index.search(queries, k, filter=allowed), expected)


def test_a_document_s_padding_does_not_exist_and_negative_similarities_count():
    index = ExactMultiVector([1, 2], [-np.eye(2)[:1], -np.ones((3, 2))])
    np.testing.assert_array_equal(index.search([np.eye(2)], 2)[1], [[-1, -2]])


def test_storage_decides_the_bytes(data):
    ids, documents, _ = data
    tokens = sum(map(len, documents))
    for storage, each in (("float32", 4 * D), ("float16", 2 * D), ("int8", D + 4)):
        assert ExactMultiVector(ids, documents, storage=storage).nbytes == each * tokens + 8 * 200 + 8 * 201
    with pytest.raises(ValueError, match="storage='float8' is none of"):
        ExactMultiVector(storage="float8")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="7e\\+04 does not fit float16"):
        ExactMultiVector([1], [[[70_000.0]]], storage="float16")


# --- PLAID --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "residuals"), [(1, "scalar"), (2, "scalar"), (4, "scalar"), (32, "scalar"), (1, "product"), (2, "product")])
def test_plaid_that_keeps_everything_is_exact_search_of_decoded_vectors(data, bits, residuals):
    ids, documents, queries = data
    index = Plaid(ids, documents, bits=bits, residuals=residuals, centroids=50, probes=50, candidates=999, decoded=999)
    decoded = [index.codec.decode(*index.codec.encode(d)) if bits < 32 else d for d in documents]
    exactly = ExactMultiVector(ids, decoded)
    close(index.search(queries, 200), exactly.search(queries, 200))
    close(index.search(queries, 30, filter=ids[:50]), exactly.search(queries, 30, filter=ids[:50]))


def test_plaid_s_first_stage_bounds_the_second_and_meets_it(data):
    ids, documents, queries = data
    index = Plaid(ids, documents, centroids=50)
    lists, codes = index._listing(), index._held.columns["codes"]
    query = Packed.of(np.array([len(queries[0])]), **{VECTORS: queries[0]})
    similarity = queries[0] @ index.codec.centroids.T
    rows = np.flatnonzero(index.lengths)
    offsets = Packed.of(index.lengths[rows]).offsets
    second = dict(zip(rows.tolist(), maxsim_of(query, similarity[:, codes], offsets)[0], strict=True))
    before: set[int] = set()
    for probes in (1, 2, 5, 20, 50, 99):
        found, scores = guesses(similarity, lists, probes, np.ones(200, bool))
        assert before <= set(found.tolist())
        before = set(found.tolist())
        expected = np.array([second[row] for row in found.tolist()])
        assert (scores >= expected - 1e-5).all()
    assert found.tolist() == rows.tolist()
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    found, _ = guesses(similarity, lists, 50, np.arange(200) < 20)
    assert found.tolist() == [row for row in rows.tolist() if row < 20]


def test_plaid_needs_no_cosine_to_be_high(data):
    ids, documents, queries = data
    away = [-query for query in queries]  # nearly all cosines are below 0, and below any fixed bar
    found = Plaid(ids, documents, bits=4, centroids=64, probes=16, candidates=60, decoded=40).search(away, 10)[0]
    assert recall(found, naive(ids, documents, away, 10)[0]) >= 0.8


def test_plaid_reads_more_lists_until_there_are_k(data):
    ids, documents, queries = data
    index = Plaid(ids, documents, centroids=64, probes=1, candidates=1, decoded=1)
    for k in (1, 20, 99):
        found, scores = index.search(queries, k)
        assert all(len(set(row)) == k for row in found.tolist()) and np.isfinite(scores).all()


def test_plaid_keeps_directions_only():
    with pytest.raises(ValueError, match="document 8 has a token of norm 2; Plaid keeps directions"):
        Plaid([4, 8], [np.eye(8), 2 * np.eye(8)[:1]])
    with pytest.raises(ValueError, match="document 4 has a token of norm 0"):
        Plaid([4], [np.zeros((1, 8))])


def test_vectors_as_they_are_leave_no_residuals():
    with pytest.raises(ValueError, match="bits=32 keeps vectors as they are, so there are no residuals for residuals='product'; use 1, 2 or 4 bits"):
        Plaid(bits=32, residuals="product")


@pytest.mark.parametrize("engine", [Plaid, Warp])
def test_codec_options(engine):
    with pytest.raises(ValueError, match="bits=3: an entry of a residual has 1, 2 or 4 bits"):
        engine(bits=3)
    for residuals in ("scalar", "product"):
        with pytest.raises(ValueError, match="12 numbers of 1 bits fill no whole bytes"):
            engine([1], [np.eye(12)], bits=1, residuals=residuals)
    with pytest.raises(ValueError, match="residuals='vector' is none of scalar, product"):
        engine(residuals="vector")
    with pytest.raises(ValueError, match="so there is no codec"):
        _ = engine().codec


@pytest.mark.parametrize(
    ("engine", "options"),
    [(Plaid, {name: -1}) for name in ("centroids", "candidates", "decoded", "seed")]
    + [(engine, {"probes": wrong}) for engine in (Plaid, Warp) for wrong in (0, "x", 1.5)]
    + [(Warp, {"centroids": 2.5}), (Warp, {"bits": True}), (Muvera, {"repetitions": 0}), (Muvera, {"bits": -1}), (Muvera, {"bits": 40})]
    + [(Muvera, {"projection": -1}), (Muvera, {"final": -1}), (Muvera, {"depth": "x"}), (Muvera, {"seed": -1}), (Muvera, {"exact_below": None})],
)
def test_options_outside_their_limits(engine, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be (a whole number of )?at least"):
        engine(**options)


@pytest.mark.parametrize(("engine", "name"), [(Plaid, "probes"), (Warp, "probes"), (Muvera, "depth")])
def test_tuning_has_the_same_limits(engine, name, tmp_path):
    index = engine([1], [np.eye(8)])
    with pytest.raises(ValueError, match=f"{engine.__name__}: {name}='x' must be a whole number of at least 1"):
        index.tune(**{name: "x"})
    index.tune(**{name: np.int64(5)})  # as whole as others, and `save` can write it
    index.save(tmp_path / "index")
    assert engine.load(tmp_path / "index")._options == index._options | {name: 5}


def test_product_codes_are_saved_and_loaded(data, tmp_path):
    ids, documents, queries = data
    for engine in (Plaid, Warp):
        index = engine(ids[:150], documents[:150], bits=1, residuals="product", centroids=50)
        index.save(tmp_path / engine.__name__)
        loaded = engine.load(tmp_path / engine.__name__)
        for one in (index, loaded):
            one.add(ids[150:], documents[150:])
        identical(loaded.search(queries, 20), index.search(queries, 20))
        assert loaded.nbytes == index.nbytes and loaded.drift == index.drift


@pytest.mark.parametrize("engine", [Plaid, Warp])
def test_drift_tells_when_to_rebuild(engine, data):
    ids, documents, _ = data
    rng = np.random.default_rng(5)
    index = engine(ids, documents, bits=2, centroids=64)
    assert index.drift == 1
    index.add(ids + 2000, [clustered(rng, len(d), unit(rng.normal(size=(40, D)))) for d in documents])
    assert index.drift > 1.5
    everything = [clustered(rng, n, unit(rng.normal(size=(40, D)))) for n in index.lengths]
    index.rebuild(everything)
    assert index.drift == 1 and len(index) == 400
    identical(index.search(everything[:1], 5), engine(index.ids, everything, bits=2, centroids=64).search(everything[:1], 5))
    with pytest.raises(ValueError, match="there are 400 ids and 3 documents"):
        index.rebuild(everything[:3])


# --- WARP ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "residuals"), [(1, "scalar"), (2, "scalar"), (4, "scalar"), (2, "product")])
def test_warp_that_reads_all_lists_is_exact_search_of_vectors_decoded_as_they_come(data, bits, residuals):
    ids, documents, queries = data
    index = Warp(ids, documents, bits=bits, residuals=residuals, centroids=50, probes=50)
    exactly = ExactMultiVector(ids, [index.codec.decode(*index.codec.encode(d), normalize=False) for d in documents])
    close(index.search(queries, 200), exactly.search(queries, 200))
    close(index.search(queries, 30, filter=ids[:50]), exactly.search(queries, 30, filter=ids[:50]))


def test_warp_imputes_what_it_did_not_read(data):
    ids, documents, queries = data
    index = Warp(ids, documents, bits=2, centroids=50, probes=4)
    encoded = [index.codec.encode(document) for document in documents]
    for query in queries:
        similarity = query @ index.codec.centroids.T
        order = np.argsort(-similarity, axis=1)
        expected = {}
        for i, (codes, residuals) in zip(ids.tolist(), encoded, strict=True):
            products = query @ index.codec.decode(codes, residuals, normalize=False).T  # [m, n]
            read = np.array([np.isin(codes, order[row, :4]) for row in range(len(query))])
            reach = np.cumsum(index._held.lengths[order], axis=1) >= int(np.sqrt(8 * index.lengths.sum()))
            missing = similarity[np.arange(len(query)), order[np.arange(len(query)), reach.argmax(axis=1)]]
            if read.any():
                expected[i] = sum(products[row][read[row]].max() if read[row].any() else missing[row] for row in range(len(query)))
        ranked = sorted(expected, key=lambda i: -expected[i])[:10]
        found, scores = index.search([query], 10)
        np.testing.assert_allclose(scores[0], [expected[i] for i in ranked], rtol=1e-5, atol=1e-5)
        assert found[0].tolist() == ranked


def test_imputed_similarities_fall_as_more_tokens_must_be_held():
    rng = np.random.default_rng(0)
    similarity, sizes = rng.normal(size=(5, 300)).astype(np.float32), rng.integers(0, 9, 300)
    found = [imputed(similarity, sizes, enough) for enough in (1, 30, 300, 900, 10**6)]
    assert (np.diff(found, axis=0) <= 0).all()
    order = np.argsort(-similarity[0])
    assert found[2][0] == similarity[0, order[np.argmax(np.cumsum(sizes[order]) >= 300)]]
    assert found[0][0] == similarity[0, order[np.argmax(sizes[order] > 0)]]


def test_the_order_of_tokens_is_nothing_to_warp(data):
    ids, documents, queries = data
    index, turned = (Warp(ids[:100], documents[:100], centroids=50, probes=5) for _ in range(2))
    index.add(ids[100:], documents[100:])
    turned.add(ids[100:], [document[::-1] for document in documents[100:]])
    identical(turned.search(queries, 20), index.search(queries, 20))


# --- MUVERA -------------------------------------------------------------------------------------------------------------------------------


def packed(*sets):
    return Packed.of(np.array([len(one) for one in sets]), **{VECTORS: np.concatenate(sets).astype(np.float32)})


def estimate(encoding, query, document):
    return float(encoding.queries(packed(query))[0] @ encoding.documents(packed(document))[0]) / encoding.repetitions


@pytest.fixture(scope="module")
def sets(data):
    _, documents, queries = data
    long = [document for document in documents if len(document) > 10]
    return queries[0], long[0], long[1]


@pytest.mark.parametrize("final", [0, 64])
def test_query_encodings_add_up_and_whole_documents_may_repeat(sets, final):
    query, document, other = sets
    encoding = FixedDimensionalEncoding(4, 3, 5, final)
    one, two, both = encoding.queries(packed(query, other, np.concatenate([query, other])))
    np.testing.assert_allclose(both, one + two, atol=1e-5)
    once, twice, more = encoding.documents(packed(document, np.concatenate([document, document]), np.concatenate([document, document[:1]])))
    np.testing.assert_allclose(once, twice, atol=1e-5)
    assert np.abs(once - more).max() > 0.01
    assert once.shape == (final or 4 * 8 * 5,) == (encoding.width(D),)


def test_one_token_each_is_the_inner_product(sets):
    query, document, _ = sets
    encoding = FixedDimensionalEncoding(3, 4, 0)
    assert estimate(encoding, query[:1], document[:1]) == pytest.approx(float(query[0] @ document[0]), abs=1e-5)


def test_without_projection_maxsim_is_never_exceeded_and_planes_come_closer(data):
    _, documents, queries = data
    real, gaps = [document for document in documents if len(document)], []
    true = np.array([[exact_maxsim(query, document) for document in real] for query in queries])
    for bits in (0, 1, 3, 5):
        encoding = FixedDimensionalEncoding(5, bits, 0)
        found = encoding.queries(packed(*queries)) @ encoding.documents(packed(*real)).T / 5
        assert (found <= true + 1e-4).all()
        gaps.append((true - found).mean())
    assert (np.diff(gaps) < 0).all()


def test_projections_are_right_on_average(sets):
    query, document, _ = sets
    plain = estimate(FixedDimensionalEncoding(1, 0, 0), query, document)
    found = [estimate(FixedDimensionalEncoding(1, 0, 4, seed=seed), query, document) for seed in range(500)]
    assert abs(np.mean(found) - plain) < 4 * np.std(found) / np.sqrt(500)
    found = [estimate(FixedDimensionalEncoding(1, 0, 0, 8, seed=seed), query, document) for seed in range(500)]
    assert abs(np.mean(found) - plain) < 4 * np.std(found) / np.sqrt(500)


def test_no_planes_is_mean_pooling(sets):
    query, document, _ = sets
    assert estimate(FixedDimensionalEncoding(2, 0, 0), query, document) == pytest.approx(float(query.sum(axis=0) @ document.mean(axis=0)), abs=1e-5)


def test_empty_cells_take_the_token_whose_bits_differ_least(sets):
    document = sets[1][:4]
    for bits in (3, 5):
        blocks = FixedDimensionalEncoding(6, bits, 0).documents(packed(document)).reshape(6, 2**bits, D)
        planes = np.random.default_rng([0, 0]).normal(size=(D, 6 * bits)).astype(np.float32)
        sides = (document @ planes > 0).reshape(4, 6, bits)
        for repetition, cell in np.ndindex(6, 2**bits):
            differ = [sum(sides[t, repetition, b] != (cell >> b) & 1 for b in range(bits)) for t in range(4)]
            tokens = [t for t in range(4) if differ[t] == 0] or [int(np.argmin(differ))]
            np.testing.assert_allclose(blocks[repetition, cell], document[tokens].mean(axis=0), atol=1e-6)
    hollow = FixedDimensionalEncoding(6, 5, 0, fill_empty=False).documents(packed(document)).reshape(6, 32, D)
    assert (~hollow.any(axis=2)).sum() >= 6 * (32 - 4)


def test_documents_without_tokens_are_zero_and_seeds_matter(sets):
    document = sets[1]
    encoding = FixedDimensionalEncoding(4, 3, 4)
    found = encoding.documents(packed(document[:0], document))
    assert not found[0].any() and np.isfinite(found).all()
    other = FixedDimensionalEncoding(4, 3, 4, seed=1).documents(packed(document))[0]
    assert abs(np.corrcoef(found[1], other)[0, 1]) < 0.5
    np.testing.assert_array_equal(found[1], FixedDimensionalEncoding(4, 3, 4).documents(packed(document))[0])


def test_more_repetitions_find_more(data):
    ids, documents, queries = data
    rng = np.random.default_rng(8)
    asked = [documents[row] for row in rng.choice(np.flatnonzero([len(d) > 4 for d in documents]), 40)]
    expected = naive(ids, documents, asked, 1)[0]
    found = [recall(Muvera(ids, documents, repetitions=r, bits=3, projection=4, depth=5).search(asked, 1)[0], expected) for r in (1, 20)]
    assert found[0] < found[1] >= 0.9


# --- Two stages ---------------------------------------------------------------------------------------------------------------------------


def test_two_stages(data):
    ids, documents, queries = data
    real = np.flatnonzero([len(d) > 0 for d in documents])
    means, asked = np.stack([documents[row].mean(axis=0) for row in real]), np.stack([query.mean(axis=0) for query in queries])
    first, second = ExactIndex(ids[real], means), ExactMultiVector(ids, documents)
    close(two_stage(first, second, asked, queries, 10, depth=999), second.search(queries, 10))
    found, scores = two_stage(first, second, asked, queries, 5, depth=30)
    candidates = first.search(asked, 30)[0]
    for row, query in enumerate(queries):
        close((found[row], scores[row]), [array[0] for array in second.search([query], 5, filter=candidates[row])])
    found, scores = two_stage(first, second, asked, queries, 5, filter=ids[[0, 1, 3]])
    assert (found[:, 2:] == -1).all() and np.isneginf(scores[:, 2:]).all()
    with pytest.raises(ValueError, match="k=5 is not 1 to the 3 candidates"):
        two_stage(first, second, asked, queries, 5, depth=3)
    second.delete(candidates[0, :1])
    with pytest.raises(ValueError, match=f"found id {candidates[0, 0]}, which the second does not hold"):
        two_stage(first, second, asked, queries, 5)
