"""ColBERTer: whole words against a dictionary, two scores in one MaxSim, gates, and its losses in NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.method import bind
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colberter import ColBERTer, Parts, joined_document, joined_query, same_word, tiny
from jaxrec.param import create
from kernels.maxsim import maxsim

METHOD, BATCH = tiny()
PARAMS = create(METHOD.spec(), jax.random.key(0))
QUERY, DOCUMENT = np.asarray(BATCH["query"]), np.asarray(BATCH["document"])


@functools.partial(jax.jit, static_argnums=0)
def everything(method, params, batch):
    """(parts of queries, parts of documents, vectors of documents, loss)."""
    documents = {"document": batch["document"]}
    parts = method.query_parts(params, batch), method.document_parts(params, documents)
    return *parts, method.encode_item(params, documents), method.loss(params, batch, jax.random.key(1))


@functools.partial(jax.jit, static_argnums=0)
def pieces(method, params, ids):
    return method._encode(params, ids, ids != method.pad, None)


def gated(bias):
    """The parameters with this bias of the gates."""
    return dataclasses.replace(PARAMS, gate=dataclasses.replace(PARAMS.gate, bias=jnp.full_like(PARAMS.gate.bias, bias)))


def words_of(ids, skipped=()):
    """The different words of a text [T] -> their places, by a dictionary: [CLS], the mark and [SEP] are none, 20..39 continue."""
    end, found, last = int((ids != METHOD.pad).sum()) - 1, [], None
    for place in range(2, end):
        if ids[place] in skipped:
            last = None
        elif last is not None and ids[place] in METHOD.continues:
            last.append(place)
        else:
            last = [place]
            found.append(last)
    words = {}
    for places in found:
        words.setdefault(tuple(ids[places]), []).extend(places)
    return list(words.values())


def random_parts(random, texts, tokens, dim=3, whole=4):
    mask = random.random((texts, tokens)) < 0.7
    counts = np.zeros(texts, np.int32)
    values = random.normal(size=(texts, tokens, dim)).astype(np.float32)
    return Parts(random.normal(size=(texts, whole)).astype(np.float32), values, mask, mask * 1.0, counts, counts)


def test_words_are_equal_if_their_pieces_are():
    random = np.random.default_rng(0)
    ids = random.integers(18, 24, size=(40, 30)).astype(np.int32)  # few pieces, so that many words occur again
    kept, continued = random.random(ids.shape) < 0.9, (ids >= 20)
    same, first = jax.device_get(jax.jit(same_word)(ids, kept, continued))
    for row in range(len(ids)):
        spelled, word = {}, []  # place -> the pieces of its word
        for place in range(31):
            inside = place < 30 and kept[row, place]
            if not (inside and continued[row, place]):
                spelled |= {p: tuple(ids[row, word]) for p in word}
                word = []
            word += [place] if inside else []
        expected = np.array([[spelled.get(a) is not None and spelled.get(a) == spelled.get(b) for b in range(30)] for a in range(30)])
        np.testing.assert_array_equal(same[row], expected)
        firsts = {text: min(p for p in spelled if spelled[p] == text) for text in spelled.values()}
        assert set(np.flatnonzero(first[row])) == set(firsts.values())


def test_a_word_is_the_mean_of_its_pieces_wherever_it_stands():
    text = DOCUMENT.copy()
    text[:2, 2:8] = [10, 25, 26, 11, 10, 25]  # one word of three pieces, one of one, one of two
    text[2, 2:10] = [10, 25, 11, 10, 25, 40, 26, 12]  # twice the same word; after a mark, 26 begins one
    encoded = pieces(METHOD, PARAMS, jnp.asarray(text))
    parts = everything(dataclasses.replace(METHOD, stopwords=False), dataclasses.replace(PARAMS, gate=None), {**BATCH, "document": jnp.asarray(text)})[1]
    for row in range(len(text)):
        expected = words_of(text[row], METHOD.punctuation)
        assert np.flatnonzero(parts.mask[row]).tolist() == [places[0] for places in expected]
        for places in expected:
            np.testing.assert_allclose(parts.words[row, places[0]], encoded[row, places, : METHOD.dim].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(parts.whole, encoded[:, 0, METHOD.dim :])
    assert words_of(text[0])[:3] == [[2, 3, 4], [5, 8], [6, 7]] and words_of(text[2], METHOD.punctuation)[:3] == [[2, 3, 5, 6], [4], [8]]


def test_the_counts_say_what_is_saved():
    query, document, _, loss = everything(METHOD, PARAMS, BATCH)
    base, _ = colbert.tiny()
    kept = base.encode_item(create(base.spec(), jax.random.key(0)), {"document": BATCH["document"]}).mask
    np.testing.assert_array_equal(document.pieces, kept.sum(axis=1))
    np.testing.assert_array_equal(document.distinct, [len(words_of(row, METHOD.punctuation)) for row in DOCUMENT])
    np.testing.assert_array_equal(query.mask.sum(axis=1), [len(words_of(row)) for row in QUERY])
    total, pieces_of_all = loss.metrics["words / pieces"]
    negatives = [len(words_of(row, METHOD.punctuation)) for row in np.asarray(BATCH["negative"])[:, 0]]
    assert total == document.distinct.sum() + sum(negatives) and total < pieces_of_all
    assert loss.metrics["stored / words"] == (total, total)  # at the start every gate is open


@pytest.mark.parametrize("gamma", [-30.0, -1.0, 0.0, 2.0, 30.0])
def test_one_maxsim_is_the_sum_of_both_scores(gamma):
    random = np.random.default_rng(1)
    queries, documents = random_parts(random, 5, 6), random_parts(random, 7, 9)
    documents.words[:2] -= 3 * np.abs(documents.words[:2])  # all similarities of some pairs are negative
    documents.mask[2] = False  # no word is left
    queries.mask[1] = False
    share = 1 / (1 + np.exp(-gamma))
    similarity = np.where(documents.mask[None, :, None], np.einsum("bnd,cmd->bcnm", queries.words, documents.words), -np.inf)
    best = np.where(documents.mask.any(axis=1)[None, :, None], similarity.max(axis=-1), 0)
    assert (best < 0).any()
    expected = share * queries.whole @ documents.whole.T + (1 - share) * np.where(queries.mask[:, None], best, 0).sum(axis=-1)
    query, document = joined_query(queries, jnp.asarray(gamma)), joined_document(documents)
    np.testing.assert_allclose(maxsim(query.values, document.values, query.mask, document.mask), expected, atol=1e-5)


def test_closed_gates_store_nothing_and_score_0():
    _, document, vectors, loss = everything(METHOD, gated(-10.0), BATCH)
    assert not document.mask.any() and loss.metrics["stored / words"][0] == 0 == loss.terms["gate"][0]
    assert (vectors.mask.sum(axis=1) == 2).all()  # the whole text's, and a zero vector for words to meet
    assert not vectors.values[:, 1, : METHOD.dim].any()
    assert np.isfinite(loss.terms["fused"][0])


def test_gates_weigh_words_and_some_close():
    parts = everything(METHOD, PARAMS, BATCH)[1]
    ungated = everything(dataclasses.replace(METHOD, stopwords=False), dataclasses.replace(PARAMS, gate=None), BATCH)[1]
    gate = np.maximum(ungated.words @ PARAMS.gate.kernel[:, 0] + 1, 0)
    np.testing.assert_allclose(parts.words, gate[..., None] * ungated.words, atol=1e-6)
    np.testing.assert_allclose(parts.gate, np.where(ungated.mask, gate, 0), atol=1e-6)
    middle = float(np.median(gate[np.asarray(ungated.mask)]))
    half, _, loss = everything(METHOD, gated(1 - middle), BATCH)[1:]
    np.testing.assert_array_equal(half.mask, ungated.mask & (np.asarray(half.gate) > 0))
    stored, words = loss.metrics["stored / words"]
    assert 0.2 < stored / words < 0.8


def test_the_gate_term_closes_gates():
    def mean_gate(params):
        total, weight = METHOD.loss(params, BATCH, jax.random.key(1)).terms["gate"]
        return total / weight

    assert jax.jit(jax.grad(mean_gate))(PARAMS).gate.bias == pytest.approx(1, abs=1e-6)  # every gate is open and falls with the bias


def mean(pair):
    return float(pair[0] / pair[1])


def both_scores(batch):
    """(fused, whole) [B, C] of the batch, by the joined vectors' definition."""
    documents = jnp.concatenate([batch["document"], batch["negative"][:, 0]])
    query, _, _, _ = everything(METHOD, PARAMS, batch)
    found = jax.jit(METHOD.document_parts)(PARAMS, {"document": documents})
    left, right = joined_query(query, PARAMS.fusion), joined_document(found)
    return np.asarray(maxsim(left.values, right.values, left.mask, right.mask)), np.asarray(query.whole @ found.whole.T)


