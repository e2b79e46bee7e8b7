"""Language models: the equations in NumPy, transformers itself where there is one, and decoding with a cache against whole rows."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.parity import FAMILIES
from benchmarks.peers.process import Process
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.context import packed
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.positions import Rotary
from jaxrec.ops.sampling import greedy, start, write
from jaxrec.param import abstract, count, create, flatten, unflatten

SMALL = {"vocabulary": 40, "dim": 16, "heads": 4, "hidden": 24, "length": 32}
SCALED = Rotary(theta=500.0, scaling="llama3", factor=8.0, original=16)
MODELS = {
    "llama": LanguageModel(**SMALL, layers=2, attention=AttentionKind(positions="rotary", groups=2, rotary=SCALED)),
    "gemma": LanguageModel(
        **SMALL,
        layers=2,
        head=8,
        attention=AttentionKind(positions="rotary", groups=2, window=3, rotary=Rotary(theta=1e6), scale=0.3, cap=4.0),
        pattern=("local", "global"),
        local_rotary=Rotary(),
        activation="gelu_pytorch_tanh",
        head_norm=True,
        post_norm=True,
        offset=1.0,
        scale=4.0,
        cap=3.0,
        tied=True,
    ),
    "threshold": LanguageModel(**SMALL, layers=1, attention=AttentionKind(weights="threshold_differential", positions="rotary", beta=0.5, groups=2)),
    "alibi": LanguageModel(**SMALL, layers=1, attention=AttentionKind(positions="alibi"), qkv_bias=True),
}
NAMED = ("llama", "gemma")  # those that Hugging Face has names for
T, CUT = 12, 5


def randomised(spec, seed=0):
    """Random parameters, biases and scales included, so that no term of the equations is invisible."""
    leaves = flatten(create(spec, jax.random.key(seed)))
    noise = np.random.default_rng(seed)
    return unflatten(spec, {name: np.asarray(leaf) + 0.2 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})


def computed(params, ids):
    """All that one compilation is to give, of two texts [2, T]; `whole` and `both` also of the same texts with another last token."""
    other = jnp.concatenate([ids, ids.at[:, -1].set(ids[:, -1] % 39 + 1)])
    row = jnp.pad(ids.reshape(1, -1), ((0, 0), (2, 3)))
    segment = jnp.asarray([[1] * T + [0] * (T + 5)] * 4 + [[0] * 2 + [1] * T + [2] * T + [0] * 3])
    hidden = params(jnp.concatenate([jnp.pad(other, ((0, 0), (0, T + 5))), row]), segment)
    whole = hidden[:4, :T]
    # The first text has CUT tokens before it is gone on with, padded on the right; the second CUT - 2, padded on both sides.
    prompts = jnp.stack([jnp.pad(ids[0, :CUT], (0, 2)), jnp.pad(ids[1, : CUT - 2], (1, 3))])
    present = jnp.asarray([[1] * CUT + [0] * 2, [0] + [1] * (CUT - 2) + [0] * 3])
    first, cache = params.prefill(prompts, present, slots=20)
    several, _ = params.extend(cache, embeddings=params.embed(jnp.stack([ids[0, CUT : CUT + 4], ids[1, CUT - 2 : CUT + 2]])))
    written = write(params.step, greedy, start(first, cache, room=6), until=6)
    ended = jnp.stack([jnp.concatenate([ids[0, :CUT], written.ids[0]]), jnp.pad(jnp.concatenate([ids[1, : CUT - 2], written.ids[1]]), (0, 2))])
    return {
        "whole": params.logits(whole).reshape(2, 2, T, -1),
        "packed": params.logits(hidden[4, 2 : 2 + 2 * T]).reshape(2, T, -1),
        "cached": jnp.concatenate([first[:, None], params.logits(several)], axis=1),
        "written": written.ids,
        "log_probs": written.log_probs,
        "again": params.logits(params(ended)),
        "likelihood": params.log_likelihood(whole[:2].reshape(2 * T, -1), jnp.roll(ids, -1, axis=1).reshape(-1)).reshape(2, T),
        "both": params(other, causal=False).reshape(2, 2, T, -1),
    }


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """(name, model, stacked parameters, two texts, what `computed` gives)."""
    model = MODELS[request.param]
    params = randomised(model.spec())
    ids = np.random.default_rng(1).integers(1, model.vocabulary, (2, T)).astype(np.int32)
    return request.param, model, params, ids, jax.tree.map(np.asarray, jax.jit(computed)(params, ids))


def numpy_decoder(tensors, config, ids):
    """[T, V] logits of one text, from Hugging Face's tensors and config, in float64."""
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    gemma = config["model_type"].startswith("gemma")
    heads, groups, K = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    places = np.arange(len(ids))

    def norm(name, x):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"])
        return x * (tensors[f"{name}.weight"] + gemma)

    def turn(x, said):
        frequency = said["rope_theta"] ** (-np.arange(0, K, 2) / K)
        if said["rope_type"] == "llama3":
            original, low, high = (said[name] for name in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
            wave = 2 * np.pi / frequency
            smooth = (original / wave - low) / (high - low)
            middle = (1 - smooth) * frequency / said["factor"] + smooth * frequency
            frequency = np.where(wave > original / low, frequency / said["factor"], np.where(wave < original / high, frequency, middle))
        pair = x[..., : K // 2] + 1j * x[..., K // 2 :]
        pair = pair * np.exp(1j * places[:, None] * frequency)[:, None]
        return np.concatenate([pair.real, pair.imag], axis=-1)

    x = tensors["model.embed_tokens.weight"][ids] * (np.sqrt(config["hidden_size"]) if gemma else 1)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        kind = config.get("layer_types", ["full_attention"] * config["num_hidden_layers"])[number]
        said = config["rope_parameters"]
        said = said.get(kind, said)
        h = norm(f"{layer}.input_layernorm", x)
        q, k, v = ((h @ tensors[f"{layer}.self_attn.{name}_proj.weight"].T).reshape(len(ids), -1, K) for name in "qkv")
        if gemma:
            q, k = norm(f"{layer}.self_attn.q_norm", q), norm(f"{layer}.self_attn.k_norm", k)
        q, k = turn(q, said), turn(k, said)
        mixed = np.zeros_like(q)
        see = places[:, None] >= places
        if kind == "sliding_attention":
            see &= places[:, None] - places < config["sliding_window"]
        for head in range(heads):
            group = head // (heads // groups)
            score = q[:, head] @ k[:, group].T * (config["query_pre_attn_scalar"] if gemma else K) ** -0.5
            if cap := config.get("attn_logit_softcapping"):
                score = cap * np.tanh(score / cap)
            weights = np.where(see, np.exp(score), 0)
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, group]
        out = mixed.reshape(len(ids), -1) @ tensors[f"{layer}.self_attn.o_proj.weight"].T
        x = x + (norm(f"{layer}.post_attention_layernorm", out) if gemma else out)
        h = norm(f"{layer}.{'pre_feedforward' if gemma else 'post_attention'}_layernorm", x)
        gate, inner = (h @ tensors[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) if gemma else gate / (1 + np.exp(-gate))
        out = (gate * inner) @ tensors[f"{layer}.mlp.down_proj.weight"].T
        x = x + (norm(f"{layer}.post_feedforward_layernorm", out) if gemma else out)
    logits = norm("model.norm", x) @ tensors["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T
    cap = config.get("final_logit_softcapping")
    return cap * np.tanh(logits / cap) if cap else logits


@pytest.mark.parametrize("case", NAMED, indirect=True)
def test_it_is_the_equations(case):
    name, model, params, ids, found = case
    if name == "gemma":  # what a config can say: scale is one over the root of an integer, and vectors are scaled by the root of the width
        assert model.scale == np.sqrt(model.dim)
    config = language_families.to_config(model) if name == "llama" else gemma_config(model)
    wanted = [numpy_decoder(dict(language_families.to_hf(model, params)), config, row) for row in ids]
    np.testing.assert_allclose(found["whole"][0], wanted, rtol=0, atol=1e-5)


def gemma_config(model):
    """The config of the Gemma, whose scale 0.3 no integer has."""
    config = language_families.to_config(dataclasses.replace(model, attention=dataclasses.replace(model.attention, scale=11**-0.5)))
    return config | {"query_pre_attn_scalar": model.attention.scale**-2}


def test_texts_in_one_row_are_those_in_rows_of_their_own(case):
    found = case[-1]
    np.testing.assert_allclose(found["packed"], found["whole"][0], rtol=0, atol=1e-4)


def test_a_cache_gives_what_whole_rows_give_wherever_padding_lies(case):
    found = case[-1]
    whole = found["whole"][0]
    wanted = np.stack([whole[0, CUT - 1 : CUT + 4], whole[1, CUT - 3 : CUT + 2]])
    np.testing.assert_allclose(found["cached"], wanted, rtol=0, atol=1e-5)


def test_greedy_writing_is_the_argmax_of_whole_rows(case):
    found = case[-1]
    logits = found["again"].astype(np.float64)
    for row, begin, written, log_probs in zip(logits, (CUT, CUT - 2), found["written"], found["log_probs"], strict=True):
        scores = row[begin - 1 : begin + 5]
        np.testing.assert_array_equal(written, scores.argmax(-1))
        np.testing.assert_allclose(log_probs, scores.max(-1) - np.log(np.exp(scores).sum(-1)), atol=1e-5)


def test_likelihoods_are_those_of_the_softmax_and_padding_rows_of_the_table_take_no_part(case):
    _, model, _, ids, found = case
    scores = found["whole"][0].astype(np.float64)
    wanted = np.take_along_axis(scores, np.roll(ids, -1, axis=1)[..., None], -1)[..., 0] - np.log(np.exp(scores).sum(-1))
    assert scores.shape[-1] == model.vocabulary
    np.testing.assert_allclose(found["likelihood"], wanted, atol=1e-5)


def test_a_causal_model_reads_no_later_token_and_the_same_as_an_encoder_does(case):
    _, model, _, _, found = case
    before, moved = (np.abs(found[name][0] - found[name][1]).max(-1) for name in ("whole", "both"))  # [2, T]
    assert not before[:, :-1].any() and before[:, -1].all()
    reached = moved[:, -1 - (model.attention.window or T) : -1] if len(model.pattern) == 1 else moved
    assert reached.any() if "threshold" in model.attention.weights else reached.all()  # a threshold may leave the last token out


def test_hooks_get_the_number_of_their_layer_and_stops_are_between_layers():
    model = dataclasses.replace(MODELS["llama"], layers=5, pattern=("local", "global"), attention=AttentionKind(positions="rotary", window=3))
    params = randomised(model.spec())
    ids = np.arange(1, 7, dtype=np.int32)[None]
    stops = (1, 3, None)

    @jax.jit
    def run(params):
        hooked = [params(ids, between=lambda layer, x, context: x + 0.01 * (layer + 1), until=until) for until in stops]
        x, by_hand = params.embed(ids), []
        for number, layer in enumerate(params.unstacked().rest):
            x = layer(x + 0.01 * (number + 1), packed(jnp.ones((1, 6), jnp.int32), causal=True))
            by_hand.append(x)
        return hooked, [by_hand[0], by_hand[2], params.norm(by_hand[4])]

    for found, wanted in zip(*run(params), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert params.depth == params.unstacked().depth == 5 and len(params.rest) == 1


def test_the_gradient_reaches_every_leaf_and_dropout_needs_a_key():
    model = dataclasses.replace(MODELS["gemma"], dropout=0.2, qkv_bias=True, output_bias=True, layers=2, tied=False)
    params = randomised(model.spec())
    ids = np.random.default_rng(1).integers(1, model.vocabulary, (2, T)).astype(np.int32)

    @jax.jit
    def run(params, key):
        def loss(params):
            return -jnp.mean(params.log_likelihood(params(ids, key=key)[:, :-1].reshape(-1, model.dim), jnp.asarray(ids[:, 1:]).reshape(-1)))

        return params(ids), params(ids, key=key), jax.grad(loss)(params)

    plain, dropped, gradient = run(params, jax.random.key(0))
    assert np.abs(plain - dropped).max() > 1e-2
    for name, leaf in flatten(gradient).items():
        assert np.any(leaf != 0), name


def test_the_spec_counts_and_the_forms_hold_the_same():
    for name, model in MODELS.items():
        assert count(model.spec()) == count(model.spec(stacked=False)), name
        assert jax.tree.map(jnp.shape, abstract(model.spec(stacked=False))) == jax.tree.map(
            jnp.shape, jax.eval_shape(lambda p: p.unstacked(), abstract(model.spec()))
        )
    attention, feed = 16 * 16 + 2 * 16 * 8 + 16 * 16, 3 * 16 * 24
    assert count(MODELS["llama"].spec()) == 2 * 128 * 16 + 16 + 2 * (attention + feed + 2 * 16)


def test_misuse_is_told():
    model = MODELS["llama"]
    params = abstract(model.spec())
    with pytest.raises(ValueError, match=r"texts of 33 tokens are longer than the 32 of the model; cut them to 32"):
        jax.eval_shape(lambda params: params(jnp.ones((1, 33), jnp.int32)), params)
    for slots in (5, 33):
        with pytest.raises(ValueError, match=rf"slots={slots} must be above the prompts' 5 tokens and at most the 32 of the model"):
            jax.eval_shape(lambda params, slots=slots: params.prefill(jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5), jnp.int32), slots=slots), params)
    with pytest.raises(ValueError, match="neither ids nor embeddings"):
        jax.eval_shape(lambda params: params(), params)
    with pytest.raises(ValueError, match="ids and embeddings are both given"):
        jax.eval_shape(lambda params: params(jnp.ones((1, 5), jnp.int32), embeddings=jnp.ones((1, 5, 16))), params)
    for change, message in (
        ({"layers": 0, "dropout": 1.0}, "^LanguageModel: layers=0 must be at least 1; dropout=1.0 must be at least 0 and below 1$"),
        ({"activation": "swish"}, "activation='swish' is not one of gelu"),
        ({"pattern": ("global", "near")}, "must name the kinds of layers in turn, each 'global' or 'local'"),
        ({"pattern": ("local",)}, "local layers need a window, and only they have one"),
        ({"attention": AttentionKind()}, "a language model has no positions of its own"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(model, **change)
    with pytest.raises(ValueError, match="scale=0.5 and cap=0.0 are of softmax, and weights='entmax' has neither"):
        AttentionKind(weights="entmax", scale=0.5)


@pytest.fixture(scope="module")
def peer():
    if not (python := os.environ.get("JAXREC_TORCH_PYTHON")):
        pytest.skip("needs transformers; set JAXREC_TORCH_PYTHON to a Python that has it and torch")
    peer = Process(python, "language_models_torch.py", 2)
    yield peer
    peer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits(family, peer, tmp_path):
    ids = np.random.default_rng(0).integers(1, 64, (2, 20))
    peer.ask(make=str(tmp_path / "model"), config=FAMILIES[family])
    wanted = np.asarray(peer.ask(logits=ids.tolist(), dtype="float32")["logits"])
    written = peer.ask(generate=ids[:, :6].tolist(), new=8, calls=1)["ids"]
    model = language_families.from_config(safetensors_files.read_config(tmp_path / "model"))
    params = language_families.from_hf(model, safetensors_files.open_tensors(tmp_path / "model"))
    found = jax.jit(lambda params, ids: params.logits(params(ids)))(params, ids)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    read = jax.jit(lambda params, ids: write(params.step, greedy, start(*params.prefill(ids, jnp.ones_like(ids), slots=14), room=8), until=8).ids)
    np.testing.assert_array_equal(read(params, ids[:, :6]), written)
