"""Hydra: one language model in memory, which retrieves with an adapter on and generates with it off (arXiv 2603.28554).

    embed(x)    = unit(head(decoder(x; W + alpha / rank * A B, both directions)))   a vector for every token, compared by MaxSim
    generate(x) = decoder(x; W, causal)                                             the base model, its scores and its cache

Only the adapters and the head are trained, by a retrieval loss; the paper does not say which, and ours is ColBERT's. The base is frozen, so generation
is that of the base model whatever the adapters hold: nothing is merged, and a switch is a choice between two programs that share their arrays. What we
changed: no pictures (the paper's base reads pages), query augmentation as ColBERT's where it is asked for, and a batch may mix both modes by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from flax import struct

from jaxrec.method import Array
from jaxrec.methods.late_interaction import colbert
from jaxrec.methods.late_interaction.colbert import ColBERT
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.context import Context
from jaxrec.nn.language_model import Decoder, LanguageModel
from jaxrec.nn.linear import Linear
from jaxrec.nn.lora import Adapters, LoRA
from jaxrec.nn.norm import unit
from jaxrec.nn.transformer import split_key
from jaxrec.param import Tree, freeze, normal

NO_GRADIENT = ("qkv.a", "output.a", "gate.a", "inner.a", "outer.a")
"""Leaves that the first step does not reach: their factor B is still 0."""


@struct.dataclass
class TwoHeads:
    """A decoder with its own scores, and beside it what turns its states into token vectors."""

    base: Decoder  # frozen
    adapters: Adapters
    head: Linear  # D -> width of a token's vector
    lora: LoRA = struct.field(pytree_node=False)

    def __call__(self, ids: Array, attended: Array, key: Array | None = None) -> Array:
        """[B, T] word pieces, of which those `attended` [B, T] can be seen, to unit vectors [B, T, D]."""
        first, rest = split_key(key, 2)
        adapted = self.lora.attach(self.base, self.adapters)
        return unit(self.head(adapted(ids, context=_context(adapted, attended, None, rest), key=first)))

    def states(self, ids: Array, attended: Array, embeds: Array) -> Array:
        """The states [B, T, width] of a batch of both modes: rows where `embeds` [B] bool are for `head`, the others for `base.logits`.

        A row of either mode is computed as in a batch of its own, so a server need not sort its requests.
        """
        adapted = self.lora.attach(self.base, self.adapters, jnp.where(embeds, 0, -1))
        return adapted(ids, context=_context(adapted, attended, embeds, None))


@dataclass(frozen=True)
class Hydra(ColBERT):
    """ColBERT on a frozen language model with adapters; the fields of `ColBERT` mean the same.

    Attributes:
      encoder: the language model beneath. Its parameters come from `Experiment.init_from={"base": ...}`.
      lora: where the adapters are.
    """

    encoder: LanguageModel = field(default_factory=LanguageModel)  # type: ignore[assignment]
    lora: LoRA = field(default_factory=lambda: LoRA(rank=32, alpha=32.0))
    augment: bool = False
    skip_punctuation: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.lora.check_shared()

    def spec(self) -> Tree:
        base = self.encoder.spec()
        head = Linear.spec(self.encoder.dim, self.dim, axes=("embed", None), bias=False, init=normal(0.02))
        return TwoHeads(base=freeze(base), adapters=self.lora.spec(base), head=head, lora=self.lora)

    def generator(self, params: Tree) -> Decoder:
        """The model that generates: the base itself, to the bit."""
        return params.base


def _context(decoder: Decoder, attended: Array, embeds: Array | None, key: Array | None) -> Context:
    """Which tokens see which: in rows that embed (None: all) every token that is `attended`, in the others only itself and those before."""
    T = attended.shape[1]
    if T > decoder.length:
        raise ValueError(f"texts of {T} tokens are longer than the {decoder.length} of the model; cut them to {decoder.length}")
    place = jnp.arange(T)
    mask = attended[:, None, None, :]  # [B, 1, 1, key]
    if embeds is not None:
        mask = mask & (embeds[:, None, None, None] | (place[None, :] <= place[:, None])[None, None])  # [B, 1, query, key]
    return Context(attended.astype(jnp.int32), mask, key, bias=None if decoder.bias is None else decoder.bias(place, place))


def tiny() -> tuple[Hydra, dict[str, Any]]:
    """A small case for the contract tests."""
    method, batch = colbert.tiny()
    model = LanguageModel(vocabulary=48, dim=16, layers=1, heads=2, hidden=32, length=16, attention=AttentionKind(positions="rotary"))
    lora = LoRA(rank=4, alpha=8.0, targets=("qkv", "output", "gate"))
    return Hydra(encoder=model, lora=lora, dim=8, pad=method.pad, mask_token=method.mask_token, punctuation=method.punctuation), batch
