"""Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3: their `config.json` as a `LanguageModel` and back, and their tensors as its parameters and back.

    model = from_config(safetensors_files.read_config(folder))
    params = from_hf(model, safetensors_files.open_tensors(folder))

What the families share is said once; a family is its defaults (a published config leaves out what equals them) and what it adds.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import Decoder, LanguageModel
from jaxrec.nn.positions import Rotary
from jaxrec.nn.tensors import Source, Tensor, check_sizes, load, unload
from jaxrec.param import Tree, flatten

Config = Mapping[str, Any]

FIELDS = {
    "vocabulary": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "length": "max_position_embeddings",
    "epsilon": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
"""The name in a `config.json` of the hyper-parameters that every family has."""

GEMMA = {"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "max_window_layers": 28, "sliding_window": 4096, "attention_bias": True},
    "qwen3": {"num_key_value_heads": 32, "max_position_embeddings": 32_768, "max_window_layers": 28, "sliding_window": 4096, "head_dim": 128},
    "gemma2": GEMMA
    | {
        "vocab_size": 256_000,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": GEMMA
    | {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window_pattern": 6,
    },
}
"""What a family's config means where it says nothing."""
SHARED = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 1e4, "attention_bias": False, "hidden_act": "silu"}
NULLS = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")
"""Entries in which null means none, and not the default."""
ROTARIES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""By the `rope_type`, what else a config says of it."""
ARCHITECTURES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}


def from_config(config: Config) -> LanguageModel:
    """The hyper-parameters in a Hugging Face `config.json`.

    Raises:
      ValueError: it is of another architecture, lacks an entry, or asks for what is not here; names it.
    """
    family = config.get("model_type")
    if family == "gemma3" and "text_config" in config:  # of a model that also sees: its text half
        return from_config({"tie_word_embeddings": config.get("tie_word_embeddings", True), **config["text_config"], "model_type": "gemma3_text"})
    if family not in DEFAULTS:
        raise ValueError(f"config.json says model_type={family!r}; the families known are {', '.join(DEFAULTS)}")
    said = {name: value for name, value in config.items() if value is not None or name in NULLS}
    config = SHARED | DEFAULTS[family] | said
    if missing := [name for name in FIELDS.values() if name not in config]:
        raise ValueError(f"config.json lacks {', '.join(missing)}; take the one that was published with the weights")
    check_sizes(config, *([] if config.get("sliding_window") is None else ["sliding_window"]))
    if wrong := [f"{name}={config[name]!r}" for name in ("rope_scaling", "rope_parameters") if not isinstance(config.get(name) or {}, Mapping)]:
        raise ValueError(f"config.json says {', '.join(wrong)}, and an object is needed; take the one that was published with the weights")
    for name in ("mlp_bias", "use_bidirectional_attention"):
        if config.get(name):
            raise ValueError(f"config.json says {name}={config[name]!r}, which is not supported; choose another model")
    gemma = family.startswith("gemma")
    local = _local(config, family)
    full = _rotary(config, "full_attention")
    own = _rotary(config, "sliding_attention") if any(local) else full
    period = next(size for size in range(1, len(local) + 1) if all(kind == local[place % size] for place, kind in enumerate(local)))
    heads, groups, dim = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"]), config["hidden_size"]
    head = config.get("head_dim", dim // heads)
    return LanguageModel(
        **{field: config[name] for field, name in FIELDS.items()},
        head=0 if head * heads == dim else head,
        attention=AttentionKind(
            positions="rotary",
            rotary=full,
            groups=0 if groups == heads else groups,
            window=config["sliding_window"] if any(local) else 0,
            scale=config["query_pre_attn_scalar"] ** -0.5 if gemma else 0.0,
            cap=config.get("attn_logit_softcapping") or 0.0 if gemma else 0.0,
        ),
        pattern=tuple("local" if kind else "global" for kind in local[:period]),
        local_rotary=None if own == full else own,
        activation=config["hidden_activation" if gemma else "hidden_act"],
        qkv_bias=bool(config["attention_bias"]),
        output_bias=bool(config["attention_bias"]) and family != "qwen2",
        head_norm=family in ("qwen3", "gemma3_text"),
        post_norm=gemma,
        offset=1.0 if gemma else 0.0,
        scale=math.sqrt(dim) if gemma else 1.0,
        cap=config.get("final_logit_softcapping") or 0.0 if gemma else 0.0,
    )


def to_config(model: LanguageModel) -> dict[str, Any]:
    """The `config.json` of these hyper-parameters, the inverse of `from_config`.

    Raises:
      ValueError: no family has them; names what differs from the nearest.
    """
    family = _family(model)
    attention = model.attention
    kinds = ["sliding_attention" if model.pattern[place % len(model.pattern)] == "local" else "full_attention" for place in range(model.layers)]
    config: dict[str, Any] = {"model_type": family, "architectures": [f"{ARCHITECTURES[family]}ForCausalLM"]}
    config |= {name: getattr(model, field) for field, name in FIELDS.items()}
    config |= {"num_key_value_heads": attention.groups or model.heads, "head_dim": model.head or model.dim // model.heads}
    config |= {"hidden_activation" if family.startswith("gemma") else "hidden_act": model.activation}
    if family != "qwen2":
        config["attention_bias"] = model.qkv_bias
    if family != "llama":
        config["sliding_window"] = attention.window or (None if family == "mistral" else 4096)
    if family.startswith("qwen"):
        config["use_sliding_window"] = bool(attention.window)
    if family not in ("llama", "mistral"):
        config["layer_types"] = kinds
    full = _rope(attention.rotary)
    if family == "gemma3_text":
        config["rope_parameters"] = {"full_attention": full, "sliding_attention": _rope(model.local_rotary or attention.rotary)}
    else:
        config |= {"rope_parameters": full, "rope_theta": attention.rotary.theta}
    if family.startswith("gemma"):
        config["query_pre_attn_scalar"] = round(attention.scale**-2) if attention.scale else 0
        config |= {"attn_logit_softcapping": attention.cap or None, "final_logit_softcapping": model.cap or None}
    found = from_config(config)
    differ = [field.name for field in dataclasses.fields(model) if field.name != "dropout" and getattr(found, field.name) != getattr(model, field.name)]
    if differ:
        raise ValueError(f"no family has {', '.join(f'{name}={getattr(model, name)!r}' for name in differ)}; the nearest is {family}")
    return config


def from_hf(
    model: LanguageModel, tensors: Mapping[str, Tensor], *, dtype: DTypeLike = np.float32, shardings: Tree | None = None, stacked: bool = True
) -> Decoder:
    """The parameters of a model from Hugging Face's tensors, read a shard at a time.

    Args:
      model: from the config beside them.
      tensors: in memory or in files, by name; those of other parts (a vision tower) are passed over.
      dtype: of the parameters.
      shardings: a tree of them like the spec's; all on the first device unless given.
      stacked: as in `LanguageModel.spec`.

    Raises:
      ValueError: a tensor is missing, unknown, or of another shape than the config asks for; names it and both shapes.
    """
    own = _own(tensors)
    spec = model.spec(stacked=stacked)
    places = sources(model, spec)
    known = {name for source in places.values() for layer in source.names for name in layer}
    if unknown := sorted(name for name in own if name.startswith("layers.") and name not in known):
        raise ValueError(f"{len(unknown)} tensors are not of this model, {', '.join(unknown[:3])} first; are config and weights of one model?")
    return load(spec, places, own, dtype=dtype, shardings=shardings)


def to_hf(model: LanguageModel, params: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of Hugging Face's causal language model one by one, the inverse of `from_hf`."""
    for name, array in unload(params, sources(model, params)):
        yield (name if name.startswith("lm_head") else f"model.{name}"), array


