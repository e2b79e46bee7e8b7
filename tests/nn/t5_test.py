"""T5: the equations in NumPy, decoding with a cache against whole targets, and checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.nn.positions import RelativeBias
from jaxrec.nn.t5 import T5, sources
from jaxrec.ops.sampling import greedy, sampler, start, write
from jaxrec.param import Param, abstract, create, flatten, unflatten
from jaxrec.sharding import Layout, make_mesh, partition

SMALL = {"vocabulary": 40, "dim": 16, "heads": 3, "head": 8, "hidden": 24, "buckets": 8, "furthest": 12}
MODELS = {  # one stack of each is deep enough to be scanned, and distances reach the last bucket
    "first": T5(**SMALL, layers=2, decoder_layers=5),
    "gated": T5(**SMALL, layers=5, decoder_layers=2, feed="gated-gelu", tied=False, start=3),
}
LENGTHS, WIDTH, L = (20, 14), 24, 9
BEGINS = ((0, 0), (0, 4), (1, 0), (1, 7))  # (text, where it begins in its row)


def randomised(spec, seed=0):
    """Random parameters, norms and biases of distances included, so that no term of the equations is invisible."""
    leaves = flatten(create(spec, jax.random.key(seed)))
    noise = np.random.default_rng(seed)
    return unflatten(spec, {name: np.asarray(leaf) + 0.2 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})


def same(one, other):
    for (name, leaf), wanted in zip(flatten(one).items(), flatten(other).values(), strict=True):
        np.testing.assert_array_equal(leaf, wanted, err_msg=name)


def batch_of(texts):
    """(ids, mask) [4, WIDTH]: each text in two rows, padded in two ways; the ids of padding are no zeros."""
    ids, mask = np.full((len(BEGINS), WIDTH), 7, np.int32), np.zeros((len(BEGINS), WIDTH), np.int32)
    for row, (text, begin) in enumerate(BEGINS):
        ids[row, begin : begin + len(texts[text])] = texts[text]
        mask[row, begin : begin + len(texts[text])] = 1
    return ids, mask


def computed(model, params, ids, mask, target, keys):
    """All that one compilation is to give; the first text is followed by what is most probable, the second by what is drawn."""
    states = params(ids, mask)
    draw = sampler(keys, 2.0)

    def choose(logits, place):
        return tuple(jnp.where(jnp.arange(4) < 2, *pair) for pair in zip(greedy(logits), draw(logits, place), strict=True))

    first, cache = params.prefill(ids, mask, slots=L + 1)
    written = write(params.unstacked().step, choose, start(first, cache, room=L), until=L)
    states, mask, both = (jnp.concatenate(pair) for pair in ((states, states), (mask, mask), (target, written.ids)))
    logits, again = jnp.split(params.logits(params.decode(both, states, mask)), 2)
    return {
        "states": states[:4],
        "mean": model.encode(params, ids, mask[:4]),
        "logits": logits,
        "first": first,
        "written": written.ids,
        "log_probs": written.log_probs,
        "again": again,
    }


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """(model, parameters, texts, targets, what `computed` gives)."""
    model = MODELS[request.param]
    params = randomised(model.spec())
    random = np.random.default_rng(1)
    texts = [random.integers(1, model.vocabulary, length).astype(np.int32) for length in LENGTHS]
    targets = random.integers(1, model.vocabulary, (2, L)).astype(np.int32)
    rows = [text for text, _ in BEGINS]
    keys = jax.random.split(jax.random.key(5), 2)[np.asarray(rows)]
    found = jax.jit(computed, static_argnums=0)(model, params, *map(jnp.asarray, (*batch_of(texts), targets[rows])), keys)
    return model, params, texts, targets, jax.tree.map(np.asarray, found)


def bucket(distance, buckets, furthest, causal):
    """The bucket of key place - query place, in integers: exact + floor(n log(d / exact) / log(furthest / exact)), n = side - exact, and at most side - 1."""
    side = buckets if causal else buckets // 2
    exact, past = side // 2, max(-distance, 0) if causal else abs(distance)
    n, coarse = side - exact, 0
    while past >= exact and coarse < n - 1 and past**n * exact ** (coarse + 1) >= furthest ** (coarse + 1) * exact**n:
        coarse += 1
    return (past if past < exact else exact + coarse) + (side if not causal and distance > 0 else 0)


def numpy_t5(tensors, config, ids, target):
    """(the encoder's states [T, D], logits [L, V]) of one text and one target, from Hugging Face's tensors and config, in float64."""
    tensors = {name.removesuffix(".weight"): np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    heads, K = config["num_heads"], config["d_kv"]

    def norm(name, x):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_epsilon"]) * tensors[name]

    def attend(name, x, memory, bias):
        q, k, v = ((y @ tensors[f"{name}.{part}"].T).reshape(len(y), heads, K) for part, y in (("q", x), ("k", memory), ("v", memory)))
        mixed = []
        for head in range(heads):
            weights = np.exp(q[:, head] @ k[:, head].T + bias[head])
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
        return np.concatenate(mixed, axis=-1) @ tensors[f"{name}.o"].T

    def feed(name, x):
        if config["feed_forward_proj"] == "relu":
            inner = np.maximum(x @ tensors[f"{name}.wi"].T, 0)
        else:
            gate = x @ tensors[f"{name}.wi_0"].T
            inner = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * (x @ tensors[f"{name}.wi_1"].T)
        return inner @ tensors[f"{name}.wo"].T

    def stack(half, x, memory):
        causal, places = memory is not None, range(len(x))
        sizes = config["relative_attention_num_buckets"], config["relative_attention_max_distance"], causal
        chosen = np.asarray([[bucket(key - query, *sizes) for key in places] for query in places])
        bias = np.moveaxis(tensors[f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias"][chosen], -1, 0)  # [H, T, T]
        if causal:
            bias = np.where(np.tril(np.ones(chosen.shape, bool)), bias, -np.inf)
        for number in range(config["num_decoder_layers" if causal else "num_layers"]):
            layer = f"{half}.block.{number}.layer"
            h = norm(f"{layer}.0.layer_norm", x)
            x = x + attend(f"{layer}.0.SelfAttention", h, h, bias)
            if causal:
                x = x + attend(f"{layer}.1.EncDecAttention", norm(f"{layer}.1.layer_norm", x), memory, np.zeros(heads))
            last = 2 if causal else 1
            x = x + feed(f"{layer}.{last}.DenseReluDense", norm(f"{layer}.{last}.layer_norm", x))
        return norm(f"{half}.final_layer_norm", x)

    memory = stack("encoder", tensors["shared"][ids], None)
    states = stack("decoder", tensors["shared"][[config["decoder_start_token_id"], *target[:-1]]], memory)
    if config["tie_word_embeddings"]:
        return memory, states * config["d_model"] ** -0.5 @ tensors["shared"].T
    return memory, states @ tensors["lm_head"].T


def test_it_is_the_equations_wherever_padding_lies(case):
    model, params, texts, targets, found = case
    tensors, config = model.to_hf(params), model.to_config()
    wanted = [numpy_t5(tensors, config, text, target) for text, target in zip(texts, targets, strict=True)]
    for row, (text, begin) in enumerate(BEGINS):
        states, logits = wanted[text]
        held = slice(begin, begin + len(texts[text]))
        np.testing.assert_allclose(found["states"][row, held], states, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["mean"][row], states.mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["logits"][row], logits, rtol=0, atol=1e-4)
    assert found["logits"].shape == (len(BEGINS), L, model.vocabulary) and np.abs(found["logits"]).max() > 1


def test_writing_with_a_cache_is_what_whole_targets_give_and_blind_to_padding(case):
    found = case[-1]
    logits, written = found["again"].astype(np.float64), found["written"]
    np.testing.assert_allclose(found["first"], logits[:, 0], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(written[:2], logits[:2].argmax(-1))
    logits[2:] /= 2.0  # drawn at this temperature
    wanted = np.take_along_axis(logits, written[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(found["log_probs"], wanted, atol=1e-4)
    np.testing.assert_array_equal(written[2], written[3])  # the same text, and the same key
    assert np.any(written[2] != logits[2].argmax(-1))


def test_buckets_are_those_of_integers():
    distances = np.arange(-300, 301)
    for causal in (True, False):
        bias = RelativeBias(jnp.zeros((32, 1)), 128, causal)
        np.testing.assert_array_equal(bias.bucket(jnp.asarray(distances)), [bucket(distance, 32, 128, causal) for distance in distances.tolist()])


def test_likelihoods_are_those_of_the_equations_and_their_gradient_reaches_every_leaf():
    model = dataclasses.replace(MODELS["gated"], layers=1, decoder_layers=1, dropout=0.2)
    params = randomised(model.spec(stacked=False))
    random = np.random.default_rng(1)
    ids, target = (jnp.asarray(random.integers(1, model.vocabulary, (2, length)), jnp.int32) for length in (WIDTH, L))
    target = target.at[1, -2:].set(0)
    mask = jnp.ones_like(ids)

    @jax.jit
    def run(params, key):
        def loss(params):
            found = params.log_likelihood(ids, mask, target)
            return jnp.sum(found), found

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return found, gradient, params.log_likelihood(ids, mask, target, key)

    found, gradient, dropped = run(params, jax.random.key(0))
    tensors, config = model.to_hf(params), model.to_config()
    logits = np.stack([numpy_t5(tensors, config, *pair)[1] for pair in zip(np.asarray(ids), np.asarray(target), strict=True)])
    wanted = np.take_along_axis(logits, np.asarray(target)[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(found, np.where(target > 0, wanted, 0), atol=1e-4)
    assert np.abs(found - dropped).max() > 1e-2 and not np.any(dropped[1, -2:])
    for name, leaf in flatten(gradient).items():
        assert np.any(leaf != 0), name


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_there_and_back_is_exact_in_both_forms(name):
    model = MODELS[name]
    params = create(model.spec(), jax.random.key(0))
    tensors = model.to_hf(params)
    again, apart = model.from_hf(tensors), model.from_hf(tensors, stacked=False)
    same(again.encoder, params.encoder)
    same(again.unstacked(), apart)
    assert not np.any(again.word.table[model.vocabulary :])
    for found in (model.to_hf(again), model.to_hf(apart)):
        assert found.keys() == tensors.keys()
        for part, tensor in tensors.items():
            np.testing.assert_array_equal(found[part], tensor)
    assert tensors["decoder.block.1.layer.1.EncDecAttention.v.weight"].shape == (24, 16)
    assert tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape == (8, 3)
    assert ("lm_head.weight" in tensors) == (not model.tied)


def test_the_encoder_is_read_from_a_whole_model_and_from_one_of_its_own():
    model = MODELS["first"]
    whole = create(model.spec(), jax.random.key(0))
    alone = model.encoder.from_hf(model.to_hf(whole))
    assert alone.decoder is None and alone.output is None
    tensors = model.encoder.to_hf(alone)
    assert not [name for name in tensors if not name.startswith(("shared", "encoder"))]
    renamed = {f"transformer.{name}".replace("shared", "encoder.embed_tokens"): tensor for name, tensor in tensors.items()}
    for found in (model.encoder.from_hf(tensors), model.encoder.from_hf(renamed)):
        same(found, alone)
    same(alone.encoder, whole.encoder)
    with pytest.raises(ValueError, match=r"this T5 is an encoder alone \(decoder_layers=0\), and writing needs a decoder"):
        jax.eval_shape(lambda params: params.prefill(jnp.ones((1, 4), jnp.int32), jnp.ones((1, 4)), slots=3), alone)


class Counted:
    """A tensor that counts the bytes it is asked for."""

    def __init__(self, array):
        self.array, self.shape, self.bytes = array, array.shape, 0

    def __getitem__(self, index):
        found = self.array[index]
        self.bytes += found.nbytes
        return found


def test_shards_read_their_own_slices_alone():
    model = dataclasses.replace(MODELS["gated"], heads=4, vocabulary=200)
    spec = model.spec()
    arrays = model.to_hf(create(spec, jax.random.key(0)))
    whole = model.from_hf(arrays)
    layout = Layout(mesh=(("data", 2), ("model", 4)), rules=(("batch", "data"), ("heads", "model"), ("hidden", "model"), ("vocabulary", "model")))
    mesh = make_mesh(layout)
    shardings = jax.tree.map(lambda param: partition(param.axes, param.shape, layout, mesh), spec, is_leaf=lambda leaf: isinstance(leaf, Param))
    tensors = {name: Counted(array) for name, array in arrays.items()}
    params = model.from_hf(tensors, shardings=shardings)
    same(params, whole)
    for name, leaf in flatten(params).items():
        assert leaf.sharding == flatten(shardings)[name], name
    memory = params.decoder.blocks.layers.cross.memory.kernel
    assert {shard.data.shape for shard in memory.addressable_shards} == {(2, 16, 16)}
    for name, tensor in tensors.items():  # each shard is read once, whatever number of devices holds it
        assert tensor.bytes == tensor.array.nbytes, name
        tensor.bytes = 0
    read = sources(model, spec)["decoder.blocks.layers.cross.memory.kernel"]
    part = read.read(tensors, (2, 16, 64), (slice(1, 2), slice(None), slice(24, 40)), np.float32)  # the end of keys, the begin of values
    np.testing.assert_array_equal(part, whole.decoder.blocks.layers.cross.memory.kernel[1:2, :, 24:40])
    touched = {name.removeprefix("decoder.block.1.layer.1.EncDecAttention."): tensor.bytes for name, tensor in tensors.items() if tensor.bytes}
    assert touched == {"k.weight": 8 * 16 * 4, "v.weight": 8 * 16 * 4}


FLAN = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}
"""As published with Flan-T5 small, without what is of no use here."""


def test_configs():
    flan = T5.from_config(FLAN)
    assert flan == T5(dim=512, layers=8, decoder_layers=8, heads=6, head=64, hidden=1024, feed="gated-gelu", tied=False)
    newer = {name: value for name, value in FLAN.items() if name != "tie_word_embeddings"}
    assert T5.from_config(newer | {"tie_word_embeddings": True, "scale_decoder_outputs": False}) == flan  # as transformers 5 writes the same
    first = {name: FLAN[name] for name in ("model_type", "vocab_size", "d_model", "d_kv", "num_layers")} | {"d_ff": 2048, "num_heads": 8}
    assert T5.from_config(first) == T5(layers=8, decoder_layers=8)
    assert T5.from_config(first | {"num_decoder_layers": 3, "dropout_rate": 0.0}) == T5(layers=8, decoder_layers=3, dropout=0.0)
    for alone in ({"architectures": ["T5EncoderModel"]}, {"is_encoder_decoder": False}):
        assert T5.from_config(FLAN | alone) == flan.encoder and flan.encoder.decoder_layers == 0
    for model in (*MODELS.values(), flan, flan.encoder, T5(buckets=16, furthest=40, epsilon=1e-5)):
        assert T5.from_config(json.loads(json.dumps(model.to_config()))) == model


def test_misuse_is_told():
    for change, message in (
        ({"model_type": "mt5"}, "model_type='mt5', and this is T5; choose a model whose config says 't5'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj='gelu'; relu, gated-gelu, gated-silu are known"),
    ):
        with pytest.raises(ValueError, match=message):
            T5.from_config(FLAN | change)
    with pytest.raises(ValueError, match="config.json lacks d_model, d_kv; take the one"):
        T5.from_config({name: value for name, value in FLAN.items() if name not in ("d_model", "d_kv")})
    with pytest.raises(ValueError, match="feed='gelu' is not one of relu, gated-gelu, gated-silu"):
        T5(feed="gelu")
    with pytest.raises(ValueError, match="^T5: decoder_layers=-1 must be at least 0; heads=0 must be at least 1; dropout=1.0 must be at least 0 and below 1$"):
        T5(heads=0, decoder_layers=-1, dropout=1.0)
    for token in (-1, 32_128):
        with pytest.raises(ValueError, match=f"start={token} is none of the 32128 tokens, numbered from 0"):
            T5(start=token)
    with pytest.raises(ValueError, match="buckets=6 must be a multiple of 4"):
        T5(buckets=6).spec()
    params, ids = abstract(MODELS["first"].spec()), jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="slots=1 leave no room behind the start token"):
        jax.eval_shape(lambda params: params.prefill(ids, ids, slots=1), params)
    with pytest.raises(ValueError, match="token types are given, and T5 has none"):
        jax.eval_shape(lambda params: params(ids, ids, ids), params)


def test_checkpoints_that_do_not_fit_are_told():
    model = MODELS["first"]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in shapes(model).items()}
    norm = "encoder.block.0.layer.1.layer_norm.weight"
    old = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.zeros((8, 3)), "lm_head.weight": tensors["shared.weight"]}
    model.from_hf(tensors | old)  # what the first releases hold beside their own
    for change, message in (
        ({norm: None}, f"1 tensors are missing, {norm} first"),
        ({norm: np.zeros(9)}, rf"tensor {norm} has shape \(9,\), the config asks for \(16,\)"),
        ({"encoder.block.2.layer.0.layer_norm.weight": np.zeros(16)}, "1 tensors are none of this T5's, encoder.block.2.layer.0.layer_norm.weight first"),
        ({"shared.weight": None}, "neither shared.weight nor encoder.embed_tokens.weight is there"),
        ({"encoder.final_layer_norm.weight": None}, "0 tensors end in encoder.final_layer_norm.weight, and one T5 has one; the names begin decoder"),
        ({"lm_head.weight": np.ones((40, 16))}, "lm_head.weight differs from shared.weight; take T5"),
    ):
        with pytest.raises(ValueError, match=message):
            model.from_hf({name: tensor for name, tensor in (tensors | change).items() if tensor is not None})
    untied = dataclasses.replace(model, tied=False)
    table = np.arange(640, dtype=np.float32).reshape(40, 16)
    np.testing.assert_array_equal(untied.from_hf(tensors | {"shared.weight": table}).output.table[:40], table)  # as transformers ties what has no head


def shapes(model):
    """Of the tensors of a model, by name."""
    spec = model.spec()
    leaves = flatten(spec)
    places = sources(model, spec)
    return {
        part: shape
        for name, source in places.items()
        for layer in source.names
        for part, shape in zip(layer, source.shapes(tuple(leaves[name].shape)), strict=True)
    }