def test_without_a_teacher_both_scores_are_contrastive():
    terms = everything(METHOD, PARAMS, BATCH)[3].terms
    for name, scores in zip(("fused", "whole"), both_scores(BATCH), strict=True):
        expected = np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores)
        assert mean(terms[name]) == pytest.approx(expected.mean(), rel=1e-5)
    assert METHOD.coefficients == {"whole": 0.1, "gate": 0.75}


def test_with_a_teacher_both_scores_are_margin_mse():
    teacher = np.array([[3, 1], [0, 2], [1, 1], [-5, 5]], np.float32)
    batch = {**BATCH, "teacher": jnp.asarray(teacher), "mask": jnp.asarray([1, 2, 0, 1.0])}
    terms = everything(METHOD, PARAMS, batch)[3].terms
    rows, weight = np.arange(4), np.array([1, 2, 0, 1])
    for name, scores in zip(("fused", "whole"), both_scores(batch), strict=True):
        wrong = np.diagonal(scores) - scores[rows, 4 + rows] - (teacher[:, 0] - teacher[:, 1])
        assert mean(terms[name]) == pytest.approx((weight * wrong**2).sum() / 4, rel=1e-4)
    same = np.stack([np.diagonal(scores), scores[rows, 4 + rows]], axis=1) + 7  # only margins count
    assert mean(everything(METHOD, PARAMS, {**BATCH, "teacher": jnp.asarray(same)})[3].terms["whole"]) == pytest.approx(0, abs=1e-8)


