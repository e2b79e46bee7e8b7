"""Vector quantisation: k-means, residual codes, and gradients through a choice of code.

A residual quantiser codes a vector z [E] level by level with codebooks C_1..C_L [W, E] each:

    r_1 = z;   c_l = argmin_w |r_l - C_l[w]|^2;   r_{l+1} = r_l - C_l[c_l];   z is about sum_l C_l[c_l]

With `normalize`, r_l is first divided by its norm n_l, and z is about n_1 (C_1[c_1] + n_2 (C_2[c_2] + ...)).
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp

BLOCK = 16_384  # vectors whose distances to all codes exist at one time
TINY = 1e-12


# --- k-means -----------------------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("codes", "candidates", "sample"))
def seed_codes(vectors: jax.Array, codes: int, key: jax.Array, *, candidates: int = 32, sample: int = 4096) -> jax.Array:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): each next code is the best of some candidates drawn in proportion to D(x)^2.

    The codes are chosen among `sample` vectors (at least four for each code), whose mutual distances are one matrix product; so a candidate costs a row of
    that matrix and many can be tried, which matters more than to choose among all vectors.

    Args:
      vectors: [N, E].
      codes: W.
      key: decides everything.
      candidates: tried for each code.
      sample: how many vectors, all if there are fewer.

    Returns:
      [W, E] vectors, distinct if W distinct ones were sampled.
    """
    sample = max(sample, 4 * codes)
    if sample < len(vectors):
        key, draw = jax.random.split(key)
        vectors = vectors[jax.random.choice(draw, len(vectors), (sample,), replace=False)]
    centred = vectors - vectors.mean(axis=0, keepdims=True)  # a mean far from 0 would swallow the digits that tell vectors apart
    squares = jnp.sum(centred**2, axis=-1)
    distance = jnp.maximum(squares[:, None] + squares[None] - 2 * centred @ centred.T, 0)  # [S, S]
    # Rounding leaves a little distance between equal vectors, and a vector must not be chosen twice for it.
    distance = jnp.where(distance > 1e-6 * (squares[:, None] + squares[None]), distance, 0)

    def choose(nearest: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        mass = jnp.cumsum(nearest)
        drawn = jnp.searchsorted(mass, jax.random.uniform(key, (candidates,)) * mass[-1], side="right")
        drawn = jnp.where(drawn < len(vectors), drawn, jnp.argmax(nearest))  # [C]
        left = jnp.minimum(distance[drawn], nearest[None])  # [C, S]
        best = jnp.argmin(left.sum(axis=1))
        return left[best], drawn[best]

    key, draw = jax.random.split(key)
    first = jax.random.randint(draw, (), 0, len(vectors))
    _, others = jax.lax.scan(choose, distance[first], jax.random.split(key, codes - 1))
    return vectors[jnp.concatenate([first[None], others])]


@functools.partial(jax.jit, static_argnames="block")
def nearest(vectors: jax.Array, codebook: jax.Array, *, block: int = BLOCK) -> jax.Array:
    """[N] int32 code of the least squared distance: vectors [N, E], codebook [W, E]. Only [block, W] distances exist at a time."""
    centre = codebook.mean(axis=0, keepdims=True)  # a mean far from 0 would swallow the digits that tell codes apart
    centred = codebook - centre
    squares = jnp.sum(centred**2, axis=-1)

    def one(vector: jax.Array) -> jax.Array:  # |x|^2 is the same for all codes
        return jnp.argmin(squares - 2 * (vector - centre[0]) @ centred.T)

    batched = jax.vmap(one) if len(vectors) <= block else functools.partial(jax.lax.map, one, batch_size=block)
    return batched(vectors).astype(jnp.int32)


def sums(vectors: jax.Array, codes: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """([W] how many vectors have each code, [W, E] their sum): vectors [N, E], codes [N]."""
    return jax.ops.segment_sum(jnp.ones(len(codes), vectors.dtype), codes, width), jax.ops.segment_sum(vectors, codes, width)


@functools.partial(jax.jit, static_argnames=("iterations", "block"))
def lloyd(vectors: jax.Array, codebook: jax.Array, iterations: int, *, block: int = BLOCK) -> jax.Array:
    """Lloyd's iterations: each code becomes the mean of its vectors, and a code that has none the vector that is farthest from its own.

    Args:
      vectors: [N, E].
      codebook: [W, E] to start from.
      iterations: how many.
      block: see `nearest`.

    Returns:
      [W, E].
    """
    width = len(codebook)

    def revive(codebook: jax.Array, codes: jax.Array, empty: jax.Array) -> jax.Array:
        far = jax.lax.top_k(jnp.sum((vectors - codebook[codes]) ** 2, axis=-1), min(width, len(vectors)))[1]
        place = jnp.minimum(jnp.cumsum(empty) - 1, len(far) - 1)  # the first empty code takes the farthest vector, the second the next
        return jnp.where(empty[:, None], vectors[far[place]], codebook)

    def iterate(_: int, codebook: jax.Array) -> jax.Array:
        codes = nearest(vectors, codebook, block=block)
        count, total = sums(vectors, codes, width)
        means = jnp.where(count[:, None] > 0, total / jnp.maximum(count, 1)[:, None], codebook)
        return jax.lax.cond(jnp.any(count == 0), lambda: revive(means, codes, count == 0), lambda: means)

    return jax.lax.fori_loop(0, iterations, iterate, codebook)


def running_mean(codebook: jax.Array, counts: jax.Array, vectors: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of mini-batch k-means (Sculley 2010): n_w += m_w; C_w += (m_w / n_w) (mean of the batch's vectors of code w - C_w).

    Args:
      codebook: [W, E].
      counts: [W] vectors that each code has seen, n.
      vectors: [B, E] the batch.
      codes: [B] their codes.

    Returns:
      The next codebook and counts.
    """
    count, total = sums(vectors, codes, len(codebook))
    counts = counts + count
    return codebook + (total - count[:, None] * codebook) / jnp.maximum(counts, 1)[:, None], counts


# --- Residual codes ----------------------------------------------------------------------------------------------------------------------


def unit(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(vectors [..., E] of norm 1, norms [..., 1]); a zero vector stays zero."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    norm = jnp.where(square > TINY, jnp.sqrt(jnp.where(square > TINY, square, 1)), 0)
    return vectors / jnp.where(norm > 0, norm, 1), norm


def residual_codes(vectors: jax.Array, codebooks: jax.Array, *, normalize: bool = False, block: int = BLOCK) -> tuple[jax.Array, jax.Array]:
    """(codes [N, L] int32, norms [N, L] of what each level coded, 1 without `normalize`): vectors [N, E], codebooks [L, W, E]."""
    codes, norms = [], []
    for codebook in codebooks:
        vectors, norm = unit(vectors) if normalize else (vectors, jnp.ones((len(vectors), 1)))
        codes.append(nearest(vectors, codebook, block=block))
        norms.append(norm[:, 0])
        vectors = vectors - codebook[codes[-1]]
    return jnp.stack(codes, axis=1), jnp.stack(norms, axis=1)


def reconstruct(codes: jax.Array, codebooks: jax.Array, norms: jax.Array | None = None) -> jax.Array:
    """[N, E]: n_1 (C_1[c_1] + n_2 (C_2[c_2] + ...)), codes [N, L], codebooks [L, W, E], norms [N, L] or None for ones."""
    vectors = jnp.zeros((len(codes), codebooks.shape[-1]), codebooks.dtype)
    for level in reversed(range(len(codebooks))):
        vectors = codebooks[level][codes[:, level]] + vectors
        vectors = vectors if norms is None else norms[:, level, None] * vectors
    return vectors


def residual_kmeans(
    vectors: jax.Array, levels: int, codes: int, key: jax.Array, *, iterations: int = 20, normalize: bool = False, block: int = BLOCK
) -> jax.Array:
    """[L, W, E] codebooks: k-means of what the levels before left, `vectors` [N, E] at first."""
    codebooks = []
    for level in range(levels):
        vectors = unit(vectors)[0] if normalize else vectors
        codebooks.append(lloyd(vectors, seed_codes(vectors, codes, jax.random.fold_in(key, level)), iterations, block=block))
        vectors = vectors - codebooks[-1][nearest(vectors, codebooks[-1], block=block)]
    return jnp.stack(codebooks)


# --- Losses and gradients through a choice -----------------------------------------------------------------------------------------------


def vq_losses(vectors: jax.Array, chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([...] codebook loss |sg(r) - C|^2, [...] commitment |r - sg(C)|^2) of vectors r and the codes C chosen for them, [..., E] each.

    van den Oord et al. 2017, arXiv 1711.00937. Where nothing encodes the vectors, the commitment has no gradient.
    """
    fixed = jax.lax.stop_gradient
    return jnp.sum((fixed(vectors) - chosen) ** 2, axis=-1), jnp.sum((vectors - fixed(chosen)) ** 2, axis=-1)


def straight_through(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
    """`chosen` [..., E], with the gradient going to `vectors` unchanged and to nothing else (Bengio et al. 2013, arXiv 1308.3432)."""
    return vectors + jax.lax.stop_gradient(chosen - vectors)


def rotate(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
    """`chosen` q [..., E] as a rotation and scaling of `vectors` e, which the gradient takes back (Fifty et al. 2024, arXiv 2410.06424).

    q = (|q| / |e|) R e with R = I - 2 r r^T + 2 q' e'^T, e' = e / |e|, q' = q / |q|, r = (e' + q') / |e' + q'|; R and the ratio are held fixed. So a
    gradient keeps its angle: to q ahead, to e behind.
    """
    (start, length), (end, reach) = unit(jax.lax.stop_gradient(vectors)), unit(jax.lax.stop_gradient(chosen))
    middle = unit(start + end)[0]

    def along(direction: jax.Array) -> jax.Array:
        return jnp.sum(vectors * direction, axis=-1, keepdims=True)

    rotated = vectors - 2 * along(middle) * middle + 2 * along(start) * end
    turned = reach / jnp.where(length > 0, length, 1) * rotated
    return turned + jax.lax.stop_gradient(chosen - turned)  # to the last bit, and where e = 0 or e' = -q'


def gumbel(vectors: jax.Array, codebook: jax.Array, key: jax.Array, *, temperature: float = 0.7) -> tuple[jax.Array, jax.Array]:
    """(codes [B], their vectors [B, E]) drawn with log-odds -|x - C_w|^2, with the gradient of the softmax (Jang et al. 2017, arXiv 1611.01144).

    vectors [B, E], codebook [W, E].
    """
    distance = jnp.sum(vectors**2, axis=-1)[:, None] + jnp.sum(codebook**2, axis=-1)[None] - 2 * vectors @ codebook.T  # [B, W]
    soft = jax.nn.softmax((jax.random.gumbel(key, distance.shape) - distance) / temperature)
    codes = jnp.argmax(soft, axis=-1)
    weight = straight_through(soft, jax.nn.one_hot(codes, len(codebook), dtype=soft.dtype))
    return codes.astype(jnp.int32), weight @ codebook


def dense_straight_through(
    vectors: jax.Array, codebook: jax.Array, codes: jax.Array, *, similarity: Literal["softmax", "cosine"] = "softmax", temperature: float = 0.1
) -> jax.Array:
    """C[c] + p C - sg(p C): the codes' own vectors, with a gradient to every code in proportion to its similarity p (arXiv 2604.03949).

    The gradient of code w is p_w times what comes from above (and all of it for the chosen code); `vectors` have theirs through p.

    Args:
      vectors: [B, E].
      codebook: [W, E].
      codes: [B] chosen.
      similarity: p is the softmax of cosine / temperature, or the cosine itself over W (its sum would grow with W).
      temperature: of the softmax.

    Returns:
      [B, E].
    """
    cosine = unit(vectors)[0] @ unit(jax.lax.stop_gradient(codebook))[0].T  # [B, W]
    share = jax.nn.softmax(cosine / temperature) if similarity == "softmax" else cosine / len(codebook)
    mixed = share @ codebook
    return codebook[codes] + mixed - jax.lax.stop_gradient(mixed)
