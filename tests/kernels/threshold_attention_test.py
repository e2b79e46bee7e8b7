from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from benchmarks.threshold_attention import consensus, survivors, tail
from kernels import dispatch, shapes
from kernels.threshold_attention import IMPLEMENTATIONS, blocked, gates, threshold_attention, tpu, visible_counts

F32, BF16, I32 = jnp.float32, jnp.bfloat16, jnp.int32


def draw(shape: shapes.Attention, dtype=F32) -> tuple[Any, Any, Any, Any]:
    """q [B, T, H, K] and k [B, S, G, K] of unit length, v [B, S, G, V], gate [B, T, H], of both signs."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(shape.batch, shape.queries, shape.heads, shape.width))
    k = rng.normal(size=(shape.batch, shape.keys, shape.groups, shape.width))
    v = rng.normal(size=(shape.batch, shape.keys, shape.groups, shape.value_width))
    q, k = (array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (q, k))
    gate = rng.uniform(-0.2, 0.4, size=q.shape[:3])
    return q.astype(dtype), k.astype(dtype), v.astype(dtype), gate.astype(F32)  # NumPy: what tests do to them compiles nothing


def packed(batch: int, length: int) -> Any:
    """[B, T] segments 1, 2, 3 of random lengths, then padding, 0."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, length + 1, (batch, 3)), axis=1)
    segment = 1 + (np.arange(length)[None, :, None] >= ends[:, None]).sum(axis=2)
    return np.where(segment > 3, 0, segment).astype(I32)


def oracle(q, k, v, gate, query_segment, key_segment, weight, *, power, causal):
    """o and the gradients of sum(weight * o) to q, k, v and gate, from the formula, in float64."""
    q, k, v, gate, weight = (np.asarray(array, np.float64) for array in (q, k, v, gate, weight))
    repeats = q.shape[2] // k.shape[2]
    keys, values = (array.repeat(repeats, axis=2) for array in (k, v))
    excess = np.einsum("bthk,bshk->bhts", q, keys) - gate.swapaxes(1, 2)[..., None]
    alive = excess > 0
    if causal:
        alive &= np.tri(*alive.shape[2:], dtype=bool)
    if query_segment is not None:
        alive &= (np.asarray(query_segment)[:, :, None] == np.asarray(key_segment)[:, None, :])[:, None]
    weights = np.where(alive, excess, 0) ** power
    d_scores = np.where(alive, power * np.where(alive, excess, 1) ** (power - 1), 0) * np.einsum("bthv,bshv->bhts", weight, values)
    d_keys, d_values = np.einsum("bhts,bthk->bshk", d_scores, q), np.einsum("bhts,bthv->bshv", weights, weight)
    shared = (array.reshape(*array.shape[:2], -1, repeats, array.shape[3]).sum(axis=3) for array in (d_keys, d_values))
    o, d_gate = np.einsum("bhts,bshv->bthv", weights, values), -d_scores.sum(axis=3).swapaxes(1, 2)
    return o, np.einsum("bhts,bshk->bthk", d_scores, keys), *shared, d_gate


def value_and_gradients(**options):
    """A program of (q, k, v, gate, query_segment, key_segment, weight): o, and the gradients of sum(weight * o) to the first four."""

    def total(q, k, v, gate, query_segment, key_segment, weight):
        o = threshold_attention(q, k, v, gate, query_segment, key_segment, **options)
        return (weight * o).sum(), o

    program = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))

    def run(*inputs):
        (_, o), gradients = program(*inputs)
        return jax.tree.map(np.asarray, (o, *gradients))

    return run


def changed(array, start: int, stop: int | None, value=None, *, times=1.0, plus=0.0):
    """A copy with other tokens from start to stop."""
    array = array.copy()
    array[:, start:stop] = array[:, start:stop] * times + plus if value is None else value
    return array


def assert_near(actual, expected, tolerance: float = 1e-5):
    """No entry is off by more than `tolerance` of the largest one, or of 1, the size of what is summed."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1))


def use_tiles(monkeypatch, size: int):
    """Tiles of the blocked implementation, and the smallest of the TPU's."""
    monkeypatch.setattr(blocked, "TILE", size)
    monkeypatch.setattr(blocked, "SCORES", size * size)
    monkeypatch.setattr(tpu, "TILES", (128, 128))
    jax.clear_caches()  # a trace does not know that a constant has changed


CASES = [  # shape, causal, power, segments, size of tiles
    (shapes.ODD_ATTENTION[0], True, 2, False, None),
    (shapes.ODD_ATTENTION[1], True, 1, True, None),
    (shapes.ODD_ATTENTION[2], True, 2, True, 12),
    (shapes.ODD_ATTENTION[2], False, 3, False, None),
    (shapes.ODD_ATTENTION[3], False, 2, True, 12),
]


