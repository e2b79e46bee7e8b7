"""The Lorentz model of hyperbolic space: points, distances, entailment cones, and search by inner products.

A space of curvature -c (c > 0) is the upper sheet of <x, x>_L = -1 / c under <x, y>_L = <x_s, y_s> - x_t y_t. The time coordinate follows
from the others,

  x_t = sqrt(1 / c + |x_s|^2)

so a point is kept as its space coordinates x_s [..., D] alone, any D numbers. Everything is computed in float32, and every gradient is
finite: 0 where the function has none (two equal points, the origin as a direction).

Nickel & Kiela 2018, arXiv 1806.03417 (the model); Ganea et al. 2018, arXiv 1804.01882 (cones); Desai et al. 2023, arXiv 2304.09172 (cones
in this model). The exterior angle and the distance are written in forms that lose no digits near their singular points.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

SMALL = 1e-3  # of the squared argument: below it, two terms of a series are exact in float32
SATURATED = 1 - 1e-6  # the largest sine of an aperture: the arcsine's slope is infinite at 1


def lift(vectors: jax.Array, curvature: float = 1.0, radius: float = math.inf) -> jax.Array:
    """The point that lies from the origin in the direction and at the distance of a vector (the exponential map at the origin).

    x_s = sinh(sqrt(c) |v|) / (sqrt(c) |v|) v, of v cut to a norm of at most `radius`.

    Args:
      vectors: [..., D].
      curvature: c.
      radius: float32 has seven digits, so keep sqrt(c) * radius <= 5; it overflows at 80.

    Returns:
      [..., D] space coordinates.
    """
    v = _clip(vectors.astype(jnp.float32), radius)
    square = curvature * jnp.sum(jnp.square(v), axis=-1, keepdims=True)
    near = square < SMALL
    z = jnp.sqrt(jnp.where(near, 1.0, square))
    return v * jnp.where(near, 1 + square / 6, jnp.sinh(z) / z)


def log_map(points: jax.Array, curvature: float = 1.0) -> jax.Array:
    """The inverse of `lift`: v = asinh(sqrt(c) |x_s|) / (sqrt(c) |x_s|) x_s. [..., D] -> [..., D]."""
    x = points.astype(jnp.float32)
    square = curvature * jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    near = square < SMALL
    z = jnp.sqrt(jnp.where(near, 1.0, square))
    return x * jnp.where(near, 1 - square / 6, jnp.arcsinh(z) / z)


def time(points: jax.Array, curvature: float = 1.0) -> jax.Array:
    """x_t = sqrt(1 / c + |x_s|^2), at least 1 / sqrt(c). [..., D] -> [...]."""
    return jnp.sqrt(1 / curvature + jnp.sum(jnp.square(points.astype(jnp.float32)), axis=-1))


def inner(x: jax.Array, y: jax.Array, curvature: float = 1.0) -> jax.Array:
    """<x, y>_L = <x_s, y_s> - x_t y_t, at most -1 / c, and that only for equal points. [..., D], [..., D] -> [...]."""
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1) - time(x, curvature) * time(y, curvature)


def distance(x: jax.Array, y: jax.Array, curvature: float = 1.0) -> jax.Array:
    """d(x, y) = arccosh(-c <x, y>_L) / sqrt(c). [..., D], [..., D] -> [...].

    Computed as 2 / sqrt(c) asinh(sqrt(c <x - y, x - y>_L) / 2), for the arccosh keeps only half of the digits of nearby points.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    later = jnp.sum((x - y) * (x + y), axis=-1) / (time(x, curvature) + time(y, curvature))  # x_t - y_t
    chord = curvature * (jnp.sum(jnp.square(x - y), axis=-1) - jnp.square(later))
    return 2 / math.sqrt(curvature) * jnp.arcsinh(_root(chord) / 2)


def half_aperture(apex: jax.Array, curvature: float = 1.0, boundary: float = 0.1) -> jax.Array:
    """The half-angle arcsin(2 K / (sqrt(c) |x_s|)) of a point's entailment cone; a half-space where |x_s| <= 2 K / sqrt(c). [..., D] -> [...].

    The nearer to the origin, the wider the cone. `boundary` is K.
    """
    norm = math.sqrt(curvature) * _root(jnp.sum(jnp.square(apex.astype(jnp.float32)), axis=-1))
    return jnp.arcsin(jnp.minimum(SATURATED, 2 * boundary / jnp.maximum(norm, 2 * boundary)))


def exterior_angle(apex: jax.Array, point: jax.Array, curvature: float = 1.0) -> jax.Array:
    """The angle at `apex` between the ray that goes on from the origin and the geodesic to `point`, 0..pi. [..., D], [..., D] -> [...].

    arccos((y_t + x_t c <x, y>_L) / (|x_s| sqrt((c <x, y>_L)^2 - 1))), computed from the two sides of the triangle: with e = x_s / |x_s|,

      atan2(|y_s - <y_s, e> e|, sqrt(c) (x_t <y_s, e> - |x_s| y_t))

    0 for equal points. The origin as an apex has no ray: the angle is 0 there as well, since its cone holds everything.
    """
    x, y = apex.astype(jnp.float32), point.astype(jnp.float32)
    norm = _root(jnp.sum(jnp.square(x), axis=-1))
    e = x / jnp.where(norm > 0, norm, 1.0)[..., None]
    along = jnp.sum(y * e, axis=-1)
    across = _root(jnp.sum(jnp.square(y - along[..., None] * e), axis=-1))
    ahead = math.sqrt(curvature) * (time(x, curvature) * along - norm * time(y, curvature))
    defined = (norm > 0) & ((across > 0) | (ahead != 0))
    return jnp.where(defined, jnp.arctan2(jnp.where(defined, across, 0.0), jnp.where(defined, ahead, 1.0)), 0.0)


def entailment(apex: jax.Array, point: jax.Array, curvature: float = 1.0, boundary: float = 0.1, slack: float = 1.0) -> jax.Array:
    """How far, in radians, `point` lies outside of the cone of `apex`: max(0, ext(x, y) - slack * aper(x)). [..., D], [..., D] -> [...]."""
    return jnp.maximum(0.0, exterior_angle(apex, point, curvature) - slack * half_aperture(apex, curvature, boundary))


def query_form(points: jax.Array, curvature: float = 1.0) -> jax.Array:
    """[x_s, -x_t]: its inner product with an `item_form` is <x, y>_L, which ranks as -d(x, y) does. [..., D] -> [..., D + 1]."""
    return jnp.concatenate([points.astype(jnp.float32), -time(points, curvature)[..., None]], axis=-1)


def item_form(points: jax.Array, curvature: float = 1.0) -> jax.Array:
    """[x_s, x_t]: what an index of inner products holds. [..., D] -> [..., D + 1]."""
    return jnp.concatenate([points.astype(jnp.float32), time(points, curvature)[..., None]], axis=-1)


def _root(square: jax.Array) -> jax.Array:
    """sqrt, with 0 and gradient 0 where the square is not above 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _clip(vectors: jax.Array, radius: float) -> jax.Array:
    """Vectors with norms of at most `radius`."""
    if math.isinf(radius):
        return vectors
    norm = _root(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True))
    return vectors * (radius / jnp.maximum(norm, radius))
