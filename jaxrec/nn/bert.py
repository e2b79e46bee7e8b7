"""BERT: a bidirectional post-norm transformer over word pieces (Devlin et al. 2019, arXiv 1810.04805).

`BERT` holds the hyper-parameters, its spec is a `PostNormEncoder`, and `from_hf` and `to_hf` translate to and from the tensors of
Hugging Face's `BertModel` and `RobertaModel` (Liu et al. 2019, arXiv 1907.11692: the same network, whose positions begin behind those of
padding), so that every checkpoint of those kinds can be read, trained further and given back. What we changed: no dropout on attention
weights, and no pooling layer (sentence encoders do not use it; `from_hf` passes over it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrec.limits import check
from jaxrec.nn.attention import Attention, check_heads
from jaxrec.nn.context import Context
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.linear import Linear, dropout
from jaxrec.nn.norm import LayerNorm
from jaxrec.nn.transformer import FeedForward, Stack, split_key
from jaxrec.param import Tree, abstract, flatten, normal, unflatten

Pooling = Literal["mean", "cls"]


def erf_gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the exact normal distribution function; `jax.nn.gelu` approximates it by tanh unless told otherwise."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"gelu": erf_gelu, "gelu_new": jax.nn.gelu, "gelu_pytorch_tanh": jax.nn.gelu, "relu": jax.nn.relu}
"""By the name in a `config.json`."""

ROBERTA = ("roberta", "xlm-roberta", "camembert")
"""Names of configurations that are RoBERTa's: a position of padding comes before those of the text."""

CONFIG = {
    "vocabulary": "vocab_size",
    "length": "max_position_embeddings",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "types": "type_vocab_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
}
"""The name in a `config.json` of every hyper-parameter."""


class BidirectionalEncoder:
    """The hyper-parameters of a transformer in which every token of a text sees the others: what `BERT` and `ModernBERT` have in common.

    The parameters are called with ids and mask [B, T], and `types` and `key` if wanted, as `PostNormEncoder` says, and give states [B, T, dim]. A field of
    this type takes each of them (`jaxrec.nn.encoders.from_config` reads those of a published model).
    """

    vocabulary: int
    dim: int
    dropout: float

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BidirectionalEncoder:
        """The hyper-parameters in a Hugging Face `config.json`; raises ValueError for what is not here, and names it."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """The `config.json` of these hyper-parameters, the inverse of `from_config`."""
        raise NotImplementedError

    def spec(self) -> Tree:
        """The parameters."""
        raise NotImplementedError

    def from_hf(self, arrays: Mapping[str, np.ndarray]) -> Tree:
        """float32 parameters from Hugging Face's tensors of the model alone, or of one that holds it under some prefix.

        Raises:
          ValueError: a tensor is missing, unknown, or of another shape than the hyper-parameters ask for; names it and both shapes.
        """
        raise NotImplementedError

    def to_hf(self, params: Tree) -> Mapping[str, jax.Array | np.ndarray]:
        """Hugging Face's tensors of the model without a head, the inverse of `from_hf`."""
        raise NotImplementedError

    def encode(self, params: Tree, ids: jax.Array, mask: jax.Array, pooling: Pooling = "mean", key: jax.Array | None = None) -> jax.Array:
        """One vector per text, [B, D]. ids, mask [B, T] as in `PostNormEncoder`."""
        return pool(params(ids, mask, key=key), mask, pooling)


@struct.dataclass
class PostNormBlock:
    """x = norm(x + attention(x)), then norm(x + feed_forward(x)). Dropout on both branches."""

    attention: Attention
    attention_norm: LayerNorm
    feed: FeedForward
    feed_norm: LayerNorm
    rate: float = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        first, last = split_key(context.key, 2)
        x = self.attention_norm(x + dropout(self.attention(x, context), self.rate, first))
        return self.feed_norm(x + dropout(self.feed(x, 0.0, None), self.rate, last))


