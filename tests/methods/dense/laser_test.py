"""LaSER: thoughts against a recomputation without a cache, the loss against the paper's equations in NumPy, and who learns from whom."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.dense.laser import LaSER, expected_word, spread, tiny
from jaxrec.methods.dense.last_token import LastToken
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.lora import LoRA
from jaxrec.nn.token_prepending import TokenPrepending
from jaxrec.param import create, flatten

METHOD, BATCH = tiny()
PARAMS = jax.jit(lambda key: create(METHOD.spec(), key))(jax.random.key(0))
# Words are drawn small, so that every softmax over them is nearly flat; with larger ones thoughts are of something.
PARAMS = PARAMS.replace(base=dataclasses.replace(PARAMS.base, output=jax.tree.map(lambda leaf: 40 * leaf, PARAMS.base.output)))
IDS = np.asarray(BATCH["document"])  # [4, 12], the second padded after its ninth token
TERMS = ("contrastive", "teacher", "distillation", "trajectory")


@functools.partial(jax.jit, static_argnums=0)
def states(method, params, ids):
    return method.states(params.decoder, ids)


@functools.partial(jax.jit, static_argnums=0)
def encode(method, params, ids):
    return method.encode_item(params, {"document": ids}).values[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def loss(method, params, batch):
    return method.loss(params, batch, jax.random.key(0))


def units(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def softmax(scores):
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=2)
def recomputed(params, text, thoughts):
    """The thoughts [K, D] of one text, the whole row read anew for each."""
    model, x, found = params.decoder, params.decoder.embed(jnp.asarray(text))[None], []
    for _ in range(thoughts):
        found.append(model(embeddings=x)[0, -1])
        shares = jax.nn.softmax(model.logits(found[-1]))
        soft = model.scale * jnp.einsum("v,vd->d", shares, model.word.table[: model.vocabulary])
        x = jnp.concatenate([x, soft[None, None]], axis=1)
    return jnp.stack(found)


def test_one_thought_is_the_last_token_bit_for_bit():
    plain = LastToken(encoder=METHOD.encoder, pad=0, temperature=METHOD.temperature)
    one = dataclasses.replace(METHOD, thoughts=1, teacher=0.0, distillation=0.0, trajectory=0.0)
    np.testing.assert_array_equal(encode(one, PARAMS, IDS), encode(plain, PARAMS, IDS))
    assert not flatten(one.spec())["base.output.table"].trainable and flatten(METHOD.spec())["base.output.table"].trainable
    wanted, got = loss(plain, PARAMS, BATCH), loss(one, PARAMS, BATCH)
    assert wanted.terms.keys() == got.terms.keys() == {"contrastive"}
    np.testing.assert_array_equal(got.terms["contrastive"], wanted.terms["contrastive"])
    np.testing.assert_allclose(states(METHOD, PARAMS, IDS)[:, 0], states(one, PARAMS, IDS)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_a_cached_thought_is_what_reading_all_again_gives(positions):
    model = dataclasses.replace(METHOD.encoder, attention=AttentionKind(positions=positions), scale=3.0)
    method = dataclasses.replace(METHOD, encoder=model)
    params = jax.jit(lambda key: create(method.spec(), key))(jax.random.key(0))
    params = params.replace(base=dataclasses.replace(params.base, output=PARAMS.base.output))
    found = np.asarray(states(method, params, IDS))
    for row, text in zip(found, IDS, strict=True):
        np.testing.assert_allclose(row, recomputed(params, text[text != 0], 3), rtol=1e-5, atol=1e-5)
    assert np.abs(np.diff(found, axis=1)).max(axis=(0, 2)).min() > 1e-2  # each thought is another
    np.testing.assert_allclose(encode(method, params, IDS), units(found.mean(axis=1)), rtol=1e-5, atol=1e-6)


def test_padding_on_either_side_changes_nothing():
    found = np.asarray(states(METHOD, PARAMS, IDS))
    for before, after in ((3, 0), (0, 3), (2, 1)):
        np.testing.assert_allclose(states(METHOD, PARAMS, np.pad(IDS, ((0, 0), (before, after)))), found, rtol=1e-4, atol=1e-5)
    assert np.isfinite(states(METHOD, PARAMS, np.zeros_like(IDS))).all()  # a text of nothing


def test_a_soft_token_is_the_expected_word():
    model = dataclasses.replace(PARAMS.base, scale=2.0, cap=9.0)
    hidden = jax.random.normal(jax.random.key(5), (3, 16))
    words = np.asarray(model.word.table)[:48] * 2.0
    shares = np.asarray(jax.nn.softmax(model.logits(hidden)))
    assert 0.1 < shares.max() < 0.999

    def total(model, hidden, chunk):
        return jnp.sum(jnp.sin(expected_word(model, hidden, chunk=chunk)))

    def plainly(model, hidden):
        return jnp.sum(jnp.sin(2.0 * jnp.einsum("bv,vd->bd", jax.nn.softmax(model.logits(hidden)), model.word.table[:48])))

    for chunk in (1000, 20):  # all words at once, or in chunks of which the last has words of the one before
        soft = jax.jit(functools.partial(expected_word, chunk=chunk))(model, hidden)
        np.testing.assert_allclose(soft, shares @ words, rtol=1e-4, atol=1e-6)
    both = jax.jit(lambda *values: [jax.grad(f, argnums=(0, 1))(*values) for f in (functools.partial(total, chunk=20), plainly)])
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5), *both(model, hidden))
    # Of shares that are none below 0 and 1 together, so within the words' hull; and one word for certain is that word.
    assert (np.asarray(soft) >= words.min(axis=0)).all() and (np.asarray(soft) <= words.max(axis=0)).all()
    certain = dataclasses.replace(model, cap=0.0, output=jax.tree.map(lambda leaf: 1e4 * leaf, model.output))
    best = np.asarray(certain.logits(hidden)).argmax(axis=1)
    np.testing.assert_array_equal(jax.jit(functools.partial(expected_word, chunk=20))(certain, hidden), words[best])


def test_steps_are_spread_from_the_first_to_the_last():
    marks = np.zeros((6, 9), bool)
    marks[0, [1, 4, 7]] = marks[1, [0, 2, 3, 5, 8]] = marks[2, [2, 6]] = marks[3, 5] = marks[4] = True
    found = np.asarray(spread(jnp.asarray(marks), 3))
    assert found[:4].tolist() == [[1, 4, 7], [0, 3, 8], [2, 6, 6], [5, 5, 5]]  # M = K; M > K; M < K; M = 1
    for row, count in ((1, 5), (4, 9)):
        for thoughts in (2, 3, 4):
            wanted = np.flatnonzero(marks[row])[np.floor(np.linspace(0, count - 1, thoughts)).astype(int)]
            np.testing.assert_array_equal(spread(jnp.asarray(marks[row : row + 1]), thoughts)[0], wanted)
    assert found.shape == (6, 3) and (found[5] == 0).all()  # no step: no matter
    assert np.asarray(spread(jnp.asarray(marks[:4]), 1)).tolist() == [[7], [8], [6], [5]]  # one thought learns from the end


def views():
    """What the model says of the batch: thoughts [B, K, D], documents [C, D], the explicit view's last state [B, D] and its steps [B, K, D], float64."""
    documents = np.concatenate([IDS, np.asarray(BATCH["negative"])[:, 0]])
    reasoning = np.asarray(BATCH["reasoning"])
    hidden = np.asarray(jax.jit(lambda decoder, ids: decoder(ids, (ids != 0).astype(jnp.int32)))(PARAMS.base, reasoning))
    marks = [[5, 7, 9], [5, 7, 9], [6, 6, 6], [0, 0, 0]]  # by hand: the first two have four steps, the third one
    steps = hidden[np.arange(4)[:, None], np.asarray(marks)]
    last = hidden[np.arange(4), (reasoning != 0).sum(axis=1) - 1]
    return [np.asarray(some, np.float64) for some in (states(METHOD, PARAMS, BATCH["query"]), encode(METHOD, PARAMS, documents), units(last), units(steps))]


