"""ModernBERT: the paper's equations in NumPy, transformers, and the translation to and from Hugging Face's tensors."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from benchmarks.parity import ENCODERS
from benchmarks.peers.process import Process
from jaxrec.interop import safetensors_files
from jaxrec.nn import encoders
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.param import abstract, count, create, flatten, unflatten

TINY = ModernBERT(vocabulary=40, length=24, dim=8, layers=8, heads=2, hidden=12, window=6, theta=500.0, local_theta=30.0)  # 1 + 2 x 3 scanned + 1
BIASED = dataclasses.replace(TINY, layers=5, every=2, norm_bias=True, attention_bias=True, feed_bias=True)


def random_params(model):
    """Scales and biases included, so that no term of the equations is invisible."""
    leaves = flatten(create(model.spec(), jax.random.key(0)))
    noise = np.random.default_rng(0)
    leaves = {name: np.asarray(leaf) + 0.4 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()}
    leaves["word.table"][model.vocabulary :] = 0  # rows of no word piece, which no checkpoint holds
    return unflatten(model.spec(), leaves)


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@jax.jit
def states(params, ids, mask):
    return params(ids, mask)


def numpy_modernbert(tensors, ids, model):
    """[T, D] states of one text [T], from Hugging Face's tensors, in float64."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    place = np.arange(len(ids))

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.epsilon) * tensors[f"{name}.weight"] + tensors.get(f"{name}.bias", 0)

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def turned(x, theta):  # [T, K]: features k and k + K / 2 as a complex number
        half = x.shape[1] // 2
        angle = place[:, None] * theta ** (-np.arange(half) / half)
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], axis=1)

    x = norm("embeddings.norm", tensors["embeddings.tok_embeddings.weight"][ids])
    for number in range(model.layers):
        layer, whole = f"layers.{number}", number % model.every == 0
        y = norm(f"{layer}.attn_norm", x) if number else x
        heads = []
        for q, k, v in zip(*(np.split(part, model.heads, axis=-1) for part in np.split(linear(f"{layer}.attn.Wqkv", y), 3, axis=-1)), strict=True):
            theta = model.theta if whole else model.local_theta
            weights = np.exp(turned(q, theta) @ turned(k, theta).T / np.sqrt(q.shape[-1]))
            weights *= whole | (np.abs(place[:, None] - place[None]) <= model.window // 2)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + linear(f"{layer}.attn.Wo", np.concatenate(heads, axis=-1))
        activated, gate = np.split(linear(f"{layer}.mlp.Wi", norm(f"{layer}.mlp_norm", x)), 2, axis=-1)
        x = x + linear(f"{layer}.mlp.Wo", activated * (1 + erf(activated / np.sqrt(2))) / 2 * gate)
    return norm("final_norm", x)


def padded(rows, length, *, left=False):
    """(ids, mask), [rows, length]."""
    ids, mask = np.zeros((2, len(rows), length), np.int32)
    for place, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[place, where], mask[place, where] = row, 1
    return ids, mask


def test_it_is_the_equations_and_padding_changes_nothing(params):
    random = np.random.default_rng(1)
    rows = [random.integers(1, 40, size) for size in (24, 11, 1)]
    tensors = TINY.to_hf(params)
    wanted = [numpy_modernbert(tensors, row, TINY) for row in rows]
    for other in (4, 8):  # the window's edge is seen
        assert np.abs(numpy_modernbert(tensors, rows[0], dataclasses.replace(TINY, window=other)) - wanted[0]).max() > 1e-2
    assert np.abs(numpy_modernbert(tensors, rows[0], dataclasses.replace(TINY, local_theta=500.0)) - wanted[0]).max() > 1e-2
    for left in (False, True):
        ids, mask = padded(rows, 24, left=left)
        found = np.asarray(states(params, ids, mask))
        for row, each in enumerate(wanted):
            np.testing.assert_allclose(found[row][mask[row] > 0], each, rtol=0, atol=1e-4)
    ids, mask = padded(rows, 24)
    filled = np.where(mask > 0, ids, 7)
    np.testing.assert_array_equal(np.asarray(states(params, filled, mask))[mask > 0], np.asarray(states(params, ids, mask))[mask > 0])
    nothing = np.zeros((3, 24), np.int32)  # a text of padding only has no NaN
    assert np.all(np.isfinite(states(params, nothing, nothing)))
    encode = jax.jit(lambda params, ids, mask, pooling: TINY.encode(params, ids, mask, pooling), static_argnums=3)
    np.testing.assert_allclose(encode(params, ids, mask, "mean"), [each.mean(0) for each in wanted], atol=1e-4)


def test_biases_where_a_config_asks_for_them():
    params = random_params(BIASED)
    ids = np.random.default_rng(2).integers(1, 40, (1, 24))
    tensors = BIASED.to_hf(params)
    assert {name for name in tensors if name.startswith("layers.0.")} == {
        f"layers.0.{name}.{kind}" for name in ("attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo") for kind in ("weight", "bias")
    }
    found = states(params, jnp.asarray(ids), jnp.ones_like(ids))
    np.testing.assert_allclose(found[0], numpy_modernbert(tensors, ids[0], BIASED), rtol=0, atol=1e-4)


def test_dropout_needs_a_key_and_the_gradient_reaches_every_leaf():
    rows = [[1, 2, 3], [4, 5, 6, 7]]
    ids, mask = padded(rows, 6)
    model = dataclasses.replace(TINY, layers=3, every=2, dropout=0.5)

    @jax.jit
    def run(params):
        gradient = jax.grad(lambda params: jnp.sum(jnp.sin(model.encode(params, ids, mask))))(params)
        return params(ids, mask), params(ids, mask, key=jax.random.key(0)), gradient

    plain, dropped, gradient = run(params := random_params(model))
    np.testing.assert_allclose(plain[1, :4], numpy_modernbert(model.to_hf(params), rows[1], model), rtol=0, atol=1e-4)
    assert np.abs(plain - dropped).max() > 1e-2
    for name, leaf in flatten(gradient).items():
        assert np.any(leaf != 0) and np.all(np.isfinite(leaf)), name


def test_the_published_sizes():
    """149 and 395 million, as the paper says; all layers behind the first are scanned."""
    base, large = ModernBERT(), ModernBERT(dim=1024, layers=28, heads=16, hidden=2624)
    assert [round(count(model.spec()) / 1e6) for model in (base, large)] == [149, 395]
    assert [(model.spec().stack.repeats, model.spec().rest) for model in (base, large)] == [(7, ()), (9, ())]
    assert dataclasses.replace(base, layers=3).spec().stack is None and base.longest == 8192


@pytest.mark.parametrize("model", [TINY, BIASED, dataclasses.replace(TINY, layers=1), dataclasses.replace(TINY, every=1, layers=3)])
def test_hugging_face_there_and_back_is_exact(model):
    params = random_params(model)
    tensors = model.to_hf(params)
    assert tensors["embeddings.tok_embeddings.weight"].shape == (40, 8) and tensors["layers.0.mlp.Wi.weight"].shape == (24, 8)
    assert "layers.0.attn_norm.weight" not in tensors and ("layers.1.attn_norm.weight" in tensors) == (model.layers > 1)
    back = model.from_hf(tensors)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(lambda leaf: leaf.shape, abstract(model.spec()))
    for name, leaf in flatten(back).items():
        np.testing.assert_array_equal(leaf, flatten(params)[name], strict=True)
    again = model.to_hf(back)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor, strict=True)


