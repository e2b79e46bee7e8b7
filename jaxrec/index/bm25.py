"""BM25 over words (Robertson et al., 1994), by the `bm25s` package (Lù, 2024, arXiv:2407.03618)."""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxrec.index.exact import best
from jaxrec.index.index import check_k

BLOCK = 1 << 24  # scores held at a time


def words(text: str, *, plurals: bool = True, camel_case: bool = False) -> list[str]:
    """The words of a text: runs of letters and digits in lower case; English plurals made singular if `plurals`.

    An underscore parts words, so that `read_json_lines` is found by "json"; so does a capital after a small letter if `camel_case`, which suits
    code and harms names of genes. Plurals go by Harman's S stemmer (1991): ies -> y (not eies,
    aies), es -> e (not aes, ees, oes), s -> nothing (not us, ss); the first rule whose ending is there decides.
    """
    if camel_case:
        text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    lower = unicodedata.normalize("NFC", text).lower().replace("\u0307", "")  # lower() leaves the dot of the Turkish İ as a mark of its own
    found = re.findall(r"[^\W_]+", lower)
    return [_singular(word) for word in found] if plurals else found


def _singular(word: str) -> str:
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word if word.endswith(("eies", "aies")) else word[:-3] + "y"
    if word.endswith("es"):
        return word if word.endswith(("aes", "ees", "oes")) else word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]


class BM25Index:
    """Documents as bags of words, searched by BM25 as Lucene computes it.

    score(q, d) = sum over the words w of q of log(1 + (N - n_w + 1/2) / (n_w + 1/2)) * f / (f + k1 * (1 - b + b * length of d / mean length)),
    where f is how often w occurs in d, and n_w in how many of the N documents. A word that stands twice in the query counts twice.

    Args:
      texts: [N] the documents; an empty one is allowed and scores 0.
      k1: how soon repetitions of a word stop to count.
      b: how much long documents are held back, 0 to 1. The defaults are those of Anserini's baselines (Yang, Fang and Lin, SIGIR 2017).
      plurals: whether English plurals are made singular; turn it off for other languages.
      camel_case: whether `camelCase` is two words; turn it on for code.

    Raises:
      ValueError: no document has a word.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 0.9, b: float = 0.4, plurals: bool = True, camel_case: bool = False):
        import bm25s  # here, not above: to import it starts JAX's backend, which must wait for jax.distributed

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells its debugging to everybody
        if not (0 <= k1 < math.inf and 0 <= b <= 1):
            raise ValueError(f"k1={k1}, b={b}: BM25 needs a finite k1 >= 0 and b from 0 to 1")
        self._words = partial(words, plurals=plurals, camel_case=camel_case)
        self._size = len(texts)
        vocabulary: dict[str, int] = {}
        documents = [[vocabulary.setdefault(word, len(vocabulary)) for word in self._words(text)] for text in texts]
        if not vocabulary:
            raise ValueError(f"none of the {len(texts)} documents has a word; BM25 searches by words")
        self._engine = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
        self._engine.index((documents, vocabulary), create_empty_token=False, show_progress=False)

    def __len__(self) -> int:
        return self._size

    def search(self, texts: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best documents of each query, best first, equal scores by the lower row.

        Always k of them: what shares no word with the query scores 0, so a query without known words gives rows 0, 1 ... k - 1.

        Args:
          texts: [B] queries.
          k: 1 to the number of documents.

        Returns:
          rows [B, k] int64 and scores [B, k] float32.

        Raises:
          ValueError: k is less than 1 or more than there are documents.
        """
        check_k(k, len(self))
        rows, scores = np.zeros((len(texts), k), np.int64), np.zeros((len(texts), k), np.float32)
        step = max(1, BLOCK // len(self))
        for begin in range(0, len(texts), step):
            some = slice(begin, begin + step)
            block = np.stack([self._scores(text) for text in texts[some]])  # [B, N]
            rows[some], scores[some] = best(np.broadcast_to(np.arange(len(self)), block.shape), block, k)
        return rows, scores

    def _scores(self, text: str) -> np.ndarray:
        """[N] float32 scores of all documents."""
        known = self._engine.get_tokens_ids(self._words(text))
        return self._engine.get_scores_from_ids(known)