@pytest.mark.parametrize("backend", IMPLEMENTATIONS)
class TestEveryBackend:
    @pytest.mark.parametrize(("shape", "causal", "power", "segments", "tiles"), CASES)
    def test_values_and_gradients_are_the_formulas(self, backend, shape, causal, power, segments, tiles, monkeypatch):
        if tiles:
            use_tiles(monkeypatch, tiles)
        inputs, key_segment = draw(shape), packed(shape.batch, shape.keys)
        query_segment = key_segment if shape.queries == shape.keys else key_segment[:, 40 : 40 + shape.queries]
        both = (query_segment, key_segment) if segments else (None, None)
        weight = np.random.default_rng(1).normal(size=(*inputs[0].shape[:3], shape.value_width)).astype(F32)
        expected = oracle(*inputs, *both, weight, power=power, causal=causal)
        assert shape.queries == 1 or min(np.abs(array).max() for array in expected) > 0.1
        for actual, wanted in zip(value_and_gradients(power=power, causal=causal, backend=backend)(*inputs, *both, weight), expected, strict=True):
            assert_near(actual, wanted)

    def test_the_future_and_other_segments_leave_no_trace_and_dead_rows_none_at_all(self, backend, monkeypatch):
        use_tiles(monkeypatch, 12)
        q, k, v, gate = draw(shapes.Attention(1, 50, 50, 2, 1, 16, 8))
        gate = changed(changed(gate, 10, 20, 2.0), 20, None, plus=-1)  # rows that nothing passes; rows that almost everything passes
        segment, weight = (np.arange(50) >= 35).astype(I32)[None], np.float32(1)
        run = value_and_gradients(backend=backend)
        o, d_q, _, _, d_gate = run(q, k, v, gate, segment, segment, weight)
        assert not np.any(o[:, 10:20]) and not np.any(d_q[:, 10:20]) and not np.any(d_gate[:, 10:20])
        assert np.all(np.abs(o[:, 20:]).max(axis=-1) > 0)
        future, *_ = run(q, changed(k, 30, None, times=-3), changed(v, 30, None, plus=7), gate, segment, segment, weight)
        np.testing.assert_array_equal(future[:, :30], o[:, :30])
        assert np.all(np.abs(future - o)[:, 30:].max(axis=-1) > 0)
        before, *_ = run(q, changed(k, 0, 35, times=-1), changed(v, 0, 35, plus=7), gate, segment, segment, weight)
        np.testing.assert_array_equal(before[:, 35:], o[:, 35:])

    def test_bfloat16(self, backend):
        inputs = draw(shapes.ODD_ATTENTION[1], BF16)
        weight = np.ones((*inputs[0].shape[:3], inputs[2].shape[-1]), F32)
        results = value_and_gradients(backend=backend)(*inputs, None, None, weight)
        assert [array.dtype for array in results] == [BF16, BF16, BF16, BF16, F32]
        for actual, wanted in zip(results, oracle(*inputs, None, None, weight, power=2, causal=True), strict=True):  # of the rounded inputs
            assert_near(actual, wanted, 1e-2)
            if backend != "tpu":  # the others round once, at the end
                np.testing.assert_allclose(np.asarray(actual, F32), wanted, rtol=2**-8, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", ["blocked", "tpu"])
def test_tiles_that_are_hidden_or_dead_are_not_multiplied(backend, monkeypatch):
    """What need not be read is NaN, and nothing else becomes NaN. Of three tiles, only the first two have anything to do with each other."""
    use_tiles(monkeypatch, 128)
    q, k, v, gate = draw(shapes.Attention(1, 384, 384, 1, 1, 16, 8))
    gate, weight, nan = np.abs(gate), np.ones_like(v), np.nan
    one, two = np.zeros((1, 384), I32), (np.arange(384) >= 256).astype(I32)[None]
    deaf = changed(gate, 256, None, 2.0)  # nothing passes
    hidden = q, changed(k, 256, None, nan), v
    dead = q, changed(k, 256, None, 0), changed(v, 256, None, nan)
    for causal, cases in {True: [(*hidden, deaf, one)], False: [(*hidden, gate, two), (*dead, deaf, one)]}.items():
        expected = oracle(*(array[:, :256] for array in (q, k, v, gate)), None, None, weight[:, :256], power=2, causal=causal)
        run = value_and_gradients(causal=causal, backend=backend)
        for *inputs, segment in cases:
            for actual, wanted in zip(run(*inputs, segment, segment, weight), expected, strict=True):
                assert_near(actual[:, :256], wanted)


@pytest.mark.parametrize(("causal", "size"), [(True, 9), (True, 128), (False, 32)])
def test_the_size_of_tiles_changes_nothing(causal, size, monkeypatch):
    inputs, segment = draw(shapes.Attention(2, 70, 70, 4, 2, 16, 8)), packed(2, 70)
    use_tiles(monkeypatch, size)
    expected = value_and_gradients(causal=causal, backend="reference")(*inputs, segment, segment, np.float32(1))
    results = value_and_gradients(causal=causal, backend="blocked")(*inputs, segment, segment, np.float32(1))
    for actual, wanted in zip(results, expected, strict=True):
        assert_near(actual, wanted, 1e-6)


def test_live_tiles_are_those_with_a_score_above_its_gate(monkeypatch):
    use_tiles(monkeypatch, 16)
    directions = jnp.eye(4)[jnp.arange(64) // 16][None, :, None]  # [1, 64, 1, 4]: every tile has one of its own
    gate = jnp.full((1, 64, 1), 0.5)
    o, live = blocked.forward(directions, directions, directions, gate, None, None, power=2, causal=False)
    np.testing.assert_array_equal(live.reshape(4, 4), np.eye(4, dtype=bool))
    np.testing.assert_array_equal(o, 16 * 0.25 * directions)


def test_finite_differences(monkeypatch):
    use_tiles(monkeypatch, 3)
    q, k, v, _ = draw(shapes.Attention(1, 5, 5, 2, 1, 4, 3))
    segment, beta = jnp.zeros((1, 5), I32), np.array([0.5, 0.6], F32)
    counts = visible_counts(segment, segment, True)[..., None]
    scores = np.einsum("bthk,bshk->bths", q, k.repeat(2, axis=2))
    assert np.abs(scores - np.asarray(gates(counts, beta, 1.0, 4))[..., None]).min() > 0.01  # away from the kink

    def attend(q, k, v, beta):
        return threshold_attention(q, k, v, gates(counts, beta, 1.0, 4), power=3, backend="blocked")

    check_grads(jax.jit(attend), (q, k, v, beta), order=1, modes=["rev"], atol=2e-3, rtol=2e-3, eps=3e-3)


def test_gates():
    counts = jnp.array([[0, 1, 2, 3, 100]])
    expected = 0.5 * np.sqrt(2 * np.log(np.maximum([0, 1, 2, 3, 100], 2) / 2) / 64)
    np.testing.assert_allclose(gates(counts, 0.5, 2.0, 64), [expected], rtol=1e-6)
    np.testing.assert_array_equal(gates(counts, 0.5, 2.0, 64)[0, :3], 0)
    heads = gates(counts[..., None], jnp.array([0.5, -1.0]), 2.0, 64)
    np.testing.assert_allclose(heads, np.stack([expected, -2 * expected], axis=-1)[None], rtol=1e-6)
    d_beta, d_kappa = jax.grad(lambda beta, kappa: gates(counts, beta, kappa, 64).sum(), (0, 1))(0.5, 2.0)
    assert d_beta == pytest.approx(2 * expected.sum(), rel=1e-5) and np.isfinite(d_kappa)


def test_visible_counts():
    rng = np.random.default_rng(0)
    extremes = np.array([np.iinfo(np.int32).min, -1, 0, 7, np.iinfo(np.int32).max])
    queries, keys, more = (jnp.asarray(extremes[rng.integers(0, 5, (3, length))], I32) for length in (20, 20, 33))
    equal = np.asarray(queries)[:, :, None] == np.asarray(keys)[:, None, :]
    np.testing.assert_array_equal(visible_counts(queries, keys, False), equal.sum(axis=2))
    np.testing.assert_array_equal(visible_counts(queries, keys, True), (equal & np.tri(20, dtype=bool)).sum(axis=2))
    np.testing.assert_array_equal(visible_counts(queries, more, False), (np.asarray(queries)[:, :, None] == np.asarray(more)[:, None, :]).sum(axis=2))
    same = packed(4, 50)
    np.testing.assert_array_equal(
        visible_counts(same, same, True), ((np.asarray(same)[:, :, None] == np.asarray(same)[:, None]) & np.tri(50, dtype=bool)).sum(2)
    )


def test_unrelated_keys_pass_as_often_as_the_sphere_says():
    assert 1024 * tail(gates(jnp.array(1024), 1.0, 1.0, 64), 64) == pytest.approx(0.0479, abs=1e-4)  # by hand, from the incomplete beta function
    passed = survivors(jax.random.key(0), queries=2048, keys=256, width=32, beta=0.75)
    expected = 256 * tail(gates(jnp.array(256), 0.75, 1.0, 32), 32)
    assert passed.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 2048))
    both = consensus(jax.random.key(1), queries=32_768, keys=16, width=64, beta=1.0)
    expected = 16 * tail(gates(jnp.array(16), 1.0, 1.0, 64), 64) ** 2
    assert both == pytest.approx(expected, abs=4 * np.sqrt(expected / 32_768))
    counts = [n * tail(gates(jnp.array(n), 1.0, 1.0, 64), 64) ** 2 for n in (16, 128, 1024, 4096)]
    assert all(later <= earlier * n / m for earlier, later, n, m in zip(counts, counts[1:], (16, 128, 1024), (128, 1024, 4096)))