def test_the_loss_is_the_papers():
    thoughts, documents, explicit, steps = views()
    queries = units(thoughts.mean(axis=1))
    reasoned = [0, 1, 2]  # the last row has no reasoning

    def infonce(vectors, rows):
        shares = softmax(vectors @ documents.T / METHOD.temperature)
        return -sum(np.log(shares[row, row]) for row in rows)

    def divergence(teachers, students, temperature):
        wanted, given = (softmax(some @ documents.T / temperature) for some in (teachers, students))
        return (wanted * (np.log(wanted) - np.log(given))).sum()

    got = loss(METHOD, PARAMS, BATCH)
    wanted = {
        "contrastive": infonce(queries, range(4)),
        "teacher": infonce(explicit, reasoned),
        "distillation": divergence(explicit[reasoned], queries[reasoned], METHOD.distillation_temperature),
        "trajectory": divergence(steps[reasoned], units(thoughts)[reasoned], METHOD.trajectory_temperature) / 3,
    }
    assert got.terms.keys() == wanted.keys() == set(TERMS)
    for name, total in wanted.items():
        np.testing.assert_allclose(got.terms[name], (total, 4), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(got.metrics["with_reasoning"], (3, 4))
    assert LaSER().coefficients == {"teacher": 1.0, "distillation": 10.0, "trajectory": 0.1} and LaSER().coefficients.get("contrastive", 1.0) == 1.0


def test_known_answers_are_left_out_of_every_term():
    batch = {**BATCH, "query_row": jnp.asarray([0, 1, 0, 3])}
    apart, known = loss(METHOD, PARAMS, BATCH).terms, loss(METHOD, PARAMS, batch).terms
    for name in TERMS:
        assert np.isfinite(known[name][0]) and known[name][0] != apart[name][0]


def test_a_batch_without_reasoning_has_the_contrastive_term_alone():
    nothing = {**BATCH, "step": jnp.zeros_like(BATCH["step"])}
    gradients = []
    for method, batch in ((METHOD, nothing), (dataclasses.replace(METHOD, teacher=0.0, distillation=0.0, trajectory=0.0), BATCH)):

        def objective(params, method=method, batch=batch):
            terms = method.loss(params, batch, jax.random.key(0)).terms
            return sum(method.coefficients.get(name, 1.0) * total / weight for name, (total, weight) in terms.items()), terms

        gradient, terms = jax.jit(jax.grad(objective, has_aux=True))(PARAMS)
        assert all(terms[name][0] == 0 for name in TERMS[1:] if name in terms) and terms["contrastive"][0] > 0
        gradients.append(gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *gradients)
    assert terms.keys() == {"contrastive"}
    half = loss(dataclasses.replace(METHOD, trajectory=0.0), PARAMS, BATCH).terms
    assert half.keys() == {"contrastive", "teacher", "distillation"}


@dataclasses.dataclass(frozen=True)
class Given(LaSER):
    """LaSER over states that are the parameters themselves."""

    def states(self, decoder, ids, key=None):
        return decoder[{6: "query", 12: "document"}[ids.shape[1]]]

    def _explicit(self, decoder, ids, step):
        return decoder["explicit"], decoder["steps"]


class Parameters(dict):
    decoder = property(dict)


def test_no_gradient_goes_into_the_teacher_and_some_into_documents():
    thoughts, documents, explicit, steps = (jnp.asarray(some, jnp.float32) for some in views())
    params = {"query": thoughts, "document": documents[:, None], "explicit": explicit, "steps": steps}
    method = Given(temperature=0.1, distillation_temperature=0.1)

    def totals(params):
        return {name: total for name, (total, _) in method.loss(Parameters(params), BATCH, jax.random.key(0)).terms.items()}

    gradient = jax.jit(jax.jacrev(totals))(params)
    reached = {name: {part for part, leaf in parts.items() if np.abs(leaf).max() > 1e-6} for name, parts in gradient.items()}
    assert reached == {
        "contrastive": {"query", "document"},
        "teacher": {"explicit", "document"},
        "distillation": {"query", "document"},
        "trajectory": {"query", "document"},
    }
    assert not np.abs(gradient["distillation"]["query"][3]).max() and np.abs(gradient["contrastive"]["query"][3]).max()  # without reasoning


def test_adapters_think_too():
    method = dataclasses.replace(METHOD, lora=LoRA(rank=2, targets=("qkv", "outer")))
    # Scores of words that are less sharp than in the other tests: those would blow the rounding of a merge up from thought to thought.
    base = dataclasses.replace(PARAMS.base, output=jax.tree.map(lambda leaf: leaf / 10, PARAMS.base.output))
    params = jax.jit(lambda key: create(method.spec(), key))(jax.random.key(1)).replace(base=base)
    plain = np.asarray(states(METHOD, PARAMS.replace(base=base), IDS))
    np.testing.assert_allclose(states(method, params, IDS), plain, rtol=1e-5, atol=1e-5)  # B is 0
    moved = params.replace(adapters=jax.tree.map(lambda leaf: leaf + 0.1, params.adapters))
    merged = PARAMS.replace(base=method.lora.merge(base, moved.adapters))
    found = np.asarray(states(method, moved, IDS))
    np.testing.assert_allclose(found, states(METHOD, merged, IDS), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max(axis=(0, 2)).min() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thoughts": 0}, "LaSER: thoughts=0 must be at least 1$"),
        ({"trajectory": -0.1}, "trajectory=-0.1 must be at least 0"),
        ({"distillation_temperature": 0.0}, "distillation_temperature=0.0 must be above 0$"),
        ({"teacher": float("nan")}, "teacher=nan must be at least 0"),
        ({"thoughts": 1.5}, "thoughts=1.5 must be a whole number of at least 1"),
        ({"pooling": "mean"}, "thoughts=3 go on from the last token of a text; leave pooling='last' and plan=None"),
        ({"plan": TokenPrepending("tp")}, "leave pooling='last' and plan=None"),
        ({"encoder": LanguageModel(length=16), "thoughts": 16}, "thoughts=16 leave a text no room in the 16 tokens of the model; ask for fewer"),
        ({"encoder": LanguageModel(dropout=0.1)}, "encoder.dropout=0.1 does not reach thoughts"),
        ({"temperature": -1.0}, "temperature=-1.0 must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LaSER(**fields)


def test_what_a_batch_lacks_is_said():
    message = "and no reasoning with its steps to learn from; train on ReasonedPassages, or set teacher, distillation and trajectory to 0"
    for lacking in (("reasoning", "step"), ("step",)):
        with pytest.raises(ValueError, match=message):
            bare = {name: array for name, array in BATCH.items() if name not in lacking}
            jax.eval_shape(lambda batch: METHOD.loss(PARAMS, batch, jax.random.key(0)), bare)
    with pytest.raises(ValueError, match="texts of 23 tokens and 2 soft tokens are longer than the 24 of the model; cut texts to 22"):
        METHOD.encode_item(PARAMS, {"document": np.ones((1, 23), np.int32)})


def test_a_text_of_one_token_has_thoughts_too():
    found = states(METHOD, PARAMS, np.array([[7], [9]], np.int32))
    np.testing.assert_allclose(found[0], recomputed(PARAMS, np.array([7]), METHOD.thoughts), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], recomputed(PARAMS, np.array([9]), METHOD.thoughts), rtol=1e-4, atol=1e-4)
