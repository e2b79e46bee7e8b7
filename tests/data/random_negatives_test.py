"""RandomNegatives: different documents, none of them relevant, every other as likely."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.random_negatives import RandomNegatives
from jaxrec.data.tokenizers import WordPiece

SOURCE = SyntheticCollection(documents=20, queries=200)


def test_negatives_are_drawn_from_the_other_documents():
    collection, drawn = SOURCE.get(), RandomNegatives(SOURCE, count=6).get()
    assert drawn.shape == (200, 6) and drawn.dtype == np.int32
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert not any(np.isin(collection.qrels["train"].of(query)[0], drawn[query]).any() for query in range(200))
    counts = np.bincount(drawn.reshape(-1), minlength=20)
    assert np.abs(counts - 60).max() < 30  # binomial, standard deviation about 6.5
    assert (RandomNegatives(SOURCE, count=6, seed=1).get() != drawn).any()


def test_passages_take_them():
    data = Passages(SOURCE, WordPiece(SOURCE, size=256), batch=4, query_length=8, document_length=12, negatives=RandomNegatives(SOURCE, count=6), hard=3)
    batch = next(iter(data.batches()))
    assert batch["negative"].shape == (4, 3, 12)
    np.testing.assert_array_equal(batch["negative"], data.tokens()["documents"][batch["negative_row"]])


@dataclasses.dataclass(frozen=True)
class Asked(SyntheticCollection):
    """Without a training split, as most published collections are."""

    def read(self):
        whole = super().read()
        return dataclasses.replace(whole, queries={"test": whole.queries["test"]}, qrels={"test": whole.qrels["test"]})


def test_a_collection_without_training_queries_says_which_it_has():
    source = Asked(documents=20, queries=3)
    with pytest.raises(ValueError, match="negatives are of training queries, and the collection has test alone; take one with a training split"):
        RandomNegatives(source).get()
    with pytest.raises(ValueError, match="training needs training queries, and the collection has test alone; take one with a training split"):
        Passages(source, WordPiece(source, size=256)).pairs()


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match="count=0 draws nothing; use 1 or more"):
        RandomNegatives(SOURCE, count=0)
    with pytest.raises(ValueError, match="count=20 negatives of training query 0 are more than the 19 other documents"):
        RandomNegatives(SOURCE, count=20).get()
