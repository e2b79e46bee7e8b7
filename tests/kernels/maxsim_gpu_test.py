"""The kernel for Hopper GPUs: simulated where there is none (copies, barriers and warpgroups are; swizzles and speed are not)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels import dispatch, shapes
from kernels.maxsim import IMPLEMENTATIONS, blocked, gpu, maxsim, maxsim_ragged
from tests.kernels.maxsim_documents import assert_near, draw, packed, padded

F32, F16, BF16 = jnp.float32, jnp.float16, jnp.bfloat16
CASES = [  # an odd shape in each way that the kernel goes
    (shapes.ODD_MAXSIM[0], BF16),
    (shapes.ODD_MAXSIM[1], F16),
    (shapes.ODD_MAXSIM[2], BF16),  # two computing warpgroups, two blocks of documents, narrow swizzles
    (shapes.MaxSim(5, 33, 2, 150, 64), BF16),  # two tiles of query tokens, several tiles of a document
    (shapes.MaxSim(1, 3, 3, 300, 128), BF16),  # large tiles
]
Simulation = getattr(plgpu, "InterpretGPUParams", None)
needs_a_machine = pytest.mark.skipif(jax.default_backend() != "gpu" and Simulation is None, reason="simulating a Mosaic GPU kernel needs jax >= 0.12")


def finite(scores):
    return jnp.where(jnp.isfinite(scores), scores, 0)


@needs_a_machine
@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_scores_and_gradients_are_the_definitions(shape, dtype, monkeypatch):
    monkeypatch.setattr(gpu, "BLOCKS", 1)  # as with many documents: several of a block
    queries, documents, query_mask, document_mask = draw(shape, dtype)
    tokens, offsets = packed(documents, document_mask)

    def everything(backend):
        dense = functools.partial(maxsim, query_mask=query_mask, document_mask=document_mask, backend=backend)
        ragged = functools.partial(maxsim_ragged, offsets=offsets, query_mask=query_mask, backend=backend)

        def of(score, others):
            def weighted(queries, others):
                scores = score(queries, others)
                return (finite(scores) * jnp.arange(1.0, 1 + shape.documents)[None]).sum(), scores

            return score(queries, others), jax.value_and_grad(weighted, (0, 1), has_aux=True)(queries, others)

        return jax.jit(lambda: (of(dense, documents), of(ragged, tokens)))()

    for (scores, ((_, same), gradients)), (expected, (_, wanted)) in zip(everything("gpu"), everything("reference"), strict=True):
        assert scores.dtype == F32
        assert_near(scores, expected)
        np.testing.assert_array_equal(scores, same)  # that the tokens are asked for changes nothing
        for gradient, want in zip(gradients, wanted, strict=True):
            assert gradient.dtype == dtype
            assert_near(gradient, want, 1e-2)


@needs_a_machine
def test_of_equal_tokens_the_first_is_best_and_another_tile_changes_nothing():
    queries, documents = jnp.ones((1, 2, 32), BF16), jnp.ones((2, 200, 32), BF16)
    mask = jnp.ones((2, 200), bool).at[1, :70].set(False)
    every = jnp.ones((1, 2), bool)
    _, places = jax.jit(gpu.dense_places)(queries, documents, every, mask)
    np.testing.assert_array_equal(places[0], [[0, 0], [270, 270]])
    ragged_places = jax.jit(gpu.ragged_places, static_argnums=4)
    _, places = ragged_places(queries, documents[0], jnp.repeat(jnp.arange(2), jnp.array([5, 195])), every, 2)
    np.testing.assert_array_equal(places[0], [[0, 0], [5, 5]])
    scores, places = ragged_places(queries, documents[0], jnp.zeros(200, jnp.int32), every, 2)
    np.testing.assert_array_equal(scores, [[64, -jnp.inf]])
    assert (places < 200).all()  # of the document without tokens, too


@needs_a_machine
def test_padding_of_nan_and_documents_and_queries_without_tokens():
    queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1], BF16)
    documents = -jnp.abs(documents) * jnp.sign(queries[:1, :1])  # no similarity to the first token is positive, so zeros would win
    score = jax.jit(functools.partial(maxsim, backend="gpu"))
    plain = score(queries, documents, query_mask, document_mask)
    assert (score(queries, documents, jnp.zeros_like(query_mask).at[:, 0].set(True), document_mask)[0, :-1] < 0).all()
    np.testing.assert_allclose(plain, score(*padded(queries, documents, query_mask, document_mask)), rtol=1e-6)
    unasked = score(queries, documents, jnp.zeros_like(query_mask), document_mask)
    np.testing.assert_array_equal(unasked, np.where(np.asarray(document_mask).any(axis=1), 0, -np.inf)[None] * np.ones((3, 1)))
    assert (score(queries, documents, query_mask, jnp.zeros_like(document_mask)) == -np.inf).all()


@needs_a_machine
def test_more_queries_than_maxima_fit_take_turns(monkeypatch):
    queries, documents, query_mask, document_mask = draw(shapes.ODD_MAXSIM[1], BF16)
    monkeypatch.setattr(blocked, "BEST_BYTES", 300)  # two queries of three
    scores = jax.jit(gpu.dense)(queries, documents, query_mask, document_mask)
    assert_near(scores[:, :-1], maxsim(queries, documents, query_mask, document_mask, backend="reference")[:, :-1])


@pytest.mark.skipif(Simulation is None, reason="simulating a Mosaic GPU kernel needs jax >= 0.12")
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="only a simulation finds races")
def test_no_races(monkeypatch):
    assert Simulation is not None
    simulation = Simulation(detect_races=True, on_race="raise")
    monkeypatch.setattr(dispatch, "interpret_gpu", lambda: simulation)
    monkeypatch.setattr(gpu, "BLOCKS", 1)
    queries, documents, query_mask, document_mask = draw(shapes.MaxSim(3, 40, 4, 200, 32), BF16)  # more tiles than buffers
    tokens, offsets = packed(documents, document_mask)
    found = maxsim(queries, documents, query_mask, document_mask, backend="gpu"), maxsim_ragged(queries, tokens, offsets, query_mask, backend="gpu")
    expected = maxsim(queries, documents, query_mask, document_mask, backend="reference")
    for scores in found:
        assert_near(scores, expected)


@pytest.mark.parametrize(("dtype", "dim"), [(F32, 8), (BF16, 257)])
def test_what_the_kernel_would_round_or_not_hold_is_left_to_xla(dtype, dim):
    queries, documents, query_mask, document_mask = draw(shapes.MaxSim(2, 3, 4, 5, dim), dtype)
    tokens, offsets = packed(documents, document_mask)
    for score, arguments in ((maxsim, (queries, documents, query_mask, document_mask)), (maxsim_ragged, (queries, tokens, offsets, query_mask))):
        program = jax.jit(functools.partial(score, backend="gpu")).lower(*arguments)
        assert program.as_text() == jax.jit(functools.partial(score, backend="blocked")).lower(*arguments).as_text()


def test_a_gpu_gets_the_kernel_only_if_it_is_asked_for():
    with dispatch.compiling_for("gpu"):
        assert dispatch.choose("auto", IMPLEMENTATIONS) == "blocked"
        assert dispatch.choose("gpu", IMPLEMENTATIONS) == "gpu" and dispatch.interpret_gpu() is False


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="nothing is simulated on a GPU")
def test_a_jax_that_cannot_simulate_it_says_so(monkeypatch):
    monkeypatch.delattr(plgpu, "InterpretGPUParams", raising=False)
    with pytest.raises(NotImplementedError, match=r"backend='gpu' on a \w+ is simulated by jax >= 0.12, and this is .*; use backend='auto'"):
        maxsim(jnp.ones((1, 1, 32), BF16), jnp.ones((1, 1, 32), BF16), backend="gpu")
