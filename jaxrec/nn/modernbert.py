"""ModernBERT: a bidirectional pre-norm transformer for long texts (Warner et al. 2024, arXiv 2412.13663).

    x = norm(word),  then in each layer  x + attention(norm(x)),  then  x + W2 (gelu(norm(x) W) * norm(x) V),  then a last norm

The first layer has no norm before its attention. The first layer and every third one after it see the whole text, the others a window around each
token; positions are rotations, faster ones in the window. Neither maps nor norms have biases. `from_hf` and `to_hf` translate to and from the tensors of
Hugging Face's `ModernBertModel`; a head is passed over. What we changed: no dropout on attention weights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.limits import check
from jaxrec.nn.attention import Attention, check_heads
from jaxrec.nn.bert import ACTIVATIONS, BidirectionalEncoder, check_length, held_model
from jaxrec.nn.context import Context
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.positions import Rotary
from jaxrec.nn.tensors import Source, load, unload
from jaxrec.nn.transformer import GatedFeedForward, Stack, in_turn, split_key
from jaxrec.param import flatten, normal

CONFIG = {
    "vocabulary": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "length": "max_position_embeddings",
    "every": "global_attn_every_n_layers",
    "window": "local_attention",
    "theta": "global_rope_theta",
    "local_theta": "local_rope_theta",
    "activation": "hidden_activation",
    "epsilon": "norm_eps",
    "norm_bias": "norm_bias",
    "attention_bias": "attention_bias",
    "feed_bias": "mlp_bias",
}
"""The name in a `config.json` of every hyper-parameter but dropout."""
SIZES = ("vocabulary", "dim", "layers", "heads", "hidden")
"""What a config must say; of the rest it may leave out what equals the defaults."""
DROPOUTS = ("embedding_dropout", "attention_dropout", "mlp_dropout")

WORDS = "embeddings.tok_embeddings.weight"
GATE, INNER = " (first half)", " (second half)"
MODULES = {
    "attention_norm": "attn_norm.{}",
    "attention.qkv": "attn.Wqkv.{}",
    "attention.output": "attn.Wo.{}",
    "feed_norm": "mlp_norm.{}",
    "feed.gate": f"mlp.Wi.{{}}{GATE}",
    "feed.inner": f"mlp.Wi.{{}}{INNER}",
    "feed.outer": "mlp.Wo.{}",
}
"""Our part of a layer -> Hugging Face's tensor, `weight` or `bias`; one of theirs holds two maps of the feed-forward layer."""


@struct.dataclass
class PreNormBlock:
    """x + attention(norm(x)), then x + feed(norm(x)). Dropout on what attention gives, and within the feed-forward layer."""

    attention_norm: LayerNorm | None  # None in the first layer: its input is normalised already
    attention: Attention
    feed_norm: LayerNorm
    feed: GatedFeedForward
    rate: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        first, last = split_key(context.key, 2)
        x = x + dropout(self.attention(self.attention_norm(x) if self.attention_norm else x, context), self.rate, first)
        return x + self.feed(self.feed_norm(x), self.rate, last)


@struct.dataclass
class PreNormEncoder:
    """norm(word), dropout, then pre-norm blocks and a last norm."""

    word: Embedding
    norm: LayerNorm
    first: PreNormBlock
    stack: Stack | None  # layers 1, 2, ... as far as they repeat as a whole: local ones and then a global one
    rest: tuple[PreNormBlock, ...]  # the layers after those
    last_norm: LayerNorm
    length: int = struct.field(pytree_node=False)  # of the longest text
    rate: float = struct.field(pytree_node=False)

    def __call__(self, ids: jax.Array, mask: jax.Array, types: None = None, key: jax.Array | None = None) -> jax.Array:
        """The states [B, T, D] after the last norm; padding, on either side, is not seen.

        Args:
          ids: [B, T] int32 word pieces.
          mask: [B, T] 1 for a word piece, 0 for padding.
          types: None; ModernBERT has no token types.
          key: for dropout; None when evaluating.
        """
        if types is not None:
            raise ValueError("token types are given, and ModernBERT has none; leave them out")
        check_length(ids.shape[1], self.length)
        start, *keys = split_key(key, 4)
        seen = mask > 0
        context = Context(seen.astype(jnp.int32), seen[:, None, None, :])
        first, scanned, last = (dataclasses.replace(context, key=own) for own in keys)
        x = self.first(dropout(self.norm(self.word(ids)), self.rate, start), first)
        if self.stack is not None:
            x = self.stack(x, scanned)
        return self.last_norm(in_turn(self.rest, x, last))