@struct.dataclass
class PostNormEncoder:
    """norm(word + position + type), dropout, then a stack of post-norm blocks."""

    word: Embedding
    position: Embedding
    type: Embedding  # which of two texts a token is of
    norm: LayerNorm
    stack: Stack
    length: int = struct.field(pytree_node=False)  # of the longest text
    first: int = struct.field(pytree_node=False)  # row of a text's first position
    rate: float = struct.field(pytree_node=False)

    def __call__(self, ids: jax.Array, mask: jax.Array, types: jax.Array | None = None, key: jax.Array | None = None) -> jax.Array:
        """The last layer's states [B, T, D]; padding sees the text and is not seen.

        Args:
          ids: [B, T] int32 word pieces.
          mask: [B, T] 1 for a word piece, 0 for padding.
          types: [B, T] int32; all 0 unless given.
          key: for dropout; None when evaluating.
        """
        tokens = ids.shape[1]
        check_length(tokens, self.length)
        first, rest = split_key(key, 2)
        x = self.word(ids) + self.position(self.first + jnp.arange(tokens))[None] + self.type(jnp.zeros_like(ids) if types is None else types)
        seen = mask > 0  # padding sees the text, and is seen by nothing
        return self.stack(dropout(self.norm(x), self.rate, first), Context(seen.astype(jnp.int32), seen[:, None, None, :], rest))


@dataclass(frozen=True)
class BERT(BidirectionalEncoder):
    """The hyper-parameters of a BERT; the defaults are those of the base model.

    Attributes:
      vocabulary: word pieces.
      length: learned positions.
      first: row of a text's first position; RoBERTa leaves the first ones to padding.
      dim: width D.
      layers, heads: of the stack.
      hidden: inner width of the feed-forward layers.
      types: token types.
      activation: of the feed-forward layers, one of `ACTIVATIONS`.
      epsilon: of every layer norm.
      dropout: on the embeddings and on every residual branch.
    """

    vocabulary: int = 30522
    length: int = 512
    dim: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    types: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    dropout: float = 0.1
    first: int = 0

    def __post_init__(self):
        check(self, length=1, dim=1, layers=1, heads=1, hidden=1, types=1, epsilon=0, dropout=(0, 1), first=0)
        check_heads(self.dim, self.heads)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is not one of {', '.join(ACTIVATIONS)}")

    @property
    def longest(self) -> int:
        return self.length - self.first

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BERT:
        """The hyper-parameters in a Hugging Face `config.json`.

        Raises:
          ValueError: it is of another architecture, or has no learned absolute positions, or lacks an entry.
        """
        if (kind := config.get("model_type")) not in ("bert", *ROBERTA):
            raise ValueError(
                f"config.json says model_type={kind!r}, and this is BERT; choose a model whose config says 'bert', {' or '.join(map(repr, ROBERTA))}"
            )
        if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
            raise ValueError(f"config.json says position_embedding_type={positions!r}, and this BERT has 'absolute' positions; choose another model")
        if missing := [name for name in CONFIG.values() if name not in config]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; take the one that was published with the weights")
        first = config.get("pad_token_id", 1) + 1 if kind in ROBERTA else 0
        return cls(**{field: config[name] for field, name in CONFIG.items()}, first=first)

    def to_config(self) -> dict[str, Any]:
        named = {name: getattr(self, field) for field, name in CONFIG.items()}
        kind = {"model_type": ROBERTA[0], "pad_token_id": self.first - 1} if self.first else {"model_type": "bert"}
        return {**kind, **named, "attention_probs_dropout_prob": 0.0, "position_embedding_type": "absolute"}

    def spec(self) -> PostNormEncoder:
        init = normal(0.02)
        block = PostNormBlock(
            attention=Attention(
                qkv=Linear.spec(self.dim, 3 * self.dim, axes=("embed", "heads"), init=init),
                output=Linear.spec(self.dim, self.dim, axes=("heads", "embed"), init=init),
                heads=self.heads,
            ),
            attention_norm=self._norm(),
            feed=FeedForward(
                inner=Linear.spec(self.dim, self.hidden, init=init),
                outer=Linear.spec(self.hidden, self.dim, axes=("hidden", "embed"), init=init),
                activation=ACTIVATIONS[self.activation],
            ),
            feed_norm=self._norm(),
            rate=self.dropout,
        )
        tables = {part: Embedding.spec(rows, self.dim, stddev=0.02) for part, (_, rows) in self._tables().items()}
        return PostNormEncoder(
            **tables, norm=self._norm(), stack=Stack.spec(block, self.layers), length=self.length - self.first, first=self.first, rate=self.dropout
        )

    def from_hf(self, arrays: Mapping[str, np.ndarray]) -> PostNormEncoder:
        found = _own(arrays)
        wanted = jax.eval_shape(self.to_hf, abstract(self.spec()))
        if missing := sorted(wanted.keys() - found.keys()):
            raise ValueError(f"{len(missing)} tensors of BERT are missing, {', '.join(missing[:3])} first; are config and weights of one model?")
        if unknown := sorted(found.keys() - wanted.keys()):
            raise ValueError(f"{len(unknown)} tensors are none of BERT's, {', '.join(unknown[:3])} first; are config and weights of one model?")
        for name, leaf in wanted.items():
            if found[name].shape != leaf.shape:
                raise ValueError(f"tensor {name} has shape {found[name].shape}, the config asks for {leaf.shape}; are config and weights of one model?")
        found = {name: np.asarray(array, np.float32) for name, array in found.items()}
        spec = self.spec()
        leaves = {"norm.scale": found["embeddings.LayerNorm.weight"], "norm.bias": found["embeddings.LayerNorm.bias"]}
        for part, (name, rows) in self._tables().items():
            padded = getattr(spec, part).table.shape[0]
            leaves[f"{part}.table"] = np.pad(found[name], ((0, padded - rows), (0, 0)))
        for leaf, names in _layer_leaves():
            layers = [np.concatenate([found[f"encoder.layer.{layer}.{name}"].T for name in names], axis=-1) for layer in range(self.layers)]
            leaves[f"stack.layers.{leaf}"] = np.stack(layers)
        return unflatten(spec, leaves)

    def to_hf(self, params: PostNormEncoder) -> dict[str, jax.Array]:
        leaves = flatten(params)
        tensors = {"embeddings.LayerNorm.weight": leaves["norm.scale"], "embeddings.LayerNorm.bias": leaves["norm.bias"]}
        for part, (name, rows) in self._tables().items():
            tensors[name] = leaves[f"{part}.table"][:rows]
        for leaf, names in _layer_leaves():
            parts = jnp.split(leaves[f"stack.layers.{leaf}"], len(names), axis=-1)  # each [layers, ...]
            for layer in range(self.layers):
                tensors |= {f"encoder.layer.{layer}.{name}": part[layer].T for name, part in zip(names, parts, strict=True)}
        return tensors

    def _norm(self) -> LayerNorm:
        return LayerNorm.spec(self.dim, epsilon=self.epsilon)

    def _tables(self) -> dict[str, tuple[str, int]]:
        """Our table -> (Hugging Face's tensor, its rows)."""
        return {
            "word": ("embeddings.word_embeddings.weight", self.vocabulary),
            "position": ("embeddings.position_embeddings.weight", self.length),
            "type": ("embeddings.token_type_embeddings.weight", self.types),
        }


