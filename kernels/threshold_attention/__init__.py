"""Threshold attention: a query attends to the keys whose score passes its gate, and to nothing where none does (arXiv 2601.12145).

    o_i = sum over visible j of max(<q_i, k_j> - gate_i, 0) ** power * v_j

Nothing is normalised here: the gates of `gates` are meant for queries and keys of unit length. Hidden keys have weight zero whatever the gate, so a
negative one shows nothing of the future. Scores and weights are float32, also of bfloat16 inputs.

Tiles of queries and keys that are hidden from each other cost nothing, tiles in which no score passes its gate cost the scores only, and the gradients,
which recompute the scores, keep nothing of the size of the weights.

Over several devices each computes its own rows of the batch (`kernels.dispatch.spread_over`).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kernels import dispatch
from kernels.threshold_attention import blocked, reference, tpu

IMPLEMENTATIONS = {"reference": reference, "blocked": blocked, "tpu": tpu}


def threshold_attention(
    q: Array,
    k: Array,
    v: Array,
    gate: Array,
    query_segment: Array | None = None,
    key_segment: Array | None = None,
    *,
    power: int = 2,
    causal: bool = True,
    backend: dispatch.Backend = "auto",
) -> Array:
    """o [B, T, H, V] in v's type. Differentiable in q, k, v and gate.

    Args:
      q: [B, T, H, K] float32, bfloat16 or float16.
      k: [B, S, G, K], of the same type; G divides H, and head h reads key head h // (H / G).
      v: [B, S, G, V].
      gate: [B, T, H] float32, what a score must exceed; finite.
      query_segment: [B, T] integers, with key_segment [B, S]: a query sees the keys of its own segment. None: one segment.
      power: at least 1.
      causal: key j is visible to query i where j <= i, of T = S.
      backend: "reference" | "blocked" | "tpu", or "auto" for the platform's own.

    Raises:
      ValueError, TypeError: shapes, types or options that are not as above.
    """
    _check(q, k, v, gate)
    _check_segments(query_segment, key_segment, q.shape[:2], k.shape[:2])
    if isinstance(power, bool) or not isinstance(power, int) or power < 1:
        raise ValueError(f"power={power!r} is no exponent of a weight; use an int of at least 1")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal attention is of as many queries as keys, got {q.shape[1]} and {k.shape[1]}; pass causal=False if queries see all keys")
    name = dispatch.choose(backend, IMPLEMENTATIONS)
    if name == "reference":  # jax's derivative, too
        return reference.attend(q, k, v, gate, query_segment, key_segment, power=power, causal=causal)
    return dispatch.by_rows(functools.partial(_attend, name, power, causal), (q, k, v, gate, query_segment, key_segment), split=(True,) * 6)


def gates(counts: Array, beta: ArrayLike, kappa: ArrayLike, width: int) -> Array:
    """The gate beta * sqrt(2 max(log(counts / kappa), 0) / width), float32, which about kappa of the keys pass that have nothing to do with the query.

    Args:
      counts: visible keys of each query, such as `visible_counts(...)[..., None]`, [B, T, 1]; no gradient.
      beta: a number, or one for each head, [H].
      kappa: likewise, more than 0.
      width: K. The gate reaches 1, which no score of unit vectors exceeds, at counts = kappa * exp(width / (2 beta^2)).
    """
    beta, kappa = (jnp.expand_dims(jnp.asarray(number, jnp.float32), tuple(range(counts.ndim - jnp.ndim(number)))) for number in (beta, kappa))
    ratio = counts.astype(jnp.float32) / kappa
    above = ratio > 1
    level = jnp.sqrt(2 * jnp.log(jnp.where(above, ratio, 2)) / width)  # any number but 1, where the root has no derivative
    return jnp.where(above, beta * level, 0)


def visible_counts(query_segment: Array, key_segment: Array, causal: bool) -> Array:
    """[B, T] int32 how many keys each query sees: of key_segment [B, S] those equal to its own of query_segment [B, T], up to its place if causal."""
    _check_segments(query_segment, key_segment, query_segment.shape[:2], (len(query_segment), key_segment.shape[-1]))
    (batch, queries), keys = query_segment.shape, key_segment.shape[1]
    if causal and queries != keys:
        raise ValueError(f"causal attention is of as many queries as keys, got {queries} and {keys}; pass causal=False if queries see all keys")
    both = jnp.concatenate([key_segment, query_segment], axis=1)
    if causal:  # key 0, query 0, key 1, query 1 ...
        both = both.reshape(batch, 2, -1).swapaxes(1, 2).reshape(batch, -1)
    order = jnp.argsort(both, axis=1, stable=True)  # a segment's tokens lie behind each other, in their order
    sorted_both = jnp.take_along_axis(both, order, axis=1)
    is_key = (order % 2 == 0 if causal else order < keys).astype(jnp.int32)
    so_far = jnp.cumsum(is_key, axis=1)
    starts = jnp.pad(sorted_both[:, 1:] != sorted_both[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    counts = so_far - jax.lax.cummax(jnp.where(starts, so_far - is_key, 0), axis=1)  # less those of earlier segments
    counts = jnp.put_along_axis(jnp.zeros_like(counts), order, counts, axis=1, inplace=False)
    return counts[:, 1::2] if causal else counts[:, keys:]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(backend: str, power: int, causal: bool, *inputs: Array | None) -> Array:
    return IMPLEMENTATIONS[backend].forward(*inputs, power=power, causal=causal)[0]


def _attend_forward(backend: str, power: int, causal: bool, *inputs: Array | None) -> tuple[Array, Any]:
    o, live = IMPLEMENTATIONS[backend].forward(*inputs, power=power, causal=causal)
    return o, (live, inputs)


def _attend_backward(backend: str, power: int, causal: bool, kept: Any, cotangent: Array) -> tuple[Array | None, ...]:
    live, inputs = kept
    return *IMPLEMENTATIONS[backend].backward(cotangent, live, *inputs, power=power, causal=causal), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _check(q: Array, k: Array, v: Array, gate: Array) -> None:
    form = "expected q [B, T, H, K], k [B, S, G, K], v [B, S, G, V] and gate [B, T, H]"
    shapes = f"got {q.shape}, {k.shape}, {v.shape} and {gate.shape}"
    if not q.ndim == k.ndim == v.ndim == 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3] or gate.shape != q.shape[:3]:
        raise ValueError(f"{form}, {shapes}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} heads of queries cannot share {k.shape[2]} heads of keys evenly; the second must divide the first")
    if 0 in q.shape or 0 in v.shape:
        raise ValueError(f"no axis may be empty, {shapes}")
    if q.dtype != k.dtype or not jnp.issubdtype(q.dtype, jnp.floating) or not jnp.issubdtype(v.dtype, jnp.floating):
        raise TypeError(f"q is {q.dtype}, k {k.dtype} and v {v.dtype}; q and k must be of one floating type, and v of any")
    if gate.dtype != jnp.float32:
        raise TypeError(f"gate is {gate.dtype}; it must be float32, in which scores are compared with it")


def _check_segments(query_segment: Array | None, key_segment: Array | None, queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    if query_segment is None and key_segment is None:
        return
    if query_segment is None or key_segment is None:
        raise ValueError("only one of query_segment and key_segment is given; give both, or neither")
    if query_segment.shape != queries or key_segment.shape != keys:
        raise ValueError(f"query_segment {query_segment.shape} must be {queries} and key_segment {key_segment.shape} {keys}, one number for each token")
    if not (jnp.issubdtype(query_segment.dtype, jnp.integer) and jnp.issubdtype(key_segment.dtype, jnp.integer)):
        raise TypeError(f"segments are {query_segment.dtype} and {key_segment.dtype}; they must be integers")