@dataclass(frozen=True)
class ModernBERT(BidirectionalEncoder):
    """The hyper-parameters of a ModernBERT; the defaults are those of the base model.

    Attributes:
      vocabulary: word pieces.
      dim: width D.
      layers, heads: of the stack.
      hidden: inner width of the feed-forward layers.
      length: tokens of the longest text.
      every: layers 0, every, 2 * every, ... see the whole text.
      window: the others see window // 2 tokens on each side.
      theta, local_theta: base of the frequencies of rotations, where the whole text is seen, and where the window is.
      activation: of the gate, one of `ACTIVATIONS`.
      epsilon: of every norm.
      norm_bias, attention_bias, feed_bias: whether norms, the maps of attention and those of the feed-forward layers have biases.
      dropout: on the word vectors, on what attention gives, and within the feed-forward layers.
    """

    vocabulary: int = 50368
    dim: int = 768
    layers: int = 22
    heads: int = 12
    hidden: int = 1152
    length: int = 8192
    every: int = 3
    window: int = 128
    theta: float = 160_000.0
    local_theta: float = 10_000.0
    activation: str = "gelu"
    epsilon: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    feed_bias: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        check(self, dim=1, layers=1, heads=1, hidden=1, length=1, every=1, window=0, epsilon=0, dropout=(0, 1))
        check_heads(self.dim, self.heads)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}")

    @property
    def longest(self) -> int:
        return self.length

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModernBERT:
        """The hyper-parameters in a Hugging Face `config.json`; of its rates of dropout the highest.

        Raises:
          ValueError: it is of another architecture, lacks an entry, or asks for frequencies or an order of layers that are not here; names it.
        """
        if (kind := config.get("model_type")) != "modernbert":
            raise ValueError(f"config.json says model_type={kind!r}, and this is ModernBERT; choose a model whose config says 'modernbert'")
        if missing := [CONFIG[field] for field in SIZES if config.get(CONFIG[field]) is None]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; take the one that was published with the weights")
        said = {field: config[name] for field, name in CONFIG.items() if config.get(name) is not None}
        said["theta"] = _theta(config, "full_attention", said.get("theta", cls.theta))
        same = "local_rope_theta" in config and "local_theta" not in said  # a null
        said["local_theta"] = _theta(config, "sliding_attention", said["theta"] if same else said.get("local_theta", cls.local_theta))
        if kinds := config.get("layer_types"):
            said["every"] = _every(kinds, said["layers"])
        return cls(**said, dropout=max(config.get(name) or 0.0 for name in DROPOUTS))

    def to_config(self) -> dict[str, Any]:
        named = {name: getattr(self, field) for field, name in CONFIG.items()}
        return {"model_type": "modernbert", **named, **dict.fromkeys(DROPOUTS, self.dropout), "pad_token_id": None}  # theirs may be beyond the vocabulary

    def spec(self) -> PreNormEncoder:
        repeats = (self.layers - 1) // self.every
        group = tuple(map(self._block, range(1, self.every + 1)))
        return PreNormEncoder(
            word=Embedding.spec(self.vocabulary, self.dim, stddev=0.02),
            norm=self._norm(),
            first=dataclasses.replace(self._block(0), attention_norm=None),
            stack=Stack.spec(group, repeats) if repeats else None,
            rest=tuple(map(self._block, range(1 + repeats * self.every, self.layers))),
            last_norm=self._norm(),
            length=self.length,
            rate=self.dropout,
        )

    def from_hf(self, arrays: Mapping[str, np.ndarray]) -> PreNormEncoder:
        spec, own = self.spec(), _own(arrays)
        sources = self._sources(spec)
        known = {name for source in sources.values() for layer in source.names for name in layer}
        if unknown := sorted(own.keys() - known):
            raise ValueError(f"{len(unknown)} tensors are none of ModernBERT's, {', '.join(unknown[:3])} first; are config and weights of one model?")
        return load(spec, sources, own)

    def to_hf(self, params: PreNormEncoder) -> dict[str, np.ndarray]:
        tensors = dict(unload(params, self._sources(params)))
        for name in [name.removesuffix(GATE) for name in tensors if name.endswith(GATE)]:
            tensors[name] = np.concatenate([tensors.pop(name + GATE), tensors.pop(name + INNER)])
        return tensors

    def _block(self, number: int) -> PreNormBlock:
        local = number % self.every > 0
        inner, outer = normal(0.02), normal(0.02 / math.sqrt(2 * self.layers))
        gate, both = (Linear.spec(self.dim, self.hidden, bias=self.feed_bias, init=inner) for _ in range(2))
        return PreNormBlock(
            attention_norm=self._norm(),
            attention=Attention(
                qkv=Linear.spec(self.dim, 3 * self.dim, axes=("embed", "heads"), bias=self.attention_bias, init=inner),
                output=Linear.spec(self.dim, self.dim, axes=("heads", "embed"), bias=self.attention_bias, init=outer),
                heads=self.heads,
                rotary=Rotary(self.local_theta if local else self.theta),
                window=self.window // 2 + 1 if local else 0,  # a token counts itself
            ),
            feed_norm=self._norm(),
            feed=GatedFeedForward(
                gate, both, Linear.spec(self.hidden, self.dim, axes=("hidden", "embed"), bias=self.feed_bias, init=outer), ACTIVATIONS[self.activation]
            ),
            rate=self.dropout,
        )

    def _norm(self) -> LayerNorm:
        return LayerNorm.spec(self.dim, epsilon=self.epsilon, bias=self.norm_bias)

    def _sources(self, spec: PreNormEncoder) -> dict[str, Source]:
        """The tensors of each leaf; `spec` may be parameters too."""
        held = flatten(spec)
        found = {"word.table": Source(((WORDS,),), (self.dim,), rows=self.vocabulary)}
        for part, names in self._parts():
            for leaf, kind in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
                if (param := held.get(f"{part}.{leaf}")) is not None:
                    tensors = tuple((name.format(kind),) for name in names)
                    found[f"{part}.{leaf}"] = Source(tensors, (param.shape[-1],), part.startswith("stack"), transposed=leaf == "kernel")
        return found

    def _parts(self) -> Iterator[tuple[str, list[str]]]:
        """Our parts, and the tensors of each: those of all its layers where it is stacked."""
        yield "norm", ["embeddings.norm.{}"]
        yield "last_norm", ["final_norm.{}"]
        scanned = (self.layers - 1) // self.every * self.every
        places = {"first": [0]} | {f"stack.layers.{place}": list(range(1 + place, 1 + scanned, self.every)) for place in range(self.every)}
        places |= {f"rest.{place}": [1 + scanned + place] for place in range(self.layers - 1 - scanned)}
        for place, layers in places.items():
            for part, name in MODULES.items():
                yield f"{place}.{part}", [f"layers.{layer}.{name}" for layer in layers]


