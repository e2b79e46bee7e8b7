"""Codecs of token vectors: round trips, errors that fall as bytes grow, and scores from codes that equal scores of decoded vectors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxrec.index import compress
from jaxrec.index.compress import ResidualCodec, unit

D = 16


@pytest.fixture(scope="module")
def tokens():
    """[3000, 16] of norm 1, in 60 clusters."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(60, D)))
    return unit(centres[rng.integers(60, size=3000)] + 0.1 * rng.normal(size=(3000, D))).astype(np.float32)


@pytest.fixture(scope="module")
def query(tokens):
    return unit(tokens[:7] + 0.1).astype(np.float32)


OFFSETS = np.array([0, 5, 6, 40, 300])


def maxsim(query, vectors):
    return np.array([(query @ vectors[a:b].T).max(axis=1).sum() for a, b in itertools.pairwise(OFFSETS)])


def error(vectors, decoded):
    return float(np.square(vectors - decoded).sum(axis=1).mean())


def test_the_nearest_centre_in_blocks_of_any_size(tokens, monkeypatch):
    book = tokens[:300]
    expected = np.argmax(tokens @ book.T, axis=1)
    for distances in (2**24, 2**17, 1):
        monkeypatch.setattr(compress, "DISTANCES", distances)
        for count in (3000, 257, 1, 0):
            found = compress.assign(tokens[:count], book)
            assert found.dtype == np.uint16 and found.shape == (count,)
            np.testing.assert_array_equal(found, expected[:count])


# --- int8 ---------------------------------------------------------------------------------------------------------------------------------


def test_int8_is_off_by_half_a_step_at_most(tokens):
    vectors = np.concatenate([tokens * 3, np.zeros((1, D), np.float32)])
    codes, scales = compress.int8_codes(vectors)
    assert (np.abs(compress.int8_vectors(codes, scales) - vectors) <= scales[:, None] / 2 * (1 + 1e-5)).all()
    assert codes.nbytes + scales.nbytes == (D + 4) * 3001
    assert np.abs(codes[:-1]).max(axis=1).min() == 127
    assert compress.int8_codes(vectors[:0])[0].shape == (0, D)


