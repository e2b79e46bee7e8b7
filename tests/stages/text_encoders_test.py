"""Encoders of texts: TF-IDF by brute force, and BERTs that give each text what they give it alone."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.interop import safetensors_files
from jaxrec.nn.bert import BERT, pool
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.nn.t5 import T5
from jaxrec.param import create, flatten
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.pretrained import PretrainedBert
from jaxrec.stages.text_encoders import BertEncoder, TfidfSvd, padded_length, unit

SHOP = Synthetic(users=8, items=10)
WORDS = ["red", "nail", "lacquer", "coconut", "oil", "skin", "makeup", "nails", "hair", "brush", "of", "the", "and", "dry"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


def tfidf(texts):
    """Dense TF-IDF by the formula, unit rows."""
    words = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in texts])
    idf = 1 + np.log((1 + len(texts)) / (1 + (counts > 0).sum(0)))
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def sentences(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


@pytest.mark.parametrize("dim", [3, 14])
def test_tfidf_svd_by_brute_force(dim):
    texts = sentences(30)
    got = TfidfSvd(dim).encode(texts)
    left, strength, _ = np.linalg.svd(tfidf(texts), full_matrices=False)
    wanted = left[:, :dim] * strength[:dim]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert got.shape == (30, dim) and got.dtype == np.float32
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=1e-5)  # singular vectors have no sign
    np.testing.assert_array_equal(got, TfidfSvd(dim).encode(texts))


def test_few_words_give_few_columns(capsys):
    assert TfidfSvd().encode(["red oil", "dry oil", "red oil", "hair of the brush", "?"]).shape == (5, 5)
    assert "5 texts of 7 words give 5 of dim=128 columns" in capsys.readouterr().err
    got = TfidfSvd(min_count=2).encode(["red oil", "dry oil", "red oil", "hair"])
    assert got.shape == (4, 2)
    np.testing.assert_array_equal(got[3], 0)  # none of its words is kept
    np.testing.assert_allclose(np.linalg.norm(got[:3], axis=1), 1, atol=1e-6)


def test_tfidf_svd_says_what_it_cannot():
    with pytest.raises(ValueError, match=r"no word stands in min_count=1 of the 2 texts; lower min_count"):
        TfidfSvd().encode(["?", "!"])
    with pytest.raises(ValueError, match="TfidfSvd: dim=0 must be at least 1$"):
        TfidfSvd(dim=0)


def test_rows_of_no_direction_stay_zero():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0, 0], [1e-9, 0]])), [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-7)


TINY = BERT(vocabulary=len(WORDS) + 4, length=16, dim=8, layers=2, heads=2, hidden=12)
CONFIG = {
    "model_type": "bert",
    "vocab_size": TINY.vocabulary,
    "max_position_embeddings": TINY.length,
    "hidden_size": TINY.dim,
    "num_hidden_layers": TINY.layers,
    "num_attention_heads": TINY.heads,
    "intermediate_size": TINY.hidden,
    "type_vocab_size": TINY.types,
    "hidden_act": "gelu",
    "layer_norm_eps": TINY.epsilon,
    "hidden_dropout_prob": TINY.dropout,
}


@pytest.fixture(scope="module")
def params():
    leaves = create(TINY.spec(), jax.random.key(0))
    return jax.tree.map(lambda leaf: 5 * leaf, leaves)  # as drawn, all words are nearly one


@pytest.fixture
def model(tmp_path, params):
    return published(tmp_path / "model", CONFIG, TINY.to_hf(params))


def published(folder, config, tensors):
    """A folder as Hugging Face publishes one, with random weights and a tokenizer of whole words."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=16)  # a tokenizer's own habits must not matter
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def ids_of(texts):
    """[n, 16] what the tokenizer of `published` makes of texts of known words."""
    ids = np.zeros((len(texts), 16), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = [2, *(4 + WORDS.index(word) for word in text.split()[:14]), 3]
        row[: len(words)] = words
    return ids


def test_bert_encoder_gives_each_text_what_it_gives_it_alone(model, params):
    texts = [*sentences(20), "", "hair " * 30]
    got, cut = BertEncoder(str(model), length=16, batch=5).encode_and_count(texts)
    assert cut == 1  # the last, of 30 words; the others have 8 at most
    assert got.shape == (22, 8) and got.dtype == np.float32
    states = jax.jit(lambda ids: pool(params(ids, ids > 0), ids > 0, "mean"))
    for text, vector in zip(texts, got, strict=True):
        np.testing.assert_allclose(vector, unit(np.asarray(states(ids_of([text]))))[0], rtol=0, atol=1e-5)
    assert np.abs(got[:20] - got[:1]).max() > 0.1  # texts are told apart
    np.testing.assert_allclose(BertEncoder(str(model), length=16, batch=3).encode(texts[::-1])[::-1], got, rtol=0, atol=1e-5)


def test_a_modernbert_is_opened_by_its_config(tmp_path):
    encoder = ModernBERT(vocabulary=len(WORDS) + 4, length=16, dim=8, layers=2, heads=2, hidden=12, window=2)
    params = jax.tree.map(lambda leaf: 5 * leaf, create(encoder.spec(), jax.random.key(0)))
    model = published(tmp_path / "model", encoder.to_config(), encoder.to_hf(params))
    texts = sentences(3)
    wanted = jax.jit(lambda ids: params(ids, ids > 0)[:, 0])(ids_of(texts))
    np.testing.assert_allclose(BertEncoder(str(model), length=16, pooling="cls").encode(texts), unit(np.asarray(wanted)), rtol=0, atol=1e-5)
    held = PretrainedBert(str(model)).get()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(held[name][: encoder.vocabulary], leaf[: encoder.vocabulary])


def test_a_model_that_does_more_than_pool_is_refused(model):
    kinds = ["models.Transformer", "models.Pooling", "models.Dense", "models.Normalize"]
    modules = [{"idx": number, "type": f"sentence_transformers.{kind}"} for number, kind in enumerate(kinds)]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"modules.json asks for sentence_transformers.models.Dense after pooling"):
        BertEncoder(str(model), length=16).encode(["oil"])
    (model / "modules.json").write_text(json.dumps(modules[:2] + modules[3:]))
    assert BertEncoder(str(model), length=16).encode(["oil"]).shape == (1, 8)


