"""A bundle answers as the method does, opens only whole, and needs nothing but itself."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.examples import pad_histories
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.index import scann
from jaxrec.method import Vectors, cast
from jaxrec.methods.sequential.bert4rec import BERT4Rec
from jaxrec.methods.sequential.hstu import HSTU
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.param import create
from jaxrec.serve import bundle as bundle_module
from jaxrec.serve.bundle import Bundle, Recommendation
from jaxrec.serve.export import export

ITEMS, LENGTH = 40, 6


def resolved(method: Any) -> Experiment:
    return Experiment(method=method, data=Sequences(Synthetic(users=20, items=ITEMS), length=LENGTH), steps=1, name="tiny").resolve()


def written(folder: Path, method: Any, **options: Any) -> tuple[Experiment, Any]:
    experiment = resolved(method)
    params = created(experiment.method)
    export(experiment, params, 7, folder, **options)
    return experiment, params


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    return folder, *written(folder, SASRec(dim=8, layers=1), metrics={"ndcg@10": 0.25})


@pytest.fixture(scope="module")
def opened(exported):
    return Bundle.open(exported[0])


def histories_of(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    return [rng.integers(1, ITEMS + 1, n) for n in rng.integers(1, 2 * LENGTH, count)]


def outside(histories: list[np.ndarray]) -> list[list[str]]:
    return [[f"item-{number - 1}" for number in history] for history in histories]


def direct(experiment: Experiment, params: Any, histories: list[np.ndarray], **more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(queries [B, D], scores of items 1..N [B, N]) from the method itself."""
    method: Any = experiment.method
    query = np.asarray(jax.jit(method.encode_query)(params, {**pad_histories(histories, LENGTH), **more}).values[:, 0])
    return query, query @ np.asarray(jax.jit(method.encode_item)(params, {"item": jnp.arange(1, ITEMS + 1)}).values[:, 0]).T


def created(method: Any) -> Any:
    return jax.jit(functools.partial(create, method.spec()))(jax.random.key(0))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_recommends_what_the_method_scores_highest(exported, opened, count, exact):
    _, experiment, params = exported
    histories = histories_of(count)
    query, scores = direct(experiment, params, histories)
    np.testing.assert_allclose(opened.encode(histories), query, rtol=1e-5, atol=1e-5)
    for keep_seen in (True, False):
        if not keep_seen:
            for row, history in zip(scores, histories, strict=True):
                row[history - 1] = -np.inf
        answers = opened.recommend(outside(histories), 10, keep_seen=keep_seen, exact=exact)
        expected = np.argsort(-scores, axis=1)[:, :10]
        assert [[answer.item for answer in row] for row in answers] == [[f"item-{i}" for i in row] for row in expected]
        found = [[answer.score for answer in row] for row in answers]
        np.testing.assert_allclose(found, np.take_along_axis(scores, expected, axis=1), rtol=1e-5, atol=1e-5)
    assert answers[0][0].title.startswith("Item ")


def test_many_histories_go_in_batches(exported, opened, monkeypatch):
    monkeypatch.setattr(bundle_module, "BATCH", 4)
    histories = histories_of(11)
    np.testing.assert_allclose(opened.encode(histories), direct(*exported[1:], histories)[0], rtol=1e-5, atol=1e-5)
    assert opened.recommend([], 3) == []


def test_only_the_last_items_count_but_all_are_seen(opened):
    long = [f"item-{i}" for i in range(2 * LENGTH)]
    kept, removed = (opened.recommend([long], 20, keep_seen=keep)[0] for keep in (True, False))
    assert kept == opened.recommend([long[LENGTH:]], 20, keep_seen=True)[0]
    assert not {answer.item for answer in removed} & set(long)
    assert len(opened.recommend([long], ITEMS - len(long))[0]) == ITEMS - len(long)


def test_the_program_takes_any_batch_on_every_platform(exported):
    exported_program = jax.export.deserialize(bytearray((exported[0] / "query.stablehlo").read_bytes()))
    assert exported_program.platforms == ("cpu", "cuda", "tpu")
    assert str(exported_program.out_avals[0].shape) == "(b, 8)"
    assert exported_program.mlir_module_serialized.__len__() < 50_000  # no parameters inside


