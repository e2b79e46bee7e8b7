"""XTR: token vectors trained so that the tokens that a search retrieves are enough to score by.

    f(q, d) = 1 / Z * sum over tokens i of q of max over the retrieved tokens j of d of <q_i, d_j>

Lee et al. 2023 (arXiv 2304.01982). In training a token of a document is retrieved for q_i if it is among the k most similar of all tokens of all
documents of the batch; Z is the number of query tokens that retrieve a token of d, at least 1. A document without any scores 0, and gives no
gradient. What we changed: a retrieved token with a negative similarity counts as it is (in A_ij <q_i, d_j> any token that is not retrieved would
beat it with 0), tokens that are as similar as the k-th are all retrieved, and k is bounded by the tokens there are. Asked whole, by exact MaxSim,
a trained model ranks like f with everything retrieved.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrec.limits import check
from jaxrec.method import Array, Batch, Loss, Vectors
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colbert import ColBERT, TokenEncoder

QUERIES = 8  # whose similarities to all tokens of the batch exist at a time


@dataclass(frozen=True)
class XTR(ColBERT):
    """ColBERT with XTR's objective. Scores are means of cosines, so the temperature is lower; the paper gives none.

    Attributes:
      retrieved: tokens k that each query token retrieves in training, of all in the batch.
    """

    augment: bool = False
    temperature: float = 0.05
    retrieved: int = 320

    def __post_init__(self):
        super().__post_init__()
        check(self, retrieved=1)

    def similarity(self, queries: Vectors, documents: Vectors) -> Array:
        """f of every query and document, [B, C]."""
        return retrieval_scores(queries, documents, self.retrieved)

    def loss(self, params: TokenEncoder, batch: Batch, key: Array) -> Loss:
        """As ColBERT's. Documents of rows of weight zero are emptied: nobody may retrieve their tokens."""
        counts = batch["mask"] > 0
        texts = {name: batch[name] for name in ("document", "negative") if name in batch}
        texts = {name: jnp.where(counts.reshape(-1, *(1,) * (text.ndim - 1)), text, self.pad) for name, text in texts.items()}
        return super().loss(params, {**batch, **texts}, key)


def retrieval_scores(queries: Vectors, documents: Vectors, retrieved: int) -> Array:
    """f of every query and document, [B, C] float32; in both passes no more than a few queries' similarities exist at a time.

    Args:
      queries: [B, N, D].
      documents: [C, M, D].
      retrieved: tokens k that each query token retrieves.
    """
    rows = len(queries.values)
    turns = rows // math.gcd(rows, QUERIES)
    dealt = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, turns, *leaf.shape[1:]), 1, 0), queries)  # a turn has rows of every device
    keep = jax.checkpoint_policies.save_only_these_names("least")
    block = jax.checkpoint(functools.partial(_block, documents, retrieved), policy=keep)
    return jnp.moveaxis(jax.lax.map(block, dealt), 0, 1).reshape(rows, -1)


def _block(documents: Vectors, retrieved: int, queries: Vectors) -> Array:
    """f of some queries [b, N, D] and all documents, [b, C]."""
    similarity = jnp.einsum("bnd,cmd->bncm", queries.values, documents.values, precision="highest", preferred_element_type=jnp.float32)
    similarity = jnp.where(documents.mask[None, None], similarity, -jnp.inf)
    flat = jax.lax.stop_gradient(similarity.reshape(*similarity.shape[:2], -1))  # [b, N, C * M]
    least = checkpoint_name(jax.lax.top_k(flat, min(retrieved, flat.shape[-1]))[0][..., -1:], "least")  # [b, N, 1] the k-th best similarity
    best = similarity.max(axis=-1)  # [b, N, C]: if any token of a document is retrieved, its best one is
    found = (best >= least) & (best > -jnp.inf) & queries.mask[..., None]
    return jnp.where(found, best, 0).sum(axis=1) / jnp.maximum(found.sum(axis=1), 1)


def tiny() -> tuple[XTR, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    return XTR(
        encoder=method.encoder, dim=method.dim, pad=method.pad, mask_token=method.mask_token, punctuation=method.punctuation, temperature=0.2, retrieved=24
    ), batch
