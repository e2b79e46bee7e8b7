"""Beam search and resolution against exhaustive scoring of all items in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.decode import beam_search, lookup, resolve, restrict
from jaxrec.ops.trie import Trie

WIDTHS, ITEMS, BATCH = (5, 3, 4), 50, 3
RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(0, WIDTHS, (ITEMS, 3))  # 50 items in at most 60 tuples: some share one, some tuples have none
TRIES = {"dense": Trie.build(CODES, WIDTHS), "sparse": Trie.build(CODES, WIDTHS, dense_entries=0), "mixed": Trie.build(CODES, WIDTHS, dense_entries=5)}
TUPLES = sorted(set(map(tuple, CODES.tolist())))
ALL = list(itertools.product(*map(range, WIDTHS)))
TABLES = [jax.nn.log_softmax(3 * RANDOM.normal(size=(BATCH, *WIDTHS[: level + 1])), axis=-1) for level in range(3)]  # [B, W_0, .., W_l]
BEAMS = 64


def table_step(level, codes, cache):
    """log p(c_l | c_0 .. c_{l-1}) from a table; the cache holds the row of each beam's request and the prefix."""
    prefix = cache["prefix"] if codes is None else jnp.concatenate([cache["prefix"], codes[..., None]], axis=-1)  # [B, K, l]
    index = (cache["row"], *(prefix[..., i] for i in range(level)))
    return jnp.asarray(TABLES[level])[index], {"row": cache["row"], "prefix": prefix}


def start():
    return {"row": jnp.arange(BATCH)[:, None], "prefix": jnp.zeros((BATCH, 1, 0), jnp.int32)}


@functools.partial(jax.jit, static_argnames=("step", "beams", "widths"))
def compiled(trie, cache, deny, allow, *, step, beams, widths):
    restriction = None if trie is None else restrict(trie, deny=deny, allow=allow)
    found = beam_search(step, cache, beams=beams, trie=trie, widths=widths, restriction=restriction)
    return found, None if trie is None else resolve(trie, found.leaf, found.log_probs, per_leaf=10, restriction=restriction)


def search(trie=None, cache=None, deny=None, allow=None, *, step=table_step, beams=BEAMS, widths=None):
    """The beams and up to ten items of each."""
    return compiled(trie, start() if cache is None else cache, deny, allow, step=step, beams=beams, widths=widths)


given = jax.jit(resolve, static_argnames="per_leaf")


def log_prob(row, codes):
    return sum(float(TABLES[level][(row, *codes[: level + 1])]) for level in range(len(codes)))


def check(beams, row, allowed):
    """The beams of a row are exactly the tuples of the items that it may be given, best first, with the scores of the whole tuples."""
    tuples = sorted({tuple(CODES[item - 1].tolist()) for item in allowed}, key=lambda codes: -log_prob(row, codes))
    real = np.asarray(beams.leaf[row]) >= 0
    assert real.tolist() == [place < len(tuples) for place in range(BEAMS)]
    assert list(map(tuple, np.asarray(beams.codes[row])[real].tolist())) == tuples
    np.testing.assert_allclose(np.asarray(beams.log_probs[row])[real], [log_prob(row, codes) for codes in tuples], atol=1e-6, rtol=1e-6)
    assert [TUPLES[leaf] for leaf in np.asarray(beams.leaf[row])[real]] == tuples
    assert np.all(np.asarray(beams.codes[row])[~real] == -1) and np.all(np.asarray(beams.log_probs[row])[~real] == -np.inf)


@pytest.mark.parametrize("kind", TRIES)
def test_a_wide_constrained_beam_is_exhaustive_scoring_of_all_items(kind):
    beams, _ = search(TRIES[kind])
    assert beams.codes.shape == (BATCH, BEAMS, 3) and beams.log_probs.dtype == jnp.float32
    for row in range(BATCH):
        check(beams, row, range(1, ITEMS + 1))


@pytest.mark.parametrize("width", [2, 7])
def test_a_narrow_beam_keeps_the_best_prefixes_of_each_level(width):
    beams, _ = search(TRIES["mixed"], beams=width)
    for row in range(BATCH):
        kept = [()]
        for level in range(3):
            grown = {codes[: level + 1] for codes in TUPLES if codes[:level] in kept}
            kept = sorted(grown, key=lambda codes: -log_prob(row, codes))[:width]
        assert list(map(tuple, beams.codes[row].tolist())) == kept
        np.testing.assert_allclose(beams.log_probs[row], [log_prob(row, codes) for codes in kept], rtol=1e-6, atol=1e-6)


