"""TIGER in both forms: beams against exhaustive teacher forcing, packing, padding, lists of allowed and denied items."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.generative import tiger, tiger_decoder
from jaxrec.methods.generative.sid_generator import SidGenerator, own_keys, tiny_sids
from jaxrec.nn.attention import AttentionKind
from jaxrec.ops.trie import Trie
from jaxrec.param import create, flatten, unflatten

KINDS = [
    AttentionKind(window=4, positions="rotary", groups=2),
    AttentionKind("threshold", window=4, beta=0.3),
    AttentionKind("threshold_differential", positions="rotary", groups=2, beta=0.3, learn_beta=True),
    pytest.param(AttentionKind("differential", positions="alibi", window=5), marks=pytest.mark.slow),
    pytest.param(AttentionKind("rectified", groups=1), marks=pytest.mark.slow),
    pytest.param(AttentionKind("entmax", positions="relative", groups=2, window=3), marks=pytest.mark.slow),
]

ITEMS, LENGTH, BEAMS = 30, 6, 48  # as many beams as tuples; one number for all tests, so that one program serves them
MODELS = {"encoder-decoder": tiger.tiny, "decoder-only": tiger_decoder.tiny}
OPTIONS = {
    "plain": {},
    "separators and users": {"separators": True, "users": 5},
    "rotary threshold attention": {"attention": AttentionKind(weights="threshold", positions="rotary", beta=0.3)},
}


@functools.cache
def model(kind, options="plain"):
    """(method, parameters with the IDs in place)."""
    method = dataclasses.replace(MODELS[kind]()[0], **OPTIONS[options])
    _, arrays = tiny_sids(ITEMS)
    params = create(method.spec(), jax.random.key(3))
    named = {f"sids.{name}": jnp.asarray(leaf) for name, leaf in flatten(arrays).items()}
    return method, unflatten(params, flatten(params) | named)


def question(histories, length=LENGTH):
    history = np.zeros((len(histories), length), np.int32)
    for row, items in enumerate(histories):
        history[row, : len(items)] = items
    segment = (history > 0).astype(np.int32)
    position = np.arange(length, dtype=np.int32)[None] * segment
    return {"history": history, "segment": segment, "position": position, "user": np.array([[7], [8]], np.int32)[: len(histories)] * np.ones_like(history)}


@functools.partial(jax.jit, static_argnames="method")
def generate(method, params, batch):
    return method.generate(params, {"deny": jnp.zeros((2, 4), jnp.int32), **batch}, None, beams=BEAMS)


@functools.partial(jax.jit, static_argnames="method")
def loss(method, params, batch):
    return method.loss(params, batch, jax.random.key(0)).terms["loss"]


def teacher_forced(method, params, history, user, item):
    """log p of one item after one history, from the training loss: an example with a weight of 1, and padding."""
    whole = [*history, item] if method.form == "stream" else list(history)
    batch = {**question([whole]), "user": np.full((1, LENGTH), user, np.int32)}
    asked = np.zeros((1, LENGTH), np.float32)
    asked[0, len(history) - 1] = 1
    total, weight = loss(method, params, {**batch, "mask": asked, "target": (asked * item).astype(np.int32)})
    assert weight == 1
    return -float(total)


HISTORIES = [[3, 8, 29, 8], [17]]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_wide_beam_is_exhaustive_and_its_scores_are_those_of_the_training_loss(kind, options):
    method, params = model(kind, options)
    codes, items, scores = generate(method, params, question(HISTORIES))
    for row, (history, user) in enumerate(zip(HISTORIES, (7, 8), strict=True)):
        assert sorted(items[row, :ITEMS].tolist()) == list(range(1, ITEMS + 1))  # every item once, whatever K
        assert not items[row, ITEMS:].any() and np.isneginf(scores[row, ITEMS:]).all()
        assert (np.diff(scores[row, :ITEMS]) <= 0).all()
        for place in (0, ITEMS - 1):
            item = int(items[row, place])
            assert scores[row, place] == pytest.approx(teacher_forced(method, params, history, user, item), abs=2e-5)
            np.testing.assert_array_equal(codes[row, place], params.sids.codes[item])


@pytest.mark.parametrize("kind", MODELS)
def test_a_free_beam_sums_to_one_and_invents_ids(kind):
    method, params = model(kind)
    free = dataclasses.replace(method, constrained=False)
    codes, items, scores = generate(free, params, question(HISTORIES))  # 4 * 4 * 3 tuples, of which 30 are items
    assert len({tuple(code) for code in codes[0].tolist()}) == 48
    known = np.asarray(items[0]) > 0
    assert known.sum() == ITEMS
    assert float(jnp.exp(scores[0][known]).sum()) < 1
    _, _, alone = generate(method, params, question(HISTORIES))
    np.testing.assert_allclose(np.sort(np.asarray(scores[0])[known]), np.sort(alone[0, :ITEMS]), atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_padding_and_neighbours_change_nothing(kind):
    method, params = model(kind)
    _, items, scores = generate(method, params, question(HISTORIES))
    _, longer_items, longer_scores = generate(method, params, question(HISTORIES, LENGTH + 5))
    np.testing.assert_array_equal(items, longer_items)
    np.testing.assert_allclose(scores, longer_scores, atol=1e-5)
    _, beside_another, _ = generate(method, params, question([HISTORIES[0], [9, 9, 1]]))
    np.testing.assert_array_equal(items[0], beside_another[0])
    assert items[1].tolist() != beside_another[1].tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_denied_items_never_come_and_only_allowed_ones_do(kind):
    method, params = model(kind)
    batch = question(HISTORIES)
    _, items, scores = generate(method, params, batch)
    deny = np.array([[3, 8, 29, 8], [17, 0, 0, 0]], np.int32)
    _, left, left_scores = generate(method, params, {**batch, "deny": deny})
    for row in range(2):
        kept = [(item, score) for item, score in zip(items[row].tolist(), scores[row].tolist(), strict=True) if item not in deny[row]]
        assert left[row, : len(kept)].tolist() == [item for item, _ in kept]
        np.testing.assert_allclose(left_scores[row, : len(kept)], [score for _, score in kept], atol=1e-5)
    _, only, _ = generate(method, params, {**batch, "allow": np.array([[5, 6], [0, 0]], np.int32)})
    assert sorted(only[0, :2].tolist()) == [5, 6] and not only[0, 2:].any() and not only[1].any()


@pytest.mark.parametrize("kind", MODELS)
def test_histories_that_share_a_row_do_not_see_each_other(kind):
    method, params = model(kind)
    stream = method.form == "stream"
    examples = [([3, 8, 29], 4), ([17, 2], 9)]
    rows = [[*history, target] if stream else history for history, target in examples]
    alone = sum(teacher_forced(method, params, history, 0, target) for history, target in examples)
    flat = np.concatenate(rows)[None].astype(np.int32)
    sizes = [len(row) for row in rows]
    mask, target = np.zeros(flat.shape, np.float32), np.zeros_like(flat)
    for end, (history, item), size in zip(np.cumsum(sizes), examples, sizes, strict=True):
        place = end - size + len(history) - 1
        mask[0, place], target[0, place] = 1, item
    batch = {
        "history": flat,
        "segment": np.repeat([1, 2], sizes)[None].astype(np.int32),
        "position": np.concatenate([np.arange(size) for size in sizes])[None].astype(np.int32),
        "user": np.zeros_like(flat),
        "mask": mask,
        "target": target,
    }
    total, weight = loss(method, params, batch)
    assert weight == 2
    assert -float(total) == pytest.approx(alone, abs=2e-5)


def test_ids_of_another_catalogue_do_not_fit():
    method, params = model("encoder-decoder")
    other = Trie.build(np.array([[0, 0, 0], [0, 1, 0]]), method.sids.widths)
    named = {f"sids.trie.{name}": leaf for name, leaf in flatten(other).items()}
    with pytest.raises(ValueError, match=r"parameter sids\.trie\.\S+ has shape .*, the model expects|missing"):
        unflatten(params, flatten(params) | named)


def test_items_that_share_an_id_are_given_in_the_order_of_their_priority():
    method, params = model("encoder-decoder")
    codes = np.asarray(params.sids.codes).copy()
    codes[2] = codes[1]
    trie = Trie.build(codes[1:], method.sids.widths, priority=np.arange(ITEMS))
    sids = dataclasses.replace(method.sids, **{name: getattr(trie.sizes, name) for name in ("bucket", "nodes", "branching", "dense")})
    shared = dataclasses.replace(method, sids=sids, per_id=2)
    leaves = flatten(params) | {"sids.codes": jnp.asarray(codes)} | {f"sids.trie.{name}": jnp.asarray(leaf) for name, leaf in flatten(trie).items()}
    spec = shared.spec()
    _, items, scores = generate(shared, unflatten(spec, {name: leaves[name] for name in flatten(spec)}), question(HISTORIES))
    found = {item: float(score) for item, score in zip(items[0].tolist(), scores[0], strict=True) if item in (1, 2)}
    assert list(found) == [2, 1] and found[1] == found[2]


@pytest.mark.parametrize("kind", [AttentionKind(positions="rotary"), AttentionKind(window=3), AttentionKind(positions="alibi")])
def test_user_tokens_are_refused_where_places_are_counted_in_the_row(kind):
    with pytest.raises(ValueError, match="users=5: .* or users=0"):
        dataclasses.replace(tiger.tiny()[0], users=5, attention=kind)


def test_what_is_drawn_for_a_history_is_its_own():
    histories = jnp.asarray([[1, 2, 3, 0], [3, 2, 1, 0], [1, 2, 3, 0]])
    keys = jax.random.key_data(own_keys(jax.random.key(0), histories))
    np.testing.assert_array_equal(keys[0], keys[2])
    assert (keys[0] != keys[1]).any()
    np.testing.assert_array_equal(keys[1], jax.random.key_data(own_keys(jax.random.key(0), histories[1:2]))[0])


def a_token_at_a_time(step, codes):
    """log p [B, K, H] of codes [B, K, H] by the steps of a search, each beam with a cache of its own."""
    found, cache = [], None
    for level in range(codes.shape[2]):
        log_probs, cache = step(level, codes[:, :, level - 1] if level else None, cache)
        if not level:  # as a search does, which begins with one beam
            log_probs, cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, codes.shape[1], axis=1), (log_probs, cache))
        found.append(jnp.take_along_axis(log_probs, codes[:, :, level, None], axis=2)[..., 0])
    return jnp.stack(found, axis=2)


def name(kind):
    return f"{kind.weights}-{kind.positions}-groups {kind.groups}-window {kind.window}"


@pytest.mark.parametrize("attention", KINDS, ids=name)
@pytest.mark.parametrize("form", MODELS)
def test_a_cache_reads_what_training_reads_under_every_kind_of_attention(form, attention, monkeypatch):
    method = dataclasses.replace(MODELS[form]()[0], heads=4, attention=attention)
    named = {f"sids.{name}": jnp.asarray(leaf) for name, leaf in flatten(tiny_sids(ITEMS)[1]).items()}
    params = create(method.spec(), jax.random.key(4))
    params = unflatten(params, flatten(params) | named)
    histories, items = [[3, 8, 29, 8, 11], [17]], np.array([[4, 30], [17, 9]])
    codes = params.sids.codes[items]
    monkeypatch.setattr(SidGenerator, "search", lambda self, trie, batch, step, beams, key: a_token_at_a_time(step, codes))

    def forced(history, item):
        batch = {**question([[*history, item] if method.form == "stream" else history]), "user": np.zeros((1, LENGTH), np.int32)}
        asked = (np.arange(LENGTH) == len(history) - 1)[None].astype(np.float32)
        return {**batch, "mask": asked, "target": (asked * item).astype(np.int32)}

    rows = [forced(history, item) for history, row in zip(histories, items, strict=True) for item in row.tolist()]
    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)  # [B K, 1, T]

    def both(params, batch, rows):
        levels = jax.vmap(lambda row: method.loss(params, row, jax.random.key(0)).metrics)(rows)
        return method.generate(params, batch, beams=2), -jnp.stack([levels[f"level {number}"][0] for number in (1, 2, 3)], axis=-1)

    found, wanted = jax.jit(both)(params, question(histories), rows)
    np.testing.assert_allclose(found.reshape(4, 3), wanted, atol=1e-5)
    assert np.ptp(wanted, axis=0).min() > 0.01


def test_numbers_out_of_range_are_refused_by_name():
    for kind in MODELS.values():
        method = kind()[0]
        message = (
            f"^{type(method).__name__}: segments=0 must be at least 1; dim=16.5 must be a whole number of at least 1; dropout=1.0 must be .* below 1; beams=0"
        )
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(method, segments=0, dim=16.5, dropout=1.0, beams=0)