def sources(model: LanguageModel, spec: Decoder) -> dict[str, Source]:
    """The tensors of each leaf, by names without `model.` before them; `spec` may be parameters too."""
    table = {"widths": (model.dim,), "rows": model.vocabulary}
    found = {"word.table": Source((("embed_tokens.weight",),), **table), "norm.scale": Source((("norm.weight",),), (model.dim,))}
    if not model.tied:
        found["output.table"] = Source((("lm_head.weight",),), **table)
    size, scanned = len(model.pattern), spec.stack.depth if spec.stack else 0
    named = _layer_tensors(model)
    for leaf, param in flatten((spec.stack, spec.rest)).items():
        if leaf.startswith("0."):  # stack: layers.<part> or layers.<place in the pattern>.<part>
            place, part = re.fullmatch(r"0\.layers\.(?:(\d+)\.)?(.*)", leaf).groups()  # type: ignore[union-attr]
            layers, name = range(int(place or 0), scanned, size), leaf.replace("0.", "stack.", 1)
        else:
            place, part = re.fullmatch(r"1\.(\d+)\.(.*)", leaf).groups()  # type: ignore[union-attr]
            layers, name = range(scanned + int(place), scanned + int(place) + 1), leaf.replace("1.", "rest.", 1)
        names = named[part]
        head = model.head or model.dim // model.heads
        widths = (model.heads * head, *[(model.attention.groups or model.heads) * head] * 2) if len(names) == 3 else (param.shape[-1],)
        found[name] = Source(
            tuple(tuple(f"layers.{layer}.{name}" for name in names) for layer in layers), widths, name.startswith("stack"), part.endswith("kernel")
        )
    return found


