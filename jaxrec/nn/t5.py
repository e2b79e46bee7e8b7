"""T5: an encoder-decoder over text, or its encoder alone (Raffel et al. 2020, arXiv 1910.10683), in versions 1.0 and 1.1 (Flan-T5).

    model = T5.from_config(safetensors_files.read_config(folder))
    params = model.from_hf(safetensors_files.open_tensors(folder), stacked=False)    # an EncoderDecoder
    vectors = model.encode(params, ids, mask)                                        # [B, D], one for each text
    logits = params.logits(params.decode(target, params(ids, mask), mask))           # [B, L, V], under teacher forcing
    writing = write(params.step, greedy, start(*params.prefill(ids, mask, slots=N + 1), room=N), until=N, ends=(1,))

Positions are distances alone: a bias of the scores that the blocks of a stack share, none between the stacks. So no text is too long, and padding
may lie on either side. What we changed: no dropout on attention weights; tables of scores and of distances begin smaller.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxrec.limits import check
from jaxrec.nn.attention import Attention, AttentionKind, CrossAttention
from jaxrec.nn.bert import BidirectionalEncoder
from jaxrec.nn.decoder import DecoderBlock
from jaxrec.nn.embedding import Embedding
from jaxrec.nn.encoder_decoder import BiasedStack, EncoderDecoder
from jaxrec.nn.linear import Linear
from jaxrec.nn.norm import RMSNorm
from jaxrec.nn.positions import RelativeBias
from jaxrec.nn.tensors import Source, Tensor, load, unload
from jaxrec.nn.transformer import FeedForward, GatedFeedForward, Stack, TransformerBlock
from jaxrec.param import Initializer, Tree, flatten, lecun, normal

UNSCALED = AttentionKind(positions="relative", scale=1.0)
FEEDS = {"relu": (False, jax.nn.relu), "gated-gelu": (True, jax.nn.gelu), "gated-silu": (True, jax.nn.silu)}
"""`feed_forward_proj` of T5, of version 1.1 (gelu by tanh) and of UL2: whether there is a gate, and the activation."""
ENDLESS = 2**31 - 1

CONFIG = {
    "vocabulary": "vocab_size",
    "dim": "d_model",
    "head": "d_kv",
    "hidden": "d_ff",
    "layers": "num_layers",
    "heads": "num_heads",
}
"""The name in a `config.json` of every hyper-parameter that it must have."""
OPTIONAL = {
    "feed": "feed_forward_proj",
    "buckets": "relative_attention_num_buckets",
    "furthest": "relative_attention_max_distance",
    "epsilon": "layer_norm_epsilon",
    "start": "decoder_start_token_id",
    "dropout": "dropout_rate",
}
"""And of those that published ones leave out where they are the defaults of `T5`."""


@dataclass(frozen=True)
class T5(BidirectionalEncoder):
    """The hyper-parameters of a T5; the defaults are those of the small model. `encode` gives one vector per text (Sentence-T5, arXiv 2108.08877).

    Attributes:
      vocabulary: tokens.
      dim: width D.
      layers, decoder_layers: of the stacks; without decoder layers it is an encoder alone.
      heads: of every attention.
      head: width K of a head, apart from dim / heads.
      hidden: inner width of the feed-forward layers.
      feed: their kind, one of `FEEDS`.
      buckets, furthest: of `RelativeBias`.
      tied: whether the words' table scores too, and states are then scaled by dim ** -0.5 (version 1.0).
      start: the token that every output begins with.
      epsilon: of every norm.
      dropout: on the word vectors, in the feed-forward layers, on every residual branch and on the states.
    """

    vocabulary: int = 32_128
    dim: int = 512
    layers: int = 6
    decoder_layers: int = 6
    heads: int = 8
    head: int = 64
    hidden: int = 2048
    feed: str = "relu"
    buckets: int = 32
    furthest: int = 128
    tied: bool = True
    start: int = 0
    epsilon: float = 1e-6
    dropout: float = 0.1

    def __post_init__(self):
        if self.feed not in FEEDS:
            raise ValueError(f"feed={self.feed!r} is not one of {', '.join(FEEDS)}")
        check(self, vocabulary=1, dim=1, layers=1, decoder_layers=0, heads=1, head=1, hidden=1, epsilon=0, dropout=(0, 1))
        if not 0 <= self.start < self.vocabulary:
            raise ValueError(f"start={self.start} is none of the {self.vocabulary} tokens, numbered from 0; outputs begin with a token")

    @property
    def longest(self) -> int:
        return ENDLESS  # distances have no end

    @property
    def encoder(self) -> T5:
        """The same without the decoder; `from_hf` then passes over it."""
        return dataclasses.replace(self, decoder_layers=0)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> T5:
        """The hyper-parameters in a Hugging Face `config.json`; that of a `T5EncoderModel` gives an encoder alone.

        Raises:
          ValueError: it is of another architecture, lacks an entry, or has a feed-forward layer that is not here; names it.
        """
        if (kind := config.get("model_type")) != "t5":
            raise ValueError(f"config.json says model_type={kind!r}, and this is T5; choose a model whose config says 't5'")
        if missing := [name for name in CONFIG.values() if name not in config]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; take the one that was published with the weights")
        if (feed := config.get("feed_forward_proj", "relu")) not in FEEDS:
            raise ValueError(f"config.json says feed_forward_proj={feed!r}; {', '.join(FEEDS)} are known")
        alone = config.get("architectures") == ["T5EncoderModel"] or not config.get("is_encoder_decoder", True)
        said = {field: config[name] for field, name in (CONFIG | OPTIONAL).items() if config.get(name) is not None}
        decoder_layers = config.get("num_decoder_layers")
        decoder_layers = 0 if alone else config["num_layers"] if decoder_layers is None else decoder_layers
        tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)  # newer configs say it by the former, and always tie
        return cls(**said, decoder_layers=decoder_layers, tied=tied)

    def to_config(self) -> dict[str, Any]:
        """The `config.json` of these hyper-parameters, the inverse of `from_config`."""
        named = {name: getattr(self, field) for field, name in (CONFIG | OPTIONAL).items()}
        whole = self.decoder_layers > 0
        kind = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration" if whole else "T5EncoderModel"], "is_encoder_decoder": whole}
        tokens = {"pad_token_id": 0, "eos_token_id": 1}
        return {**kind, **named, **tokens, "num_decoder_layers": self.decoder_layers or self.layers, "tie_word_embeddings": self.tied}

    def spec(self, *, stacked: bool = True) -> EncoderDecoder:
        """The parameters; `stacked=False` declares each layer's on their own (`EncoderDecoder.unstacked`), the form to generate with."""
        own = bool(self.decoder_layers) and not self.tied
        return EncoderDecoder(
            word=Embedding.spec(self.vocabulary, self.dim, stddev=1.0),
            encoder=self._stack(self._block(), self.layers, causal=False, stacked=stacked),
            decoder=self._stack(self._decoder_block(), self.decoder_layers, causal=True, stacked=stacked) if self.decoder_layers else None,
            output=Embedding.spec(self.vocabulary, self.dim) if own else None,
            vocabulary=self.vocabulary,
            start=self.start,
            rate=self.dropout,
        )

    def from_hf(self, arrays: Mapping[str, Tensor], *, dtype: DTypeLike = np.float32, shardings: Tree | None = None, stacked: bool = True) -> EncoderDecoder:
        """The parameters from the tensors of Hugging Face's T5 of any kind, read a shard at a time.

        Args:
          arrays: in memory or in files, by name. A decoder is passed over where the model has none.
          dtype: of the parameters.
          shardings: a tree of them like the spec's; all on the first device unless given.
          stacked: as in `spec`.

        Raises:
          ValueError: a tensor is missing, unknown, or of another shape than the config asks for (names it and both shapes); or tied tables differ.
        """
        own = _own(arrays)
        spec = self.spec(stacked=stacked)
        places = sources(self, spec)
        known = {name for source in places.values() for layer in source.names for name in layer}
        read = ("encoder.block.", "decoder.block.") if self.decoder_layers else ("encoder.block.",)
        if unknown := sorted(name for name in own if name.startswith(read) and name not in known):
            raise ValueError(f"{len(unknown)} tensors are none of this T5's, {', '.join(unknown[:3])} first; are config and weights of one model?")
        if spec.decoder is not None and self.tied and "lm_head.weight" in own and not _equal(own["lm_head.weight"], own["shared.weight"]):
            raise ValueError(
                "the config ties the tables of words and of scores, and lm_head.weight differs from shared.weight; take T5(tied=False), or drop one"
            )
        return load(spec, places, {"lm_head.weight": own["shared.weight"], **own}, dtype=dtype, shardings=shardings)  # without a head, the words' table is it

    def to_hf(self, params: EncoderDecoder) -> dict[str, np.ndarray]:
        """The tensors of Hugging Face's `T5ForConditionalGeneration`, or `T5EncoderModel`, the inverse of `from_hf`."""
        return dict(unload(params, sources(self, params)))

    def _stack(self, block: TransformerBlock | DecoderBlock, layers: int, *, causal: bool, stacked: bool) -> BiasedStack:
        blocks = Stack.spec(block, layers) if stacked else (block,) * layers
        return BiasedStack(blocks, self._norm(), RelativeBias.spec(self.heads, buckets=self.buckets, furthest=self.furthest, causal=causal))

    def _block(self) -> TransformerBlock:
        gated, activation = FEEDS[self.feed]
        inner = [Linear.spec(self.dim, self.hidden, bias=False) for _ in range(2 if gated else 1)]
        outer = Linear.spec(self.hidden, self.dim, axes=("hidden", "embed"), bias=False)
        attention = Attention.spec(self.dim, self.heads, self.head, UNSCALED, bias=False, output_bias=False)
        qkv = Linear.spec(self.dim, 3 * self.heads * self.head, axes=("embed", "heads"), bias=False, init=_scaled_queries(self.heads * self.head, self.head))
        return TransformerBlock(
            attention_norm=self._norm(),  # type: ignore[arg-type]
            attention=dataclasses.replace(attention, qkv=qkv),
            feed_norm=self._norm(),  # type: ignore[arg-type]
            feed=GatedFeedForward(*inner, outer, activation) if gated else FeedForward(*inner, outer, activation),  # type: ignore[arg-type]
            rate=self.dropout,
        )

    def _decoder_block(self) -> DecoderBlock:
        cross = CrossAttention.spec(self.dim, self.heads, self.head, scale=1.0, output_bias=False)
        init = normal((self.dim * self.head) ** -0.5)
        query = Linear.spec(self.dim, self.heads * self.head, axes=("embed", "heads"), bias=False, init=init)
        return DecoderBlock(self._block(), self._norm(), dataclasses.replace(cross, query=query))

    def _norm(self) -> RMSNorm:
        return RMSNorm.spec(self.dim, epsilon=self.epsilon)