def test_chunks_give_the_same_vectors():
    whole = everything(METHOD, PARAMS, BATCH)[2]
    chunked = jax.jit(dataclasses.replace(METHOD, chunk=2).encode_item)(PARAMS, {"document": BATCH["document"]})
    np.testing.assert_allclose(chunked.values, whole.values, atol=1e-6)
    np.testing.assert_array_equal(chunked.mask, whole.mask)


def test_fields_from_data():
    bound = bind(ColBERTer(), {"pad": 0, "mask_token": 4, "punctuation": [5, 6], "continues": [7, 8]})
    assert (bound.continues, bound.punctuation, bound.pad) == ((7, 8), (5, 6), 0)


def test_errors():
    with pytest.raises(ValueError, match=r"ColBERTer has a vector for each word, and \[MASK\] is none; set augment=False"):
        dataclasses.replace(METHOD, augment=True)
    with pytest.raises(ValueError, match="ColBERTer: whole=0 must be at least 1"):
        dataclasses.replace(METHOD, whole=0)
    with pytest.raises(ValueError, match="ColBERTer: gate_weight=nan must be at least 0"):
        dataclasses.replace(METHOD, gate_weight=np.nan)
    alone = {name: array for name, array in BATCH.items() if not name.startswith("negative")} | {"teacher": jnp.ones((4, 1))}
    with pytest.raises(ValueError, match=r"MarginMSE compares .* the batch has none; set data\.hard"):
        jax.eval_shape(METHOD.loss, PARAMS, alone, jax.random.key(0))
