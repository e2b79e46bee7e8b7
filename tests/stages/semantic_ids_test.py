"""Semantic IDs: from vectors to a table, back, and over time."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxrec.artifact import Artifact
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.item_vectors import FusedVectors, GivenVectors, ItemVectorRows
from jaxrec.data.sequences import Sequences
from jaxrec.data.source import Source
from jaxrec.data.splits import LeaveOneOut, TimeSplit
from jaxrec.methods.generative.rqvae import RQVAE
from jaxrec.optimizer import Adam
from jaxrec.stages.quantizers import LearnedRQVAE, Quantizer, ResidualKMeans, ResidualVQ
from jaxrec.stages.semantic_ids import SemanticIds, SidPrefixes, SidTable, digits, renumbered, renumbering, shared, stability
from jaxrec.stages.sid_trie import ItemCounts, RandomSids, SidTrie

SMALL = ResidualKMeans(levels=2, codes=4, iterations=5)


@dataclass(frozen=True)
class Tree(Artifact):
    """Items in a tree of Gaussians; the last `twins` items equal the first ones."""

    items: int = 150
    twins: int = 10
    seed: int = 0

    def build(self, folder: Path) -> None:
        random = np.random.default_rng(self.seed)
        branch = random.integers(4, size=(self.items, 2))
        vectors = 10 * np.eye(4, 6)[branch[:, 0]] + 2 * np.eye(6)[-4:][branch[:, 1]] + 0.02 * random.normal(size=(self.items, 6))
        vectors[self.items - self.twins :] = vectors[: self.twins]
        np.save(folder / "vectors.npy", np.concatenate([np.zeros((1, 6)), vectors]).astype(np.float32))

    def load(self, folder: Path) -> np.ndarray:
        return np.load(folder / "vectors.npy")


@dataclass(frozen=True)
class Shop(Source):
    """Names of items, and no more."""

    first: int
    last: int

    def get(self):
        return SimpleNamespace(items=[f"item-{number}" for number in range(self.first, self.last)])


@dataclass(frozen=True)
class TreeOf(Artifact):
    """The vectors of `Tree` that a shop's items have; row `hollow` of them is zero."""

    source: Shop
    hollow: int = -1

    def get(self) -> np.ndarray:
        vectors = Tree().get()[1 + self.source.first : 1 + self.source.last]
        vectors = np.where(np.arange(len(vectors))[:, None] == self.hollow, 0, vectors)
        return np.concatenate([np.zeros_like(vectors[:1]), vectors])


def given(rows) -> GivenVectors:
    rows = np.asarray(rows, np.float32)
    return GivenVectors(np.concatenate([np.zeros_like(rows[:1]), rows]))


def shuffled(table: SidTable, seed: int = 0) -> tuple[SidTable, list[np.ndarray]]:
    """The table with the codes of each level called something else, and what."""
    random = np.random.default_rng(seed)
    numbers = [random.permutation(width) for width in table.widths[: table.semantic.shape[1]]]
    return renumbered(table, numbers), numbers


def test_a_digit_makes_ids_and_items_one_to_one():
    table = SemanticIds(Tree(), SMALL).get()
    assert table.codes.shape == (151, 3) and table.codes.dtype == np.int32 and (table.codes[0] == -1).all()
    assert table.widths[:2] == (4, 4) and table.widths[2] == table.codes[:, 2].max() + 1
    for item in range(1, 151):
        assert table.items(table.sid(item)).tolist() == [item] and table.resolve(table.sid(item)) == item
    groups = {}
    for item in range(1, 151):
        groups.setdefault(table.sid(item)[:2], []).append(table.sid(item)[2])
    assert len(groups) == 16
    assert all(found == list(range(1, len(found) + 1)) for found in groups.values())  # each of the 16 branches has many items: digits by id


def test_digits_by_hand():
    assert digits(np.array([[1, 2], [0, 0], [1, 2], [1, 3], [0, 0], [1, 2]])).tolist() == [1, 1, 2, 0, 2, 3]