def _own(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ModernBERT's tensors, those that hold two maps cut into halves."""
    own = {}
    for name, array in held_model(arrays, WORDS, "ModernBERT").items():
        if ".mlp.Wi." in name:
            own |= {name + GATE: array[: len(array) // 2], name + INNER: array[len(array) // 2 :]}
        elif name.startswith(("embeddings.", "layers.", "final_norm.")):  # no head
            own[name] = array
    return own


def _theta(config: Mapping[str, Any], kind: str, older: float) -> float:
    """The base of the frequencies of a kind of layer; newer configs have `rope_parameters`, older ones an entry for each kind."""
    said = (config.get("rope_parameters") or {}).get(kind) or {}
    if (name := said.get("rope_type", "default")) != "default" or config.get("rope_scaling"):
        raise ValueError(f"config.json says rope_type={name!r} and rope_scaling={config.get('rope_scaling')!r}, which ModernBERT here has not; choose another")
    return float(said.get("rope_theta") or older)


def _every(kinds: list[str], layers: int) -> int:
    """How often a layer sees the whole text, from a list of all layers."""
    for every in range(1, layers + 1):
        if kinds == ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]:
            return every
    raise ValueError(f"config.json says layer_types={kinds!r}, and in ModernBERT the first of {layers} layers and every n-th after it are 'full_attention'")
