"""TurkColBERT: ColBERT trained on triples by a margin, as the paper has it.

    s(q, d) = 1 / N * sum over the N tokens i of q of max over tokens j of d of <q_i, d_j>
    loss    = mean of relu(margin - s(q, d+) + s(q, d-))

Ezerceli et al. 2025 (arXiv 2511.16528), whose Turkish sets `data.builders.beir.ParquetBeir` reads. The encoder is adapted to the language first, by
inference and similarity of sentences, which is a start and no part of this. The paper does not say what its scores are divided by; a margin of 0.2
means something to means of cosines, and next to nothing to their sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxrec.limits import check
from jaxrec.method import Array
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colembed import ColEmbed
from jaxrec.ops.contrastive import triplet


@dataclass(frozen=True)
class TurkColBERT(ColEmbed):
    """ColBERT by the triplet loss over a row's own hard negatives, and over all documents of the batch if `in_batch`.

    Attributes:
      margin: by which the relevant document is to beat the others.
    """

    augment: bool = True
    skip_punctuation: bool = True
    temperature: float = 1.0
    margin: float = 0.2

    def __post_init__(self):
        super().__post_init__()
        check(self, margin=0)

    def ranking(self, scores: Array, excluded: Array, weight: Array) -> tuple[Array, Array]:
        """The triplet loss, the mean over a row's negatives."""
        return triplet(scores, excluded, weight, self.margin)


def tiny() -> tuple[TurkColBERT, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    return TurkColBERT(encoder=method.encoder, dim=method.dim, pad=method.pad, mask_token=method.mask_token, punctuation=method.punctuation), batch
