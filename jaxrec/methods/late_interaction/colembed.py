"""ColEmbed: the training of Nemotron ColEmbed V2's late-interaction embeddings, whatever the encoder beneath.

    s(q, d) = 1 / N * sum over the N tokens i of q of max over tokens j of d of <q_i, d_j>
    loss    = -log (exp(s(q, d+) / tau) / sum over d in {d+} and the hard negatives of q of exp(s(q, d) / tau))

NVIDIA 2026 (arXiv 2602.03992), for pictures of pages; this is what of it does not depend on them. Attention is bidirectional, as BERT's is. The other
parts have homes of their own: batches drawn from one cluster in `data/cluster_batches`, positive-aware hard negatives in `stages/hard_negatives`,
and the average of several runs' parameters in `train/average`. The paper gives no temperature; ours is for means of cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxrec.method import Array, Vectors
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colbert import ColBERT


@dataclass(frozen=True)
class ColEmbed(ColBERT):
    """ColBERT trained by ColEmbed's loss: mean MaxSim, and a row's own hard negatives alone unless `in_batch`."""

    augment: bool = False
    skip_punctuation: bool = False
    temperature: float = 0.02
    in_batch: bool = False

    def similarity(self, queries: Vectors, documents: Vectors) -> Array:
        """Mean cosine of a query's tokens to their best ones, [B, C]."""
        return super().similarity(queries, documents) / jnp.maximum(queries.mask.sum(axis=1, keepdims=True), 1)


def tiny() -> tuple[ColEmbed, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    return ColEmbed(encoder=method.encoder, dim=method.dim, pad=method.pad, mask_token=method.mask_token, punctuation=method.punctuation), batch