def pool(states: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """States [B, T, D] to [B, D]: their mean where `mask` [B, T] is 1, or the state of the first token (CLS)."""
    if pooling == "cls":
        return states[:, 0]
    weight = mask.astype(states.dtype)[..., None]
    return jnp.sum(states * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


def _layer_leaves() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(our leaf of a layer, Hugging Face's tensors of a layer): the leaf is their transposes side by side."""
    modules = {
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "feed.inner": ("intermediate.dense",),
        "feed.outer": ("output.dense",),
        "feed_norm": ("output.LayerNorm",),
    }
    for part, names in modules.items():
        yield f"{part}.{'scale' if part.endswith('norm') else 'kernel'}", tuple(f"{name}.weight" for name in names)
        yield f"{part}.bias", tuple(f"{name}.bias" for name in names)


def held_model(arrays: Mapping[str, np.ndarray], words: str, model: str) -> dict[str, np.ndarray]:
    """The tensors of the one model in a checkpoint, by their names within it; where it has a head they lie under a prefix (`bert.`).

    Args:
      arrays: of the checkpoint.
      words: the name within the model of its table of word pieces, which tells the prefix.
      model: what to call it in the error.

    Raises:
      ValueError: there is none, or more than one.
    """
    prefixes = [name.removesuffix(words) for name in arrays if name.endswith(words)]
    if len(prefixes) != 1:
        raise ValueError(f"{len(prefixes)} tensors end in {words}, and one {model} has one; the names begin {', '.join(sorted(arrays)[:3]) or 'nowhere'}")
    return {name.removeprefix(prefixes[0]): array for name, array in arrays.items() if name.startswith(prefixes[0])}


def _own(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BERT's tensors; the first releases call scale and bias of a norm gamma and beta; the pooling layer and the list of positions are not ours."""
    held = held_model(arrays, "embeddings.word_embeddings.weight", "BERT")
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): array
        for name, array in held.items()
        if not name.startswith(("pooler.", "embeddings.position_ids"))
    }


def check_length(tokens: int, length: int) -> None:
    """Raises ValueError for texts of more tokens than a model has positions: the table's further rows mean nothing."""
    if tokens > length:
        raise ValueError(f"texts of {tokens} tokens are longer than the {length} positions of the model; truncate them to {length}")
