"""Feature tables: codes from 1, standardised numbers, 0 for what is unknown, and row 0 for padding."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.features import FeatureTable, column_info, encode, kind_of
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source

SOURCE = Synthetic(users=64, items=50)


def test_categories_become_codes_from_one():
    kind, rows, names = encode([["b", "a"], [], ["c"], None])
    assert (kind, names) == ("categorical", ["a", "b", "c"])
    np.testing.assert_array_equal(rows, [[2, 1], [0, 0], [3, 0], [0, 0]])
    np.testing.assert_array_equal(encode(["x", "", None, "x"])[1], [[1], [0], [0], [1]])
    assert encode([True, False, None])[2] == ["False", "True"]


def test_numbers_are_standardised_and_unknown_ones_are_the_mean():
    kind, rows, names = encode([1.0, 3.0, None, 5.0])
    assert (kind, names) == ("numeric", []) and rows.dtype == np.float32
    np.testing.assert_allclose(rows[:, 0], np.array([-2, 0, 0, 2]) / np.std([1, 3, 5]), rtol=1e-6)
    np.testing.assert_array_equal(encode([4, 4, 4])[1], np.zeros((3, 1)))  # constant: no division by zero


def test_vectors_stay_as_they_are():
    kind, rows, _ = encode([[1.0, 2.0], [3.0, 4.0]])
    assert kind == "vector"
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4]])


def test_an_unknown_vector_is_zero():
    np.testing.assert_array_equal(encode([[1.0, 2.0], None])[1], [[1, 2], [0, 0]])


def test_what_a_column_is_its_values_say():
    kinds = {
        "categorical": [["a"], [""], [None, "a"], [[], ["a"]], [[None, "a"]], [True], [None, []]],
        "numeric": [[1], [None, 2.5]],
        "vector": [[[1.0]], [None, (1, 2)], [[None], [None, 1.0]]],
    }
    assert all(kind_of(values) == kind for kind, columns in kinds.items() for values in columns)


def test_tables_of_a_source():
    fields = SOURCE.get().item_fields
    table = FeatureTable(SOURCE, "category")
    rows, codes = table.get(), table.codes()
    assert rows.shape == (51, 1) and rows[0, 0] == 0
    assert [codes[code - 1] for code in rows[1:, 0]] == fields["category"]

    price = FeatureTable(SOURCE, "price").get()
    assert price[0, 0] == 0 and price[1:].mean() == pytest.approx(0, abs=1e-5) and price[1:].std() == pytest.approx(1, abs=1e-5)

    segment = FeatureTable(SOURCE, "segment", of="user").get()
    assert segment.shape == (64, 1) and segment.min() == 1 and segment.max() == 3  # users have no padding row


@dataclasses.dataclass(frozen=True)
class Given(Source):
    """Two items, with the vectors given."""

    vectors: tuple[Any, ...]

    def read(self) -> Interactions:
        return Interactions(["u"], ["a", "b", "c"], np.array([0, 1]), np.array([1], np.int32), item_fields={"vector": list(self.vectors)})


@pytest.mark.parametrize("odd", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_a_vector_of_another_width_is_named(odd):
    with pytest.raises(
        ValueError, match=rf"Given column 'vector': the vector of 'b' has {len(odd)} numbers, and most have 2; give all the same width, and none"
    ):
        FeatureTable(Given(([1.0, 2.0], list(odd), (3.0, 4.0))), "vector").get()
    np.testing.assert_array_equal(FeatureTable(Given(([1.0, 2.0], None, (3.0, 4.0))), "vector").get(), [[0, 0], [1, 2], [0, 0], [3, 4]])


@pytest.mark.parametrize("odd", [(1.0, float("inf"), 2.0), ([1.0], [-float("inf")], None)])
def test_an_infinity_is_named(odd):
    with pytest.raises(ValueError, match="Given column 'vector': that of 'b' is infinite; correct it, or leave it empty where it is unknown"):
        FeatureTable(Given(odd), "vector").get()


def test_column_info_is_the_form_of_the_table():
    info = column_info(SOURCE.get())
    assert set(info) == {"category", "price", "segment"}  # titles are not features
    for name, column in info.items():
        table = FeatureTable(SOURCE, name, of=column["of"]).get()
        assert table.shape == (column["rows"], column["width"])
        if column["kind"] == "categorical":
            assert table.max() == column["size"]


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match="Synthetic has no item column 'colour'; it has category, price"):
        FeatureTable(SOURCE, "colour").get()
