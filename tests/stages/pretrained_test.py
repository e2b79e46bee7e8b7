"""A model folder starts a part of a method: the same numbers, and clear words where it cannot."""

import json

import jax
import numpy as np
import pytest

from jaxrec.interop import safetensors_files
from jaxrec.methods.late_interaction.hydra import Hydra
from jaxrec.nn import language_families
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.lora import LoRA
from jaxrec.param import create, flatten
from jaxrec.stages.pretrained import PretrainedLanguageModel, hyper_parameters
from jaxrec.train.checkpoint import start_from

MODEL = LanguageModel(vocabulary=40, dim=16, layers=2, heads=2, hidden=24, length=32, tied=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("models") / "tiny"
    params = jax.jit(lambda key: create(MODEL.spec(), key))(jax.random.key(0))
    safetensors_files.write(folder, language_families.to_config(MODEL), language_families.to_hf(MODEL, params))
    return folder, params


def test_a_method_starts_from_a_published_folder(published):
    folder, params = published
    assert hyper_parameters(str(folder)) == MODEL
    method = Hydra(encoder=hyper_parameters(str(folder)), dim=4, pad=0, mask_token=1, lora=LoRA(rank=2, targets=("qkv",)))
    started = start_from(jax.jit(lambda key: create(method.spec(), key))(jax.random.key(1)), {"base": PretrainedLanguageModel(str(folder))})
    found = flatten(started.base)
    for name, leaf in flatten(params).items():
        words = slice(MODEL.vocabulary if name == "word.table" else None)  # rows behind those are padding, which no file holds
        np.testing.assert_array_equal(found[name][words], leaf[words], err_msg=name)


def test_arrays_are_mapped_and_where_the_folder_lies_does_not_count(published, tmp_path):
    folder, _ = published
    moved = tmp_path / "elsewhere"
    moved.symlink_to(folder)
    artifact = PretrainedLanguageModel(str(moved))
    assert artifact.folder() == PretrainedLanguageModel(str(folder)).folder()
    assert all(isinstance(leaf, np.memmap) for leaf in artifact.get().values())


def test_what_cannot_be_read_is_named_with_its_folder(published, tmp_path):
    folder, _ = published
    config = json.loads((folder / "config.json").read_text())
    for change, message in (({"model_type": "rwkv"}, "model_type='rwkv'"), ({"hidden_size": 20}, r"has shape .*, the config asks for")):
        wrong = tmp_path / next(iter(change))
        wrong.mkdir()
        (wrong / "config.json").write_text(json.dumps(config | change))
        (wrong / "model.safetensors").symlink_to(next(folder.glob("*.safetensors")))
        with pytest.raises(ValueError, match=f"{wrong}: .*{message}"):
            PretrainedLanguageModel(str(wrong)).get()