def test_prefixes_find_their_items():
    table = SemanticIds(Tree(), SMALL).get()
    codes = np.asarray(table.codes[1:])
    assert sorted(table.items(()).tolist()) == list(range(1, 151))
    for prefix in [(0,), (3,), (1, 2), (2, 3, 1), (9,), (1, 99)]:
        wanted = np.flatnonzero((codes[:, : len(prefix)] == prefix).all(axis=1)) + 1
        assert sorted(table.items(prefix).tolist()) == wanted.tolist()
    assert table.resolve((9, 9, 9)) == 0


def test_shared_ids_resolve_to_one_of_their_items():
    drawn = SemanticIds(Tree(), SMALL, dedup="random").get()
    lowest = SemanticIds(Tree(), SMALL, dedup="none").get()
    np.testing.assert_array_equal(drawn.codes, lowest.codes)
    sid = drawn.sid(1)
    sharing = set(drawn.items(sid).tolist())
    generator = np.random.default_rng(0)
    assert len(sharing) > 3 and {drawn.resolve(sid, generator) for _ in range(300)} == sharing
    assert lowest.resolve(sid) == min(sharing)
    with pytest.raises(ValueError, match="draws one of them; give a NumPy generator"):
        drawn.resolve(sid)


def test_the_same_input_gives_the_same_bytes(monkeypatch, tmp_path):
    contents = []
    for run in ("a", "b"):
        monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / run))
        sids = SemanticIds(Tree(), SMALL)
        sids.get()
        contents.append({path.name: path.read_bytes() for path in sids.folder().iterdir()})
    assert contents[0].keys() >= {"codes.npy", "quantizer.npz"} and contents[0] == contents[1]


