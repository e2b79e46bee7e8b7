"""A retriever that starts from a published language model, with its own tokenizer: from the folder to a bundle that answers."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Passages
from jaxrec.data.reasoned_passages import TokenizedReasoning
from jaxrec.data.tokenizers import bert_frame
from jaxrec.evals.document_retrieval import search
from jaxrec.experiment import Experiment
from jaxrec.interop import safetensors_files
from jaxrec.methods.dense.last_token import LastToken
from jaxrec.methods.late_interaction.hydra import Hydra
from jaxrec.nn import language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.lora import LoRA
from jaxrec.param import create
from jaxrec.serve.explain import explain_document
from jaxrec.serve.export import export
from jaxrec.serve.search_bundle import SearchBundle
from jaxrec.stages.pretrained import LanguageModelTokenizer, PretrainedLanguageModel, PretrainedTokenizer, hyper_parameters
from jaxrec.train.loop import train

SOURCE = SyntheticCollection(documents=30, queries=10)
MODEL = LanguageModel(vocabulary=320, dim=16, layers=1, heads=2, hidden=24, length=64, tied=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a random language model with a byte-level tokenizer, which begins every text with <s>."""
    pytest.importorskip("safetensors")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    params = jax.jit(lambda key: create(MODEL.spec(), key))(jax.random.key(0))
    safetensors_files.write(folder, language_families.to_config(MODEL), language_families.to_hf(MODEL, params))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=310, initial_alphabet=alphabet, special_tokens=["<s>", "<end>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(SOURCE.get().texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}, "pad_token": "<pad>"}))
    return folder


def data(folder) -> Passages:
    tokenizer = LanguageModelTokenizer(str(folder), query="ask: ", document="")
    return Passages(SOURCE, tokenizer, batch=8, query_length=16, document_length=40)


def test_a_row_is_begin_prompt_text_and_end(published):
    passages = data(published)
    tokenizer, text = passages.tokenizer.get(), SOURCE.get().queries["test"].texts[0]
    begin, end, pad = (tokenizer.token_to_id(token) for token in ("<s>", "<end>", "<pad>"))
    row = passages.tokens()["test"][0]
    pieces = tokenizer.encode(f"ask: {text}", add_special_tokens=False).ids[:14]
    assert row.tolist() == ([begin, *pieces, end] + [pad] * 16)[:16]
    info = passages.info()
    assert info["pad"] == pad and {begin, end} == {*info["added"]} and "mask_token" not in info
    assert info["vocabulary"] <= 310
    reasoned = TokenizedReasoning(SOURCE, passages.tokenizer, 16, 24).get()["reasoning"]
    assert set(reasoned[:, 0]) == {begin} and all(end in row for row in reasoned)


def test_it_trains_adapters_and_its_bundle_finds_what_the_evaluation_finds(published, tmp_path):
    method = LastToken(encoder=hyper_parameters(str(published)), lora=LoRA(rank=2, targets=("qkv",)))
    experiment = Experiment(method=method, data=data(published), steps=2, init_from={"base": PretrainedLanguageModel(str(published))}, name="tiny")
    train(experiment, tmp_path / "run")
    experiment = experiment.resolve()
    params = jax.jit(lambda key: create(experiment.method.spec(), key))(jax.random.key(1))
    export(experiment, params, 0, tmp_path / "bundle")
    found = SearchBundle.open(tmp_path / "bundle").search(SOURCE.get().queries["test"].texts, 3)
    rows, scores = search(experiment.method, params, experiment.data, "test", 3)
    np.testing.assert_allclose([[answer.score for answer in row] for row in found], scores, rtol=1e-5)
    ids = SOURCE.get().ids
    assert [[answer.document for answer in row] for row in found] == [[ids[row] for row in line] for line in rows]


def test_an_explanation_spells_its_tokens(published):
    passages = data(published)
    text = SOURCE.get().texts[0]
    method = Hydra(encoder=MODEL, dim=4, pad=passages.info()["pad"], mask_token=0, augment=False, punctuation=(), lora=LoRA(rank=2, targets=("qkv",)))
    params = jax.jit(lambda key: create(method.spec(), key))(jax.random.key(1))
    shown = explain_document(method, params, passages, "ba", SOURCE.get().ids[0])
    begin, *pieces, end = shown.document
    assert (begin, end) == ("[<s>]", "[<end>]")
    spelled = "".join(piece.removeprefix("##") if piece.startswith("##") else f" {piece}" for piece in pieces).replace("\u2423", "").strip()
    assert text.startswith(spelled) and len(spelled) > 40


def test_what_the_tokenizer_does_not_say_is_asked_for(published, tmp_path):
    for file in published.iterdir():
        (tmp_path / file.name).symlink_to(file)
    settings = tmp_path / "tokenizer_config.json"
    settings.unlink()
    named = LanguageModelTokenizer(str(tmp_path), end="<end>", pad="<pad>")
    assert named.frame() == dataclasses.replace(data(published).tokenizer.frame(), query_prompt="")
    for fields, message in (
        ({}, "tokenizer_config.json names no eos_token; name a token .* end="),
        ({"end": "<eos>"}, "'<eos>' is no token of it; name a token .* end="),
        ({"end": "<end>"}, "names no pad_token; name a token .* pad="),
        ({"end": "<end>", "pad": "<end>"}, "a text ends with the token that fills up rows, '<end>'"),
    ):
        with pytest.raises(ValueError, match=message):
            LanguageModelTokenizer(str(tmp_path), **fields).get()
    with pytest.raises(ValueError, match=r"has no \[PAD\].*of a language model take LanguageModelTokenizer"):
        PretrainedTokenizer(str(published)).get()
    with pytest.raises(ValueError, match=r"has no \[PAD\]"):
        bert_frame(data(published).tokenizer.get())
