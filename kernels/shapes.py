"""Named shapes that the tests and the benchmarks share: the real ones of the field, and odd ones that break tilings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Softmax:
    """Sizes of a softmax over a catalogue.

    Attributes:
      tokens: N, positions with a target in one batch.
      dim: D, width of a hidden state.
      rows: V, rows of the table: padding, the items, and whatever the table was rounded up by.
      valid: [low, high), the rows that take part.
    """

    tokens: int
    dim: int
    rows: int
    valid: tuple[int, int]


BEAUTY = Softmax(8192, 64, 12_102, (1, 12_102))  # Amazon Beauty 2014, 5-core: 12,101 items; 128 packed rows of 64
ML_1M = Softmax(25_600, 50, 3_417, (1, 3_417))  # MovieLens-1M: 3,416 items; 128 sequences of 200, SASRec's width
MILLION = Softmax(512, 64, 1_000_000, (1, 1_000_000))
LARGE = Softmax(4096, 64, 100_000, (1, 99_990))  # a table rounded up

ODD = (
    Softmax(1, 1, 2, (1, 2)),  # a single candidate: loss and gradients are zero
    Softmax(7, 5, 13, (0, 13)),
    Softmax(130, 50, 1000, (1, 1000)),
    Softmax(257, 64, 515, (1, 511)),
    Softmax(300, 33, 1025, (600, 601)),  # every tile but one is masked
)


@dataclass(frozen=True)
class MaxSim:
    """Sizes of a late-interaction score.

    Attributes:
      queries: B.
      query_tokens: N of each.
      documents: C.
      document_tokens: M of each at most; ragged ones have 0 to M.
      dim: D.
    """

    queries: int
    query_tokens: int
    documents: int
    document_tokens: int
    dim: int


RERANK = MaxSim(1, 32, 1000, 180, 128)  # one query of ColBERT against the candidates of a first stage
IN_BATCH = MaxSim(64, 32, 64, 180, 128)  # training with in-batch negatives
PAGES = MaxSim(4, 24, 64, 1030, 128)  # page images: a vector per patch

ODD_MAXSIM = (
    MaxSim(1, 1, 1, 1, 1),
    MaxSim(3, 5, 7, 11, 8),
    MaxSim(2, 33, 9, 130, 96),
)


@dataclass(frozen=True)
class Attention:
    """Sizes of an attention.

    Attributes:
      batch: B.
      queries: T of each example.
      keys: S.
      heads: H, of queries.
      groups: G, heads of keys and values.
      width: K, of queries and keys.
      value_width: V.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    width: int
    value_width: int


LONG_HISTORY = Attention(2, 4096, 4096, 8, 8, 64, 64)  # a user's history
DECODE = Attention(8, 1, 4096, 8, 2, 64, 64)  # a query against a cache
WIDE = Attention(1, 2048, 2048, 2, 2, 256, 256)

ODD_ATTENTION = (
    Attention(1, 1, 1, 1, 1, 1, 1),
    Attention(2, 7, 7, 4, 2, 16, 5),
    Attention(2, 133, 133, 2, 1, 33, 24),
    Attention(3, 1, 150, 4, 2, 16, 16),
)