def test_a_free_beam_as_wide_as_all_tuples_holds_the_whole_probability():
    """Two places more than there are tuples stay empty."""
    beams, _ = search(widths=WIDTHS, beams=len(ALL) + 2)
    np.testing.assert_allclose(jnp.exp(beams.log_probs).sum(axis=1), 1, rtol=1e-5)
    assert sorted(map(tuple, beams.codes[0, :-2].tolist())) == ALL
    assert np.all(np.asarray(beams.codes[:, -2:]) == -1) and np.all(np.asarray(beams.log_probs[:, -2:]) == -np.inf)
    assert np.all(np.asarray(beams.leaf) == -1)


@pytest.mark.parametrize("kind", TRIES)
def test_lookup_tells_the_tuples_that_items_have(kind):
    known = {codes: leaf for leaf, codes in enumerate(TUPLES)}
    unheard = [(-1, -1, -1), (0, 0, 4), (5, 0, 0)]
    assert jax.jit(lookup)(TRIES[kind], jnp.array(ALL + unheard)).tolist() == [known.get(codes, -1) for codes in ALL + unheard]


# A decoder with a state: what it has read decides, so a cache that did not follow its beam would give other scores.
WEIGHTS = [RANDOM.normal(size=(8, 8)).astype(np.float32) for _ in range(2)]
EMBEDDINGS = [RANDOM.normal(size=(width, 8)).astype(np.float32) for width in WIDTHS]
HEADS = [RANDOM.normal(size=(8, width)).astype(np.float32) for width in WIDTHS]
QUERY = RANDOM.normal(size=(BATCH, 8)).astype(np.float32)


def recurrent_step(level, codes, cache):
    state = cache["state"]  # [B, K, 8]
    if codes is not None:
        state = jnp.tanh(state @ WEIGHTS[0] + jnp.asarray(EMBEDDINGS[level - 1])[codes] @ WEIGHTS[1])
    return jax.nn.log_softmax(state @ HEADS[level], axis=-1), {"state": state}


def teacher_forced(row, codes):
    state, total = QUERY[row].astype(np.float64), 0.0
    for level, code in enumerate(codes):
        logits = state @ HEADS[level]
        total += logits[code] - np.log(np.exp(logits).sum())
        state = np.tanh(state @ WEIGHTS[0] + EMBEDDINGS[level][code] @ WEIGHTS[1])
    return total


@pytest.mark.parametrize("kind", TRIES)
def test_beam_scores_with_a_cache_are_those_of_teacher_forcing(kind):
    beams, _ = search(TRIES[kind], {"state": QUERY[:, None]}, step=recurrent_step, beams=len(TUPLES))
    for row in range(BATCH):
        assert sorted(map(tuple, beams.codes[row].tolist())) == TUPLES
        np.testing.assert_allclose(beams.log_probs[row], [teacher_forced(row, codes) for codes in beams.codes[row].tolist()], rtol=1e-5, atol=1e-5)


def pad(lists, size=24):
    return jnp.array([[*ids, *[0] * (size - len(ids))] for ids in lists], jnp.int32)


def below(*prefix):
    return [item for item in range(1, ITEMS + 1) if tuple(CODES[item - 1, : len(prefix)]) == prefix]


LISTS = {
    "random": [RANDOM.integers(1, ITEMS + 1, 20).tolist() for _ in range(BATCH)],
    "a whole prefix, a tuple, nothing": [below(*TUPLES[0][:1]), below(*TUPLES[-1]), []],
    "duplicates and unknown ids": [[3, 3, 3, 999, -7], [0, 5, 0, 5], [ITEMS + 1, ITEMS, ITEMS]],
}


@pytest.mark.parametrize(
    ("kind", "given"), [("dense", "deny"), ("sparse", "deny"), ("mixed", "deny"), ("dense", "allow"), ("sparse", "allow"), ("mixed", "both")]
)
def test_lists_are_exact(kind, given):
    """Every beam that remains has something to give, and everything that may be given has its beam and is resolved to."""
    for listed in LISTS.values():
        deny = {"deny": listed, "allow": [[]] * BATCH, "both": [[*ids[::2], 1, 2] for ids in listed]}[given]
        allow = [range(1, ITEMS + 1)] * BATCH if given == "deny" else listed
        lists = {"deny": None if given == "allow" else pad(deny), "allow": None if given == "deny" else pad(allow)}
        beams, (items, log_probs) = search(TRIES[kind], **lists)
        for row in range(BATCH):
            wanted = set(allow[row]) & set(range(1, ITEMS + 1)) - set(deny[row])
            check(beams, row, wanted)
            assert sorted(items[row].tolist()) == [0] * (BEAMS * 10 - len(wanted)) + sorted(wanted)
            real = [item for item in items[row].tolist() if item]
            np.testing.assert_allclose(log_probs[row, : len(real)], [log_prob(row, CODES[item - 1]) for item in real], rtol=1e-6, atol=1e-6)
            assert np.all(np.asarray(log_probs[row, len(real) :]) == -np.inf)