@pytest.mark.parametrize("quantizer", [SMALL, dataclasses.replace(SMALL, normalize=True), ResidualVQ(levels=2, codes=4, steps=50)])
def test_new_items_get_codes_without_retraining(quantizer):
    sids = SemanticIds(Tree(), quantizer)
    vectors = Tree().get()[1:]
    np.testing.assert_array_equal(sids.assign(vectors[:20]), sids.get().semantic[:20])
    errors = [((vectors - near) ** 2).sum() / ((vectors - vectors.mean(0)) ** 2).sum() for near in sids.reconstructed()]
    assert len(errors) == 2 and errors[1] < 0.05 and errors[1] < errors[0]
    assert sids.assign(vectors[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match=r"are \(2, 5\); the IDs were made of vectors of 6 numbers, so give \[M, 6\]"):
        sids.assign(vectors[:2, :5])


def test_new_items_come_behind_the_old_ones_with_the_next_digits():
    sids = SemanticIds(Tree(), SMALL, digits=40)
    old, vectors = sids.get(), Tree().get()[1:]
    crowded = int(old.codes[1:, 2].argmax())  # the last item of the largest group
    new = sids.extended(vectors[[crowded, crowded]])
    np.testing.assert_array_equal(new.codes[:151], old.codes)
    np.testing.assert_array_equal(new.codes[151:], old.codes[1 + crowded] + np.array([[0, 0, 1], [0, 0, 2]]))
    with pytest.raises(ValueError, match=r"more than 40 items share the codes .* make new IDs, with digits=\d\d or more"):
        sids.extended(np.repeat(vectors[crowded : crowded + 1], 40, axis=0))


def test_an_rqvae_is_trained_by_the_loop_and_assigns_codes():
    model = RQVAE(levels=2, codes=4, dim=8, hidden=(16,))
    quantizer = LearnedRQVAE(model, steps=100, batch=64, optimizer=Adam(peak=1e-2, warmup=0.1))
    sids = SemanticIds(Tree(), quantizer)
    table, vectors = sids.get(), Tree().get()[1:]
    assert table.widths[:2] == (4, 4)
    np.testing.assert_array_equal(sids.assign(vectors[:20]), table.semantic[:20])
    error = ((vectors - sids.reconstructed()[-1]) ** 2).sum() / ((vectors - vectors.mean(0)) ** 2).sum()
    assert error < 0.4 and len(np.unique(table.semantic, axis=0)) >= 8


def test_prefix_numbers_are_shared_by_items_that_begin_alike():
    table = SemanticIds(Tree(), ResidualKMeans(levels=3, codes=6)).get()
    column = SidPrefixes(SemanticIds(Tree(), ResidualKMeans(levels=3, codes=6)))
    numbers, codes = column.get(), np.asarray(table.semantic)
    assert numbers.shape == (151, 3) and not numbers[0].any()
    for one, other in [(1, 2), (1, 141), (5, 60), (7, 8)]:  # 141 is the twin of 1
        agree = np.logical_and.accumulate(codes[one - 1] == codes[other - 1])
        np.testing.assert_array_equal(numbers[one] == numbers[other], agree)
    per_level = [set(numbers[1:, level].tolist()) for level in range(3)]
    assert not per_level[0] & per_level[1] and not per_level[1] & per_level[2]  # a level has its own numbers
    assert set.union(*per_level) == set(range(1, column.info()["size"] + 1))
    assert column.info() == {"of": "item", "kind": "categorical", "rows": 151, "width": 3, "size": column.info()["size"]}


def test_a_rare_prefix_leaves_the_word_to_the_shorter_one():
    sids = SemanticIds(Tree(), ResidualKMeans(levels=3, codes=6))
    every, common = SidPrefixes(sids).get(), SidPrefixes(sids, min_count=4).get()
    for level in range(3):
        count = np.bincount(every[1:, level])[every[1:, level]]
        np.testing.assert_array_equal(common[1:, level] > 0, count >= 4)
    used = np.unique(common[common > 0])
    assert 0 < len(used) < every.max() and used.tolist() == list(range(1, len(used) + 1))


def test_a_permutation_of_codes_is_recovered():
    old = SemanticIds(Tree(), SMALL).get()
    new, numbers = shuffled(old)
    assert stability(old, old) == (1.0, 1.0) and stability(old, new)[1] < 0.5
    found = renumbering(old, new)
    for number, back in zip(numbers, found, strict=True):
        np.testing.assert_array_equal(back[number], np.arange(4))
    assert stability(old, renumbered(new, found)) == (1.0, 1.0)


def test_stability_counts_whole_prefixes():
    old, new = (SidTable(np.array(codes), (4, 4)) for codes in ([[-1, -1], [0, 1], [1, 1], [2, 2], [3, 3]], [[-1, -1], [0, 1], [0, 1], [2, 3], [3, 3]]))
    assert stability(old, new) == (0.75, 0.5)  # item 2 keeps its second code, but not its prefix


def test_a_new_version_keeps_the_numbers_of_the_one_before():
    old = SemanticIds(Tree(), SMALL)
    alone, following = SemanticIds(Tree(), SMALL, seed=5), SemanticIds(Tree(), SMALL, seed=5, previous=old)
    assert stability(old.get(), following.get()) == (1.0, 1.0) and stability(old.get(), alone.get())[0] < 1
    np.testing.assert_array_equal(following.assign(Tree().get()[1:]), following.get().semantic)  # the codebooks were renumbered too
    np.testing.assert_allclose(following.reconstructed()[-1], alone.reconstructed()[-1], rtol=1e-5, atol=1e-5)


def test_numbers_are_kept_by_the_items_that_both_catalogues_have():
    before, after = TreeOf(Shop(first=0, last=120)), TreeOf(Shop(first=30, last=150))
    old, alone = SemanticIds(before, SMALL), SemanticIds(after, SMALL, seed=5)
    following = dataclasses.replace(alone, previous=old)
    tables = [shared(old.get(), sids.get(), before.source.get().items, after.source.get().items) for sids in (alone, following)]
    assert all(table.size == 90 for pair in tables for table in pair)
    assert stability(*tables[1]) == (1.0, 1.0) and stability(*tables[0])[0] < 1
    with pytest.raises(ValueError, match="none of the 1 items is among the 120 of the previous IDs"):
        shared(old.get(), old.get(), before.source.get().items, ["other"])


def test_errors_name_items_as_their_source_does():
    with pytest.raises(ValueError, match="1 items are all zero: item-33; give"):
        SemanticIds(TreeOf(Shop(first=30, last=150), hollow=3), SMALL).get()


def test_fused_vectors_lie_side_by_side_and_rows_are_items():
    fused = FusedVectors((Tree(), Tree(seed=1)))
    np.testing.assert_array_equal(fused.get(), np.concatenate([Tree().get(), Tree(seed=1).get()], axis=1))
    data = ItemVectorRows(fused, batch=50)
    assert data.info() == {"items": 150, "width": 12}
    rows = np.concatenate([data.batches()[number]["vector"] for number in range(3)])
    np.testing.assert_array_equal(np.sort(rows, axis=0), np.sort(fused.get()[1:], axis=0))
    with pytest.raises(ValueError, match="150, 20 items"):
        FusedVectors((Tree(), Tree(items=20))).get()
    assert data.smoke().batches()[0]["vector"].shape == (16, 16)


def test_a_given_vector_is_known_by_its_content():
    assert given([[1, 2]]).fingerprint() == given([[1, 2]]).fingerprint() != given([[1, 3]]).fingerprint()


ROWS = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.where(np.arange(60).reshape(20, 3) == 13, np.nan, ROWS), "item 5 has nan in column 1; every value must be a finite number"),
        (np.where(np.arange(20)[:, None] % 9 == 8, 0, ROWS), "2 items are all zero: 9, 18; give these items a text"),
        (np.repeat(ROWS[:3], 5, axis=0), "codes=4 is more than the 3 different embeddings of the 15 items; ask for codes <= 3"),
    ],
)
def test_embeddings_that_cannot_be_quantised_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        SemanticIds(given(rows), SMALL).get()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"5 items share the codes .* which takes 6 digits, and digits=3; allow more"):
        SemanticIds(given(np.repeat(ROWS[:4], 5, axis=0)), SMALL, digits=3).get()
    with pytest.raises(ValueError, match="dedup='suffix' is not one of"):
        SemanticIds(Tree(), SMALL, dedup="suffix")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="digits bounds what dedup='digit' may use"):
        SemanticIds(Tree(), SMALL, dedup="none", digits=3)
    for levels, codes in ((0, 4), (2, 1)):
        with pytest.raises(ValueError, match=f"levels={levels} and codes={codes}"):
            ResidualKMeans(levels, codes)
    with pytest.raises(ValueError, match="steps=0 and batch=64"):
        LearnedRQVAE(steps=0, batch=64)
    table = SemanticIds(Tree(), SMALL).get()
    with pytest.raises(ValueError, match="item=0 is not one of 1..150"):
        table.sid(0)
    with pytest.raises(ValueError, match="longer than an ID, which has 3 codes"):
        table.items((0, 0, 0, 0))
    with pytest.raises(ValueError, match="not a whole ID"):
        table.resolve((0, 0))
    with pytest.raises(ValueError, match="compare IDs of the same items"):
        stability(table, SidTable(table.codes[:50], table.widths, 2))
    with pytest.raises(ValueError, match="only equally many can be matched"):
        renumbering(table, dataclasses.replace(table, widths=(5, 4, 9)))


def test_a_bound_on_digits_is_the_width():
    assert SemanticIds(Tree(), SMALL, digits=100).get().widths == (4, 4, 100)


@pytest.mark.parametrize("quantizer", [ResidualKMeans(), ResidualVQ(), LearnedRQVAE()])
def test_every_quantizer_has_a_miniature(quantizer):
    small = quantizer.smoke()
    assert isinstance(small, Quantizer) and type(small) is type(quantizer) and small.widths == (4, 4)


@pytest.mark.parametrize("split", [LeaveOneOut(), TimeSplit()])
def test_counts_are_of_training_events_and_order_the_items_of_an_id(split):
    source = Synthetic(users=40, items=20)
    counts = ItemCounts(source, split).get()
    np.testing.assert_array_equal(counts, np.bincount(Sequences(source, split=split).training()[0], minlength=21))
    sids = RandomSids(source, (2, 2))
    order, table = SidTrie(sids, priority=ItemCounts(source, split)).get()["trie.items"], sids.get()
    for item, other in itertools.pairwise(order):
        if table.sid(int(item)) == table.sid(int(other)):
            assert counts[item] >= counts[other]