def test_of_a_t5_the_encoder_reads(tmp_path):
    whole = T5(vocabulary=len(WORDS) + 4, dim=8, layers=2, decoder_layers=1, heads=2, head=4, hidden=12)
    params = create(whole.spec(), jax.random.key(0))
    model = published(tmp_path / "model", whole.to_config(), whole.to_hf(params))
    texts = sentences(3)
    wanted = jax.jit(lambda ids: pool(params(ids, ids > 0), ids > 0, "mean"))(ids_of(texts))
    np.testing.assert_allclose(BertEncoder(str(model), length=16).encode(texts), unit(np.asarray(wanted)), rtol=0, atol=1e-5)


def test_bert_encoder_options(model):
    texts = sentences(3)
    raw, whole = (BertEncoder(str(model), length=16, batch=4, normalize=normalize).encode(texts) for normalize in (False, True))
    np.testing.assert_allclose(unit(raw), whole, atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 1e-2
    prefixed = BertEncoder(str(model), length=16, batch=4, prefix="of the ").encode(texts)
    np.testing.assert_allclose(prefixed, BertEncoder(str(model), length=16, batch=4).encode([f"of the {text}" for text in texts]), atol=1e-6)
    assert np.abs(BertEncoder(str(model), length=16, batch=4, pooling="cls").encode(texts) - whole).max() > 1e-3


def test_bert_encoder_is_known_by_its_content(model, tmp_path):
    column = TextEmbeddings(SHOP, BertEncoder(str(model), length=16))
    copy = shutil.copytree(model, tmp_path / "copy")
    moved = dataclasses.replace(column, encoder=BertEncoder(str(copy), length=16, batch=8))
    assert moved.fingerprint() == column.fingerprint()
    assert moved.fingerprint() != dataclasses.replace(moved, encoder=BertEncoder(str(copy), length=8)).fingerprint()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert moved.fingerprint() != column.fingerprint()
    assert column.get().shape == (11, 8)


def test_bert_encoder_reads_its_folder_once_and_a_column_keeps_nothing_of_it(model, monkeypatch):
    reads, own = [], safetensors_files.read
    monkeypatch.setattr(safetensors_files, "read", lambda folder: reads.append(folder) or own(folder))
    column = TextEmbeddings(SHOP, BertEncoder(str(model), length=16))
    for text in ("oil", "hair"):
        column.encoder.encode([text])
    assert reads == [model]
    fresh = dataclasses.replace(column, encoder=dataclasses.replace(column.encoder))
    held = dict(vars(fresh.encoder))
    fresh.vectors(SHOP.read())
    assert vars(fresh.encoder) == held  # a column lives as long as its experiment, and weights would stay on the device


def test_bert_encoder_says_what_it_cannot(model, monkeypatch):
    def change(**entries):
        (model / "config.json").write_text(json.dumps(CONFIG | entries))

    encoder = BertEncoder(str(model), length=16)
    with pytest.raises(ValueError, match=r"length=32 is more than the 16 positions of .*; ask for length <= 16"):
        BertEncoder(str(model), length=32).encode(["oil"])
    change(hidden_size=16)
    with pytest.raises(ValueError, match=r"model: tensor embeddings.LayerNorm.bias has shape \(8,\), the config asks for \(16,\)"):
        encoder.encode(["oil"])
    change(model_type="electra")
    with pytest.raises(ValueError, match=r"model: config.json says model_type='electra'"):
        encoder.encode(["oil"])
    change()
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["oil"] = 18
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer.json gives id 18, and the model has 18 word pieces"):
        encoder.encode(["oil"])
    with pytest.raises(ValueError, match=r"length=1 must be at least 2"):
        BertEncoder(str(model), length=1)
    with pytest.raises(ValueError, match=r"pooling='max' is not one of mean, cls"):
        BertEncoder(str(model), pooling="max")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"need the package tokenizers: pip install 'jaxrec\[hf\]'"):
        BertEncoder(str(model), length=16).encode(["oil"])
    (model / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json; it holds config.json, model.safetensors"):
        TextEmbeddings(SHOP, encoder).get()


def test_padded_lengths_are_few_and_long_enough():
    lengths = [padded_length(length) for length in range(1, 513)]
    assert sorted(set(lengths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(length <= padded for length, padded in enumerate(lengths, 1))
    assert all(padded <= 1.5 * length for length, padded in enumerate(lengths, 1) if length > 16)
