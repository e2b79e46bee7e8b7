"""Sharding: where the axes of arrays lie on a mesh."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec

from jaxrec.sharding import DATA, FSDP, TABLES, Layout, batch_sharding, make_mesh, partition

GRID = Layout(mesh=(("data", 4), ("model", 2)), rules=TABLES)


def spec(axes, shape, layout):
    return partition(axes, shape, layout, make_mesh(layout)).spec


def test_a_mesh_takes_all_devices_that_remain():
    assert dict(make_mesh(Layout()).shape) == {"data": 8}
    assert dict(make_mesh(Layout(mesh=(("data", -1), ("model", 2)), rules=TABLES)).shape) == {"data": 4, "model": 2}
    assert dict(make_mesh(Layout(), jax.devices()[:2]).shape) == {"data": 2}


@pytest.mark.parametrize("mesh", [(("data", 3),), (("data", -1), ("model", -1)), (("data", -1), ("model", 3)), (("data", 2), ("model", 2))])
def test_a_mesh_that_does_not_fit_is_refused(mesh):
    with pytest.raises(ValueError, match="does not fit 8 devices; its sizes must multiply to 8, and one may be -1"):
        make_mesh(Layout(mesh=mesh))


@pytest.mark.parametrize("mesh", [(("data", 4), ("model", 2)), (("data", 4), ("model", -1))])
def test_an_axis_that_no_rule_uses_is_refused(mesh):
    message = r"no rule lays anything on mesh axis 'model', so its 2 devices .* the rules are batch -> data; add a rule .*, or drop the axis"
    with pytest.raises(ValueError, match=message):
        make_mesh(Layout(mesh=mesh))
    with pytest.raises(ValueError, match="no rule lays anything on mesh axis 'data', so its 8 devices .* the rules are none"):
        make_mesh(Layout(rules=()))


def test_an_unused_axis_of_one_device_is_no_harm():
    assert dict(make_mesh(Layout(mesh=(("data", 8), ("model", 1)))).shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(Layout(mesh=(("data", 2), ("model", -1))), jax.devices()[:2]).shape) == {"data": 2, "model": 1}


def test_each_rule_set_by_hand():
    table, kernel = ("vocabulary", "embed"), ("embed", "hidden")
    assert spec(table, (128, 16), Layout(rules=DATA)) in (PartitionSpec(), PartitionSpec(None, None))
    assert spec(table, (128, 16), Layout(rules=FSDP)) == PartitionSpec("data", None)  # a mesh axis is used once; the first rule wins
    assert spec(kernel, (16, 32), Layout(rules=FSDP)) == PartitionSpec(None, "data")
    assert spec(table, (128, 16), GRID) == PartitionSpec("model", None)
    assert spec((None,), (7,), GRID) == PartitionSpec(None)


def test_rules_for_axes_that_the_mesh_lacks_do_not_count():
    layout = Layout(rules=TABLES)  # its mesh has no "model"
    assert not any(spec(("vocabulary", "embed"), (128, 16), layout))
    assert batch_sharding(layout, make_mesh(layout)).spec == PartitionSpec("data")


def test_batches_are_spread_over_the_data_axis():
    sharding = batch_sharding(GRID, make_mesh(GRID))
    assert sharding.spec == PartitionSpec("data") and sharding.shard_shape((16, 5)) == (4, 5)


def test_a_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="axis 'embed' of size 12 does not divide over the 8 devices of mesh axis 'data'; change the size or the rules"):
        spec(("layers", "embed"), (2, 12), Layout(rules=FSDP))
