"""T5 against transformers, where there is one: states, logits and greedy tokens of random models that it has written."""

import json
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.interop import safetensors_files
from jaxrec.nn.t5 import T5
from jaxrec.ops.sampling import greedy, start, write
from jaxrec.param import flatten

PEER = """
import json, sys
import numpy as np
import torch, transformers
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder, asked = sys.argv[1], json.load(sys.stdin)
ids, mask, target = (torch.tensor(asked[name]) for name in ("ids", "mask", "target"))
for name, config in asked["configs"].items():
    torch.manual_seed(0)
    whole = T5ForConditionalGeneration(T5Config(**asked["sizes"], **config)).eval().float()
    if config.get("tie_word_embeddings") is False:
        whole.lm_head.weight = torch.nn.Parameter(torch.zeros_like(whole.lm_head.weight))
    with torch.no_grad():
        for part, parameter in whole.named_parameters():
            noise = torch.randn_like(parameter)
            size = 1.0 if "relative" in part or "shared" in part else parameter.shape[-1] ** -0.5
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else size * noise)
        found = {"logits": whole(input_ids=ids, attention_mask=mask, labels=target).logits}
        found["states"] = whole.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        how = {"max_new_tokens": asked["new"], "min_new_tokens": asked["new"], "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        found["written"] = whole.generate(ids, attention_mask=mask, **how)[:, 1:]
    whole.save_pretrained(f"{folder}/{name}")
    alone = T5EncoderModel(T5Config(**asked["sizes"], **config))
    alone.load_state_dict({part: tensor for part, tensor in whole.state_dict().items() if part.startswith(("shared", "encoder"))})
    alone.save_pretrained(f"{folder}/{name} encoder")
    np.savez(f"{folder}/{name}.npz", **{part: tensor.numpy() for part, tensor in found.items()})
"""
PUBLISHED = {"first": {}, "gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """(folder of models and of what transformers computes with them, ids, mask, target)."""
    if not (python := os.environ.get("JAXREC_TORCH_PYTHON")):
        pytest.skip("needs transformers; set JAXREC_TORCH_PYTHON to a Python that has it and torch")
    folder = tmp_path_factory.mktemp("t5")
    random = np.random.default_rng(0)
    ids, target = random.integers(2, 70, (3, 150)), random.integers(2, 70, (3, 12))
    mask = (np.arange(150) < np.asarray([150, 40, 7])[:, None]).astype(np.int32)
    sizes = {"vocab_size": 70, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    asked = {"ids": (ids * mask).tolist(), "mask": mask.tolist(), "target": target.tolist(), "sizes": sizes, "configs": PUBLISHED, "new": 10}
    subprocess.run([python, "-c", PEER, str(folder)], input=json.dumps(asked), text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    return folder, jnp.asarray(ids * mask, jnp.int32), jnp.asarray(mask), jnp.asarray(target, jnp.int32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_computes_the_same(name, peer):
    folder, ids, mask, target = peer
    model = T5.from_config(safetensors_files.read_config(folder / name))
    params = model.from_hf(safetensors_files.open_tensors(folder / name))
    assert model.tied == (name == "first")

    @jax.jit
    def run(params):
        states = params(ids, mask)
        writing = write(params.step, greedy, start(*params.prefill(ids, mask, slots=11), room=10), until=10)
        return states, params.logits(params.decode(target, states, mask)), writing.ids

    states, logits, written = run(params)
    with np.load(folder / f"{name}.npz") as wanted:
        assert np.abs(wanted["logits"]).max() > 0.5
        held = np.asarray(mask, bool)
        np.testing.assert_allclose(np.asarray(states)[held], wanted["states"][held], rtol=0, atol=1e-4)
        np.testing.assert_allclose(logits, wanted["logits"], rtol=0, atol=1e-4)
        np.testing.assert_array_equal(written, wanted["written"])
    alone = T5.from_config(safetensors_files.read_config(folder / f"{name} encoder"))
    assert alone == model.encoder
    own = flatten(alone.from_hf(safetensors_files.open_tensors(folder / f"{name} encoder")).encoder)
    for part, leaf in flatten(params.encoder).items():
        np.testing.assert_array_equal(own[part], leaf, err_msg=part)
