"""LocalModel: a folder with config, weights and tokenizer as generator and scorer, alone and in company."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxrec.agents.local_model import LocalModel
from jaxrec.agents.protocols import Embedder, Judge, Retriever, TextGenerator, TextScorer
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.t5 import T5
from jaxrec.param import create, flatten, unflatten

LETTERS = "abcdefghijklmnopqrstuvwxyz ."
END = len(LETTERS)
MODEL = LanguageModel(vocabulary=END + 1, dim=16, layers=1, heads=2, hidden=24, length=64, attention=AttentionKind(positions="rotary"), tied=True)
PROMPTS = ["abc", "the cat sat on", "x", "hello world. how are", "abc", "z z z"]


def write_tokenizer(path, letters=LETTERS):
    """A token for each letter."""
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    leaves = flatten(create(MODEL.spec(), jax.random.key(0)))
    noise = np.random.default_rng(0)
    params = unflatten(MODEL.spec(), {name: np.asarray(leaf) + 0.3 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})
    safetensors_files.write(folder, language_families.to_config(MODEL), language_families.to_hf(MODEL, params))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END]}))
    write_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return LocalModel(str(folder), batch=3, look=4)


def same(one, other):
    assert (one.text, one.finish) == (other.text, other.finish)
    np.testing.assert_array_equal(one.token_ids, other.token_ids)
    np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_a_text_is_the_same_alone_and_in_any_company(model):
    for temperature in (0.0, 1.0):
        together = model.generate(PROMPTS, max_new=12, temperature=temperature, seed=1)
        same(together[0], together[4])
        for prompt, completion in zip(PROMPTS, together, strict=True):
            same(model.generate([prompt], max_new=12, temperature=temperature, seed=1)[0], completion)
        for completion, turned in zip(together, model.generate(PROMPTS[::-1], max_new=12, temperature=temperature, seed=1)[::-1], strict=True):
            same(completion, turned)
    other = model.generate(PROMPTS, max_new=12, temperature=1.0, seed=2)
    assert any(one.text != two.text for one, two in zip(together, other, strict=True))
    assert model.generate([], max_new=12) == []


def test_equal_prompts_with_seeds_of_their_own_are_different_samples(model):
    together = model.generate(["abc"] * 4, max_new=12, temperature=1.0, seed=[3, 4, 5, 3])
    same(together[0], together[3])
    assert len({completion.text for completion in together}) == 3
    for seed, completion in zip((3, 4, 5), together, strict=False):
        same(model.generate(["abc"], max_new=12, temperature=1.0, seed=seed)[0], completion)


def test_float32_products_are_rounded_on_no_accelerator(model, folder):
    ids = np.ones((3, 8), np.int32)
    for each, exact in ((model, True), (LocalModel(str(folder), batch=3, dtype="bfloat16"), False)):
        params, programs = each._loaded.params, each._programs
        read = programs.read.trace(params, ids, ids, np.zeros(3, bool), room=4)
        writing = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), read.out_info)
        write = programs.write.trace(params, writing, jax.random.split(jax.random.key(0), 3), None, 4)
        for traced in (read, write, programs.score.trace(params, ids, ids, ids, ids)):
            text = str(traced.jaxpr)
            assert text.count("precision=(Precision.HIGHEST,") == exact * text.count("dot_general[") and "dot_general[" in text


def test_what_is_recorded_is_what_the_scorer_says(model):
    for prompt, completion in zip(PROMPTS, model.generate(PROMPTS, max_new=12), strict=True):
        assert completion.token_ids.dtype == np.int32 and completion.logprobs.dtype == np.float32
        assert len(completion.token_ids) == len(completion.logprobs) <= 12
        if completion.finish == "length":
            assert len(completion.token_ids) == 12 and len(completion.text) == 12
            np.testing.assert_allclose(model.logprob([prompt], [completion.text])[0], completion.logprobs, atol=1e-5)


def test_scores_are_the_model_s_and_do_not_depend_on_company(model, folder):
    targets = ["x", "", "abc abc", ".", "zz", "hello world. how are you all of you"]
    scores = model.logprob(PROMPTS, targets)
    params = language_families.from_hf(MODEL, safetensors_files.open_tensors(folder))
    logits = jax.jit(lambda params, ids: jax.nn.log_softmax(params.logits(params(ids))))
    for prompt, target, found in zip(PROMPTS, targets, scores, strict=True):
        assert found.dtype == np.float32 and len(found) == len(target)
        np.testing.assert_array_equal(model.logprob([prompt], [target])[0], found)
        ids = [LETTERS.index(letter) for letter in prompt + target]
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(ids)] = ids
        wanted = np.asarray(logits(params, padded))[0, np.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    whole = T5(vocabulary=END + 1, dim=16, layers=1, decoder_layers=1, heads=2, head=8, hidden=24, start=END)
    leaves = flatten(create(whole.spec(), jax.random.key(0)))
    noise = np.random.default_rng(0)
    params = unflatten(whole.spec(), {name: np.asarray(leaf) + 0.3 * noise.normal(size=leaf.shape).astype(np.float32) for name, leaf in leaves.items()})
    safetensors_files.write(folder, whole.to_config() | {"eos_token_id": END}, whole.to_hf(params).items())
    write_tokenizer(folder / "tokenizer.json", "_" + LETTERS[1:])  # number 0 is padding, and in no text
    return folder, whole, jax.device_put(params)


PADLESS = ["bc", "the ct st on", "x", "hello world. how re"]


def test_a_t5_writes_beside_what_it_reads(t5):
    folder, whole, params = t5
    model = LocalModel(str(folder), batch=3, look=4)
    together = model.generate(PADLESS, max_new=9)
    greedy = jax.jit(lambda ids, target: params.logits(params.decode(target, params(ids, ids >= 0), ids >= 0))[0].argmax(-1))
    for prompt, completion in zip(PADLESS, together, strict=True):
        same(model.generate([prompt], max_new=9)[0], completion)
        ids = np.array([LETTERS.index(letter) for letter in prompt])[None]
        target = np.zeros((1, 9), np.int32)
        target[0, : len(completion.token_ids)] = completion.token_ids
        np.testing.assert_array_equal(greedy(ids, target)[: len(completion.token_ids)], completion.token_ids)
        if 0 not in completion.token_ids and completion.finish == "length":
            np.testing.assert_allclose(model.logprob([prompt], [completion.text])[0], completion.logprobs, atol=1e-5)
    assert model.logprob(["x"], [""])[0].shape == (0,)
    assert model.logprob(["x"], ["_"])[0] < -0.1  # a target may have the token that pads, too


def test_a_t5_without_a_decoder_is_refused(t5, tmp_path):
    whole, params = t5[1:]
    safetensors_files.write(tmp_path, whole.encoder.to_config(), whole.to_hf(params).items())
    write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="this T5 is an encoder alone, and writing needs a decoder"):
        LocalModel(str(tmp_path)).generate(["abc"])


def test_a_stop_string_ends_a_text_and_is_cut(model):
    whole = model.generate(PROMPTS, max_new=16, temperature=1.0, seed=3)
    place = next(number for number, completion in enumerate(whole) if len(completion.text) > 8)
    text = whole[place].text
    stop = text[5:7]
    cut = text.index(stop)
    stopped = model.generate(PROMPTS, stop=["never this", stop], max_new=16, temperature=1.0, seed=3)
    assert (stopped[place].text, stopped[place].finish) == (text[:cut], "stop")
    np.testing.assert_array_equal(stopped[place].token_ids, whole[place].token_ids[: cut + 2])
    np.testing.assert_allclose(stopped[place].logprobs, whole[place].logprobs[: cut + 2], atol=1e-6)
    for one, two in zip(stopped, whole, strict=True):
        assert two.text.startswith(one.text) and stop not in one.text
        assert one.finish == "stop" or one.text == two.text


def test_the_end_token_ends_a_text_and_is_no_part_of_it(model):
    found = [completion for seed in range(6) for completion in model.generate(PROMPTS, max_new=16, temperature=2.0, seed=seed)]
    ended = [completion for completion in found if completion.finish == "eos"]
    assert 0 < len(ended) < len(found)
    for completion in ended:
        assert completion.token_ids[-1] == END and END not in completion.token_ids[:-1]
        assert completion.text == "".join(LETTERS[token] for token in completion.token_ids[:-1])


def test_misuse_is_told(model, folder):
    for arguments, message in (
        ({"prompts": ["a" * 60], "max_new": 5}, r"prompt 0 has 60 tokens, and 5 more are longer than the 64 of the model; shorten it, or lower max_new"),
        ({"prompts": ["a"], "max_new": 0}, "max_new=0 must be a whole number of at least 1"),
        ({"prompts": ["a"], "temperature": -1.0}, "temperature=-1.0 must be 0, which is greedy, or at least 1e-30"),
        ({"prompts": ["a"], "temperature": float("nan")}, "temperature=nan must be 0"),
        ({"prompts": ["a"], "temperature": "1"}, "temperature='1' must be 0"),
        ({"prompts": ["a"], "max_new": 2.5}, "max_new=2.5 must be a whole number"),
        ({"prompts": ["a"], "stop": None}, r"stop is None, and a list of strings is needed; none at all are \[\]"),
        ({"prompts": None}, "prompts is None, and a list"),
        ({"prompts": ["a"], "temperature": 1e-45}, "temperature=1e-45 must be 0"),
        ({"prompts": ["a"], "seed": 1.5}, "seed=1.5 is no whole number of 32 bits"),
        ({"prompts": ["a"] * 2, "seed": [0, 2**32]}, "seed=4294967296 is no whole number of 32 bits; of a longer one take the remainder"),
        ({"prompts": ["a", 5]}, "prompts holds 5, which is no string"),
        ({"prompts": ["a"], "stop": "b"}, "stop is the string 'b', and a list"),
        ({"prompts": ["a"], "stop": [""]}, r"stop=\[\'\'\] holds an empty string"),
        ({"prompts": "abc"}, "prompts is the string 'abc', and a list of strings is needed"),
        ({"prompts": ["a", "b"], "seed": [1]}, "1 seeds and 2 prompts: give one seed for each prompt, or one number for all"),
        ({"prompts": ["a", ""]}, "prompt 1 has no tokens, and the model no token to begin with"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**arguments)
    with pytest.raises(ValueError, match=r"prefix and target 0 have 65 tokens, longer than the 64 of the model; shorten the prefix"):
        model.logprob(["a"], ["b" * 64])
    with pytest.raises(ValueError, match="2 prefixes and 1 targets"):
        model.logprob(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="targets is the string 'def', and a list of strings is needed"):
        model.logprob(["abc"] * 3, "def")
    for wrong, message in (
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"dtype": "int8"}, "dtype='int8' is none of float32, bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalModel(str(folder), **wrong)


def test_parts_of_different_models_are_told(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = LocalModel(str(tmp_path), batch=1)
    write_tokenizer(tmp_path / "tokenizer.json", LETTERS + "ABC")
    with pytest.raises(ValueError, match=r"tokenizer.json has 31 tokens, and the model vectors for 29: it is of another model"):
        model.generate(["a"])
    write_tokenizer(tmp_path / "tokenizer.json", LETTERS + "A")  # as many letters as vectors: <end> has none
    with pytest.raises(ValueError, match=r"prompt 0 has the token '<end>', number 29, and the model has vectors for 29; leave it out"):
        model.generate(["a<end>"], max_new=4)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer"):
        dataclasses.replace(model).generate(["a"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 20}))
    write_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tensor layers.0.mlp.gate_proj.weight has shape \(24, 16\), the config asks for \(20, 16\)"):
        dataclasses.replace(model).generate(["a"])


def test_an_ability_that_is_missing_says_so():
    for call, message in (
        (lambda: TextGenerator().generate([]), "TextGenerator does not generate"),
        (lambda: TextScorer().logprob([], []), "TextScorer does not score texts"),
        (lambda: Embedder().encode([], "doc"), "Embedder does not encode"),
        (lambda: Judge().judge({}), "Judge does not judge"),
        (lambda: Retriever().search([], 1), "Retriever does not search"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
