"""Sampling: held sets by brute force, draws by their frequencies, and a loop whose rows end by themselves and never meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.sampling import greedy, nucleus, sample, sampler, start, write

V = 23


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def smallest(probabilities, mass):
    """The nucleus by sorting."""
    order = np.argsort(-probabilities, kind="stable")
    held = order[: int(np.searchsorted(np.cumsum(probabilities[order]), mass)) + 1]
    return np.isin(np.arange(len(probabilities)), held)


def test_a_nucleus_is_the_smallest_set_of_its_mass():
    random = np.random.default_rng(0)
    probabilities = softmax(3 * random.normal(size=(50, V))).astype(np.float32)
    for mass in (0.05, 0.5, 0.9, 0.999):
        held = np.asarray(jax.jit(nucleus)(probabilities, mass))
        np.testing.assert_array_equal(held, [smallest(row, mass) for row in probabilities])
    even = jnp.full((1, 4), 0.25)
    assert np.asarray(nucleus(even, 0.3)).all()  # equals stay together
    certain = jnp.asarray([[0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(nucleus(certain, 0.9), [[False, True, False]])


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.7), (6, 0.6), (V, 1.0), (99, 1.0)])
def test_draws_have_the_frequencies_of_the_held_tokens(top_k, top_p):
    logits = 2 * np.random.default_rng(1).normal(size=V).astype(np.float32)
    temperature = 0.8
    wanted = softmax(logits / temperature)
    full = np.log(wanted)
    if 0 < top_k < V:
        wanted = np.where(wanted >= np.sort(wanted)[-top_k], wanted, 0)
        wanted /= wanted.sum()
    if top_p < 1:
        wanted = np.where(smallest(wanted, top_p), wanted, 0)
        wanted /= wanted.sum()
    draws = 20_000
    tokens, log_probs = jax.jit(lambda keys: sample(jnp.broadcast_to(logits, (draws, V)), keys, temperature, top_k=top_k, top_p=top_p))(
        jax.random.split(jax.random.key(0), draws)
    )
    counts = np.bincount(tokens, minlength=V)
    assert not counts[wanted == 0].any()
    assert np.abs(counts / draws - wanted).max() < 5 * np.sqrt(0.25 / draws)
    np.testing.assert_allclose(log_probs, full[np.asarray(tokens)], atol=1e-5)


def test_greedy_takes_the_first_of_the_best():
    tokens, log_probs = greedy(jnp.asarray([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(tokens, [1, 0])
    np.testing.assert_allclose(log_probs, [2 - np.log(1 + 2 * np.e**2), 1 - np.log(np.e + 2)], atol=1e-6)


def test_what_cannot_be_held_is_told():
    keys = jax.random.split(jax.random.key(0), 1)
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=r"top_k=.* must be at least 0 \(0 = all\), and top_p=.* above 0 and at most 1"):
            sample(jnp.zeros((1, V)), keys, 1.0, **wrong)


TABLE = jnp.asarray(3 * np.random.default_rng(2).normal(size=(V, V)), jnp.float32)


def step(tokens, count):
    """A model that looks at the last token alone, and counts its steps."""
    return TABLE[tokens], count + 1


@jax.jit
def written(tokens, keys, until, done):
    first = write(step, sampler(keys, 0.9), start(TABLE[tokens], jnp.zeros((), jnp.int32), room=12, done=done), until=until, ends=(3, 5))
    return first, write(step, sampler(keys, 0.9), first, until=12, ends=(3, 5))


def test_rows_end_by_themselves_and_do_not_meet():
    B = 16
    tokens, keys, done = jnp.arange(B) % V, jax.random.split(jax.random.key(1), B), jnp.arange(B) == B - 1
    _, together = written(tokens, keys, 12, done)
    lengths = np.asarray(together.length)
    assert lengths[-1] == 0 and len(set(lengths.tolist())) > 3
    logits = np.asarray(TABLE)
    for row in range(B - 1):
        ids, log_probs = np.asarray(together.ids[row]), np.asarray(together.log_probs[row])
        ends = np.isin(ids[: lengths[row]], (3, 5))
        assert (not ends[:-1].any() and ends[-1] == (lengths[row] < 12)) or lengths[row] == 12
        assert not ids[lengths[row] :].any() and not log_probs[lengths[row] :].any()
        before = np.r_[int(tokens[row]), ids][: lengths[row]]
        wanted = np.log(softmax(logits[before] / 0.9))[np.arange(lengths[row]), ids[: lengths[row]]]
        np.testing.assert_allclose(log_probs[: lengths[row]], wanted, atol=1e-5)
    order = np.random.default_rng(0).permutation(B)
    _, shuffled = written(tokens[order], keys[order], 12, done[order])
    np.testing.assert_array_equal(shuffled.ids, np.asarray(together.ids)[order])
    paused, resumed = written(tokens, keys, 5, done)
    assert int(paused.place) == 5 and int(paused.cache) == 5
    np.testing.assert_array_equal(resumed.ids, together.ids)
    np.testing.assert_array_equal(resumed.log_probs, together.log_probs)


def test_a_loop_stops_when_all_have_ended():
    _, finished = written(jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0), 2), 12, jnp.ones(2, bool))
    assert int(finished.place) == 0 and int(finished.cache) == 0