def test_a_prefix_a_head_and_half_precision_are_read(params):
    tensors = {name: tensor.astype(np.float16) for name, tensor in TINY.to_hf(params).items()}
    head = {"head.dense.weight": np.ones((8, 8)), "head.norm.weight": np.ones(8), "decoder.weight": np.ones((40, 8)), "decoder.bias": np.ones(40)}
    held = {f"model.{name}": tensor for name, tensor in tensors.items()} | head
    for stored in (held, tensors | head):
        for name, leaf in flatten(TINY.from_hf(stored)).items():
            assert leaf.dtype == np.float32
            np.testing.assert_array_equal(leaf, flatten(TINY.from_hf(tensors))[name])


def test_tensors_that_do_not_fit_are_named(params):
    tensors = TINY.to_hf(params)
    name = "layers.4.mlp.Wi.weight"
    with pytest.raises(ValueError, match=r"tensor layers.4.mlp.Wi.weight \(first half\) has shape \(11, 8\), the config asks for \(12, 8\)"):
        TINY.from_hf(tensors | {name: tensors[name][:22]})
    with pytest.raises(ValueError, match=r"2 tensors are missing, layers.4.mlp.Wi.weight \(first half\), layers.4.mlp.Wi.weight \(second half\) first"):
        TINY.from_hf({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"7 tensors are none of ModernBERT's, layers.7.attn.Wo.weight"):
        dataclasses.replace(TINY, layers=7).from_hf(tensors)
    with pytest.raises(ValueError, match=r"0 tensors end in embeddings.tok_embeddings.weight, and one ModernBERT has one; the names begin wte"):
        TINY.from_hf({"wte": np.ones(3)})


PUBLISHED = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "intermediate_size": 1152,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}
"""What ModernBERT-base says of its encoder."""


