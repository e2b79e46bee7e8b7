"""Hydra: what embeds sees both ways and learns, what generates is the base to the bit, and neither disturbs the other."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.methods.late_interaction.hydra import tiny
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.norm import unit
from jaxrec.ops.sampling import greedy, start, write
from jaxrec.param import count, create, flatten, split
from jaxrec.train.step import initial_state, update

METHOD, BATCH = tiny()
PARAMS = create(METHOD.spec(), jax.random.key(0))
NOISE = np.random.default_rng(0)
TRAINED = PARAMS.replace(adapters=jax.tree.map(lambda leaf: leaf + jnp.asarray(0.2 * NOISE.normal(size=leaf.shape), jnp.float32), PARAMS.adapters))
IDS = np.asarray(BATCH["document"])  # [4, 12], the second padded after its ninth token
ATTENDED = IDS != METHOD.pad

embed = jax.jit(lambda params, ids: METHOD.encode_item(params, {"document": ids}).values)
logits = jax.jit(lambda decoder, ids: decoder.logits(decoder(ids, (ids != METHOD.pad).astype(jnp.int32))))
states = jax.jit(lambda params, ids, embeds: params.states(ids, ids != METHOD.pad, embeds))


@jax.jit
def answer(decoder, ids):
    """What `decoder` writes after the prompts, and the logits of the same texts without a cache."""
    prompts = ids[:, :6]
    first, cache = decoder.prefill(prompts, jnp.ones_like(prompts), slots=12)
    written = write(decoder.step, greedy, start(first, cache, room=6), until=6)
    return written.ids, written.log_probs, decoder.logits(decoder(jnp.concatenate([prompts, written.ids], axis=1)))


def test_the_generator_is_the_base_to_the_bit_for_any_adapters():
    base = create(METHOD.encoder.spec(), jax.random.key(0))  # a language model that knows of no adapters
    base = jax.tree.map(lambda _, leaf: leaf, base, PARAMS.base)
    broken = PARAMS.replace(adapters=jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS.adapters))
    for params in (PARAMS, TRAINED, broken):
        assert all(a is b for a, b in zip(jax.tree.leaves(METHOD.generator(params)), jax.tree.leaves(PARAMS.base)))
        np.testing.assert_array_equal(logits(METHOD.generator(params), IDS), logits(base, IDS))


def test_untrained_adapters_change_no_embedding():
    plain = jax.jit(lambda params, ids: unit(params.head(params.base(ids, (ids != METHOD.pad).astype(jnp.int32), causal=False))))
    found = np.asarray(embed(PARAMS, IDS))
    np.testing.assert_allclose(found[ATTENDED], np.asarray(plain(PARAMS, IDS))[ATTENDED], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    assert np.abs(np.asarray(embed(TRAINED, IDS)) - found).max() > 0.01


def test_embedding_sees_what_follows_and_generation_does_not():
    other = IDS.copy()
    other[:, 7] = IDS[:, 7] % 40 + 1
    embedded = np.abs(np.asarray(embed(TRAINED, other)) - embed(TRAINED, IDS)).max(axis=-1)
    assert embedded[:, :7].min() > 1e-6 and embedded.max() > 1e-2
    generated = [np.asarray(logits(METHOD.generator(TRAINED), ids)) for ids in (IDS, other)]
    np.testing.assert_array_equal(generated[0][:, :7], generated[1][:, :7])
    assert np.abs(generated[0][:, 7:] - generated[1][:, 7:]).max() > 1e-2


def test_padding_is_not_seen():
    np.testing.assert_allclose(embed(TRAINED, IDS[1:2, :9]), embed(TRAINED, IDS)[1:2, :9], rtol=1e-4, atol=1e-5)
    augmented = dataclasses.replace(METHOD, augment=True)
    query = np.asarray(BATCH["query"])  # four words, then padding that becomes [MASK]
    found, plain = (np.asarray(method.encode_query(TRAINED, {"query": query}).values) for method in (augmented, METHOD))
    np.testing.assert_allclose(found[:, :4], plain[:, :4], rtol=1e-4, atol=1e-5)
    changed = np.where(np.arange(6) == 0, query % 40 + 1, query)
    assert np.abs(np.asarray(augmented.encode_query(TRAINED, {"query": changed}).values) - found)[:, 4:].max() > 1e-4  # [MASK] sees the words


def test_generation_with_a_cache_is_undisturbed_by_embedding():
    before, likelihood, whole = jax.device_get(answer(METHOD.generator(TRAINED), IDS))
    first = np.asarray(embed(TRAINED, IDS))
    after = jax.device_get(answer(METHOD.generator(TRAINED), IDS))
    np.testing.assert_array_equal(after[0], before)
    np.testing.assert_array_equal(after[1], likelihood)
    np.testing.assert_array_equal(embed(TRAINED, IDS), first)  # embed, generate, embed
    np.testing.assert_array_equal(whole[:, 5:-1].argmax(-1), before)  # the cache gives what whole rows give
    scores = jax.nn.log_softmax(whole[:, 5:-1])
    np.testing.assert_allclose(np.take_along_axis(np.asarray(scores), before[..., None], axis=-1)[..., 0].sum(1), likelihood.reshape(4, -1).sum(1), rtol=1e-4)


def test_rows_of_both_modes_share_a_batch():
    mixed = np.asarray(states(TRAINED, IDS, np.array([True, False, False, True])))
    embedded, generated = (np.asarray(states(TRAINED, IDS, np.full(4, on))) for on in (True, False))
    np.testing.assert_array_equal(mixed[[0, 3]], embedded[[0, 3]])
    np.testing.assert_array_equal(mixed[[1, 2]], generated[[1, 2]])
    base = np.asarray(jax.jit(lambda decoder, ids: decoder(ids, (ids != METHOD.pad).astype(jnp.int32)))(PARAMS.base, IDS))
    np.testing.assert_array_equal(generated[ATTENDED], base[ATTENDED])
    np.testing.assert_allclose(unit(TRAINED.head(jnp.asarray(embedded))), embed(TRAINED, IDS), rtol=1e-5, atol=1e-5)


def test_only_adapters_and_head_learn():
    names = {name for name, leaf in flatten(split(METHOD.spec(), PARAMS)[0]).items() if leaf is not None}
    assert all(name.startswith(("adapters.", "head.")) for name in names)
    assert count(METHOD.spec(), trainable=False) == count(METHOD.encoder.spec())  # the base is there once
    tx = optax.adam(1e-2)
    state = initial_state(METHOD, tx, jax.random.key(0))
    assert not any("base" in name for name in flatten(state.optimizer))
    step = jax.jit(functools.partial(update, METHOD, tx))
    start_logits = np.asarray(logits(METHOD.generator(state.params), IDS))
    after, _ = step(step(state, BATCH)[0], BATCH)
    for name, leaf in flatten(after.params).items():
        assert bool(jnp.any(leaf != flatten(state.params)[name])) == (name in names), name
    np.testing.assert_array_equal(logits(METHOD.generator(after.params), IDS), start_logits)


def test_relative_positions_and_texts_that_are_too_long():
    alibi = dataclasses.replace(METHOD, encoder=dataclasses.replace(METHOD.encoder, attention=AttentionKind(positions="alibi")))
    params = create(alibi.spec(), jax.random.key(0))
    wanted = unit(params.head(params.base(jnp.asarray(IDS), jnp.asarray(ATTENDED, jnp.int32), causal=False)))
    np.testing.assert_allclose(alibi.encode_item(params, {"document": IDS}).values[ATTENDED], wanted[ATTENDED], rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(wanted) - np.asarray(embed(params.replace(base=params.base.replace(bias=None)), IDS)))[ATTENDED].max() > 1e-3
    with pytest.raises(ValueError, match="texts of 17 tokens are longer than the 16 of the model; cut them to 16"):
        METHOD.encode_item(PARAMS, {"document": np.ones((1, 17), np.int32)})


def test_several_adapters_are_refused():
    with pytest.raises(ValueError, match="lora.adapters=3: all rows share one adapter here; set lora.adapters=1"):
        dataclasses.replace(METHOD, lora=dataclasses.replace(METHOD.lora, adapters=3))
