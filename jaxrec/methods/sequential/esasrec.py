"""eSASRec: SASRec's objective, LiGR's gated blocks, sampled softmax (Tikhonovich et al. 2025, arXiv 2508.06450)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxrec.method import Batch
from jaxrec.methods.sequential.next_item import NextItem, tiny_batch
from jaxrec.nn.transformer import GatedBlock


@dataclass(frozen=True)
class ESASRec(NextItem):
    """A causal stack of gated blocks with SwiGLU of four times the width unless `hidden` says otherwise."""

    def block(self) -> GatedBlock:
        return GatedBlock.spec(self.dim, self.heads, self.hidden or 4 * self.dim, self.dropout, self.attention)


def tiny() -> tuple[ESASRec, Batch]:
    """A model and a batch small enough for a test."""
    return ESASRec(items=30, length=8, dim=16, heads=2, dropout=0.0, negatives=16), tiny_batch()
