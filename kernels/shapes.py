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