def test_hyper_parameters_come_from_a_config():
    assert ModernBERT.from_config(PUBLISHED) == ModernBERT()
    for model in (TINY, BIASED, dataclasses.replace(TINY, dropout=0.2)):
        assert ModernBERT.from_config(model.to_config()) == model
    said = {name: PUBLISHED[name] for name in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
    assert ModernBERT.from_config(said) == ModernBERT()  # what equals the defaults may be left out
    kinds = ["sliding_attention" if layer % 4 else "full_attention" for layer in range(22)]
    thetas = {"full_attention": {"rope_type": "default", "rope_theta": 5e4}, "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}}
    newer = said | {"layer_types": kinds, "rope_parameters": thetas, "mlp_dropout": 0.1}
    assert ModernBERT.from_config(newer) == ModernBERT(every=4, theta=5e4, local_theta=7e3, dropout=0.1)
    assert ModernBERT.from_config(PUBLISHED | {"local_rope_theta": None}) == ModernBERT(local_theta=160_000.0)  # null: as where the whole text is seen


def test_what_a_config_asks_for_in_vain_is_named():
    yarn = {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}
    for changed, message in (
        ({"model_type": "bert"}, "model_type='bert', and this is ModernBERT"),
        ({"vocab_size": None, "hidden_size": None}, "config.json lacks vocab_size, hidden_size; take the one"),
        ({"hidden_activation": "swish"}, "activation='swish' is not one of gelu,"),
        ({"num_attention_heads": 5}, "heads=5 does not divide dim=768"),
        ({"rope_parameters": yarn}, "rope_type='yarn' and rope_scaling=None"),
        ({"rope_scaling": {"factor": 2}}, r"rope_scaling=\{'factor': 2\}"),
        ({"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}, r"layer_types=\['sliding_attention', 'sliding_attention'\], and in ModernBERT"),
        ({"global_attn_every_n_layers": 0}, "ModernBERT: every=0 must be at least 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            ModernBERT.from_config(PUBLISHED | changed)


def test_what_it_cannot_read_is_refused(params):
    with pytest.raises(ValueError, match="texts of 25 tokens are longer than the 24 positions"):
        params(np.ones((1, 25), np.int32), np.ones((1, 25), np.int32))
    with pytest.raises(ValueError, match="token types are given, and ModernBERT has none"):
        params(np.ones((1, 5), np.int32), np.ones((1, 5), np.int32), np.zeros((1, 5), np.int32))


@pytest.fixture(scope="module")
def peer():
    if not (python := os.environ.get("JAXREC_TORCH_PYTHON")):
        pytest.skip("needs transformers; set JAXREC_TORCH_PYTHON to a Python that has it and torch")
    peer = Process(python, "encoders_torch.py", 2)
    yield peer
    peer.close()


def test_transformers_gives_the_same_states_and_reads_what_we_write(peer, params, tmp_path):
    ids, mask = padded([np.random.default_rng(3).integers(1, 40, size) for size in (24, 13, 2)], 24)
    asked = {"states": ids.tolist(), "mask": mask.tolist(), "dtype": "float32"}
    peer.ask(make=str(tmp_path / "theirs"), config=ENCODERS["ModernBERT"])
    wanted = np.asarray(peer.ask(**asked)["states"])
    model = encoders.from_config(safetensors_files.read_config(tmp_path / "theirs"))
    found = states(model.from_hf(safetensors_files.read(tmp_path / "theirs")), ids, mask)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(np.asarray(found)[mask > 0], wanted[mask > 0], rtol=0, atol=1e-4)

    safetensors_files.write(tmp_path / "ours", TINY.to_config(), TINY.to_hf(params).items())
    assert peer.ask(open=str(tmp_path / "ours"))["missing"] == []
    wanted = np.asarray(peer.ask(**asked)["states"])
    np.testing.assert_allclose(np.asarray(states(params, ids, mask))[mask > 0], wanted[mask > 0], rtol=0, atol=1e-4)
