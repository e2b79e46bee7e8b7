"""KinyaColBERT: vectors of words, whose parts are a set and whose neighbours are words."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.late_interaction.kinyacolbert import tiny
from jaxrec.nn.bert import BERT
from jaxrec.param import create

METHOD, BATCH = tiny()
PARAMS = create(METHOD.spec(), jax.random.key(0))
#   [CLS] mark [SEP] are words of one part; 20..39 continue a word, 40 and 41 are skipped stems
TEXT = np.array([[5, 6, 10, 25, 26, 11, 40, 12, 27, 7, 0, 0], [5, 6, 10, 26, 25, 11, 40, 12, 27, 7, 0, 0]], np.int32)
WORDS = 7


@functools.partial(jax.jit, static_argnums=0)
def encoded(method, params, texts):
    return method.encode_query(params, {"query": texts}), method.encode_item(params, {"document": texts})


def vectors(texts, method=METHOD):
    return jax.device_get(encoded(method, PARAMS, jnp.asarray(texts)))


def test_a_vector_for_each_word():
    query, document = vectors(TEXT)
    np.testing.assert_array_equal(query.mask, np.arange(12)[None] < np.array([[WORDS], [WORDS]]))
    skipped = query.mask.copy()
    skipped[:, 4] = False  # the fifth word is the stem 40 alone
    np.testing.assert_array_equal(document.mask, skipped)
    np.testing.assert_allclose(np.linalg.norm(query.values[query.mask], axis=-1), 1, atol=1e-5)
    everything = vectors(TEXT, dataclasses.replace(METHOD, skip_punctuation=False))[1]
    np.testing.assert_array_equal(everything.mask, query.mask)


def test_a_skipped_stem_with_affixes_is_a_word():
    text = TEXT.copy()
    text[0, 7] = 27  # 40 ##27 ##27
    np.testing.assert_array_equal(vectors(text)[1].mask[0], np.arange(12) < WORDS - 1)


def test_affixes_are_a_set_and_words_are_not():
    query, _ = vectors(TEXT)
    np.testing.assert_allclose(query.values[0, :WORDS], query.values[1, :WORDS], atol=1e-5)  # the two differ in the order of one word's affixes
    swapped = TEXT[:, [0, 1, 5, 2, 3, 4, 6, 7, 8, 9, 10, 11]]
    assert np.abs(vectors(swapped)[0].values[0, 2] - query.values[0, 3]).max() > 1e-4


def test_a_part_is_seen_first_within_its_word_and_then_by_all():
    changed = TEXT.copy()
    changed[:, 3] = 33
    query, other = vectors(TEXT)[0], vectors(changed)[0]
    moved = np.abs(query.values - other.values)[:, :WORDS].max(axis=-1)
    assert (moved > 1e-6).all() and (moved.argmax(axis=1) == 2).all()  # most of all its own word


def test_padding_changes_nothing():
    wide, narrow = vectors(TEXT)[1], vectors(TEXT[:, :10])[1]
    np.testing.assert_allclose(wide.values[:, :WORDS], narrow.values[:, :WORDS], atol=1e-5)
    np.testing.assert_array_equal(wide.mask[:, :10], narrow.mask)
    assert not wide.mask[:, 10:].any()


def test_the_lower_tier_keeps_to_one_word():
    """The word's state before tier 2 is the same in any text: both tiers by hand, with the second one taken out."""
    alone = dataclasses.replace(PARAMS, sentence=lambda x, context: x)
    bare = jax.jit(lambda ids, word: alone(ids, word))
    texts = np.array([[10, 25, 26, 11, 0, 0], [10, 25, 26, 12, 33, 34]], np.int32)
    found = bare(texts, np.array([[1, 1, 1, 2, 0, 0], [1, 1, 1, 2, 2, 2]]))
    np.testing.assert_allclose(found[0, 0], found[1, 0], atol=1e-6)
    assert np.abs(found[0, 1] - found[1, 1]).max() > 1e-3


def test_chunks_give_the_same_vectors():
    np.testing.assert_allclose(vectors(TEXT, dataclasses.replace(METHOD, chunk=1))[0].values, vectors(TEXT)[0].values, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="texts of 30 tokens are longer than the 12 positions of the model; truncate them to 12"):
        vectors(np.ones((2, 30), np.int32))
    with pytest.raises(ValueError, match=r"KinyaColBERT has a vector for each word, and \[MASK\] is none; set augment=False"):
        dataclasses.replace(METHOD, augment=True)
    with pytest.raises(ValueError, match=r"encoder\.dim=16 holds two vectors of morphology\.dim=8 and a stem's own; make it larger"):
        dataclasses.replace(METHOD, morphology=BERT(vocabulary=48, dim=8, layers=1, heads=2, hidden=8))
    with pytest.raises(ValueError, match="both tiers read the same pieces: vocabulary=48 and 50 must be equal"):
        dataclasses.replace(METHOD, morphology=dataclasses.replace(METHOD.morphology, vocabulary=50))