def sources(model: T5, spec: EncoderDecoder) -> dict[str, Source]:
    """The tensors of each leaf; `spec` may be parameters too."""
    table = {"widths": (model.dim,), "rows": model.vocabulary}
    found = {"word.table": Source((("shared.weight",),), **table)}
    if spec.output is not None:
        found["output.table"] = Source((("lm_head.weight",),), **table)
    for half, named in _layer_tensors(model).items():
        depth = model.layers if half == "encoder" else model.decoder_layers
        for leaf, param in flatten({half: getattr(spec, half)}).items():
            if leaf == f"{half}.norm.scale":
                found[leaf] = Source(((f"{half}.final_layer_norm.weight",),), (model.dim,))
            elif leaf == f"{half}.bias.table":
                found[leaf] = Source(((f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",),), (model.heads,))
            else:  # <half>.blocks.layers.<part> of all layers, or <half>.blocks.<number>.<part>
                number, part = re.fullmatch(rf"{half}\.blocks\.(?:layers|(\d+))\.(.*)", leaf).groups()  # type: ignore[union-attr]
                layers, names = range(depth) if number is None else [int(number)], named[part]
                widths = (param.shape[-1] // len(names),) * len(names)
                tensors = tuple(tuple(f"{half}.block.{layer}.layer.{name}.weight" for name in names) for layer in layers)
                found[leaf] = Source(tensors, widths, stacked=number is None, transposed=part.endswith("kernel"))
    return found


def _layer_tensors(model: T5) -> dict[str, dict[str, tuple[str, ...]]]:
    """Our leaf of a block of each half -> Hugging Face's tensors of a block."""
    own = {
        "attention_norm.scale": ("0.layer_norm",),
        "attention.qkv.kernel": ("0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v"),
        "attention.output.kernel": ("0.SelfAttention.o",),
    }
    maps = {"gate": "wi_0", "inner": "wi_1", "outer": "wo"} if FEEDS[model.feed][0] else {"inner": "wi", "outer": "wo"}
    feeds = [
        {"feed_norm.scale": (f"{last}.layer_norm",)} | {f"feed.{part}.kernel": (f"{last}.DenseReluDense.{name}",) for part, name in maps.items()}
        for last in (1, 2)
    ]
    cross = {
        "cross_norm.scale": ("1.layer_norm",),
        "cross.query.kernel": ("1.EncDecAttention.q",),
        "cross.memory.kernel": ("1.EncDecAttention.k", "1.EncDecAttention.v"),
        "cross.output.kernel": ("1.EncDecAttention.o",),
    }
    found = {"encoder": own | feeds[0]}
    return found | {"decoder": {f"block.{part}": names for part, names in (own | feeds[1]).items()} | cross} if model.decoder_layers else found


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the one T5 in a checkpoint, by their names within it, and the table that scores.

    The words' table is published under one of two names; the first releases hold a bias for cross-attention that nothing uses.
    """
    last = "encoder.final_layer_norm.weight"
    prefixes = [name.removesuffix(last) for name in tensors if name.endswith(last)]
    if len(prefixes) != 1:
        raise ValueError(f"{len(prefixes)} tensors end in {last}, and one T5 has one; the names begin {', '.join(sorted(tensors)[:3]) or 'nowhere'}")
    own = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items() if name.startswith((prefixes[0], "lm_head."))}
    own = {name: tensor for name, tensor in own.items() if not name.endswith("EncDecAttention.relative_attention_bias.weight")}
    if (words := own.get("shared.weight", own.get("encoder.embed_tokens.weight"))) is None:
        raise ValueError("neither shared.weight nor encoder.embed_tokens.weight is there, the table of words; are the weights whole?")
    return own | {"shared.weight": words}


def _equal(one: Tensor, other: Tensor, rows: int = 4096) -> bool:
    """Whether two tables hold the same, read some rows at a time."""
    pieces = [(slice(low, low + rows), slice(None)) for low in range(0, one.shape[0], rows)]
    return one.shape == other.shape and all(np.array_equal(one[piece], other[piece]) for piece in pieces)


def _scaled_queries(columns: int, head: int) -> Initializer:
    """By fan-in, and the first `columns`, those of queries, times K ** -0.5: the scores are not scaled."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return lecun()(key, shape, dtype) * jnp.where(jnp.arange(shape[1]) < columns, head**-0.5, 1.0).astype(dtype)[None]

    return init