@pytest.mark.parametrize(
    ("method", "inputs"),
    [
        (BERT4Rec(dim=8, layers=1), ["history"]),
        (HSTU(dim=8, layers=1, timed=True), ["history", "time"]),
        (SASRec(dim=8, layers=1, features=(Feature("category"), Feature("segment", of="user"))), ["history", "user"]),
    ],
    ids=["BERT4Rec", "timed HSTU", "SASRec with features"],
)
def test_methods_get_the_inputs_that_they_use(tmp_path, method, inputs):
    experiment = resolved(method)
    # Biases and tables of features start as zeros, behind which a wrong row or time would hide.
    rng = np.random.default_rng(0)

    def random(leaf):
        return jnp.asarray(rng.integers(1, 3, leaf.shape) if leaf.dtype == jnp.int32 else rng.normal(size=leaf.shape), leaf.dtype)

    params = jax.tree.map(lambda leaf: leaf if leaf.any() else random(leaf), created(experiment.method))
    export(experiment, params, 0, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest["inputs"] == inputs
    histories = histories_of(3)
    gaps = [np.cumsum(np.full(len(history), 3000)) for history in histories]
    users = np.array([3, 0, 19])
    times = [bundle.manifest["time_origin"] + gap for gap in gaps] if "time" in inputs else None
    names = [f"user-{u}" for u in users] if "user" in inputs else None
    more = {"time": pad_histories(gaps, LENGTH)["history"], "user": np.tile(users[:, None], (1, LENGTH))}
    query, _ = direct(experiment, params, histories, **more)
    np.testing.assert_allclose(bundle.encode(histories, users=names, times=times), query, rtol=1e-5, atol=1e-5)
    for name in inputs[1:]:  # and it matters what they say
        other = {**more, name: more[name][::-1]}
        assert not np.allclose(direct(experiment, params, histories, **other)[0], query, atol=1e-3)
    assert (tmp_path / "bundle" / "users.jsonl").exists() == ("user" in inputs)
    if "time" in inputs:
        with pytest.raises(ValueError, match="this model needs times; pass times="):
            bundle.encode(histories)
        with pytest.raises(ValueError, match="times= has 1 entries for 3 histories"):
            bundle.encode(histories, times=times[:1])
        for scale in (1000, np.nan):
            with pytest.raises(
                ValueError, match=r"the times of history 1, .* must be seconds since 1970, within 68 years of the data .* divide milliseconds by 1000"
            ):
                bundle.encode(histories, times=[times[0], [time * scale for time in times[1]], times[2]])
        with pytest.raises(ValueError, match=r"history 1 has .* items but 0 times"):
            bundle.encode(histories, times=[times[0], [], times[2]])
    if "user" in inputs:
        with pytest.raises(ValueError, match=r"does not know user 'user-02' \(did you mean 'user-2'"):
            bundle.encode(histories[:1], users=["user-02"])


def test_bfloat16_parameters_keep_their_bits(tmp_path):
    experiment = resolved(SASRec(dim=8, layers=1))
    params = cast(experiment.method.spec(), created(experiment.method), jnp.bfloat16)
    export(experiment, params, 0, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert set(bundle.manifest["dtypes"].values()) == {"bfloat16"}
    np.testing.assert_array_equal(bundle._params["item.table"], params.item.table)


def test_one_program_per_platform_where_one_cannot_serve_all(tmp_path, monkeypatch):
    whole = jax.export.export

    def single(function, *, platforms):
        if len(platforms) > 1:
            raise NotImplementedError("a kernel of one platform")
        return whole(function, platforms=platforms)

    monkeypatch.setattr(jax.export, "export", single)
    experiment, params = written(tmp_path / "bundle", SASRec(dim=8, layers=1))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest["programs"] == {p: f"query.{p}.stablehlo" for p in ("cpu", "cuda", "tpu")}
    histories = histories_of(3)
    np.testing.assert_allclose(bundle.encode(histories), direct(experiment, params, histories)[0], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(jax, "default_backend", lambda: "rocm")
    with pytest.raises(ValueError, match="no program for rocm, only for cpu, cuda, tpu"):
        Bundle.open(tmp_path / "bundle")


def test_manifest_says_what_the_bundle_is(exported, opened):
    folder = exported[0]
    expected = {"name": "tiny", "method": "SASRec", "step": 7, "items": ITEMS, "length": LENGTH, "dim": 8, "metrics": {"ndcg@10": 0.25}, "schema": 2}
    assert {key: opened.manifest[key] for key in expected} == expected
    assert opened.manifest["versions"]["jax"] == jax.__version__
    assert json.loads((folder / "experiment.json").read_text())["method"]["dim"] == 8
    row = json.loads((folder / "items.jsonl").read_text().splitlines()[3])
    assert (row["id"], row["title"], sorted(row["columns"])) == ("item-3", "Item 3 of aisle 3", ["category", "price"])
    assert np.load(folder / "items.npy").shape == (ITEMS + 1, 8)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_flipped_byte_or_a_missing_file_is_refused(exported, tmp_path):
    folder = exported[0]
    names = files_of(folder)
    assert {"manifest.json", "manifest.sha256", "params.npz", "query.stablehlo", "items.npy", "items.jsonl", "index/ids.npy"} <= set(names)
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{'manifest' if 'manifest' in name else name}.*export it again"):
            Bundle.open(copy)
        (copy / name).unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{'manifest' if 'manifest' in name else name}"):
            Bundle.open(copy)
        shutil.rmtree(copy)


def test_an_extra_file_another_schema_and_no_bundle_are_refused(exported, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(exported[0], copy)
    (copy / "index" / "scann_docids.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"files that were not exported: index/scann_docids.pkl; remove them"):
        Bundle.open(copy, verify=False)
    with pytest.raises(FileNotFoundError, match=r"is no bundle .*jaxrec export"):
        Bundle.open(tmp_path)
    monkeypatch.setattr(bundle_module, "SCHEMA", 3)
    with pytest.raises(ValueError, match="of schema 2; this jaxrec reads 'jaxrec bundle' of schema 3; export it again"):
        Bundle.open(exported[0])


def test_verify_false_skips_the_checksums(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported[0], copy)
    (copy / "experiment.json").write_text("{}")
    with pytest.raises(ValueError, match=r"experiment.json is not the file"):
        Bundle.open(copy)
    assert len(Bundle.open(copy, verify=False).items) == ITEMS


def test_export_replaces_bundles_and_nothing_else(exported, tmp_path, monkeypatch):
    _, experiment, params = exported
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is not a bundle \(it has no manifest.json\)"):
        export(experiment, params, 0, folder)
    assert files_of(folder) == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    export(experiment, params, 1, folder)
    monkeypatch.setattr("jaxrec.serve.export.installed", lambda: False)
    export(experiment, params, 2, folder)
    assert json.loads((folder / "index" / "index.json").read_text())["exact_below"] == sys.maxsize
    monkeypatch.setattr("jaxrec.serve.export.item_vectors", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(experiment, params, 3, folder)
    assert Bundle.open(folder).manifest["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_cannot_be_exported_says_why(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class TwoVectors(SASRec):
        def encode_query(self, params, batch):
            vectors = super().encode_query(params, batch)
            return Vectors(jnp.repeat(vectors.values, 2, axis=1), jnp.repeat(vectors.mask, 2, axis=1))

    with pytest.raises(ValueError, match=r"TwoVectors.encode_query gives .*; a bundle holds one vector for each query"):
        written(tmp_path / "bundle", TwoVectors(dim=8, layers=1))
    experiment = dataclasses.replace(resolved(SASRec(dim=8)), method=object())
    with pytest.raises(TypeError, match=r"object does not encode .*only an Encoder"):
        export(experiment, {}, 0, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [
        ([], 1, "history 0 is empty; give at least one item id"),
        ("item-1", 1, "history 0 is the text 'item-1'; give a list"),
        (["item-1", "itm-12"], 1, r"1 of 2 items are not in the catalogue of 40: 'itm-12' \(did you mean 'item-12'"),
        (["item 7 OF aisle 7"], 1, r"'item 7 OF aisle 7' \(that is the title of item-7\)"),
        (["?"], 1, "1 of 1 items are not in the catalogue of 40: '[?]'$"),
        ([f"x{i}" for i in range(9)], 1, r"9 of 9 items .*; \.\.\.$"),
        (["item-1", "item-1"], 40, "k=40 is more than the 39 items that history 0 has not seen; ask for k <= 39"),
        (["item-1"], 41, "k=41 is more than the 40 items of the catalogue; ask for k <= 39"),
        (["item-1"], 0, "k=0 asks for nothing"),
    ],
)
def test_errors_of_a_query_name_the_fix(opened, history, k, message):
    with pytest.raises(ValueError, match=message):
        opened.recommend([history], k)


def test_models_without_times_or_users_refuse_them(opened):
    with pytest.raises(ValueError, match="this model does not use users; leave out users="):
        opened.recommend([["item-1"]], 1, users=["user-1"])


def test_find_looks_ids_up_by_title(opened):
    assert opened.find("ITEM 3 OF") == [("item-3", "Item 3 of aisle 3")]
    assert len(opened.find("aisle 4")) == ITEMS / 10
    assert opened.find("nothing like it") == []


def test_near_misses_are_not_looked_for_in_large_catalogues(opened, monkeypatch):
    monkeypatch.setattr(bundle_module, "COMPARED", 10)
    with pytest.raises(ValueError, match=r"'itm-12'$"):
        opened.recommend([["itm-12"]], 1)


@pytest.mark.skipif(not scann.installed(), reason="the scann package exists for Linux only")
def test_a_bundle_needs_only_itself(exported):
    program = f"""
import sys
from pathlib import Path
from jaxrec.serve.bundle import Bundle
print(Bundle.open(Path({str(exported[0])!r})).recommend([["item-1", "item-2"]], 1)[0])
loaded = {{name.split(".")[1] for name in sys.modules if name.startswith("jaxrec.")}}
assert loaded == {{"artifact", "index", "limits", "serve"}}, loaded
assert not {{"flax", "optax", "orbax", "grain", "tensorflow_datasets", "pyarrow", "kernels"}} & set(sys.modules)
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"[{Recommendation.__name__}(item='item-")
