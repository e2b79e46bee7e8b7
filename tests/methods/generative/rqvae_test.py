"""RQ-VAE: fused embeddings, the four gradients, starts and revivals, and what keeps it from collapsing."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.methods.generative.rqvae import RQVAE, tiny
from jaxrec.param import create, flatten
from jaxrec.train.step import initial_state, update

KEY = jax.random.key(0)


def batch_of(vectors):
    return {"vector": np.asarray(vectors, np.float32), "mask": np.ones(len(vectors), np.float32)}


def fresh(method):
    return jax.jit(lambda key: create(method.spec(), key))(KEY)


def clusters(rows=256, width=8, centres=10, seed=0):
    random = np.random.default_rng(seed)
    return batch_of(4 * random.normal(size=(centres, width))[random.integers(centres, size=rows)] + 0.05 * random.normal(size=(rows, width)))


def test_one_embedding_is_fused_like_no_fusion_at_all():
    batch = clusters()
    single, fused = RQVAE(width=8, codes=8, dim=4, hidden=(16,)), RQVAE(width=8, parts=(8,), codes=8, dim=4, hidden=(16,))
    params = fresh(single)
    assert jax.tree.structure(params) == jax.tree.structure(fresh(fused))
    values = [jax.jit(method.loss)(params, batch, KEY).terms for method in (single, fused)]
    jax.tree.map(np.testing.assert_array_equal, *values)


def test_embeddings_add_up_and_a_missing_one_adds_nothing():
    method, batch = tiny()
    params = method.start(fresh(method), [batch], KEY)
    vectors = jnp.asarray(batch["vector"])
    encode = jax.jit(lambda vectors: method.encode(params, method.inputs(params, vectors)))
    np.testing.assert_allclose(encode(vectors), encode(vectors.at[:, 5:].set(0)) + encode(vectors.at[:, :5].set(0)), rtol=1e-5, atol=1e-6)
    alone = [dict(batch, vector=np.asarray(vectors.at[:, 5:].set(0))), KEY]
    errors = jax.jit(jax.grad(lambda p: method.loss(p, *alone).terms["reconstruction"][0]))(params)
    decoders = [any(np.any(leaf) for leaf in jax.tree.leaves(part)) for part in errors["decoder"]]
    assert decoders == [True, False]  # nobody asks what is missing


def test_missing_embeddings_do_not_move_what_the_others_are_standardised_by():
    method, _ = tiny()
    vectors = np.random.default_rng(0).normal(5, 1, (400, 8)).astype(np.float32)
    vectors[::2, 5:] = 0
    start = method.start(fresh(method), [batch_of(vectors)], KEY)["input"]
    np.testing.assert_allclose(start["mean"], np.r_[vectors[:, :5].mean(axis=0), vectors[1::2, 5:].mean(axis=0)], rtol=1e-4)
    np.testing.assert_allclose(start["deviation"], np.r_[vectors[:, :5].std(axis=0), vectors[1::2, 5:].std(axis=0)], rtol=1e-3)
    vectors[:, 5:] = 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(method.start(fresh(method), [batch_of(vectors)], KEY)))


def test_training_hides_all_embeddings_but_one():
    method = dataclasses.replace(tiny()[0], missing=1.0)
    inputs = [jnp.ones((200, 5)), jnp.ones((200, 3))]
    kept = np.stack([np.asarray(x[:, 0]) for x in method._hide(inputs, KEY)])
    assert (kept.sum(axis=0) == 1).all() and 60 < kept[0].sum() < 140
    assert dataclasses.replace(method, missing=0.0)._hide(inputs, KEY) is inputs


@pytest.mark.parametrize("estimator", ["ste", "rotation", "gumbel", "dense"])
def test_what_the_decoder_sees_and_where_its_gradient_goes(estimator):
    method = RQVAE(width=8, levels=2, codes=8, dim=4, hidden=(16,), estimator=estimator)
    book = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 4)), jnp.float32)
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    quantized, codes, residuals, chosen = method.quantize(book, hidden, KEY)
    np.testing.assert_allclose(quantized, sum(book[level][codes[:, level]] for level in range(2)), atol=1e-5)
    np.testing.assert_allclose(residuals[:, 1], hidden - chosen[:, 0], atol=1e-6)
    to_book, to_hidden = jax.grad(lambda *args: (method.quantize(*args, KEY)[0] ** 2).sum(), argnums=(0, 1))(book, hidden)
    moved = np.any(np.asarray(to_book) != 0, axis=2)  # [L, W]
    if estimator in ("gumbel", "dense"):
        assert moved.all()  # also codes that nothing chose
    else:
        assert not moved.any()  # the codebook loss alone moves them
    if estimator == "ste":
        np.testing.assert_allclose(to_hidden, 2 * quantized, rtol=1e-5)
    assert np.isfinite(to_hidden).all() and np.any(to_hidden)


def test_the_loss_is_the_papers():
    method = RQVAE(width=8, levels=2, codes=4, dim=4, hidden=())
    batch = clusters(rows=6)
    params = method.start(fresh(method), [batch], KEY)
    x = batch["vector"]
    x = (x - x.mean(0)) / x.std(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    residual = x @ np.asarray(params["encoder"][0][0].kernel)
    total, squares = 0, 0
    for level in range(2):
        book = np.asarray(params["codebook"])[level]
        code = ((residual[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        residual, total = residual - book[code], total + book[code]
        squares += (residual**2).sum()
    terms = jax.jit(method.loss)(params, batch, KEY).terms
    np.testing.assert_allclose(terms["reconstruction"][0], ((x - total @ np.asarray(params["decoder"][0][0].kernel)) ** 2).sum(), rtol=1e-4)
    np.testing.assert_allclose([terms["codebook"][0], terms["commitment"][0]], squares, rtol=1e-3, atol=1e-6)
    assert terms["reconstruction"][1] == 6 and method.coefficients == {"commitment": 0.25}


def test_codebooks_start_from_the_data_and_dead_codes_from_residuals():
    method, batch = RQVAE(width=8, levels=2, codes=8, dim=4, hidden=(16,)), clusters()
    params = method.start(fresh(method), [batch], KEY)
    np.testing.assert_allclose(params["input"]["mean"], batch["vector"].mean(0), rtol=1e-4)
    np.testing.assert_allclose(params["input"]["deviation"], batch["vector"].std(0), rtol=1e-4)
    codes = np.asarray(jax.jit(method.predict)(params, batch))
    assert all(len(np.unique(codes[:, level])) == 8 for level in range(2))

    lost = {**params, "codebook": params["codebook"].at[1, 3].set(50.0), "share": params["share"].at[1, 3].set(0.05 / 8)}
    stats = jax.jit(method.loss)(lost, batch, KEY).stats
    settled = jax.jit(method.settle)(lost, stats, batch, KEY)
    residuals = jax.jit(lambda: method.quantize(lost["codebook"], method.encode(lost, method.inputs(lost, batch["vector"])), KEY)[2])()
    assert np.abs(np.asarray(residuals[:, 1] - settled["codebook"][1, 3][None])).max(1).min() < 1e-6
    used = np.asarray(stats["used"])
    others = np.arange(16).reshape(2, 8) != 11
    np.testing.assert_array_equal(np.asarray(settled["codebook"])[others], np.asarray(lost["codebook"])[others])
    np.testing.assert_allclose(np.asarray(settled["share"])[others], (0.99 * lost["share"] + 0.01 * used / 256)[others], rtol=1e-5)
    assert settled["share"][1, 3] == 1 / 8
    nothing = jax.jit(method.settle)(params, {"used": jnp.zeros((2, 8))}, dict(batch, mask=np.zeros(256, np.float32)), KEY)
    jax.tree.map(np.testing.assert_array_equal, nothing, params)  # a batch of weight zero


def perplexity(codes, width=64):
    share = np.bincount(np.asarray(codes), minlength=width) / len(codes)
    return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


def test_the_dense_estimator_undoes_a_collapse_of_the_codebook():
    tx = optax.adam(2e-2)

    def learner(estimator):  # of a codebook alone: the vectors stay where they are
        method = RQVAE(width=4, levels=1, codes=64, dim=4, estimator=estimator)

        def objective(book, hidden):
            quantized, _, residuals, chosen = method.quantize(book, hidden, KEY)
            return ((hidden - quantized) ** 2).sum(-1).mean() + ((residuals - chosen) ** 2).sum(-1).mean()

        @jax.jit
        def learned(book, hidden):
            def step(carry, _):
                changes, state = tx.update(jax.grad(objective)(carry[0], hidden), carry[1])
                return (optax.apply_updates(carry[0], changes), state), None

            return method.quantize(jax.lax.scan(step, (book, tx.init(book)), None, length=400)[0][0], hidden, KEY)[1][:, 0]

        return learned

    plain, dense = learner("ste"), learner("dense")
    for seed in range(3):
        hidden = jnp.asarray(clusters(width=4, seed=seed)["vector"])  # ten clusters
        crowded = 0.3 * jax.random.normal(jax.random.key(seed), (1, 64, 4))  # a few codes are the nearest ones to everything
        assert perplexity(plain(crowded, hidden)) < 7 < 9 < perplexity(dense(crowded, hidden))


def test_revival_undoes_a_collapse_of_the_model():
    batch, tx = clusters(), optax.adam(1e-2)

    def trained(**options):
        method = RQVAE(width=8, levels=1, codes=64, dim=4, hidden=(16,), **options)
        state = jax.jit(lambda: initial_state(method, tx, KEY))()
        state = state.replace(params={**state.params, "codebook": 4 + 0.3 * jax.random.normal(KEY, (1, 64, 4))})
        run = jax.jit(lambda state: jax.lax.scan(lambda s, _: update(method, tx, s, batch), state, None, length=150)[0])
        return perplexity(jax.jit(method.predict)(run(state).params, batch)[:, 0])

    assert trained(revive=0.0) < 0.5 * trained(revive=0.2, decay=0.9)


def test_decoding_undoes_the_standardisation():
    method = RQVAE(width=8, parts=(5, 3), levels=2, codes=8, dim=6, hidden=(32,))
    batch, tx = clusters(), optax.adam(1e-2)
    params = method.start(fresh(method), [batch], KEY)
    state = initial_state(method, tx, KEY).replace(params=params)
    params = jax.jit(lambda state: jax.lax.scan(lambda s, _: update(method, tx, s, batch), state, None, length=200)[0])(state).params
    x = batch["vector"]
    back = np.asarray(jax.jit(lambda: method.decode(params, method.predict(params, batch)))())
    assert ((x - back) ** 2).sum() < 0.3 * ((x - x.mean(0)) ** 2).sum()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="estimator='straight' is not one of ste"):
        RQVAE(estimator="straight")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels=0 and codes=256"):
        RQVAE(levels=0)
    with pytest.raises(ValueError, match=r"parts=\(3, 4\) add up to 7, but the vectors have width 8"):
        RQVAE(width=8, parts=(3, 4))


def test_revival_needs_no_state_where_it_is_off():
    assert not [name for name in flatten(RQVAE(width=8, revive=0).spec()) if "share" in name]