def _layer_tensors(model: LanguageModel) -> dict[str, tuple[str, ...]]:
    """Our leaf of a layer -> Hugging Face's tensors of a layer."""
    norms = {"attention_norm": "input_layernorm", "feed_norm": "post_attention_layernorm"}
    if model.post_norm:
        norms |= {"attention_post": "post_attention_layernorm", "feed_norm": "pre_feedforward_layernorm", "feed_post": "post_feedforward_layernorm"}
    norms |= {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
    maps = {
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.output": ("self_attn.o_proj",),
        "feed.gate": ("mlp.gate_proj",),
        "feed.inner": ("mlp.up_proj",),
        "feed.outer": ("mlp.down_proj",),
    }
    weights = {f"{part}.kernel": tuple(f"{name}.weight" for name in names) for part, names in maps.items()}
    biases = {f"{part}.bias": tuple(f"{name}.bias" for name in names) for part, names in maps.items()}
    return weights | biases | {f"{part}.scale": (f"{name}.weight",) for part, name in norms.items()}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the one decoder in a checkpoint, by their names within it, and the table that scores."""
    words = "embed_tokens.weight"
    prefixes = [name.removesuffix(words) for name in tensors if name.endswith(words)]
    if len(prefixes) != 1:
        raise ValueError(f"{len(prefixes)} tensors end in {words}, and one decoder has one; the names begin {', '.join(sorted(tensors)[:3]) or 'nowhere'}")
    own = {name.removeprefix(prefixes[0]): tensor for name, tensor in tensors.items() if name.startswith(prefixes[0]) and "rotary_emb" not in name}
    scoring = next((tensor for name, tensor in tensors.items() if name.endswith("lm_head.weight")), None)
    return own if scoring is None else own | {"lm_head.weight": scoring}


def _local(config: Config, family: str) -> list[bool]:
    """Whether each layer sees a window alone."""
    layers, kinds = range(config["num_hidden_layers"]), config.get("layer_types")
    if kinds and len(kinds) != len(layers):
        raise ValueError(f"config.json says layer_types of {len(kinds)} layers and num_hidden_layers={len(layers)}; take the one published with the weights")
    if family == "llama" or (family.startswith("qwen") and not config.get("use_sliding_window")) or config["sliding_window"] is None:
        return [False for _ in layers]
    if kinds:
        if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
            raise ValueError(f"config.json says layer_types with {', '.join(sorted(unknown))}; full_attention and sliding_attention are known")
        return [kind == "sliding_attention" for kind in kinds]
    if family.startswith("gemma"):
        return [(layer + 1) % config["sliding_window_pattern"] > 0 for layer in layers]
    return [layer >= config.get("max_window_layers", 0) for layer in layers]


def _rotary(config: Config, kind: str) -> Rotary:
    """The frequencies of a kind of layer; newer configs have `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    said = config.get("rope_parameters") or {}
    local = "rope_local_base_freq" in config and kind == "sliding_attention"
    theta, scaling = (config["rope_local_base_freq"], {}) if local else (config["rope_theta"], config.get("rope_scaling") or {})
    said = scaling if not said else said.get(kind, {}) if "full_attention" in said or "sliding_attention" in said else said
    name = said.get("rope_type", said.get("type", "default"))
    if name not in ROTARIES:
        raise ValueError(f"config.json says rope_type={name!r}; the types known are {', '.join(ROTARIES)}")
    if missing := [entry for entry in ROTARIES[name] if said.get(entry) is None]:
        raise ValueError(f"config.json says rope_type={name!r} without {', '.join(missing)}; take the one that was published with the weights")
    rotary = Rotary(theta=float(said.get("rope_theta", theta)))
    if name == "default":
        return rotary
    rotary = dataclasses.replace(rotary, scaling=name, factor=float(said["factor"]))
    if name == "linear":
        return rotary
    low, high, original = (said[entry] for entry in ROTARIES[name][1:])
    return dataclasses.replace(rotary, low=float(low), high=float(high), original=int(original))


def _rope(rotary: Rotary) -> dict[str, Any]:
    """The inverse of `_rotary`."""
    said: dict[str, Any] = {"rope_type": "default" if rotary.scaling == "none" else rotary.scaling, "rope_theta": rotary.theta}
    if rotary.scaling != "none":
        said["factor"] = rotary.factor
    if rotary.scaling == "llama3":
        said |= {"low_freq_factor": rotary.low, "high_freq_factor": rotary.high, "original_max_position_embeddings": rotary.original}
    return said


def _family(model: LanguageModel) -> str:
    """The family that comes nearest."""
    if model.post_norm:
        return "gemma3_text" if model.head_norm else "gemma2"
    if model.head_norm:
        return "qwen3"
    if model.qkv_bias and not model.output_bias:
        return "qwen2"
    return "mistral" if model.attention.window else "llama"
