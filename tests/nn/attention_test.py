"""Kinds of attention: each against its formula in NumPy, and what defines it."""

import dataclasses
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.generative import tiger, tiger_decoder
from jaxrec.methods.generative.sid_generator import tiny_sids
from jaxrec.methods.sequential import bert4rec, esasrec, hstu, sasrec
from jaxrec.nn.attention import Attention, AttentionKind
from jaxrec.nn.context import packed
from jaxrec.nn.positions import Alibi, RelativeBias, Rotary
from jaxrec.nn.transformer import TransformerBlock
from jaxrec.nn.weights import HIDDEN, Entmax, Threshold, entmax
from jaxrec.param import count, create, flatten, unflatten

NAMES = ("softmax", "threshold", "threshold_differential", "differential", "rectified", "entmax")
KINDS = tuple(AttentionKind(weights=name, beta=0.5) for name in NAMES)
SEGMENT = jnp.asarray([[1] * 7 + [2] * 4 + [0], [1] * 12])
T, D, H = 12, 16, 4


def made(kind: AttentionKind, heads: int = H):
    attention = create(Attention.spec(D, heads, kind=kind), jax.random.key(0))
    return attention, jax.random.normal(jax.random.key(1), (2, T, D))


def rms(x, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def by_formula(attention: Attention, x: np.ndarray, segment: np.ndarray, kind: AttentionKind, causal: bool) -> np.ndarray:
    """The attention of one row [T, D], from the equations."""
    pairs, views = attention.heads, kind.views
    value = D // pairs
    both = x @ np.asarray(attention.qkv.kernel)
    q, k, v = (part.reshape(T, -1, width) for part, width in zip(np.split(both, 3, axis=-1), (value // views, value // views, value), strict=True))
    see = segment[:, None] == segment[None]
    see = see & np.tri(T, dtype=bool) if causal else see
    out = np.zeros((T, pairs, value))
    for head in range(pairs):
        each = []
        for view in range(views):
            own_q, own_k = q[:, view * pairs + head], k[:, view * pairs + head]
            if "threshold" in kind.weights:
                cosine = (own_q / np.linalg.norm(own_q, axis=-1, keepdims=True)) @ (own_k / np.linalg.norm(own_k, axis=-1, keepdims=True)).T
                tau = kind.beta * np.sqrt(2 * np.maximum(np.log(see.sum(1) / kind.kappa), 0) / own_q.shape[-1])
                each.append(np.where(see, np.maximum(cosine - tau[:, None], 0) ** kind.power, 0))
                continue
            score = own_q @ own_k.T / math.sqrt(own_q.shape[-1])
            if kind.weights == "rectified":
                each.append(np.where(see, np.maximum(score, 0), 0))
            elif kind.weights == "entmax":
                each.append(np.stack([sparsemax_or_more(row, kind.alpha) for row in np.where(see, score, -np.inf)]))
            else:
                each.append(softmax(np.where(see, score, -np.inf)))
        weights = each[0]
        if kind.weights == "threshold_differential":
            weights = each[0] - 0.5 * each[1]
        if kind.weights == "differential":
            a, b = np.exp((np.asarray(attention.weights.products[:, 0]) * np.asarray(attention.weights.products[:, 1])).sum(-1))
            weights = each[0] - (a - b + 0.8) * each[1]
        out[:, head] = weights @ v[:, head]
    if kind.weights not in ("softmax", "entmax"):
        out = rms(out, 1e-5 if "threshold" in kind.weights else 1e-6) * (0.2 if kind.weights == "differential" else 1)
    return out.reshape(T, D) @ np.asarray(attention.output.kernel)


def sparsemax_or_more(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Entmax of one row by a fine search for its threshold."""
    scaled = (alpha - 1) * scores
    low, high = scaled.max() - 1, scaled.max()
    for _ in range(60):
        middle = (low + high) / 2
        total = (np.maximum(scaled - middle, 0) ** (1 / (alpha - 1))).sum()
        low, high = (middle, high) if total >= 1 else (low, middle)
    return np.maximum(scaled - low, 0) ** (1 / (alpha - 1))


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_is_its_formula_causal_and_not(kind):
    attention, x = made(kind)
    for causal in (True, False):
        context = packed(SEGMENT, causal=causal)
        got = jax.jit(lambda a, x, context: a(x, context))(attention, x, context)
        wanted = [by_formula(attention, np.asarray(row), np.asarray(segment), kind, causal) for row, segment in zip(x, SEGMENT, strict=True)]
        np.testing.assert_allclose(got, np.stack(wanted), rtol=2e-4, atol=2e-5)


def test_kinds_have_as_many_parameters_but_for_their_few_own():
    for heads in (1, 4):
        plain = count(Attention.spec(D, heads))
        for kind in KINDS:
            assert 0 <= count(Attention.spec(D, heads, kind=kind)) - plain <= 2 * 2 * D + D + heads


@pytest.mark.parametrize("kind", (*KINDS, AttentionKind(positions="rotary", groups=2, window=3)), ids=(*NAMES, "window"))
def test_no_query_sees_a_later_key_or_another_history(kind):
    attention, x = made(kind)

    @jax.jit
    def reached(x):
        return jax.jacobian(lambda x: jnp.sum(attention(x, packed(SEGMENT, causal=True))[0], axis=-1))(x)[:, 0]

    moved = np.abs(np.asarray(reached(x))).sum(-1) > 0  # [T queries, T keys]
    segment = np.asarray(SEGMENT[0])
    allowed = (segment[:, None] == segment[None]) & np.tri(T, dtype=bool)
    if kind.window:
        allowed &= np.arange(T)[:, None] - np.arange(T)[None] < kind.window
    assert not np.any(moved & ~allowed) and moved.any()
    if kind.weights in ("softmax", "differential"):
        np.testing.assert_array_equal(moved, allowed)


def test_the_kernel_gives_what_the_matrix_of_scores_gives():
    for name in ("threshold", "threshold_differential"):
        attention, x = made(AttentionKind(weights=name, learn_beta=True, beta=0.5))
        for causal in (True, False):
            context = packed(SEGMENT, causal=causal)

            def both(attention, x, context=context):
                return [jnp.sum(jnp.sin(attention(x, dataclasses.replace(context, packed=packed)))) for packed in (True, False)]

            np.testing.assert_allclose(*jax.jit(both)(attention, x), rtol=1e-5, atol=1e-5)
            fused, dense = (jax.jit(jax.grad(lambda a, x, n=n: both(a, x)[n]))(attention, x) for n in (0, 1))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), fused, dense)
            assert abs(float(fused.weights.raw_beta)) > 0


def test_groups_are_shared_keys_and_values():
    for name in ("softmax", "threshold_differential", "differential"):
        attention, x = made(AttentionKind(weights=name, groups=2, beta=0.5))
        pairs, views = attention.heads, attention.weights.views
        G, value = attention.groups or pairs, D // pairs
        q, k, v = np.split(np.asarray(attention.qkv.kernel), [D, D + G * value], axis=-1)
        k = np.repeat(k.reshape(D, views, G, -1), pairs // G, axis=2).reshape(D, -1)
        v = np.repeat(v.reshape(D, G, -1), pairs // G, axis=1).reshape(D, -1)
        whole = dataclasses.replace(attention, groups=0, qkv=dataclasses.replace(attention.qkv, kernel=jnp.concatenate([q, k, v], axis=-1)))
        context = packed(SEGMENT, causal=True)
        np.testing.assert_allclose(*jax.jit(lambda *each, x=x, context=context: [a(x, context) for a in each])(attention, whole), rtol=1e-5, atol=1e-5)


def test_rotary_products_depend_on_distance_alone_and_norms_stay():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    for rotary in (Rotary(), Rotary(theta=500.0, share=0.5), Rotary(scaling="ntk", factor=4.0), Rotary(scaling="llama3", factor=8.0, original=64)):

        def product(a, b, rotary=rotary):
            return float(jnp.sum(rotary(q, jnp.asarray([a])) * rotary(k, jnp.asarray([b]))))

        assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
        assert product(3, 1) != pytest.approx(product(3, 2), abs=1e-4)
        np.testing.assert_allclose(jnp.linalg.norm(rotary(q, jnp.asarray([7]))), jnp.linalg.norm(q), rtol=1e-5)
    turning = Rotary(share=0.5)(q, jnp.asarray([5]))
    np.testing.assert_array_equal(turning[..., 4:], q[..., 4:])


def test_scaled_frequencies():
    plain, width = Rotary().frequencies(64), 64
    np.testing.assert_allclose(Rotary(scaling="linear", factor=4.0).frequencies(width), plain / 4)
    ntk = Rotary(scaling="ntk", factor=4.0).frequencies(width)
    assert ntk[0] == plain[0] and ntk[-1] == pytest.approx(plain[-1] / 4)
    llama = Rotary(scaling="llama3", factor=8.0, original=8192, low=1.0, high=4.0).frequencies(width)
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(llama[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(llama[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any() and np.all((llama[between] < plain[between]) & (llama[between] > plain[between] / 8))


def test_alibi_slopes_are_geometric_and_fill_up_other_numbers_of_heads():
    assert Alibi(8).slopes() == [2.0**-n for n in range(1, 9)]
    assert Alibi(6).slopes() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    bias = Alibi(2)(jnp.arange(3), jnp.arange(3))
    np.testing.assert_allclose(bias[0, 0], -(2.0**-4) * np.abs(np.subtract.outer(np.arange(3), np.arange(3))))
    twice = AttentionKind(weights="differential", positions="alibi").bias(4, causal=True, own=False)
    assert twice is not None
    np.testing.assert_array_equal(twice(jnp.arange(3), jnp.arange(3)), jnp.concatenate([bias, bias], axis=1))  # what two views differ in is no distance


def test_entmax_sums_to_one_is_sparse_and_its_derivative_is_right():
    scores = 3 * jax.random.normal(jax.random.key(0), (5, 9))
    for alpha in (1.5, 2.0):
        got = np.asarray(jax.jit(lambda s, alpha=alpha: entmax(s, alpha))(scores))
        np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
        assert (got == 0).any()
        np.testing.assert_allclose(got, [sparsemax_or_more(row, alpha) for row in np.asarray(scores, np.float64)], atol=2e-6)
        direction = jax.random.normal(jax.random.key(1), scores.shape)
        moved = jax.jit(lambda s, d, alpha=alpha: jax.jvp(lambda s: entmax(s, alpha), (s,), (d,))[1])(scores, direction)
        step = 1e-4
        high, low = (np.stack([sparsemax_or_more(row, alpha) for row in np.asarray(scores + sign * step * direction, np.float64)]) for sign in (1, -1))
        np.testing.assert_allclose(moved, (high - low) / (2 * step), atol=5e-3)
    near = jax.nn.softmax(scores)
    np.testing.assert_allclose(jax.jit(lambda s: entmax(s, 1.02))(scores), near, atol=0.02)
    nothing_seen = jax.jit(lambda s: entmax(s, 1.5))(jnp.full((2, 4), HIDDEN))
    np.testing.assert_allclose(nothing_seen, 0.25, rtol=1e-6)  # as softmax does
    np.testing.assert_allclose(jax.jit(lambda s: entmax(s + 1e4, 1.5))(scores), jax.jit(lambda s: entmax(s, 1.5))(scores), atol=2e-3)
    with pytest.raises(ValueError, match="alpha=1.0 must be above 1"):
        Entmax(1.0)(scores[None, None], jnp.zeros((1, 1, 1, 1)))


def test_a_row_that_no_key_passes_is_zero_and_not_nan():
    attention = create(Threshold.spec(2, 8, 8, views=1, beta=1.0, kappa=1.0, power=2, learn_beta=False), jax.random.key(0))
    weights = attention(jnp.full((1, 2, 3, 3), -0.5), jnp.zeros((1, 1, 3, 3)))
    assert not np.any(np.asarray(weights))
    finished = attention.finish(jnp.zeros((1, 3, 2, 8)))
    assert np.array_equal(np.asarray(finished), np.zeros((1, 3, 2, 8)))


def test_rows_that_are_dead_for_ever_are_announced_with_their_length():
    kind = AttentionKind(weights="threshold", beta=2.0)
    attention, x = made(kind)  # keys of width 4: exp(4 / 8) = 1.6 keys
    assert attention.weights.dead_from() == pytest.approx(math.exp(0.5))
    with pytest.warns(UserWarning, match=r"rows that see 2 keys or more are empty for ever, and these rows have 12; lower beta"):
        attention(x, packed(SEGMENT, causal=True))
    wide = create(Threshold.spec(2, 64, 64, views=1, beta=1.0, kappa=1.0, power=2, learn_beta=False), jax.random.key(0))
    assert wide.dead_from() == pytest.approx(math.exp(32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide.warn_of_dead_rows(10**6)


@pytest.mark.parametrize(
    "kind",
    [
        AttentionKind(weights="threshold_differential", beta=0.5),
        AttentionKind(weights="differential", positions="alibi", groups=2),
        AttentionKind(weights="entmax", positions="rotary", window=3),
        AttentionKind(weights="rectified", positions="relative"),
    ],
    ids=lambda kind: kind.weights,
)
@pytest.mark.parametrize("module", [sasrec, esasrec, bert4rec, tiger, tiger_decoder], ids=lambda module: module.__name__.rsplit(".", 1)[-1])
def test_every_sequence_model_takes_it(module, kind):
    method, batch = module.tiny()
    if module in (tiger, tiger_decoder):
        method = dataclasses.replace(method, heads=4, head=4)
    else:
        method = dataclasses.replace(method, heads=4)
    method = dataclasses.replace(method, attention=kind)
    params = create(method.spec(), jax.random.key(0))
    loss = jax.jit(lambda params: sum(s / w for s, w in method.loss(params, batch, jax.random.key(1)).terms.values()))(params)
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    "kind",
    [AttentionKind(weights="threshold_differential", beta=0.5), AttentionKind(positions="rotary", groups=2), AttentionKind(window=3)],
    ids=["threshold_differential", "rotary", "window"],
)
def test_a_beam_search_scores_as_teacher_forcing_does(kind):
    method, batch = tiger_decoder.tiny()
    method = dataclasses.replace(method, heads=4, head=4, attention=kind, segments=1)
    leaves = flatten(create(method.spec(), jax.random.key(0)))
    leaves |= {f"sids.trie.{name}": jnp.asarray(leaf) for name, leaf in flatten(tiny_sids()[1]["trie"]).items()}
    params = unflatten(method.spec(), leaves)
    one = {name: np.where(batch["segment"] == 1, array, 0) for name, array in batch.items()}
    codes, items, log_probs = jax.jit(lambda p, b: method.generate(p, b, beams=4))(params, one)
    wanted = []
    for row, item in enumerate(np.asarray(items)[:, 0]):
        used = int((one["segment"][row] > 0).sum())
        long = {name: array[row : row + 1].copy() for name, array in one.items()}
        long["history"][0, used], long["segment"][0, used] = item, 1
        hidden = jax.jit(lambda p, b: method.states(p, b, None, 1)[0])(params, long)[0]
        begin, widths = used * method.tokens_per_item, len(method.sids.widths)
        each = [params.tokens.log_probs(level, hidden[begin - 1 + level])[codes[row, 0, level]] for level in range(widths)]
        wanted.append(sum(float(value) for value in each))
    np.testing.assert_allclose(np.asarray(log_probs)[:, 0], wanted, rtol=1e-4, atol=1e-4)


def test_bad_kinds_are_refused():
    for wrong, message in (
        ({"beta": 0}, "beta=0 must be above 0"),
        ({"beta": float("nan")}, "beta=nan must be above 0"),
        ({"alpha": 1.0}, "alpha=1.0 must be above 1"),
        ({"power": 1.5}, "power=1.5 must be a whole number above 0"),
        ({"window": -1}, "window=-1 must be at least 0"),
        ({"groups": 2.5, "cap": -1.0}, "groups=2.5 must be a whole number of at least 0; cap=-1.0 must be at least 0"),
        ({"weights": "sofmax"}, "weights='sofmax' is none of softmax, threshold"),
        ({"positions": "rotry"}, "positions='rotry' is none of own, rotary"),
    ):
        with pytest.raises(ValueError, match=message):
            AttentionKind(**wrong)
    for wrong in ({"low": 4.0}, {"original": 0}, {"high": float("nan")}):
        with pytest.raises(ValueError, match="original=.* must be above 0, and low=.* above 0 and below high="):
            Rotary(scaling="llama3", **wrong)
    for causal, buckets, furthest in ((True, 32, 16), (False, 32, 8), (True, 8, 0)):
        with pytest.raises(
            ValueError, match=rf"furthest={furthest} must be above {buckets // (2 if causal else 4)}, the distances with one of buckets={buckets}"
        ):
            RelativeBias.spec(2, buckets=buckets, furthest=furthest, causal=causal)
    for wrong in ({"factor": 0.0}, {"theta": float("inf")}, {"share": 2.0}):
        with pytest.raises(ValueError, match="must be above 0, and share="):
            Rotary(**wrong)
    with pytest.raises(ValueError, match="groups=3 must divide heads=4"):
        Attention.spec(D, 4, kind=AttentionKind(groups=3))
    with pytest.raises(ValueError, match="make one head of 2; heads=4 and groups=1 must be even"):
        Attention.spec(D, 4, kind=AttentionKind(weights="differential", groups=1))
    with pytest.raises(ValueError, match="make one head of 2; heads=3 and groups=0 must be even"):
        Attention.spec(48, 3, kind=AttentionKind(weights="threshold_differential"))
    with pytest.raises(ValueError, match="positions='alibi' take more from far keys than the cosines of weights='threshold' hold"):
        AttentionKind(weights="threshold", positions="alibi")
    with pytest.raises(ValueError, match="scaling='ntk' keeps the highest frequency and lowers the others, and 2 turning features have one"):
        Rotary(scaling="ntk", factor=2.0).frequencies(2)
    with pytest.raises(ValueError, match="HSTU is a kind of attention itself"):
        dataclasses.replace(hstu.tiny()[0], attention=AttentionKind(weights="rectified"))
    with pytest.raises(ValueError, match="users=4: ALiBi hides user tokens"):
        dataclasses.replace(tiger.tiny()[0], users=4, attention=AttentionKind(positions="alibi"))
    with pytest.raises(ValueError, match="scaling='yarnish' is none of"):
        Rotary(scaling="yarnish")
    assert isinstance(TransformerBlock.spec(D, H, D, 0.0), TransformerBlock)