def test_no_tile_is_as_large_as_the_scores():
    q = jax.ShapeDtypeStruct((2, 1024, 4, 32), F32)
    gate = jax.ShapeDtypeStruct((2, 1024, 4), F32)

    def temporaries(backend: Any) -> int:
        gradient = jax.grad(lambda *inputs: threshold_attention(*inputs, backend=backend).sum(), (0, 1, 2, 3))
        return jax.jit(gradient).lower(q, q, q, gate).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * 2 * 4 * 1024 * 1024
    assert temporaries("blocked") < scores / 2 < scores <= temporaries("reference")


def test_errors_say_what_is_wrong():
    q, k, v, gate = draw(shapes.Attention(2, 6, 8, 4, 2, 4, 3))
    segment = jnp.zeros((2, 8), I32)
    with pytest.raises(ValueError, match=r"backend='cuda' is not .* use 'auto' or one of"):
        threshold_attention(q, k, v, gate, causal=False, backend="cuda")
    with pytest.raises(ValueError, match="as many queries as keys, got 6 and 8; pass causal=False"):
        threshold_attention(q, k, v, gate)
    with pytest.raises(ValueError, match="as many queries as keys, got 6 and 8; pass causal=False"):
        visible_counts(segment[:, :6], segment, True)
    with pytest.raises(ValueError, match=r"expected q \[B, T, H, K\].* got \(2, 6, 4, 4\), \(2, 8, 2, 4\), \(2, 8, 1, 3\) and \(2, 6, 4\)"):
        threshold_attention(q, k, v[:, :, :1], gate, causal=False)
    with pytest.raises(ValueError, match="3 heads of queries cannot share 2 heads of keys evenly; the second must divide the first"):
        threshold_attention(q[:, :, :3], k, v, gate[:, :, :3], causal=False)
    with pytest.raises(ValueError, match="no axis may be empty"):
        threshold_attention(q[:0], k[:0], v[:0], gate[:0], causal=False)
    with pytest.raises(TypeError, match="q is bfloat16, k float32 and v float32; q and k must be of one floating type"):
        threshold_attention(q.astype(BF16), k, v, gate, causal=False)
    with pytest.raises(TypeError, match="gate is bfloat16; it must be float32"):
        threshold_attention(q, k, v, gate.astype(BF16), causal=False)
    for power in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"power={power} is no exponent of a weight; use an int of at least 1"):
            threshold_attention(q, k, v, gate, power=power, causal=False)
    with pytest.raises(ValueError, match="only one of query_segment and key_segment is given"):
        threshold_attention(q, k, v, gate, None, segment, causal=False)
    with pytest.raises(ValueError, match=r"query_segment \(2, 8\) must be \(2, 6\) and key_segment \(2, 8\) \(2, 8\)"):
        threshold_attention(q, k, v, gate, segment, segment, causal=False)
    with pytest.raises(TypeError, match="segments are float32 and int32; they must be integers"):
        threshold_attention(q, k, v, gate, jnp.zeros((2, 6)), segment, causal=False)


def test_the_tpu_kernels_have_no_races(monkeypatch, capfd):
    from jax.experimental.pallas import tpu as pltpu

    use_tiles(monkeypatch, 128)
    monkeypatch.setattr(dispatch, "interpret", lambda: pltpu.InterpretParams(detect_races=True))  # simulates memories and copies between them
    inputs, segment = draw(shapes.Attention(1, 130, 130, 2, 1, 8, 8)), packed(1, 130)
    results = value_and_gradients(backend="tpu")(*inputs, segment, segment, np.float32(1))
    for actual, wanted in zip(results, oracle(*inputs, segment, segment, np.ones_like(results[0]), power=2, causal=True), strict=True):
        assert_near(actual, wanted)
    assert "race" not in "".join(capfd.readouterr()).lower()