# --- Residuals ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packing_is_exact_and_the_first_number_is_highest(bits):
    numbers = np.random.default_rng(0).integers(0, 2**bits, (50, 24)).astype(np.uint8)
    packed = compress.pack(numbers, bits)
    assert packed.shape == (50, 24 * bits // 8) and packed.dtype == np.uint8
    np.testing.assert_array_equal(compress.unpack(packed, bits), numbers)
    text = "".join(f"{number:0{bits}b}" for number in numbers[0])
    assert [int(text[at : at + 8], 2) for at in range(0, len(text), 8)] == packed[0].tolist()
    with pytest.raises(ValueError, match=f"9 numbers of {bits} bits fill no whole bytes; use 1, 2 or 4 bits and a multiple of {8 // bits}"):
        compress.pack(numbers[:, :9], bits)


def test_packing_knows_three_widths():
    with pytest.raises(ValueError, match="16 numbers of 3 bits"):
        compress.pack(np.zeros((1, 16)), 3)


def test_residuals_fall_with_bits_and_with_centroids(tokens):
    errors = {}
    for bits in (1, 2, 4):
        for count in (1, 16, 256):
            codec = ResidualCodec.fit(tokens, bits, centroids=count)
            assert codec.bits == bits and len(codec.cutoffs) == 2**bits - 1 and codec.centroids.shape == (count, D)
            np.testing.assert_allclose(np.linalg.norm(codec.centroids, axis=1), 1, rtol=1e-5)
            codes, packed = codec.encode(tokens)
            assert codes.nbytes + packed.nbytes == 3000 * (2 + D * bits // 8)
            decoded = codec.decode(codes, packed)
            np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=1e-5)
            errors[bits, count] = error(tokens, decoded)
    for count in (1, 16, 256):
        assert errors[1, count] > errors[2, count] > errors[4, count]
    for bits in (1, 2, 4):
        assert errors[bits, 1] > errors[bits, 16] > errors[bits, 256]


def test_buckets_are_colbert_s_quantiles_or_better(tokens):
    rough, fine = (ResidualCodec.fit(tokens, 2, centroids=16, refine=refine) for refine in (0, 50))
    held = tokens[np.random.default_rng(0).permutation(3000)[: 16 * 64 // 20]]  # what k-means did not see
    residuals = held - rough.centroids[compress.assign(held, rough.centroids)]
    np.testing.assert_allclose(rough.cutoffs, np.quantile(residuals, [0.25, 0.5, 0.75]), rtol=1e-5)
    np.testing.assert_allclose(rough.weights, np.quantile(residuals, [0.125, 0.375, 0.625, 0.875]), rtol=1e-5)
    np.testing.assert_array_equal(rough.centroids, fine.centroids)
    np.testing.assert_allclose(fine.cutoffs, (fine.weights[1:] + fine.weights[:-1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(fine.weights[0], residuals[residuals < fine.cutoffs[0]].mean(), rtol=1e-3)
    assert error(tokens, fine.decode(*fine.encode(tokens))) < 0.95 * error(tokens, rough.decode(*rough.encode(tokens)))


@pytest.mark.parametrize("refine", [0, 50])
def test_an_encoded_token_is_its_centroid_and_the_weights_of_its_buckets(tokens, refine):
    codec = ResidualCodec.fit(tokens, 2, centroids=16, refine=refine)
    codes, packed = codec.encode(tokens[:20])
    for vector, code, decoded in zip(tokens, codes, codec.decode(codes, packed, normalize=False), strict=False):
        assert code == np.argmax(codec.centroids @ vector)
        residual = vector - codec.centroids[code]
        bucket = [sum(entry > cut for cut in codec.cutoffs) for entry in residual]
        np.testing.assert_allclose(decoded, codec.centroids[code] + codec.weights[bucket], atol=1e-6)
    assert (np.diff(codec.cutoffs) > 0).all()
    assert (codec.weights[:-1] < codec.cutoffs).all() and (codec.cutoffs < codec.weights[1:]).all()


def test_few_and_equal_tokens(tokens):
    for vectors in (tokens[:1], tokens[:3], np.repeat(tokens[:1], 100, axis=0), np.repeat(tokens[:2], 30, axis=0)):
        codec = ResidualCodec.fit(vectors, 2)
        assert 1 <= len(codec.centroids) <= len(vectors)
        np.testing.assert_allclose(codec.decode(*codec.encode(vectors)), vectors, atol=1e-5)
    assert len(ResidualCodec.fit(tokens, 2).centroids) == 512  # 2^floor(log2(16 sqrt(3000)))


# --- Product codes ------------------------------------------------------------------------------------------------------------------------


def test_product_errors_fall_with_parts_and_codes(tokens):
    by = {}
    for parts, count in ((1, 16), (4, 16), (4, 64)):
        books = compress.fit_product(tokens[:500], parts, count)
        codes = compress.product_codes(tokens[:500], books)
        assert codes.shape == (500, parts) and codes.dtype == np.uint8
        by[parts, count] = error(tokens[:500], compress.product_vectors(codes, books))
    assert by[1, 16] > by[4, 16] > by[4, 64]


def test_as_many_codes_as_distinct_tokens_lose_nothing(tokens):
    vectors = np.tile(tokens[:20], (3, 1))
    books = compress.fit_product(vectors, 1, 32)
    np.testing.assert_allclose(compress.product_vectors(compress.product_codes(vectors, books), books), vectors, atol=1e-6)
    assert compress.product_vectors(compress.product_codes(vectors[:1], compress.fit_product(vectors[:1], 2)), compress.fit_product(vectors[:1], 2)).shape == (
        1,
        D,
    )


def test_more_than_a_byte_of_codes(tokens):
    books = compress.fit_product(tokens, 1, 300, iterations=1)
    assert compress.product_codes(tokens, books).dtype == np.uint16
    with pytest.raises(ValueError, match="parts=0 and codes=256 must be 1 or more"):
        compress.fit_product(tokens, 0)
    with pytest.raises(ValueError, match="centroids=-1 is no number of centroids; use 1 or more, or 0"):
        compress.ResidualCodec.fit(tokens, centroids=-1)
    with pytest.raises(ValueError, match="16 dimensions do not divide into 5 parts"):
        compress.fit_product(tokens, 5)


@pytest.mark.parametrize("parts", [1, 4])
def test_maxsim_of_codes_is_maxsim_of_decoded_vectors(tokens, query, parts):
    books = compress.fit_product(tokens, parts, 32)
    codes = compress.product_codes(tokens[:300], books)
    found = compress.product_maxsim(compress.product_tables(query, books), codes, OFFSETS)
    np.testing.assert_allclose(found, maxsim(query, compress.product_vectors(codes, books)), rtol=1e-5)


def test_each_code_of_a_document_is_needed_once(tokens, query):
    books = compress.fit_product(tokens, 1, 16)
    codes = compress.product_codes(tokens[:300], books)
    few, offsets = compress.distinct_codes(codes[:, 0], OFFSETS)
    assert len(few) < 60 and few.dtype == codes.dtype
    tables = compress.product_tables(query, books)
    np.testing.assert_array_equal(compress.product_maxsim(tables, few[:, None], offsets), compress.product_maxsim(tables, codes, OFFSETS))


# --- Bits ---------------------------------------------------------------------------------------------------------------------------------


def test_hamming_distance_of_signs(tokens, query):
    bits, asked = compress.sign_bits(tokens[:300]), compress.sign_bits(query)
    assert bits.shape == (300, D // 8)
    distance = compress.hamming(asked, bits)
    np.testing.assert_array_equal(distance, ((query > 0)[:, None] != (tokens[:300] > 0)[None]).sum(axis=2))
    self = compress.hamming(bits, bits)
    assert not np.diag(self).any() and (self == self.T).all()
    assert (self[:50, :50, None] <= self[:50, None, :50] + self[None, :50, :50].transpose(0, 2, 1)).all()
    found = compress.hamming_maxsim(asked, bits, OFFSETS)
    np.testing.assert_array_equal(found, [(D - distance[:, a:b].min(axis=1)).sum() for a, b in itertools.pairwise(OFFSETS)])
    with pytest.raises(ValueError, match="12 bits fill no whole bytes"):
        compress.sign_bits(tokens[:, :12])


def test_bits_of_bisection_follow_distance_and_bits_of_chance_do_not(tokens):
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    centroids = unit(rng.normal(size=(256, 4)) @ rng.normal(size=(4, D)))  # of a few directions, as those of encoders are

    def follows(codes):
        pair = np.triu_indices(256, 1)
        distance = np.linalg.norm(centroids[pair[0]] - centroids[pair[1]], axis=1)
        return spearmanr(np.bitwise_count(codes[pair[0]] ^ codes[pair[1]]), distance).statistic

    codes = compress.bisecting_codes(centroids, 8)
    assert sorted(codes.tolist()) == list(range(256))
    assert follows(codes) > 0.5
    assert abs(follows(rng.permutation(256))) < 0.05
    assert len(set(compress.bisecting_codes(centroids[:77], 7).tolist())) == 77
    with pytest.raises(ValueError, match="256 centroids do not fit 7 bits; use 8"):
        compress.bisecting_codes(centroids, 7)


# --- Fewer tokens -------------------------------------------------------------------------------------------------------------------------


def test_pooling_keeps_the_first_and_a_share_of_the_others(tokens):
    document = tokens[:31]
    assert compress.pool(document, 1) is document
    for factor in (2, 3, 10):
        pooled = compress.pool(document, factor)
        assert len(pooled) == 1 + -(-30 // factor)
        np.testing.assert_array_equal(pooled[0], document[0])
        np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(compress.pool(document, 99, protected=2)[2], unit(document[2:].mean(axis=0)), atol=1e-6)
    assert compress.pool(document[:1], 3).shape == (1, D) and compress.pool(document[:0], 3).shape == (0, D)
    for factor in (0, np.nan):
        with pytest.raises(ValueError, match=f"factor={factor} makes more tokens"):
            compress.pool(document, factor)
    with pytest.raises(ValueError, match="protected=-1 tokens cannot stay"):
        compress.pool(document, 2, protected=-1)


def test_pooling_joins_what_is_alike():
    corners = np.eye(4, dtype=np.float32)
    pooled = compress.pool(np.repeat(corners[[2, 0, 3, 1]], [1, 3, 2, 4], axis=0), 3, protected=1)
    np.testing.assert_allclose(pooled, corners[[2, 0, 3, 1]], atol=1e-6)


def test_pruning_keeps_the_most_salient(tokens, query):
    weights = np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.5, 0.0, 0.3, 0.4, 0.6])
    assert compress.salient(weights, 0.4).tolist() == [1, 2, 3, 9]  # three of weight .5, of which the first two
    assert len(compress.salient(weights, 0.7)) == 7 and len(compress.salient(weights, 0.61)) == 7
    assert compress.salient(weights, 1).tolist() == list(range(10)) and len(compress.salient(weights, 0)) == 0
    salience, last, kept = compress.centrality(tokens[:260]), -np.inf, set()
    for share in (0.1, 0.4, 0.8, 1):
        now = compress.salient(salience, share)
        assert kept <= set(now.tolist())
        score = (query @ tokens[:260][now].T).max(axis=1).sum()
        assert score >= last
        kept, last = set(now.tolist()), score
    for share in (1.5, np.nan):
        with pytest.raises(ValueError, match=f"share={share} is no share"):
            compress.salient(weights, share)
    with pytest.raises(ValueError, match=r"weights\[1\] is NaN, which is no more and no less than others"):
        compress.salient(np.array([1, np.nan, 2]), 0.5)


def test_received_attention_sums_to_one():
    attention = np.random.default_rng(0).dirichlet(np.ones(6), size=(3, 6))  # [H, n, n]
    found = compress.received_attention(attention)
    assert found.sum() == pytest.approx(1)
    assert found[2] == pytest.approx(attention[:, :, 2].mean())


def test_aggregation_is_the_paper_s(tokens):
    document, seeds = tokens[:50], np.array([7, 3, 30])
    sums, counts = document[seeds].astype(np.float64), np.zeros(3)
    parts = [[] for _ in seeds]
    for row in sorted(set(range(50)) - set(seeds.tolist())):
        parts[int(np.argmax(document[seeds] @ document[row]))].append(document[row])
    for place, part in enumerate(parts):
        counts[place] = len(part)
        sums[place] += np.mean(part, axis=0) if part else 0
    assert counts.sum() == 47
    found = compress.aggregate(document, seeds)
    np.testing.assert_allclose(found, unit(sums), atol=1e-5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype(np.float32)
    np.testing.assert_allclose(compress.aggregate(document @ turn, seeds), found @ turn, atol=1e-5)


def test_every_token_a_seed_changes_nothing(tokens):
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_allclose(compress.aggregate(tokens[:20], order), tokens[order], atol=1e-6)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "seeds must be positions of tokens, one at least, got float64 of shape \\[0\\]; choose them with `farthest`"),
        ([[0.5, 0.5]], "got float64 of shape \\[1, 2\\]"),
        ([1, 1], "seeds must be distinct positions, 0 to 49, got \\[1, 1\\]"),
        ([0, 50], "seeds must be distinct positions, 0 to 49, got \\[0, 50\\]"),
        ([-1, 0], "seeds must be distinct positions"),
    ],
)
def test_seeds_are_positions(tokens, seeds, message):
    with pytest.raises(ValueError, match=message):
        compress.aggregate(tokens[:50], np.array(seeds))


def test_farthest_seeds_begin_alike_and_come_closer(tokens):
    document = tokens[:40]
    seeds = compress.farthest(document, 12, first=5)
    assert len(set(seeds.tolist())) == 12 and seeds[0] == 5
    gaps = []
    for count in range(2, 13):
        assert compress.farthest(document, count, first=5).tolist() == seeds[:count].tolist()
        cosine = document[seeds[:count]] @ document[seeds[:count]].T
        gaps.append((1 - cosine)[np.triu_indices(count, 1)].min())
    assert (np.diff(gaps) <= 1e-6).all()
    assert seeds[1] == np.argmin(document @ document[5])
    assert sorted(compress.farthest(document, 40).tolist()) == list(range(40))
    with pytest.raises(ValueError, match="count=41 seeds of 40 tokens; ask for 1 to 40"):
        compress.farthest(document, 41)
    with pytest.raises(ValueError, match="first=-1 is none of the 40 tokens"):
        compress.farthest(document, 2, first=-1)


def test_aggregated_tokens_find_what_a_mean_cannot():
    rng = np.random.default_rng(0)
    background, marks = unit(rng.normal(size=(4, D))), unit(rng.normal(size=(30, D)))

    def view(identity):  # an image: much background, three patches of its own
        patches = unit(np.concatenate([background[rng.integers(4, size=60)], np.repeat(marks[[identity]], 3, axis=0)]) + 0.1 * rng.normal(size=(63, D)))
        return patches[rng.permutation(63)]

    gallery, asked = [view(i) for i in range(30)], [view(i) for i in range(30)]
    means = [unit(image.mean(axis=0)) for image in gallery]
    by_mean = np.mean([np.argmax([mean @ image.mean(axis=0) for mean in means]) == i for i, image in enumerate(asked)])

    def few(image):
        return compress.aggregate(image, compress.farthest(image, 6, first=int(np.argmax(compress.centrality(image)))))

    small = [few(image) for image in gallery]
    by_tokens = np.mean([np.argmax([(few(image) @ one.T).max(axis=1).mean() for one in small]) == i for i, image in enumerate(asked)])
    assert by_tokens > by_mean + 0.1
    assert (few(gallery[0]) @ few(gallery[0]).T).max(axis=1).mean() == pytest.approx(1, abs=1e-5)
