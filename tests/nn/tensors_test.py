"""Reading weights by shards: equal to reading them whole, and each shard reads its own slices alone."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxrec.nn import language_families
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.tensors import Source, load, unload
from jaxrec.param import Param, create, flatten, zeros
from jaxrec.sharding import Layout, make_mesh, partition

MODEL = LanguageModel(vocabulary=200, dim=16, layers=5, heads=8, hidden=32, length=16, attention=AttentionKind(positions="rotary", groups=4), qkv_bias=True)
ALTERNATING = LanguageModel(
    vocabulary=40,
    dim=16,
    layers=5,
    heads=4,
    hidden=24,
    length=32,
    attention=AttentionKind(positions="rotary", window=3),
    pattern=("local", "global"),
    head_norm=True,
    tied=True,
)


class Counted:
    """A tensor that counts the bytes it is asked for."""

    def __init__(self, array):
        self.array, self.shape, self.bytes = array, array.shape, 0

    def __getitem__(self, index):
        found = self.array[index]
        self.bytes += found.nbytes
        return found


def params_of(model):
    return create(model.spec(), jax.random.key(0))


def same(one, other):
    for (name, leaf), wanted in zip(flatten(one).items(), flatten(other).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(leaf, np.float32), np.asarray(wanted, np.float32), err_msg=name)


@pytest.mark.parametrize("model", [MODEL, ALTERNATING], ids=["one kind", "two kinds"])
def test_hugging_face_there_and_back_is_exact_in_both_forms(model):
    params = params_of(model)
    tensors = dict(language_families.to_hf(model, params))
    again = language_families.from_hf(model, tensors)
    rows = model.vocabulary
    assert not np.any(again.word.table[rows:])
    back = dict(language_families.to_hf(model, again))
    apart = language_families.from_hf(model, tensors, stacked=False)
    same(again.unstacked(), apart)
    for found in (back, dict(language_families.to_hf(model, apart))):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(found[name], tensor)
    assert tensors["model.layers.4.self_attn.k_proj.weight"].shape == ((model.attention.groups or model.heads) * model.dim // model.heads, model.dim)
    assert tensors["model.layers.4.mlp.gate_proj.weight"].shape == (model.hidden, model.dim)


def test_shards_read_their_own_slices_alone():
    arrays = dict(language_families.to_hf(MODEL, params_of(MODEL)))
    whole = language_families.from_hf(MODEL, arrays)
    layout = Layout(mesh=(("data", 2), ("model", 4)), rules=(("batch", "data"), ("heads", "model"), ("hidden", "model"), ("vocabulary", "model")))
    mesh = make_mesh(layout)
    spec = MODEL.spec()
    shardings = jax.tree.map(lambda param: partition(param.axes, param.shape, layout, mesh), spec, is_leaf=lambda leaf: isinstance(leaf, Param))
    tensors = {name: Counted(array) for name, array in arrays.items()}
    params = language_families.from_hf(MODEL, tensors, shardings=shardings)  # type: ignore[arg-type]
    same(params, whole)
    for name, leaf in flatten(params).items():
        assert leaf.sharding == flatten(shardings)[name], name
    q = params.stack.layers.attention.qkv.kernel
    assert {shard.data.shape for shard in q.addressable_shards} == {(5, 16, q.shape[-1] // 4)}
    for name, tensor in tensors.items():  # each shard is read once, whatever number of devices holds it
        assert tensor.bytes == tensor.array.nbytes, name
    held = [tensor for name, tensor in tensors.items() if "gate_proj" in name]
    read = language_families.sources(MODEL, spec)["stack.layers.feed.gate.kernel"]
    for tensor in held:
        tensor.bytes = 0
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    part = read.read(own, (5, 16, 32), (slice(1, 3), slice(None), slice(8, 16)), np.float32)
    np.testing.assert_array_equal(part, whole.stack.layers.feed.gate.kernel[1:3, :, 8:16])
    assert [tensor.bytes for tensor in held] == [0, 16 * 8 * 4, 16 * 8 * 4, 0, 0]


def test_half_precision_is_read_and_kept():
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in language_families.to_hf(MODEL, params_of(MODEL))}
    wide, narrow = (language_families.from_hf(MODEL, arrays, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {np.dtype(ml_dtypes.bfloat16)}
    same(wide, narrow)
    assert all(tensor.dtype == ml_dtypes.bfloat16 for _, tensor in language_families.to_hf(MODEL, narrow))


def test_any_slice_of_any_form_is_the_slice_of_the_whole():
    random = np.random.default_rng(0)
    for stacked, transposed, rows in ((True, True, 0), (True, False, 0), (False, True, 0), (False, False, 5)):
        widths = (6, 2, 4) if transposed else (3,)
        layers = 4 if stacked else 1
        inner = (7, sum(widths))
        names = tuple(tuple(f"{layer}.{part}" for part in range(len(widths))) for layer in range(layers))
        source = Source(names, widths, stacked=stacked, transposed=transposed, rows=rows)
        leaf = (layers, *inner) if stacked else inner
        shapes = source.shapes(leaf)
        tensors = {name: random.normal(size=shape).astype(np.float32) for parts in names for name, shape in zip(parts, shapes, strict=True)}
        whole = source.read(tensors, leaf, tuple(slice(None) for _ in leaf), np.float32)
        assert whole.shape == leaf and (not rows or not whole[rows:].any())
        param = Param(leaf, (None,) * len(leaf), zeros)
        loaded = load({"leaf": param}, {"leaf": source}, tensors)
        np.testing.assert_array_equal(loaded["leaf"], whole)
        for name, tensor in unload(loaded, {"leaf": source}):
            np.testing.assert_array_equal(tensor, tensors[name])
        for _ in range(30):
            index = tuple(slice(*sorted(random.integers(0, size + 1, 2).tolist())) for size in leaf)
            np.testing.assert_array_equal(source.read(tensors, leaf, index, np.float32), whole[index])
        assert math.prod(leaf) >= sum(tensor.size for tensor in tensors.values())


def test_tensors_that_do_not_fit_are_named():
    tensors = dict(language_families.to_hf(MODEL, params_of(MODEL)))
    name = "model.layers.3.mlp.down_proj.weight"
    with pytest.raises(ValueError, match=r"tensor layers.3.mlp.down_proj.weight has shape \(16, 31\), the config asks for \(16, 32\)"):
        language_families.from_hf(MODEL, tensors | {name: tensors[name][:, :31]})
    with pytest.raises(ValueError, match=r"1 tensors are missing, layers.3.mlp.down_proj.weight first"):
        language_families.from_hf(MODEL, {other: tensor for other, tensor in tensors.items() if other != name})
    with pytest.raises(ValueError, match=r"1 tensors are not of this model, layers.9.mlp.up_proj.weight first"):
        language_families.from_hf(MODEL, tensors | {"model.layers.9.mlp.up_proj.weight": tensors[name]})
    with pytest.raises(ValueError, match=r"0 tensors end in embed_tokens.weight.*the names begin wte"):
        language_families.from_hf(MODEL, {"wte": np.ones(3)})
    prefixed = {f"language_model.{name}": tensor for name, tensor in tensors.items()} | {"vision.embed.weight": np.ones(3)}
    same(language_families.from_hf(MODEL, prefixed), language_families.from_hf(MODEL, tensors))
