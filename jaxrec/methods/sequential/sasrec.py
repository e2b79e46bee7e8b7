"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018, arXiv 1808.09781).

A causal transformer over the user's items; the state at step t scores every item as the next one by inner product with the same
table that embedded the input. What we changed: pre-norm blocks; histories packed into rows instead of padded; the loss is a choice
(the paper's binary cross-entropy with one negative is `loss_name="bce", negatives=1`; sampled softmax is far stronger, see
Klenitskiy & Vasilev 2023, arXiv 2309.07602, and Petrov & Macdonald 2023 for gBCE); no dropout on attention weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxrec.method import Batch
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.transformer import TransformerBlock


@dataclass(frozen=True)
class SASRec(NextItem):
    """A causal pre-norm transformer."""

    def block(self) -> TransformerBlock:
        return TransformerBlock.spec(self.dim, self.heads, self.hidden or self.dim, self.dropout, kind=self.attention)


def tiny() -> tuple[SASRec, Batch]:
    """A model and a batch small enough for a test."""
    return SASRec(items=30, length=8, dim=16, heads=2, dropout=0.0, negatives=16), tiny_batch()
