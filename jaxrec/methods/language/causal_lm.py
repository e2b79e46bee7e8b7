"""A language model trained from scratch, with any kind of attention: the setting in which attention variants are compared.

The decoder is `LanguageModel`'s; the loss is the mean of -log p(next token). Threshold differential attention (Zhang et al. 2026, arXiv 2601.12145) is
`attention=AttentionKind(weights="threshold_differential", positions="rotary")`, its baselines are the other kinds, with as many parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.method import FROM_DATA, Batch, Loss, Method
from jaxrec.nn.language_model import Decoder, LanguageModel
from kernels.softmax_loss import log_likelihood, softmax_loss


@dataclass(frozen=True)
class CausalLM(Method):
    """Predicts each next token of rows of text: `token`, `target`, `segment` [B, T] int32 and `mask` [B, T].

    Attributes:
      model: the decoder; its vocabulary comes from the data.
    """

    model: LanguageModel = field(default_factory=lambda: LanguageModel(vocabulary=FROM_DATA, dim=128, layers=4, heads=4, hidden=344))

    def __post_init__(self):
        if self.model.cap:
            raise ValueError(f"model.cap={self.model.cap} bounds the logits, which the loss over the vocabulary does not; set it to 0 to train")

    def spec(self) -> Decoder:
        return self.model.spec()

    def loss(self, params: Decoder, batch: Batch, key: jax.Array) -> Loss:
        hidden = params(batch["token"], batch["segment"], key=key)
        weight = batch["mask"].reshape(-1).astype(jnp.float32)
        flat, table = hidden.reshape(-1, hidden.shape[-1]), params.table().astype(hidden.dtype)
        total = softmax_loss(flat, table, batch["target"].reshape(-1), weight, valid=(0, self.model.vocabulary))
        return Loss(terms={"loss": (total, jnp.sum(weight))})

    def log_likelihood(self, params: Decoder, batch: Batch) -> jax.Array:
        """[B, T] float32 log p(target) of every position."""
        hidden = params(batch["token"], batch["segment"])
        flat = log_likelihood(hidden.reshape(-1, hidden.shape[-1]), params.table(), batch["target"].reshape(-1), valid=(0, self.model.vocabulary))
        return flat.reshape(batch["target"].shape)


def tiny() -> tuple[CausalLM, Batch]:
    """A model and a batch small enough for a test."""
    random = np.random.default_rng(0)
    token = random.integers(1, 30, (4, 9)).astype(np.int32)
    segment = np.array([[1] * 5 + [2] * 3] * 4, np.int32)
    model = LanguageModel(vocabulary=30, dim=16, layers=2, heads=2, hidden=32, length=16)
    return CausalLM(model), {"token": token[:, :-1], "target": token[:, 1:], "segment": segment, "mask": np.ones((4, 8), np.float32)}
