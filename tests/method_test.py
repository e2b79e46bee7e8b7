"""Method: binding fields to what the data knows, and what the bases say when a capability is missing."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import jax.numpy as jnp
import pytest

import jaxrec.method
from jaxrec.method import FROM_DATA, Loss, bind, cast
from jaxrec.param import Param, exact, ones

INFO = {"items": 50, "length": 8, "columns": {"colour": {"size": 7, "width": 2}, "price": {"width": 1}}}


@dataclass(frozen=True)
class Column:
    name: str
    size: int = FROM_DATA
    width: int = FROM_DATA


@dataclass(frozen=True)
class Tower:
    length: int = FROM_DATA
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True)
class System:
    items: int = FROM_DATA
    dim: int = 16
    deep: bool = True
    query: Tower = Tower()
    widths: tuple[int, ...] = (-1, 2)


def test_fields_are_filled_by_name_however_deep():
    system = System(query=Tower(columns=(Column("colour"), Column("price", size=3))))
    assert bind(system, INFO) == System(items=50, query=Tower(8, (Column("colour", 7, 2), Column("price", 3, 1))))
    assert system.items == FROM_DATA  # the experiment's own is not changed


def test_what_is_set_stays():
    assert bind(System(items=90, query=Tower(30)), INFO) == System(items=90, query=Tower(30))
    with pytest.raises(ValueError, match="System.items=9 is less than the 50 of the data; leave it out, and it is taken from there"):
        bind(System(items=9), INFO)
    with pytest.raises(ValueError, match="Tower.length=3 is less than the 8 of the data"):
        bind(System(query=Tower(3)), INFO)
    assert bind(bind(System(), INFO), {"items": 1, "length": 1}) == bind(System(), INFO)


def test_what_the_data_does_not_know_is_named():
    with pytest.raises(ValueError, match="System.items is to come from the data, which knows only length; set it in the experiment"):
        bind(System(), {"length": 8})
    with pytest.raises(ValueError, match="Tower.length is to come from the data"):
        bind(System(), {"items": 8})
    with pytest.raises(ValueError, match="Column.size is to come from the data, which knows only width"):
        bind(System(query=Tower(columns=(Column("price"),))), INFO)
    with pytest.raises(ValueError, match="the data has no column 'weight'; it has colour, price"):
        bind(System(query=Tower(columns=(Column("weight"),))), INFO)


def test_cast_leaves_integers_and_what_must_be_exact_alone():
    spec = {"a": Param((2,), (None,), ones), "b": Param((2,), (None,), ones, jnp.int32), "c": None, "d": exact(Param((2,), (None,), ones))}
    got = cast(spec, {"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32), "c": None, "d": jnp.ones(2)}, jnp.bfloat16)
    assert (got["a"].dtype, got["b"].dtype, got["c"], got["d"].dtype) == (jnp.bfloat16, jnp.int32, None, jnp.float32)


def test_a_missing_capability_says_so():
    bases = [
        cls
        for cls in vars(jaxrec.method).values()
        if inspect.isclass(cls) and cls.__module__ == jaxrec.method.__name__ and cls.__name__[-2:] in ("or", "er", "od", "ne")
    ]
    assert len(bases) >= 10
    for base in bases:
        mine = type("Mine", (base,), {})()
        for name, function in inspect.getmembers(base, inspect.isfunction):
            if name.startswith("_"):
                continue
            required = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY][1:]
            keywords = {p.name: 1 for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
            with pytest.raises(TypeError, match="^Mine (does not|has no)"):
                getattr(mine, name)(*[None] * len(required), **keywords)


def test_a_loss_is_a_tree():
    loss = Loss({"a": (jnp.ones(()), jnp.ones(()))})
    assert loss.metrics == {} and loss.stats == {}


def test_a_model_with_fewer_word_vectors_than_the_tokenizer_has_tokens_is_refused():
    @dataclass(frozen=True)
    class Words:
        vocabulary: int = FROM_DATA

    assert bind(Words(), {"vocabulary": 7}).vocabulary == 7  # type: ignore[type-var]
    assert bind(Words(9), {"vocabulary": 7}).vocabulary == 9  # type: ignore[type-var]
    assert bind(Words(9), {}).vocabulary == 9  # type: ignore[type-var]
    with pytest.raises(ValueError, match="Words.vocabulary=6 is less than the 7 tokens of the data's tokenizer"):
        bind(Words(6), {"vocabulary": 7})  # type: ignore[type-var]
