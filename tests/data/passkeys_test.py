"""Passkeys: the key stands in the text where the depth says, and nowhere else; the answer is the key; splits do not mix."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.data.passkeys import Passkeys
from jaxrec.data.text import SyntheticText, Tokens

DATA = Passkeys(Tokens(SyntheticText(words=400)), length=24, key=3, symbols=5, count=200, batch=4)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("length", [24, 60])
def test_the_answer_is_the_key_that_the_text_hides(split, length):
    rows, ids, mark = DATA.rows(split, length, 200), DATA.tokens.get().ids[split].tolist(), DATA.mark
    text = length - 7
    for token, target, mask, depth in zip(rows["token"].tolist(), rows["target"].tolist(), rows["mask"], rows["depth"], strict=True):
        row = [*token, target[-1]]
        assert target == row[1:] and len(row) == length + 1
        assert np.flatnonzero(mask).tolist() == list(range(length - 3, length))
        answer, before = row[-3:], round(depth * text)
        assert row[-4] == mark and row[before : before + 4] == [mark, *answer] and all(mark < symbol <= mark + 5 for symbol in answer)
        rest = row[:before] + row[before + 4 : -4]
        assert len(rest) == text and max(rest) < mark
        assert any(ids[begin : begin + text] == rest for begin in range(len(ids) - text + 1))  # consecutive, around the key
    assert rows["depth"].min() == 0 and rows["depth"].max() == 1 and len(np.unique(rows["target"][:, -3:], axis=0)) > 80  # of 125 keys


def test_rows_are_drawn_once_and_differ_by_split_and_seed():
    first, again = (DATA.rows("train", 24, 8)["token"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != DATA.rows("test", 24, 8)["token"]).any()
    assert (first != Passkeys(DATA.tokens, length=24, key=3, symbols=5, seed=1).rows("train", 24, 8)["token"]).any()


def test_batches_are_those_of_a_language_model():
    batch = DATA.batches()[0]
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "token": ((4, 24), "int32"),
        "target": ((4, 24), "int32"),
        "segment": ((4, 24), "int32"),
        "mask": ((4, 24), "float32"),
    }
    assert DATA.info() == {"vocabulary": DATA.mark + 6, "length": 24}
    assert DATA.batches().rows == 200 and DATA.capacity == 24 and DATA.smoke().length == 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 7}, "length=7 leaves no text beside a key of 3 symbols, its copy and two marks; use 8 or more"),
        ({"symbols": 1}, "symbols=1 at least 2"),
        ({"key": 0}, "key=0 and count=16384 must be at least 1"),
    ],
)
def test_rows_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Passkeys(DATA.tokens, **fields)


def test_a_text_too_short_to_hide_a_key_is_refused():
    with pytest.raises(ValueError, match=r"the test text has .* tokens, and a row hides its key in 9,993; choose a shorter length"):
        DATA.rows("test", 10_000, 1)
