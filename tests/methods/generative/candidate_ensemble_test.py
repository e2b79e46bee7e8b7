"""CandidateEnsemble: the lists of a generator and an encoder are fused by places, and request lists hold for both."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.generative import candidate_ensemble, tiger_decoder
from jaxrec.methods.generative.candidate_ensemble import CandidateEnsemble, fused, latest
from jaxrec.methods.generative.sid_generator import tiny_sids
from jaxrec.methods.sequential import ensrec, sasrec
from jaxrec.param import count, create, flatten, unflatten

HISTORY = np.array([[3, 5, 0, 0, 0, 0, 0, 0], [9, 2, 7, 11, 0, 0, 0, 0]], np.int32)
BATCH = {"history": HISTORY, "segment": (HISTORY > 0).astype(np.int32), "position": np.arange(8, dtype=np.int32)[None] * (HISTORY > 0)}


def by_hand(lists, weights):
    """{item: score} of one user's lists."""
    found = {}
    for items, weight in zip(lists, weights, strict=True):
        for place, item in enumerate(item for item in items if item):
            found[item] = found.get(item, 0) + weight / (60 + 1 + place)
    return found


def test_places_are_added_and_each_item_comes_once():
    random = np.random.default_rng(0)
    lists = [np.stack([random.permutation(12)[:count] + 1 for _ in range(5)]) for count in (6, 4)]
    lists[0][2, 3:], lists[1][3], lists[0][4], lists[1][4] = 0, 0, 0, 0  # shorter ones, and none
    items, scores = (np.asarray(array) for array in jax.jit(fused, static_argnums=2)(*lists, (1.0, 0.5)))
    for user in range(5):
        wanted = by_hand([some[user].tolist() for some in lists], (1.0, 0.5))
        assert dict(zip(items[user][items[user] > 0].tolist(), scores[user].tolist(), strict=False)) == pytest.approx(wanted, rel=1e-5)
        assert (np.diff(scores[user][: len(wanted)]) <= 0).all() and (items[user][len(wanted) :] == 0).all()
        assert np.isneginf(scores[user][len(wanted) :]).all()


def members(encoder):
    """(the ensemble, its parameters with the IDs in place)."""
    method = CandidateEnsemble(tiger_decoder.tiny()[0], encoder, items=30, beams=6)
    params = jax.jit(lambda key: create(method.spec(), key))(jax.random.key(1))
    ids = {f"generator.sids.{name}": jnp.asarray(leaf) for name, leaf in flatten(tiny_sids(30)[1]).items()}
    return method, unflatten(params, flatten(params) | ids)


@pytest.mark.parametrize("encoder", [sasrec.tiny()[0], ensrec.tiny()[0]], ids=["SASRec", "EnsRec"])
def test_it_fuses_what_its_members_would_give_alone(encoder):
    method, params = members(encoder)
    generate = jax.jit(lambda batch: method.generate(params, batch, jax.random.key(0), beams=6))
    alone = jax.jit(lambda batch: method.generator.generate(params["generator"], batch, jax.random.key(0), beams=6)[1])
    encoded = jax.jit(lambda: (encoder.encode_query(params["encoder"], BATCH).values, encoder.encode_item(params["encoder"], {"item": jnp.arange(31)}).values))
    lists = {"deny": np.array([[1, 2, 3, 0], [4, 0, 0, 0]], np.int32)}
    codes, items, scores = generate({**BATCH, **lists})
    written = np.asarray(alone({**BATCH, **lists}))
    queries, vectors = (np.asarray(values)[:, 0] for values in encoded())
    scored = queries @ vectors.T
    scored[:, 0] = scored[0, [1, 2, 3]] = scored[1, 4] = -np.inf
    for user in range(2):
        wanted = by_hand([written[user].tolist(), np.argsort(-scored[user], kind="stable")[:6].tolist()], (1, 1))
        assert dict(zip(items[user].tolist()[: len(wanted)], scores[user].tolist(), strict=False)) == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_array_equal(codes, params["generator"].sids.codes[items])
    allowed = generate({**BATCH, "allow": np.array([[8, 21, 0, 0], [0, 0, 0, 0]], np.int32)})[1]
    assert {*allowed[0].tolist()} == {8, 21, 0} and not allowed[1].any()


def test_the_generator_may_read_the_last_items_alone():
    cut = jax.jit(latest, static_argnums=1)(BATCH, 3)
    np.testing.assert_array_equal(cut["history"], [[3, 5, 0], [2, 7, 11]])
    np.testing.assert_array_equal(cut["segment"], [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(cut["position"], [[0, 1, 0], [0, 1, 2]])
    assert latest(BATCH, 0) is BATCH and latest(BATCH, 8) is BATCH


def test_nothing_is_trained_and_weights_are_checked():
    method = candidate_ensemble.tiny()[0]
    assert not count(method.spec(), trainable=True)
    with pytest.raises(ValueError, match="beams=0 must be at least 1; recent=-1 must be at least 0"):
        dataclasses.replace(method, beams=0, recent=-1)
    for weights in ((0.0, 0.0), (1.0, -1.0), (1.0,)):
        with pytest.raises(ValueError, match="two numbers of at least 0, not both 0"):
            dataclasses.replace(method, weights=weights)
