"""BM25: the formula by hand, exact counts, ties, and the published quality on SciFact."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders.beir import Beir
from jaxrec.evals import search
from jaxrec.index.bm25 import BM25Index, words

TEXTS = ["the cat sat on the mat", "dogs and cats", "", "a dog sat", "The mat, the MAT!", "bird"]


def formula(query: str, texts: list[str], k1: float, b: float) -> np.ndarray:
    """[N] the docstring's equation, word by word."""
    bags = [Counter(words(text)) for text in texts]
    mean = sum(bag.total() for bag in bags) / len(bags)
    scores = np.zeros(len(texts))
    for word in words(query):
        holding = sum(word in bag for bag in bags)
        for row, bag in enumerate(bags):
            if bag[word]:
                idf = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
                scores[row] += idf * bag[word] / (bag[word] + k1 * (1 - b + b * bag.total() / mean))
    return scores


def test_words():
    assert words("Read_json_lines2 (café) HTTP-Server") == ["read", "json", "lines2", "café", "http", "server"]
    assert words("cafe\u0301 İstanbul") == ["café", "istanbul"]
    assert words("queries cats buses glass gas corpus shoes toes trees") == ["query", "cat", "buse", "glass", "gas", "corpus", "shoes", "toes", "trees"]
    assert words("dersler cats", plurals=False) == ["dersler", "cats"]
    assert words("parseJSONLines mRNA x2Y", camel_case=True, plurals=False) == ["parse", "jsonlines", "m", "rna", "x2", "y"]
    assert words(" ,;_ ") == []


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0)])
@pytest.mark.parametrize("query", ["cat on a mat", "dogs", "mat mat bird unknown", "", "unknown"])
def test_scores_are_the_formula(query: str, k1: float, b: float):
    rows, scores = BM25Index(TEXTS, k1=k1, b=b).search([query], len(TEXTS))
    expected = formula(query, TEXTS, k1, b)
    order = np.lexsort((np.arange(len(TEXTS)), -expected.astype(np.float32)))
    np.testing.assert_allclose(scores[0], expected[order], rtol=1e-5)
    np.testing.assert_array_equal(rows[0], order)


def test_ties_go_to_the_lower_row_and_the_count_is_exact():
    index = BM25Index(["a b", "x y", "a b", "b a", "", "a b"])
    rows, scores = index.search(["a", "nothing known", ""], 5)
    np.testing.assert_array_equal(rows, [[0, 2, 3, 5, 1], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    assert (scores[0, :4] == scores[0, 0]).all() and scores[0, 0] > 0 and (scores[1:] == 0).all()
    assert index.search([], 2)[0].shape == (0, 2)


def test_many_queries_at_once_are_as_one_by_one(monkeypatch):
    index = BM25Index(TEXTS)
    queries = ["cat", "dog mat", "", "sat"]
    together = index.search(queries, 3)
    monkeypatch.setattr("jaxrec.index.bm25.BLOCK", 1)
    for a, b in zip(together, index.search(queries, 3), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors_name_the_value_and_the_fix():
    with pytest.raises(ValueError, match="none of the 2 documents has a word"):
        BM25Index(["", "?!"])
    for k1 in (-1, float("nan")):
        with pytest.raises(ValueError, match=rf"k1={k1}, b=0.4: BM25 needs a finite k1 >= 0 and b from 0 to 1"):
            BM25Index(TEXTS, k1=k1)
    with pytest.raises(ValueError, match="k=7 is more than the 6 items of the index; ask for k <= 6"):
        BM25Index(TEXTS).search(["cat"], 7)
    with pytest.raises(ValueError, match="k=0 asks for nothing"):
        BM25Index(TEXTS).search(["cat"], 0)


def test_importing_it_starts_no_backend_of_jax():
    program = "import sys, jaxrec.index.bm25\nassert 'bm25s' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_scifact_is_as_good_as_beirs_baseline(data_dir: Path):
    collection = Beir("scifact").get()
    rows, _ = BM25Index(collection.passages()).search(collection.queries["test"].texts, 100)
    mean = search.evaluate(rows, collection, "test").mean()
    assert mean["nDCG@10"] == pytest.approx(0.665, abs=0.005)  # Thakur et al., 2021, table 2
    assert mean["Recall@100"] == pytest.approx(0.908, abs=0.015)
