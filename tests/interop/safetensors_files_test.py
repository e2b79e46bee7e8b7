"""Models in Hugging Face's format: one file or several, and what is said when something is missing."""

import json
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from jaxrec.interop.safetensors_files import existing, hf_package, locate, open_tensors, read, read_config, weight_files, write

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(3, np.float16), "c.ids": np.arange(3)}


@pytest.fixture
def single(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    places = {name: f"model-0000{number}-of-00003.safetensors" for number, name in enumerate(ARRAYS, 1)}
    for name, place in places.items():
        save_file({name: ARRAYS[name]}, tmp_path / place)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return tmp_path


def check(arrays):
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_one_file_and_its_config(single):
    check(read(single))
    assert weight_files(single) == [single / "model.safetensors"]
    assert read_config(single) == {"hidden_size": 3}
    assert locate(str(single)) == single


def test_several_files_by_their_index(sharded):
    check(read(sharded))
    assert [path.name[:11] for path in weight_files(sharded)] == ["model-00001", "model-00002", "model-00003"]


def test_missing_files_are_named_with_what_is_there(single, sharded):
    (sharded / "model.safetensors").unlink()  # both fixtures share the folder; the index is left
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-00002-of-00003.safetensors; it holds config.json, model-00001"):
        read(sharded)
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json; it holds config.json"):
        existing(single, "tokenizer.json")
    (empty := single / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors; it holds nothing"):
        read(empty)
    with pytest.raises(FileNotFoundError, match=r"has no config.json; it holds nothing"):
        read_config(empty)


def test_damaged_files_are_named(single):
    whole = (single / "model.safetensors").read_bytes()
    (single / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"model.safetensors is no whole safetensors file \(.*\); fetch it again"):
        read(single)
    for text, message in (("{", "config.json is not JSON"), ("[]", "config.json holds a list, expected an object")):
        (single / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(single)


def test_an_index_that_does_not_fit_is_told(sharded):
    index = sharded / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"d": places["a.weight"]}}))
    with pytest.raises(ValueError, match=r"model-00001-of-00003.safetensors lacks 1 tensors that model.safetensors.index.json places there, d first"):
        read(sharded)
    index.write_text("{}")
    with pytest.raises(ValueError, match=r"index.json has no weight_map"):
        read(sharded)


def test_a_hub_id_is_downloaded(single, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda model, **options: asked.append((model, options)) or str(single))
    assert locate("owner/name") == single
    (model, options), *_ = asked
    assert model == "owner/name" and {"*.json", "model.safetensors*"} <= set(options["allow_patterns"])


def test_what_is_neither_folder_nor_on_the_hub_is_told(monkeypatch):
    def unreachable(model, **options):
        raise LocalEntryNotFoundError("no connection\nand more")

    with pytest.raises(FileNotFoundError, match=r"model='./no/such/folder' is no folder, and cannot be a hub id"):
        locate("./no/such/folder")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"model='owner/name' is no folder .*the hub does not give it \(no connection\); give the folder"):
        locate("owner/name")


def test_a_package_that_is_not_installed_is_named_with_its_extra(single, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"need the package safetensors: pip install 'jaxrec\[hf\]'"):
        read(single)


def test_a_package_that_lacks_a_package_of_its_own_says_so_itself(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere_to_be_found'"):
        hf_package("half_installed")


def test_tensors_are_read_by_slices_and_half_precision_is_kept(tmp_path):
    import ml_dtypes

    half = np.arange(24).reshape(4, 6).astype(ml_dtypes.bfloat16)
    save_file(ARRAYS | {"half": half}, tmp_path / "model.safetensors")
    tensors = open_tensors(tmp_path)
    assert tensors["half"].shape == (4, 6)
    part = tensors["half"][1:3, 2:4]
    assert part.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(part, half[1:3, 2:4])


@pytest.mark.parametrize("limit", [10**9, 30, 1])
def test_what_is_written_is_read_again(tmp_path, limit):
    write(tmp_path / "model", {"hidden_size": 3}, ARRAYS.items(), limit=limit)
    check(read(tmp_path / "model"))
    assert read_config(tmp_path / "model") == {"hidden_size": 3}
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    if limit == 10**9:
        assert names == ["config.json", "model.safetensors"]
    else:
        assert f"model-00001-of-0000{2 if limit == 30 else 3}.safetensors" in names and "model.safetensors.index.json" in names