def test_denied_prefixes_take_up_no_beam():
    """A single beam finds an item although everything below the best prefix is denied."""
    best = int(np.argmax(TABLES[0][0]))
    beams, _ = search(TRIES["dense"], deny=pad([below(best)] * BATCH), beams=1)
    assert beams.leaf[0, 0] >= 0 and beams.codes[0, 0, 0] != best


@pytest.mark.parametrize(
    "lists", [{"allow": jnp.zeros((BATCH, 4), int)}, {"allow": jnp.zeros((BATCH, 0), int)}, {"deny": jnp.tile(jnp.arange(1, ITEMS + 1), (BATCH, 1))}]
)
def test_what_allows_nothing_returns_nothing(lists):
    beams, (items, log_probs) = search(TRIES["mixed"], **lists)
    assert np.all(np.asarray(items) == 0) and np.all(np.asarray(log_probs) == -np.inf) and np.all(np.asarray(beams.leaf) == -1)


def test_no_lists_and_empty_lists_allow_everything():
    assert restrict(TRIES["dense"]) is None
    jax.tree.map(np.testing.assert_array_equal, search(TRIES["dense"], deny=jnp.zeros((BATCH, 0), int)), search(TRIES["dense"]))


def test_other_lists_of_the_same_shape_do_not_compile_again():
    traced = []

    @jax.jit
    def recommend(trie, deny, cache):
        traced.append(1)
        restriction = restrict(trie, deny=deny)
        beams = beam_search(table_step, cache, beams=4, trie=trie, restriction=restriction)
        return resolve(trie, beams.leaf, beams.log_probs, per_leaf=2, restriction=restriction)[0]

    for listed in LISTS.values():
        items = recommend(TRIES["mixed"], pad(listed), start())
        assert all(not set(row.tolist()) & set(ids) - {0} for row, ids in zip(items, listed))
    assert len(traced) == 1


# One tuple of 30 items, of which the higher ids come first, and one of 3.
BUCKETS = Trie.build([[0, 1]] * 30 + [[1, 0]] * 3, (2, 2), priority=np.arange(33))
LEAF, SCORE = jnp.array([[1, 0, -1]]), jnp.log(jnp.array([[0.6, 0.3, 0.1]]))


