"""LoRA on a language model with scanned and single layers: its equation, adapters by row, merging, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.method import cast
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.linear import Linear
from jaxrec.nn.lora import Adapter, LoRA
from jaxrec.param import count, create, fingerprint, flatten, stack

MODEL = LanguageModel(  # layers 0 and 1 are scanned as a pattern, layer 2 is on its own
    vocabulary=40, dim=16, layers=3, heads=2, hidden=24, length=16, attention=AttentionKind(positions="rotary", window=3), pattern=("local", "global")
)
LORA = LoRA(rank=3, alpha=6.0, targets=("qkv", "attention.output", "feed.*"), adapters=3)
ONE = dataclasses.replace(LORA, adapters=1)
PARAMS = create(MODEL.spec(), jax.random.key(0))
IDS = np.random.default_rng(1).integers(1, 40, (4, 8)).astype(np.int32)
MAPS = [f"{layer}.{name}" for layer in ("stack.layers.0", "stack.layers.1", "rest.0") for name in ("attention.qkv", "attention.output")]

states = jax.jit(lambda params, ids: params(ids))
BASE = np.asarray(states(PARAMS, IDS))


def randomised(lora, seed=2):
    """Adapters that change something: B is not 0."""
    noise = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.3 * noise.normal(size=leaf.shape), jnp.float32), create(lora.spec(MODEL.spec()), jax.random.key(1)))


ADAPTERS = randomised(LORA)


def only(number):
    """One of the three adapters, as the set of one."""
    return jax.tree.map(lambda leaf: leaf[..., number : number + 1, :, :], ADAPTERS)


@pytest.fixture(scope="module")
def by_row():
    """Rows with the adapters 1, none, 0 and 2."""
    return np.asarray(states(LORA.attach(PARAMS, ADAPTERS, np.array([1, -1, 0, 2])), IDS))


@pytest.fixture(scope="module")
def separate():
    """All rows with each adapter alone."""
    return [np.asarray(states(ONE.attach(PARAMS, only(number)), IDS)) for number in range(3)]


def test_declares_two_factors_for_each_target():
    spec = LORA.spec(MODEL.spec())
    assert set(spec) == {*MAPS, *(name.replace("attention.qkv", f"feed.{part}") for name in MAPS[::2] for part in ("gate", "inner", "outer"))}
    assert spec[MAPS[0]].a.shape == (1, 3, 16, 3) and spec[MAPS[0]].b.shape == (1, 3, 3, 48) and spec[MAPS[4]].a.shape == (3, 16, 3)
    assert spec[MAPS[0]].a.axes == ("layers", None, "embed", None) and spec[MAPS[0]].b.axes == ("layers", None, None, "heads")
    assert f"{MAPS[0]}.a" in flatten(spec)
    assert count(LORA.spec(MODEL.spec()), trainable=True) == 3 * count(ONE.spec(MODEL.spec()))
    assert set(LoRA(targets=("*",)).spec(MODEL.spec())) == set(spec)
    wide = create(LoRA(rank=64, adapters=4).spec({"map": stack(Linear.spec(100, 7), 5)}), jax.random.key(0))["map"]
    np.testing.assert_allclose(jnp.std(wide.a, axis=(-2, -1)), 0.1, rtol=0.05)  # the fan-in of one map: neither layers nor adapters count
    assert len(np.unique(np.asarray(wide.a)[..., 0, 0])) == 20 and not jnp.any(wide.b)


def test_the_equation():
    random = np.random.default_rng(0)
    x, a, b = (random.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4, 5), (1, 5, 2), (1, 2, 6)))
    params = {"map": create(Linear.spec(5, 6), jax.random.key(0)).replace(bias=jnp.arange(6.0))}
    lora = LoRA(rank=2, alpha=3.0)
    found = lora.attach(params, {"map": Adapter(jnp.asarray(a), jnp.asarray(b))})["map"](jnp.asarray(x))
    np.testing.assert_allclose(found, x @ np.asarray(params["map"].kernel) + np.arange(6) + 1.5 * x @ a[0] @ b[0], rtol=1e-5, atol=1e-5)


def test_an_untrained_adapter_is_the_base_to_the_bit():
    fresh = create(ONE.spec(MODEL.spec()), jax.random.key(3))
    np.testing.assert_array_equal(states(ONE.attach(PARAMS, fresh), IDS), BASE)


def test_rows_choose_their_adapters(by_row, separate):
    for row, number in ((0, 1), (2, 0), (3, 2)):
        np.testing.assert_allclose(by_row[row], separate[number][row], rtol=1e-5, atol=1e-5)
        assert np.abs(by_row[row] - BASE[row]).max() > 0.05
    np.testing.assert_allclose(states(LORA.attach(PARAMS, ADAPTERS, 2), IDS), separate[2], rtol=1e-6, atol=1e-6)


def test_a_row_without_adapter_is_the_base_to_the_bit(by_row):
    np.testing.assert_array_equal(by_row[1], BASE[1])
    broken = jax.tree.map(lambda leaf: leaf.at[..., 0, :, :].set(jnp.nan), ADAPTERS)
    found = np.asarray(states(LORA.attach(PARAMS, broken, np.array([-1, 0, -1, 1])), IDS))
    np.testing.assert_array_equal(found[[0, 2]], BASE[[0, 2]])
    assert np.isnan(found[1]).all() and np.isfinite(found[3]).all()


def test_merged_is_the_two_branches(separate):
    for number in (0, 2):
        np.testing.assert_allclose(states(LORA.merge(PARAMS, ADAPTERS, number), IDS), separate[number], rtol=1e-4, atol=1e-5)


def test_merging_and_unmerging_does_not_give_the_base_back():
    """Why a switch must not merge: the subtraction rounds once more, and in bfloat16 at a visible place."""
    for dtype in (jnp.float32, jnp.bfloat16):
        base = cast(MODEL.spec(), PARAMS, dtype)
        merged = LORA.merge(base, ADAPTERS, 1)
        before, between, after = (np.asarray(flatten(tree)[f"{MAPS[0]}.kernel"], np.float32) for tree in (base, merged, LORA.unmerge(merged, ADAPTERS, 1)))
        drift, rounding = np.abs(after - before), float(jnp.finfo(dtype).eps)
        assert (drift > 0).mean() > 0.1  # many weights have other bits
        assert 0.1 * rounding < drift.max() <= rounding * np.abs(between).max()  # by as much as the sum was rounded


def test_only_the_adapters_of_the_batch_get_a_gradient():
    def objective(adapters):
        return (LORA.attach(PARAMS, adapters, np.array([1, -1, 1, 2]))(IDS) ** 2)[..., :3].sum()

    for name, leaf in flatten(jax.jit(jax.grad(objective))(ADAPTERS)).items():
        found = np.abs(np.asarray(leaf)).max(axis=(-2, -1))  # [..., adapters]
        assert (found[..., 0] == 0).all() and (found[..., 1:] > 0).all(), name


def test_unstacked_layers_and_decoding_with_a_cache_agree(by_row):
    adapted = LORA.attach(PARAMS, ADAPTERS, np.array([1, -1, 0, 2]))
    np.testing.assert_allclose(states(adapted.unstacked(), IDS), by_row, rtol=1e-5, atol=1e-5)

    @jax.jit
    def cached(params, ids):
        first, cache = params.prefill(ids[:, :5], jnp.ones((4, 5), jnp.int32), slots=9)
        hidden, _ = params.extend(cache, ids[:, 5:])
        return first, hidden

    first, hidden = cached(adapted.unstacked(), IDS)
    np.testing.assert_allclose(hidden, by_row[:, 5:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first, adapted.logits(by_row[:, 4]), rtol=1e-4, atol=1e-5)


def test_one_adapter_of_all_rows_may_be_an_integer_of_numpy():
    for one, other in zip(jax.tree.leaves(LORA.attach(PARAMS, ADAPTERS, np.int64(1))), jax.tree.leaves(LORA.attach(PARAMS, ADAPTERS, 1)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_refused():
    with pytest.raises(
        ValueError, match=r"target 'query' is no linear map of the model, which has stack\.layers\.0\.attention\.qkv, .*rest\.0\.feed\.outer; name"
    ):
        LoRA(targets=("qkv", "query")).spec(MODEL.spec())
    with pytest.raises(ValueError, match=r"there are 3 adapters; say with `which`"):
        LORA.attach(PARAMS, ADAPTERS)
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"which={number} is none of the 3 adapters"):
            LORA.merge(PARAMS, ADAPTERS, number)
    with pytest.raises(ValueError, match="which=3 is none of the 3 adapters, numbered from 0; -1 is none"):
        LORA.attach(PARAMS, ADAPTERS, np.array([0, 3, -1, 1]))
    for which, message in (([0, 5], "which=5 is none"), ([0, -7], "which=-7 is none"), (np.array([0.7]), "which is float64"), ([[0, 1]], r"int64 \(1, 2\)")):
        with pytest.raises(ValueError, match=message):
            LORA.attach(PARAMS, ADAPTERS, which)
    with pytest.raises(ValueError, match="adapters are chosen for 2 rows, and the input has 4"):
        LORA.attach(PARAMS, ADAPTERS, np.array([0, 1]))(IDS)
    for wrong, message in (
        ({"rank": 0, "adapters": 1.5}, "^LoRA: rank=0 must be at least 1; adapters=1.5 must be a whole number of at least 1$"),
        ({"alpha": np.nan}, "alpha=nan must be above 0"),
        ({"targets": ()}, r"targets=\(\) must be a tuple of names"),
        ({"targets": "qkv"}, r"targets='qkv' must be a tuple of names, like \('qkv', 'output'\)"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(LORA, **wrong)


def test_adapters_of_another_base_are_refused_by_name_and_shape():
    wide = LORA.spec(dataclasses.replace(MODEL, hidden=32).spec())
    with pytest.raises(ValueError, match=r"parameter rest\.0\.feed\.\w+\.[ab] has shape \(3, .*32.*the model expects \(3, .*24"):
        LORA.attach(PARAMS, create(wide, jax.random.key(0)), 0)
    deeper = LORA.spec(dataclasses.replace(MODEL, layers=4).spec())
    with pytest.raises(ValueError, match=r"parameters are missing: rest\.0\.attention\.output\.a"):
        LORA.attach(PARAMS, create(deeper, jax.random.key(0)), 0)
    with pytest.raises(ValueError, match=r"\.a has shape .*, the model expects"):
        dataclasses.replace(LORA, rank=2).attach(PARAMS, ADAPTERS, 0)


def test_a_file_of_adapters_knows_its_base(tmp_path):
    path = tmp_path / "task.npz"
    LORA.save(path, PARAMS, ADAPTERS)
    for one, other in zip(jax.tree.leaves(LORA.load(path, PARAMS)), jax.tree.leaves(ADAPTERS), strict=True):
        np.testing.assert_array_equal(one, other)
    other = create(MODEL.spec(), jax.random.key(9))  # the same shapes, other weights
    with pytest.raises(ValueError, match=f"task.npz holds adapters of the base {fingerprint(PARAMS)}, and the parameters given are {fingerprint(other)}.*give"):
        LORA.load(path, other)
    with pytest.raises(ValueError, match=r"holds adapters of alpha=6\.0, and alpha=3\.0 would scale them otherwise; write LoRA\(alpha=6\.0\)"):
        dataclasses.replace(LORA, alpha=3.0).load(path, PARAMS)
    with pytest.raises(ValueError, match="parameters that the model does not have: .*feed"):
        dataclasses.replace(LORA, targets=("qkv", "attention.output")).load(path, PARAMS)
    with pytest.raises(ValueError, match="task.bin is to hold arrays in NumPy's format; end its name with .npz"):
        LORA.save(tmp_path / "task.bin", PARAMS, ADAPTERS)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="task.npz is no whole .npz of arrays"):
        LORA.load(path, PARAMS)


def test_a_file_that_names_no_base_is_read_by_names_and_shapes(tmp_path):
    """As others write it."""
    base = cast(MODEL.spec(), create(MODEL.spec(), jax.random.key(9)), jnp.bfloat16)
    np.savez(tmp_path / "theirs.npz", **flatten(ADAPTERS))
    found = LORA.load(tmp_path / "theirs.npz", base)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(np.asarray(found["rest.0.attention.qkv"].a, np.float32), ADAPTERS["rest.0.attention.qkv"].a, rtol=1e-2)
    with pytest.raises(ValueError, match=r"has shape .*, the model expects"):
        LORA.load(tmp_path / "theirs.npz", create(dataclasses.replace(MODEL, hidden=32).spec(), jax.random.key(0)))
