"""The Lorentz model against NumPy in float64, its defining properties, and finite gradients where arccosh and arccos have none."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import hyperbolic

RANDOM = np.random.default_rng(0)
DIRECTIONS = RANDOM.normal(size=(64, 5))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
VECTORS = (DIRECTIONS * np.geomspace(1e-6, 2.3, 64)[:, None]).astype(np.float32)  # norms on both sides of the series' border
CURVATURES = pytest.mark.parametrize("c", [0.25, 1.0, 4.0])


def lifted(v, c):
    """[N, D + 1] the whole point, time last, in float64."""
    v = np.asarray(v, np.float64)
    z = np.sqrt(c) * np.linalg.norm(v, axis=-1, keepdims=True)
    space = v * np.sinh(z) / z
    return np.concatenate([space, np.sqrt(1 / c + (space**2).sum(-1, keepdims=True))], axis=-1)


def minkowski(x, y):
    return (x[..., :-1] * y[..., :-1]).sum(-1) - x[..., -1] * y[..., -1]


@CURVATURES
def test_a_lifted_vector_lies_on_the_sheet_at_its_own_distance_from_the_origin(c):
    vectors = VECTORS / np.float32(np.sqrt(c))  # sqrt(c) |v| up to 2.3

    @jax.jit
    def measured(v):
        points = hyperbolic.lift(v, c)
        own, far = hyperbolic.inner(points, points, c), hyperbolic.distance(jnp.zeros_like(points), points, c)
        return hyperbolic.item_form(points, c), own, far, hyperbolic.log_map(points, c)

    whole, own, far, back = map(np.asarray, measured(vectors))
    np.testing.assert_allclose(whole, lifted(vectors, c), rtol=2e-6)
    np.testing.assert_allclose(minkowski(whole.astype(np.float64), whole.astype(np.float64)) * c, -1, atol=1e-5)
    np.testing.assert_allclose(own * c, -1, atol=1e-5)
    np.testing.assert_allclose(far, np.linalg.norm(vectors, axis=1), rtol=1e-5)
    np.testing.assert_allclose(back, vectors, rtol=1e-5)


def test_the_radius_cuts_norms_and_keeps_directions():
    points, back = jax.jit(lambda v: (p := hyperbolic.lift(v, radius=1.5), hyperbolic.log_map(p)))(VECTORS * 3)
    norms, points = np.linalg.norm(back, axis=1), np.asarray(points)
    np.testing.assert_allclose(norms, np.minimum(np.linalg.norm(VECTORS * 3, axis=1), 1.5), rtol=1e-5)
    np.testing.assert_allclose(points / np.linalg.norm(points, axis=1, keepdims=True), DIRECTIONS, atol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 3))
def between(function, x, y, c=1.0):
    """A function of two points, of the vectors that are lifted to them."""
    return function(hyperbolic.lift(x, c), hyperbolic.lift(y, c), c)


@CURVATURES
def test_distance_is_the_arccosh_formula_and_a_metric(c):
    x, y, z = (RANDOM.normal(size=(200, 4)) for _ in range(3))
    xy, yz, xz, yx = (np.asarray(between(hyperbolic.distance, *pair, c)) for pair in ((x, y), (y, z), (x, z), (y, x)))
    wanted = np.arccosh(-c * minkowski(lifted(x, c), lifted(y, c))) / np.sqrt(c)
    np.testing.assert_allclose(xy, wanted, rtol=1e-5)
    np.testing.assert_allclose(xy, yx, rtol=1e-6)
    assert (xz <= xy + yz + 1e-5).all()


def test_distances_of_near_points_keep_their_digits():
    x = np.tile(np.array([0.6, -0.8, 0.3]), (3, 1))
    y = x + np.array([[1e-2], [1e-3], [1e-4]]) * np.array([1, 0, 0])
    wanted = np.arccosh(-minkowski(lifted(x, 1.0), lifted(y, 1.0)))
    np.testing.assert_allclose(between(hyperbolic.distance, x, y), wanted, rtol=2e-3)  # float32 itself knows a gap of 1e-4 to a part in 1,000


def test_without_curvature_distance_is_euclidean():
    x, y = RANDOM.normal(size=(2, 50, 4))
    np.testing.assert_allclose(between(hyperbolic.distance, x, y, 1e-6), np.linalg.norm(x - y, axis=1), rtol=1e-4)


@CURVATURES
def test_the_exterior_angle_is_the_arccos_formula(c):
    x, y = RANDOM.normal(size=(2, 300, 4))
    a, b = lifted(x, c), lifted(y, c)
    inner, norm = c * minkowski(a, b), np.linalg.norm(a[:, :-1], axis=1)
    wanted = np.arccos((b[:, -1] + a[:, -1] * inner) / (norm * np.sqrt(inner**2 - 1)))
    np.testing.assert_allclose(between(hyperbolic.exterior_angle, x, y, c), wanted, atol=2e-5)


def test_along_one_ray_only_what_is_farther_out_is_entailed():
    apex = VECTORS[32:]  # norms from 1.5e-3 to 2.3
    np.testing.assert_allclose(between(hyperbolic.exterior_angle, apex, 1.5 * apex), 0, atol=2e-3)
    np.testing.assert_allclose(between(hyperbolic.exterior_angle, apex, 0.5 * apex), np.pi, atol=2e-3)
    assert not np.any(between(hyperbolic.entailment, apex, 1.5 * apex))
    assert np.all(between(hyperbolic.entailment, apex, 0.5 * apex) > 1.5)


@CURVATURES
def test_cones_narrow_outwards_and_are_half_spaces_near_the_origin(c):
    apex = np.zeros((6, 3), np.float32)
    apex[:, 0] = np.array([0.0, 0.05, 0.2, 0.5, 1.0, 4.0]) / np.sqrt(c)  # the border is 2 K = 0.2
    angle = np.asarray(hyperbolic.half_aperture(apex, c, boundary=0.1))
    np.testing.assert_allclose(angle[:3], np.pi / 2, atol=2e-3)
    np.testing.assert_allclose(angle[3:], np.arcsin(0.2 / np.array([0.5, 1.0, 4.0])), rtol=1e-5)


def test_cones_nest_outside_the_ball_of_saturation():
    """If y is in the cone of x, and z in that of y, then z is in that of x: so generations of upgrades stay compatible."""
    random = np.random.default_rng(1)

    def onwards(vectors):
        return vectors * random.uniform(1, 3, (60_000, 1)) + 0.1 * random.normal(size=(60_000, 2))

    x = random.normal(size=(60_000, 2))
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * random.uniform(0.21, 1.0, (60_000, 1))
    y = onwards(x)
    z = onwards(y)
    far = np.linalg.norm(y, axis=1) > 0.21
    outside = [np.asarray(between(hyperbolic.entailment, *pair)) for pair in ((x, y), (y, z), (x, z))]
    chain = far & (outside[0] == 0) & (outside[1] == 0)
    assert chain.sum() > 1000 and outside[2][~chain].max() > 0.1
    assert outside[2][chain].max() < 1e-4


@CURVATURES
def test_inner_products_rank_as_distances_do(c):
    queries, items = (RANDOM.normal(size=(n, 6)).astype(np.float32) for n in (20, 100))

    @jax.jit
    def measured(queries, items):
        queries, items = hyperbolic.lift(queries, c, 2.0), hyperbolic.lift(items, c, 2.0)
        pairs = queries[:, None], items[None]
        scores = hyperbolic.query_form(queries, c) @ hyperbolic.item_form(items, c).T
        return scores, hyperbolic.distance(*pairs, c), hyperbolic.inner(*pairs, c)

    scores, distances, inner = map(np.asarray, measured(queries, items))
    np.testing.assert_array_equal(np.argsort(-scores, axis=1), np.argsort(distances, axis=1))
    np.testing.assert_allclose(scores, inner, rtol=1e-5)


ORIGIN, POINT = np.zeros(3, np.float32), np.array([0.4, -0.3, 0.5], np.float32)
SINGULAR = [(POINT, POINT), (ORIGIN, ORIGIN), (ORIGIN, POINT), (POINT, ORIGIN), (POINT, 2 * POINT), (POINT, 0.5 * POINT)]


@pytest.mark.parametrize("function", [hyperbolic.distance, hyperbolic.exterior_angle, hyperbolic.entailment, hyperbolic.inner], ids=lambda f: f.__name__)
def test_values_and_gradients_are_finite_at_singular_points(function):
    x, y = (np.stack(side) for side in zip(*SINGULAR, strict=True))
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(functools.partial(between, function), argnums=(0, 1))))(x, y)
    assert np.isfinite(values).all() and all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_lift_of_the_origin_has_the_gradient_of_the_identity():
    np.testing.assert_allclose(jax.jit(jax.jacobian(lambda v: hyperbolic.lift(v, 1.0, 2.0)))(ORIGIN), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.jacobian(hyperbolic.log_map))(ORIGIN), np.eye(3), atol=1e-7)


def test_the_gradient_of_distance_is_that_of_finite_differences():
    x, y = RANDOM.normal(size=(2, 3)).astype(np.float32)

    def distance(v):
        return np.arccosh(-minkowski(lifted(v, 1.0), lifted(y, 1.0)))

    steps = 1e-5 * np.eye(3)
    wanted = [(distance(x + step) - distance(x - step)) / 2e-5 for step in steps]
    got = jax.jit(jax.grad(lambda v: between(hyperbolic.distance, v, y)))(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
