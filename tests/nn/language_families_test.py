"""The configs of the families: what published ones mean, there and back, and what is refused."""

import dataclasses

import numpy as np
import pytest

from benchmarks.parity import FAMILIES
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_families import DEFAULTS, from_config, to_config
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.positions import Rotary

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": True,
}
"""As published with Llama 3.2 1B."""


def test_a_llama_3_with_scaled_frequencies():
    model = from_config(LLAMA)
    rotary = Rotary(theta=500000.0, scaling="llama3", factor=32.0, original=8192)
    assert model.attention == AttentionKind(positions="rotary", groups=8, rotary=rotary)
    assert (model.head, model.tied, model.epsilon, model.pattern) == (0, True, 1e-5, ("global",))
    newer = {name: value for name, value in LLAMA.items() if not name.startswith("rope")}
    assert from_config(newer | {"rope_parameters": LLAMA["rope_scaling"] | {"rope_theta": 500000.0}}) == model


def test_a_gemma_3_that_also_sees_leaves_out_what_equals_the_defaults():
    """As published with Gemma 3 4B: most entries are left to the defaults of its family."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024, "model_type": "gemma3_text"}
    model = from_config({"model_type": "gemma3", "text_config": text | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}})
    assert (model.vocabulary, model.heads, model.head, model.attention.groups, model.length, model.tied) == (262208, 8, 256, 4, 131072, True)
    assert model.pattern == ("local",) * 5 + ("global",)
    assert model.attention.rotary == Rotary(theta=1e6, scaling="linear", factor=8.0) and model.local_rotary == Rotary(theta=1e4)
    assert model.attention.window == 1024 and model.attention.scale == 1 / 16 and model.scale == np.sqrt(2560)
    assert model.cap == model.attention.cap == 0 and model.head_norm and model.post_norm and model.offset == 1


def test_windows():
    small = {name: value for name, value in LLAMA.items() if name != "rope_scaling"} | {"num_hidden_layers": 6}
    assert from_config(small | {"model_type": "mistral"}).attention.window == 4096  # the family's default
    assert from_config(small | {"model_type": "mistral", "sliding_window": None}).pattern == ("global",)
    gemma = from_config(small | {"model_type": "gemma2"})
    assert gemma.pattern == ("local", "global") and gemma.attention.cap == 50 and gemma.cap == 30 and gemma.local_rotary is None
    assert from_config(small | {"model_type": "gemma2", "attn_logit_softcapping": None}).attention.cap == 0
    qwen = small | {"model_type": "qwen2", "sliding_window": 128, "max_window_layers": 4}
    assert from_config(qwen).attention.window == 0
    assert from_config(qwen | {"use_sliding_window": True}).pattern == ("global",) * 4 + ("local",) * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_goes_there_and_back(family):
    model = from_config(FAMILIES[family])
    assert from_config(to_config(model)) == model
    assert to_config(model)["model_type"] == FAMILIES[family]["model_type"]


def test_what_no_family_has_is_named():
    model = from_config(FAMILIES["Llama 2"])
    with pytest.raises(ValueError, match=r"no family has scale=3.0; the nearest is llama"):
        to_config(dataclasses.replace(model, scale=3.0))
    with pytest.raises(ValueError, match=r"no family has attention=AttentionKind\(weights='threshold'.*; the nearest is llama"):
        to_config(LanguageModel(attention=AttentionKind(weights="threshold", positions="rotary")))


def test_what_is_not_known_is_told():
    for change, message in (
        ({"model_type": "gpt2"}, rf"model_type='gpt2'; the families known are {', '.join(DEFAULTS)}"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn'; the types known are default, linear, llama3"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type='linear' without factor; take the one that was published with the weights"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": None}},
            "rope_type='llama3' without low_freq_factor, high_freq_factor, original_max_position_embeddings; take",
        ),
        ({"mlp_bias": True}, "mlp_bias=True, which is not supported"),
        ({"hidden_act": "swish"}, "activation='swish' is not one of"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types of 3 layers and num_hidden_layers=16; take"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0; whole numbers above 0 are needed"),
        ({"num_attention_heads": "8", "hidden_size": 1.5}, "hidden_size=1.5, num_attention_heads='8'; whole numbers"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window=0; whole numbers"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear', and an object is needed"),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["chunked"] * 16}, "layer_types with chunked; full_attention and"),
    ):
        with pytest.raises(ValueError, match=message):
            from_config(LLAMA | change)
    with pytest.raises(ValueError, match="config.json lacks vocab_size, hidden_size; take the one"):
        from_config({name: value for name, value in LLAMA.items() if name not in ("vocab_size", "hidden_size")})
