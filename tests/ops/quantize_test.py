"""k-means, residual codes and the gradients through a choice, against brute force, NumPy and the papers' equations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import quantize

KEY = jax.random.key(0)


def points(rows, width, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def squared(x, codebook):
    return ((x[:, None].astype(np.float64) - np.asarray(codebook, np.float64)[None]) ** 2).sum(-1)


def tree_of_gaussians():
    """(1600 points, their branches of two levels): 4 far centres, 4 nearer ones around each, a little noise."""
    random = np.random.default_rng(1)
    first = 20 * np.eye(4, 6)
    second = 4 * np.concatenate([np.eye(4, 6)[:, ::-1]])  # the same four offsets below every centre, as a residual quantiser has them
    branch = random.integers(4, size=(1600, 2))
    return (first[branch[:, 0]] + second[branch[:, 1]] + 0.05 * random.normal(size=(1600, 6))).astype(np.float32), branch


def test_nearest_is_brute_force_in_blocks_of_any_size():
    x, codebook = points(103, 5), points(7, 5, 1)
    for block in (10, 103, 1000):
        np.testing.assert_array_equal(quantize.nearest(x, codebook, block=block), squared(x, codebook).argmin(1))


def test_a_common_mean_far_from_zero_changes_no_code():
    spread, mean = np.random.default_rng(0).standard_normal((2000, 16)), np.full(16, 300.0)
    given = (mean + spread).astype(np.float32)
    book = quantize.seed_codes(jnp.asarray(given), 64, jax.random.key(0))
    exact = np.square(given[:, None].astype(np.float64) - np.asarray(book, np.float64)[None]).sum(axis=-1)
    np.testing.assert_array_equal(quantize.nearest(jnp.asarray(given), book), exact.argmin(axis=1))
    near = quantize.seed_codes(jnp.asarray(given - mean.astype(np.float32)), 64, jax.random.key(0))
    np.testing.assert_allclose(np.asarray(book) - mean, near, atol=1e-4)  # the very same vectors are chosen


def test_seeding_takes_every_point_where_there_are_as_many_as_codes():
    distinct = points(12, 3)
    chosen = np.asarray(quantize.seed_codes(jnp.asarray(np.tile(distinct, (9, 1))), 12, KEY))
    assert {tuple(row) for row in chosen} == {tuple(row) for row in distinct}


def test_more_codes_than_points_neither_hangs_nor_breaks():
    few = jnp.asarray(np.tile(points(3, 4), (5, 1)))
    codebook = np.asarray(quantize.lloyd(few, quantize.seed_codes(few, 8, KEY), 3))
    assert np.isfinite(codebook).all() and np.allclose(squared(np.asarray(few), codebook).min(1), 0, atol=1e-6)


def test_an_iteration_is_lloyds():
    x, codebook = points(200, 4), points(6, 4, 1)
    codes = squared(x, codebook).argmin(1)
    assert len(np.unique(codes)) == 6
    np.testing.assert_allclose(quantize.lloyd(x, codebook, 1), [x[codes == code].mean(0) for code in range(6)], rtol=1e-5, atol=1e-6)


def test_codes_without_vectors_come_back():
    x = np.concatenate([points(50, 3), 30 + points(1, 3)])
    lost = jnp.zeros((5, 3)).at[1:].set(1e3)
    revived = np.asarray(quantize.lloyd(x, lost, 1))
    farthest = x[np.argsort(-squared(x, x.mean(0)[None])[:, 0])[:4]]  # from code 0, which has them all and is now their mean
    np.testing.assert_allclose(revived[1:], farthest)  # each a vector of its own, the farthest first
    assert len(np.unique(squared(x, quantize.lloyd(x, lost, 10)).argmin(1))) == 5


def test_kmeans_is_as_good_as_that_of_scikit_learn():
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    random = np.random.default_rng(2)
    x = (3 * random.normal(size=(60, 8))[random.integers(60, size=1500)] + random.normal(size=(1500, 8))).astype(np.float32)
    ours, theirs = [], []
    for seed in range(3):
        ours.append(squared(x, quantize.lloyd(x, quantize.seed_codes(x, 40, jax.random.key(seed)), 20)).min(1).sum())
        with threadpool_limits(1):
            theirs.append(KMeans(40, n_init=1, max_iter=20, tol=0, random_state=seed).fit(x).inertia_)
    assert np.mean(ours) <= 1.01 * np.mean(theirs)


def test_the_running_mean_is_the_mean_of_all_that_a_code_saw():
    x, codebook = points(90, 4), points(5, 4, 1)
    codes = np.random.default_rng(3).integers(4, size=90)  # code 4 sees nothing
    whole, counts = quantize.running_mean(codebook, jnp.zeros(5), x, codes)
    np.testing.assert_allclose(whole[:4], [x[codes == code].mean(0) for code in range(4)], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole[4], codebook[4])
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=5))
    parts, seen = codebook, jnp.zeros(5)
    for rows in np.split(np.arange(90), 3):
        parts, seen = quantize.running_mean(parts, seen, x[rows], codes[rows])
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)


def test_residual_kmeans_recovers_a_tree_and_each_level_leaves_less():
    x, branch = tree_of_gaussians()
    codebooks = quantize.residual_kmeans(x, 3, 4, KEY)
    codes = np.asarray(quantize.residual_codes(x, codebooks)[0])
    for level in range(2):  # a prefix of codes and a branch of the tree are the same sets of points
        pairs = np.unique(np.concatenate([codes[:, : level + 1], branch[:, : level + 1]], axis=1), axis=0)
        assert len(pairs) == 4 ** (level + 1)
    errors = [((x - np.asarray(quantize.reconstruct(codes[:, :level], codebooks[:level]))) ** 2).sum() for level in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2] and errors[1] < 1e-2 * errors[0]


def test_with_norms_the_sum_of_codes_is_not_the_vector_and_nested_scaling_is():
    x = 5 * points(300, 6) * np.random.default_rng(4).uniform(0.2, 3, (300, 1)).astype(np.float32)
    codebooks = quantize.residual_kmeans(x, 3, 16, KEY, normalize=True)
    codes, norms = quantize.residual_codes(x, codebooks, normalize=True)
    residual, scale = x, 1.0
    for level in range(3):
        norm = np.linalg.norm(residual, axis=1, keepdims=True)
        scale = scale * norm
        residual = residual / norm - np.asarray(codebooks[level])[np.asarray(codes)[:, level]]
        np.testing.assert_allclose(norms[:, level], norm[:, 0], rtol=1e-4)
    nested = np.asarray(quantize.reconstruct(codes, codebooks, norms))
    np.testing.assert_allclose(nested + scale * residual, x, rtol=1e-4, atol=1e-4)  # what is missing is the last residual, scaled
    summed = np.asarray(quantize.reconstruct(codes, codebooks))
    assert ((x - nested) ** 2).sum() < 0.3 * ((x - summed) ** 2).sum()


def test_without_norms_the_last_error_is_the_distance_to_the_sum_of_codes_and_kmeans_is_stationary_for_the_vq_loss():
    x = points(120, 3)
    codebook = quantize.lloyd(x, quantize.seed_codes(x, 6, KEY), 60)
    np.testing.assert_allclose(quantize.lloyd(x, codebook, 1), codebook, atol=1e-6)  # a fixed point
    codes = quantize.nearest(x, codebook)

    def loss(codebook, x):
        own, commitment = quantize.vq_losses(x, codebook[codes])
        return own.sum(), commitment.sum()

    np.testing.assert_allclose(jax.grad(lambda c: loss(c, x)[0])(codebook), 0, atol=1e-4)
    moved = codebook.at[2].add(0.1)
    np.testing.assert_allclose(jax.grad(lambda c: loss(c, x)[0])(moved)[2], 2 * 0.1 * np.sum(np.asarray(codes) == 2), rtol=1e-3)
    assert not np.any(jax.grad(lambda c: loss(c, x)[1])(moved))  # beta's term moves no code
    np.testing.assert_allclose(
        jax.grad(lambda v: loss(codebook, v)[1])(jnp.asarray(x)), 2 * (x - np.asarray(codebook)[np.asarray(codes)]), rtol=1e-5, atol=1e-6
    )


def test_straight_through_passes_the_gradient_on_unchanged():
    z, q, upstream = points(4, 5), points(4, 5, 1), points(4, 5, 2)
    value, pull = jax.vjp(quantize.straight_through, z, q)
    np.testing.assert_allclose(value, q, atol=1e-6)
    to_z, to_q = pull(upstream)
    np.testing.assert_array_equal(to_z, upstream)
    assert not np.any(to_q)


def test_the_rotation_keeps_the_angle_of_the_gradient_and_scales_by_the_ratio_of_norms():
    z, q, upstream = points(20, 5), 2 * points(20, 5, 1), points(20, 5, 2)
    value, pull = jax.vjp(quantize.rotate, z, q)
    np.testing.assert_allclose(value, q, atol=1e-6)
    back, to_q = (np.asarray(array) for array in pull(upstream))

    def norm(x):
        return np.linalg.norm(x, axis=1)

    def cosine(a, b):
        return (a * b).sum(1) / norm(a) / norm(b)

    np.testing.assert_allclose(cosine(back, z), cosine(upstream, q), atol=1e-5)
    np.testing.assert_allclose(norm(back), norm(q) / norm(z) * norm(upstream), rtol=1e-5)
    assert not to_q.any()
    one = q[:1]
    for z, q in ((0 * one, one), (one, -one), (one, 0 * one)):  # no direction, opposite, nothing
        value, pull = jax.vjp(quantize.rotate, z, q)
        np.testing.assert_allclose(value, q, atol=1e-6)
        assert np.isfinite(pull(np.ones_like(z))[0]).all()


@pytest.mark.parametrize("similarity", ["softmax", "cosine"])
def test_the_dense_estimator_moves_every_code_by_its_similarity(similarity):
    h, codebook, upstream = points(3, 4), points(6, 4, 1), points(3, 4, 2)
    codes = np.array([0, 2, 2])
    value, pull = jax.vjp(lambda h, c: quantize.dense_straight_through(h, c, codes, similarity=similarity, temperature=0.5), h, codebook)
    np.testing.assert_allclose(value, codebook[codes], atol=1e-6)
    to_h, to_codes = pull(upstream)
    cosine = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (codebook / np.linalg.norm(codebook, axis=1, keepdims=True)).T
    share = np.exp(2 * cosine) / np.exp(2 * cosine).sum(1, keepdims=True) if similarity == "softmax" else cosine / 6
    np.testing.assert_allclose(to_codes, share.T @ upstream + np.eye(6)[codes].T @ upstream, rtol=1e-4, atol=1e-6)  # [W, D]

    def through_p(h):  # dp/dh, by finite differences of p C in NumPy
        cosine = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (codebook / np.linalg.norm(codebook, axis=1, keepdims=True)).T
        p = np.exp(2 * cosine) / np.exp(2 * cosine).sum(1, keepdims=True) if similarity == "softmax" else cosine / 6
        return (p @ codebook * upstream).sum()

    h = h.astype(np.float64)
    steps = [
        [(through_p(h + d) - through_p(h - d)) / 2e-5 for column in range(4) for d in [1e-5 * np.eye(12)[4 * row + column].reshape(3, 4)]] for row in range(3)
    ]
    np.testing.assert_allclose(to_h, steps, rtol=1e-3, atol=1e-5)


def test_gumbel_draws_codes_by_their_distance_and_reaches_all_of_them():
    codebook = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    x = jnp.tile(jnp.asarray([[0.2, 0.1]]), (4000, 1))
    codes, drawn = quantize.gumbel(x, codebook, KEY)
    np.testing.assert_allclose(drawn, codebook[codes], atol=1e-6)
    distance = squared(np.asarray(x[:1]), codebook)[0]
    wanted = np.exp(-distance) / np.exp(-distance).sum()
    np.testing.assert_allclose(np.bincount(codes, minlength=3) / 4000, wanted, atol=0.03)
    to_x, to_codes = jax.grad(lambda x, c: quantize.gumbel(x, c, KEY)[1].sum(), argnums=(0, 1))(x[:5], codebook)
    assert np.any(to_x) and np.all(np.any(np.asarray(to_codes) != 0, axis=1))