def test_the_first_items_of_each_tuple_by_priority_in_the_order_of_the_beams():
    items, log_probs = given(BUCKETS, LEAF, SCORE, per_leaf=4)
    assert items.tolist() == [[33, 32, 31, 30, 29, 28, 27, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(jnp.exp(log_probs)[0], [0.6] * 3 + [0.3] * 4 + [0] * 5, rtol=1e-6)


def test_denied_items_make_room_for_the_next_by_priority():
    deny = jnp.array([[32, 30, 30, 28, 27]])
    assert given(BUCKETS, LEAF, SCORE, per_leaf=3, restriction=restrict(BUCKETS, deny=deny))[0].tolist() == [[33, 31, 29, 26, 25, 0, 0, 0, 0]]
    assert given(BUCKETS, LEAF, SCORE, per_leaf=3, restriction=restrict(BUCKETS, allow=deny))[0].tolist() == [[32, 30, 28, 27, 0, 0, 0, 0, 0]]


def test_depth_and_breadth_spend_the_same_budget():
    codes = np.arange(1000) // 10  # 100 tuples of 10 items
    trie = Trie.build(codes[:, None], (100,))
    leaf, scores = jnp.arange(100)[None], -jnp.arange(100.0)[None]
    deep, broad = given(trie, leaf[:, :10], scores[:, :10], per_leaf=10)[0], given(trie, leaf, scores, per_leaf=1)[0]
    assert deep.tolist() == [list(range(1, 101))] and broad.tolist() == [list(range(1, 1001, 10))]


@pytest.mark.parametrize("size", [1, 30])
def test_a_random_choice_has_no_duplicates_and_nothing_denied(size):
    denied = {7, 8, 30, 33}
    restriction = restrict(BUCKETS, deny=jnp.array([list(denied)]))
    items = given(BUCKETS, LEAF, SCORE, per_leaf=size, restriction=restriction, keys=jax.random.split(jax.random.key(1), len(LEAF)))[0]
    real = [item for item in items[0].tolist() if item]
    assert len(real) == len(set(real)) == min(size, 2) + min(size, 27)
    assert not set(real) & denied and set(real[: min(size, 2)]) <= {31, 32}


def test_a_random_choice_is_uniform():
    keys = jax.random.split(jax.random.key(2), 3000)
    draw = jax.jit(jax.vmap(lambda key: resolve(BUCKETS, jnp.array([[0]]), jnp.zeros((1, 1)), per_leaf=6, keys=key[None])[0][0]))
    counts = np.bincount(np.asarray(draw(keys)).ravel(), minlength=31)[1:]
    assert counts.sum() == 18_000
    np.testing.assert_allclose(counts, 600, atol=5 * np.sqrt(600 * 0.8))  # 5 standard deviations of a binomial with p = 6 / 30


NOTHING = jnp.zeros((1, 1))


def step_of(*levels):
    """The step of a decoder whose levels are independent, with these probabilities, for one request; its cache is NOTHING, a zero per beam."""
    return lambda level, codes, cache: (cache[..., None] + jnp.log(jnp.array(levels[level]))[None, None], cache)


@pytest.mark.parametrize("dense_entries", [0, 100])
def test_one_item_and_a_level_of_one_code(dense_entries):
    beams, _ = search(Trie.build([[0, 2]], (1, 3), dense_entries=dense_entries), NOTHING, step=step_of([1.0], [0.5, 0.25, 0.25]), beams=3)
    assert beams.codes.tolist() == [[[0, 2], [-1, -1], [-1, -1]]]
    np.testing.assert_allclose(jnp.exp(beams.log_probs), [[0.25, 0, 0]])


def test_one_level():
    beams, _ = search(Trie.build([[2], [0]], (3,)), NOTHING, step=step_of([0.2, 0.5, 0.3]), beams=2)
    assert beams.codes.tolist() == [[[2], [0]]] and beams.leaf.tolist() == [[1, 0]]


def test_a_code_without_probability_is_never_returned():
    beams, (items, _) = search(Trie.build([[0, 0], [0, 1], [1, 1]], (2, 2)), NOTHING, step=step_of([1.0, 0.0], [0.5, 0.5]), beams=3)
    assert beams.leaf.tolist() == [[0, 1, -1]] and items[0, :3].tolist() == [1, 2, 0]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_equal_scores_keep_the_order_of_their_codes(kind):
    beams, _ = search(TRIES[kind], NOTHING, step=step_of(*([1 / width] * width for width in WIDTHS)), beams=5)
    assert list(map(tuple, beams.codes[0].tolist())) == TUPLES[:5]


def half_step(level, codes, cache):
    log_probs, cache = table_step(level, codes, cache)
    return log_probs.astype(jnp.bfloat16), cache


def test_half_precision_scores_are_summed_in_float32():
    beams, _ = search(TRIES["dense"], step=half_step, beams=4)
    codes = beams.codes[0, 0].tolist()
    rounded = sum(np.float32(jnp.bfloat16(TABLES[level][(0, *codes[: level + 1])])) for level in range(3))
    np.testing.assert_allclose(beams.log_probs[0, 0], rounded, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: beam_search(table_step, start(), beams=0, trie=TRIES["dense"]), "beams=0 must be at least 1"),
        (lambda: beam_search(table_step, start(), beams=2), "exactly one of trie and widths"),
        (lambda: beam_search(table_step, start(), beams=2, trie=TRIES["dense"], widths=WIDTHS), "exactly one of trie and widths"),
        (lambda: beam_search(table_step, start(), beams=2, widths=WIDTHS, restriction=restrict(TRIES["dense"], deny=pad([[1]]))), "needs the trie"),
        (lambda: beam_search(table_step, start(), beams=2, widths=(5, 4)), r"\(3, 2, 3\) at level 1; \(3, 2, 4\)"),
        (lambda: restrict(TRIES["dense"], deny=jnp.arange(3)), r"deny has shape \(3,\)"),
        (lambda: restrict(TRIES["dense"], allow=jnp.ones((2, 2))), "allow has shape .* dtype float32"),
        (lambda: restrict(TRIES["dense"], deny=pad([[1]]), allow=pad([[1], [2]])), "deny is for 1 requests, allow for 2"),
        (lambda: resolve(BUCKETS, LEAF, SCORE, per_leaf=0), "per_leaf=0 must be at least 1"),
        (lambda: resolve(BUCKETS, LEAF, SCORE[:, :2], per_leaf=1), "of one shape"),
    ],
)
def test_what_does_not_go_together_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
