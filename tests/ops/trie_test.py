"""The trie against a walk over Python tuples, and as the frozen parameters of a model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops.trie import Trie, TrieSizes
from jaxrec.param import count, create, flatten, split
from jaxrec.train.checkpoint import fill

WIDTHS = (4, 3, 5)
CODES = np.random.default_rng(0).integers(0, WIDTHS, (40, 3))
DENSE, SPARSE = Trie.build(CODES, WIDTHS), Trie.build(CODES, WIDTHS, dense_entries=0)


def prefixes(codes, length):
    """The distinct prefixes in lexicographic order: node i of level length - 1 is the i-th."""
    return sorted({tuple(map(int, row[:length])) for row in codes})


def test_the_items_are_in_the_order_of_their_tuples_and_then_of_their_ids():
    wanted = [i + 1 for i in sorted(range(len(CODES)), key=lambda i: (tuple(CODES[i]), i))]
    assert DENSE.items.tolist() == wanted
    assert DENSE.inverse[DENSE.items].tolist() == list(range(40)) and DENSE.inverse[0] == 40


def test_priority_orders_the_items_of_a_tuple_and_equals_stay_in_the_order_of_ids():
    codes = [[0, 1], [1, 0], [0, 1], [0, 1], [0, 1]]
    assert Trie.build(codes, (2, 2), priority=[1.0, 9.0, 3.0, -np.inf, 3.0]).items.tolist() == [3, 5, 1, 4, 2]


@pytest.mark.parametrize("trie", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_children_codes_and_spans_are_those_of_the_prefixes(trie):
    for level in range(3):
        nodes, above = prefixes(CODES, level + 1), prefixes(CODES, level) if level else [()]
        child, code = trie.children(level, jnp.arange(len(above)))
        code = np.broadcast_to(np.arange(WIDTHS[level]), child.shape) if code is None else code
        found = {(*above[i], int(code[i, j])): int(child[i, j]) for i, j in zip(*np.nonzero(np.asarray(child) >= 0))}
        assert found == {prefix: node for node, prefix in enumerate(nodes)}
        assert trie.last_code(level, jnp.arange(len(nodes))).tolist() == [prefix[-1] for prefix in nodes]
        for node, (begin, end) in enumerate(zip(*map(np.asarray, trie.span(level, jnp.arange(len(nodes)))))):
            assert sorted(trie.items[begin:end].tolist()) == [i + 1 for i in range(40) if tuple(CODES[i, : level + 1]) == nodes[node]]
        above_each, column = trie.above(level, jnp.arange(40))
        assert above_each.tolist() == [nodes.index(tuple(CODES[item - 1, : level + 1])) for item in trie.items]
        parent = [above.index(tuple(CODES[item - 1, :level])) for item in trie.items]
        assert child[np.array(parent), column].tolist() == above_each.tolist()


def test_sizes_are_counted_and_survive_json():
    sizes = DENSE.sizes
    assert sizes.nodes == tuple(len(prefixes(CODES, length)) for length in (1, 2, 3))
    tuples = [tuple(row) for row in CODES.tolist()]
    assert (sizes.items, sizes.bucket, sizes.widths, sizes.dense) == (40, max(map(tuples.count, tuples)), WIDTHS, 3)
    assert SPARSE.sizes.dense == 0 and SPARSE.sizes.branching == sizes.branching
    assert TrieSizes(**json.loads(json.dumps(dataclasses.asdict(sizes)))) == sizes and hash(sizes)


def test_levels_are_dense_while_their_table_is_small():
    assert Trie.build(CODES, WIDTHS, dense_entries=4 * 3).sizes.dense == 2  # 4 entries, then 4 nodes of 3 codes
    assert Trie.build(CODES, WIDTHS, dense_entries=4 * 3 - 1).sizes.dense == 1


def test_tuples_too_long_for_one_machine_word_are_sorted_too():
    """8 levels of 2048 codes are 88 bits."""
    codes = np.random.default_rng(1).integers(0, 2, (300, 8)) * 2047
    trie = Trie.build(codes, (2048,) * 8)
    assert trie.items.tolist() == [i + 1 for i in sorted(range(300), key=lambda i: (tuple(codes[i]), i))]


def test_one_item_one_level_and_one_code():
    trie = Trie.build([[0]], (1,))
    assert trie.sizes == TrieSizes(items=1, bucket=1, widths=(1,), nodes=(1,), branching=(1,), dense=1)
    assert trie.children(0, jnp.zeros(1, int))[0].tolist() == [[0]]


@pytest.mark.parametrize("trie", [DENSE, SPARSE], ids=["dense", "sparse"])
def test_a_model_declares_the_trie_and_is_filled_by_name(trie):
    spec = {"trie": Trie.spec(trie.sizes)}
    assert count(spec, trainable=True) == 0
    params = fill(create(spec, jax.random.key(0)), {f"trie.{name}": array for name, array in flatten(trie).items()})
    jax.tree.map(np.testing.assert_array_equal, params["trie"], trie)
    assert jax.tree.leaves(split(spec, params)[0]) == []


@pytest.mark.parametrize("dense_entries", [0, 100])
def test_the_trie_of_other_semantic_ids_does_not_fit(dense_entries):
    """Also where only the branching differs: it is static in the model, and too narrow a window would lose children without a word."""
    few, many = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0, 0], [1, 0], [1, 1], [1, 2]])
    tries = [Trie.build(codes, (2, 3), dense_entries=dense_entries) for codes in (few, many)]
    assert tries[0].sizes.nodes == tries[1].sizes.nodes
    params = create(Trie.spec(tries[0].sizes), jax.random.key(0))
    with pytest.raises(ValueError, match=r"'code.1' has shape \(6,\), the table for it \(7,\)"):
        fill(params, flatten(tries[1]))
    with pytest.raises(ValueError, match="has shape"):
        fill(params, flatten(Trie.build(few[:3], (2, 3), dense_entries=dense_entries)))


@pytest.mark.parametrize(
    ("codes", "widths", "priority", "message"),
    [
        ([[0, 3]], (2, 3), None, r"level 1 are in 3\.\.3, its width is 3"),
        ([[-1, 0], [1, 0]], (2, 3), None, r"level 0 are in -1\.\.1, its width is 2"),
        ([0, 1], (2,), None, r"shape \(2,\)"),
        ([[0.5]], (2,), None, "dtype float64"),
        (np.zeros((0, 2), int), (2, 3), None, "at least one item"),
        (np.zeros((3, 0), int), (), None, "at least one item and one level"),
        ([[0, 1]], (2,), None, "codes of 2 levels"),
        ([[0, 0]], (2, 0), None, "width >= 1"),
        ([[0], [1]], (2,), [1.0], r"priority has shape \(1,\)"),
        ([[0], [1]], (2,), [1.0, np.nan], "1 NaNs"),
    ],
)
def test_what_is_no_catalogue_of_semantic_ids_is_refused(codes, widths, priority, message):
    with pytest.raises(ValueError, match=message):
        Trie.build(codes, widths, priority)
