"""Sequences: rows, questions, counts and refit agree with the interactions they come from."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.features import RandomVectors
from jaxrec.data.sequences import Sequences
from jaxrec.data.splits import TimeSplit

SOURCE = Synthetic(users=64, items=50)
DATA = Sequences(SOURCE, batch=8, length=8)


def histories():
    interactions = SOURCE.get()
    return [interactions.sequence[a:b] for a, b in zip(interactions.offsets[:-1], interactions.offsets[1:], strict=True)]


def element_spec(batch):
    """Shape and type of every array of a batch."""
    return {name: (array.shape, str(array.dtype)) for name, array in batch.items()}


def by_user(rows):
    """user -> [(history item, target), ...] in order of position, over all rows."""
    found = {}
    inside = rows["segment"] > 0
    for user, position, item, target in zip(*(rows[name][inside].tolist() for name in ("user", "position", "history", "target")), strict=True):
        found.setdefault(user, {})[position] = (item, target)
    return {user: [pairs[p] for p in sorted(pairs)] for user, pairs in found.items()}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("refit", [True, False])
def test_rows_hold_each_users_last_training_events(packing, refit):
    data = dataclasses.replace(DATA, packing=packing, refit=refit)
    rows = data.rows()
    held_out = 1 if refit else 2
    expected = {user: list(itertools.pairwise(items[:-held_out].tolist()))[-8:] for user, items in enumerate(histories())}
    assert by_user(rows) == expected
    assert rows["history"].shape[1] == data.capacity == (64 if packing else 8)
    assert data.examples_per_row() == pytest.approx(64 / len(rows["history"]))


def test_batches_have_weight_where_there_is_a_target():
    batch = DATA.batches()[0]
    np.testing.assert_array_equal(batch["mask"], (batch["target"] > 0).astype(np.float32))
    integers = dict.fromkeys(("history", "target", "segment", "position", "user", "time"), ((8, 64), "int32"))
    assert element_spec(batch) == integers | {"mask": ((8, 64), "float32")}


def test_the_questions_are_what_was_left_out():
    validation, test = DATA.examples("validation"), DATA.examples("test")
    for user, items in enumerate(histories()):
        assert validation.user[user] == test.user[user] == user
        np.testing.assert_array_equal(validation.history(user), items[:-2])
        np.testing.assert_array_equal(test.history(user), items[:-1])
        assert (validation.target[user], test.target[user]) == (items[-2], items[-1])
    assert validation.time is not None and test.time is not None
    interactions = SOURCE.get()
    assert test.time[: test.offsets[1]].tolist() == (interactions.times[: test.offsets[1]] - interactions.times.min()).tolist()


def test_cold_targets_never_occur_in_training():
    data = Sequences(Synthetic(users=20, items=200, length=6), length=8)
    trained = set(data.training()[0].tolist())
    test = data.examples("test")
    assert test.cold.any() and not test.cold.all()
    np.testing.assert_array_equal(test.cold, [target not in trained for target in test.target.tolist()])


def test_training_events_are_those_before_the_cut():
    sequence, offsets = DATA.training()
    refitted, _ = dataclasses.replace(DATA, refit=True).training()
    for user, items in enumerate(histories()):
        np.testing.assert_array_equal(sequence[offsets[user] : offsets[user + 1]], items[:-2])
    np.testing.assert_array_equal(refitted, np.concatenate([items[:-1] for items in histories()]))


def test_a_split_by_time_asks_only_users_with_events_on_both_sides():
    data = dataclasses.replace(DATA, split=TimeSplit())
    cuts = TimeSplit().cuts(SOURCE.get())
    for name in ("validation", "test"):
        examples = data.examples(name)
        np.testing.assert_array_equal(examples.user, np.flatnonzero(getattr(cuts, name) > 0))
        for number, user in enumerate(examples.user.tolist()):
            count = int(getattr(cuts, name)[user])
            np.testing.assert_array_equal(examples.history(number), histories()[user][:count])
            assert examples.target[number] == histories()[user][count]


def test_info_is_what_methods_bind():
    info = DATA.info()
    assert (info["items"], info["users"], info["length"]) == (50, 64, 8)
    assert info["columns"]["category"] == {"of": "item", "kind": "categorical", "rows": 51, "width": 1, "size": 10}
    assert info["columns"]["segment"]["of"] == "user" and info["columns"]["segment"]["rows"] == 64


def test_smoke_has_the_same_keys_shapes_and_types():
    small = DATA.smoke()
    assert element_spec(small.batches()[0]) == element_spec(DATA.batches()[0])
    assert small.source == Synthetic(users=64, items=50)


def test_row_is_a_multiple_of_64_unless_given():
    assert [dataclasses.replace(DATA, length=n).capacity for n in (1, 64, 65)] == [64, 64, 128]
    assert dataclasses.replace(DATA, row=24).rows()["history"].shape[1] == 24


def test_errors():
    for name, value, least in (("batch", 0, 1), ("length", 0, 1), ("row", -1, 0), ("stride", -1, 0), ("segments", -5, 0), ("seed", -1, 0)):
        with pytest.raises(ValueError, match=f"^Sequences: {name}={value} must be at least {least}$"):
            dataclasses.replace(DATA, **{name: value})
    with pytest.raises(ValueError, match="row=4 cannot hold a history of length=8; make row at least 8"):
        Sequences(SOURCE, length=8, row=4)
    with pytest.raises(ValueError, match="split 'train': choose validation or test"):
        DATA.examples("train")


def examples_of(rows):
    """(user, history, target) of every asked token, the history from the start of its segment."""
    found = []
    for row, column in zip(*np.nonzero(rows["target"]), strict=True):
        start = column - rows["position"][row, column]
        found.append((int(rows["user"][row, column]), tuple(rows["history"][row, start : column + 1].tolist()), int(rows["target"][row, column])))
    return sorted(found)


def test_last_with_stride_one_makes_an_example_of_every_event_and_asks_once_a_window():
    data = dataclasses.replace(DATA, form="last", stride=1, segments=5)
    rows = data.rows()
    wanted = [
        (user, tuple(items[max(end - 8, 0) : end].tolist()), int(items[end])) for user, items in enumerate(histories()) for end in range(1, len(items) - 2)
    ]
    assert examples_of(rows) == sorted(wanted)
    assert rows["segment"].max() == 5 == data.info()["segments"]
    windows_of_a_row = rows["segment"].max(axis=1)
    assert ((rows["target"] > 0).sum(axis=1) == windows_of_a_row).all()


def test_a_stream_holds_the_last_item_too_and_asks_nothing_of_it():
    data = dataclasses.replace(DATA, form="stream")
    rows, plain = data.rows(), DATA.rows()
    assert examples_of(rows) == examples_of(plain)
    for user, items in enumerate(histories()):
        inside = (rows["user"] == user) & (rows["segment"] > 0)
        assert rows["history"][inside].tolist() == items[:-2][-9:].tolist()  # 8 targets, and the item before them
    assert dataclasses.replace(data, packing=False).rows()["history"].shape[1] == 9
    with pytest.raises(ValueError, match="row=8 cannot hold a history of length=8; make row at least 9"):
        dataclasses.replace(data, row=8)


def test_computed_columns_stand_beside_the_sources_own():
    data = dataclasses.replace(DATA, columns=(RandomVectors(SOURCE, 5),))
    assert set(data.info()["columns"]) == {"category", "price", "segment", "text"}
    assert data.column("text").get().shape == (51, 5) and data.info()["columns"]["text"]["width"] == 5
    assert data.column("category").get().shape == (51, 1) and data.column("segment").of == "user"
    with pytest.raises(ValueError, match="no column 'colour'; it has text, category, price, segment"):
        data.column("colour")
    small = data.smoke()
    assert small.column("text").get().shape == (51, 5)
