"""Ranks against plain Python over the whole catalogue."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.examples import Examples
from jaxrec.evals.retrieval import Ranks, rank
from jaxrec.method import Baseline, Encoder, Generator, Method, Scorer, Vectors

ITEMS, USERS, WIDTH = 30, 23, 4


@dataclasses.dataclass(frozen=True)
class Inner(Encoder):
    """Vectors by user and item; `width` vectors each."""

    each: int = 1

    def encode_query(self, params, batch):
        return self._vectors(params["user"][batch["user"][:, 0]])

    def encode_item(self, params, batch):
        return self._vectors(params["item"][batch["item"]])

    def _vectors(self, values):
        return Vectors(jnp.repeat(values[:, None], self.each, axis=1), jnp.ones((len(values), self.each), bool))


@dataclasses.dataclass(frozen=True)
class Table(Scorer):
    """Scores by user, straight from a table."""

    def score(self, params, batch):
        assert not {"item", "target", "seen", "weight"} & set(batch)
        return jnp.asarray(params)[batch["user"][:, 0]]


@dataclasses.dataclass(frozen=True)
class Best(Generator):
    """The items of the highest scores by user, straight from a table, but those denied."""

    beams: int = 12

    def generate(self, params, batch, key, *, beams):
        scores = jnp.asarray(params)[batch["user"][:, 0]].at[:, 0].set(-jnp.inf)
        if "deny" in batch:
            scores = jnp.where((jnp.arange(ITEMS + 1)[None, :, None] == batch["deny"][:, None]).any(-1), -jnp.inf, scores)
        log_probs, items = jax.lax.top_k(scores, beams)
        return items[..., None], jnp.where(jnp.isneginf(log_probs), 0, items), log_probs


@dataclasses.dataclass(frozen=True)
class Counts(Baseline):
    """How often each item is in the history."""

    columns: int = ITEMS + 1

    def scores(self, counts, histories):
        return np.stack([np.bincount(history, minlength=self.columns) for history in histories])


def examples(seed: int = 0, *, repeat: bool = True) -> Examples:
    """Histories with duplicates, longer than what systems see; with `repeat`, half of the targets are items of the history."""
    random = np.random.default_rng(seed)
    histories = [random.integers(1, ITEMS + 1, size=random.integers(1, 15)).astype(np.int32) for _ in range(USERS)]
    target = random.integers(1, ITEMS + 1, size=USERS).astype(np.int32)
    for u in range(0, USERS if repeat else 0, 2):
        target[u] = histories[u][0]
    offsets = np.cumsum([0] + [len(h) for h in histories])
    return Examples(np.concatenate(histories), offsets, target, np.arange(USERS, dtype=np.int32), random.random(USERS) < 0.3)


def naive(scores: np.ndarray, asked: Examples) -> tuple[list[int], list[int]]:
    """Ranks with the seen items kept, and removed, item by item."""
    kept, removed = [], []
    for b in range(len(asked)):
        target, seen = int(asked.target[b]), set(asked.history(b).tolist())
        ahead = [i for i in range(1, ITEMS + 1) if i != target and scores[b][i] >= scores[b][target]]
        kept.append(1 + len(ahead))
        removed.append(0 if target in seen else 1 + len([i for i in ahead if i not in seen]))
    return kept, removed


def tied_scores(columns: int = ITEMS + 1) -> np.ndarray:
    """[USERS, columns] with many ties; column 0 and what lies beyond the catalogue would win."""
    scores = np.random.default_rng(1).integers(0, 6, size=(USERS, columns)).astype(np.float32)
    scores[:, 0] = scores[:, ITEMS + 1 :] = 100
    return scores


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_encoder_against_every_item(batch):
    random = np.random.default_rng(2)
    params = {"user": random.integers(-2, 3, (USERS, WIDTH)).astype(np.float32), "item": random.integers(-2, 3, (ITEMS + 1, WIDTH)).astype(np.float32)}
    params["item"][0] = 100  # padding must not count, whatever its vector
    ranks = rank(Inner(), params, examples(), items=ITEMS, length=3, batch=batch)
    kept, removed = naive(params["user"] @ params["item"].T, examples())
    assert (ranks.kept.tolist(), ranks.removed.tolist()) == (kept, removed)
    assert 0 in removed
    assert not ranks.baseline


def test_scorer_against_every_item():
    scores = tied_scores(ITEMS + 8)
    scores[3, 5:9] = -np.inf  # a score like others
    scores[4, 1:4] = np.inf
    ranks = rank(Table(), scores, examples(), items=ITEMS, length=3, batch=5)
    assert (ranks.kept.tolist(), ranks.removed.tolist()) == naive(scores, examples())


def test_baseline_against_every_item_sees_whole_histories():
    asked = examples()
    scores = Counts().scores(None, [asked.history(b) for b in range(USERS)])
    ranks = rank(Counts(), None, asked, items=ITEMS, length=1, batch=5)
    assert (ranks.kept.tolist(), ranks.removed.tolist()) == naive(scores, asked)
    assert ranks.baseline
    np.testing.assert_array_equal(ranks.cold, asked.cold)
    np.testing.assert_array_equal(ranks.user, asked.user)
    np.testing.assert_array_equal(ranks.target, asked.target)


def test_a_constant_scorer_comes_last():
    asked = examples(repeat=False)
    ranks = rank(Table(), np.full((USERS, ITEMS + 1), 0.1, np.float32), asked, items=ITEMS, length=3)
    assert (ranks.kept == ITEMS).all()
    for b in np.flatnonzero(ranks.removed):
        assert ranks.removed[b] == ITEMS - len(set(asked.history(b).tolist()))


def test_nan_scores_are_counted_and_refused():
    scores = tied_scores()
    scores[2, 4:7] = np.nan
    scores[9, 1] = np.nan
    scores[5, 0] = np.nan  # padding is no score
    with pytest.raises(ValueError, match=r"4 of the 690 scores of Table are NaN, in 2 of 23 examples"):
        rank(Table(), scores, examples(), items=ITEMS, length=3, batch=5)


def test_rows_that_only_fill_up_a_batch_may_be_nan():
    class OnlyReal(Table):
        def score(self, params, batch):
            empty = (batch["segment"] > 0).sum(axis=1, keepdims=True) == 0
            return jnp.where(empty, math.nan, super().score(params, batch))

    ranks = rank(OnlyReal(), tied_scores(), examples(), items=ITEMS, length=3, batch=7)
    assert ranks.kept.tolist() == naive(tied_scores(), examples())[0]


def test_no_examples_no_ranks():
    none = Examples(*(np.zeros(n, np.int32) for n in (0, 1, 0, 0)), np.zeros(0, bool))
    assert len(rank(Table(), tied_scores(), none, items=ITEMS, length=3)) == 0


def test_wrong_systems_and_shapes_are_refused():
    asked, ask = examples(), {"items": ITEMS, "length": 3}
    params = {"user": np.ones((USERS, WIDTH)), "item": np.ones((ITEMS + 1, WIDTH))}
    with pytest.raises(TypeError, match="Method cannot rank items: it is neither an Encoder nor a Scorer nor a Generator nor a Baseline"):
        rank(Method(), params, asked, **ask)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Inner.encode_item gave \(31, 2, 4\); this evaluation wants one vector each: \(31, 1, D\)"):
        rank(Inner(each=2), params, asked, **ask)
    with pytest.raises(ValueError, match=r"Table.score gave \(256, 30\) for 256 examples; the whole catalogue is \(256, 31\)"):
        rank(Table(), np.ones((USERS, ITEMS)), asked, **ask)
    with pytest.raises(ValueError, match=r"Counts.scores gave \(23, 40\); the whole catalogue is \(23, 31\)"):
        rank(Counts(columns=40), None, asked, **ask)
    with pytest.raises(ValueError, match=r"targets run from \d+ to \d+, items from 1 to 9"):
        rank(Table(), tied_scores(), asked, items=9, length=3)


def small(**changes) -> Ranks:
    arrays = {"kept": [3, 1, 7], "removed": [2, 0, 7], "user": [4, 0, 2], "target": [9, 8, 7]}
    fields = {name: np.array(values, np.int32) for name, values in arrays.items()} | {"cold": np.array([False, False, True])}
    return Ranks(**fields | changes)


def test_protocols():
    found = {(seen, targets): (ranks.tolist(), not_asked) for seen, targets, ranks, not_asked in small().protocols()}
    assert found == {
        ("seen kept", "all targets"): ([3, 1, 7], 0),
        ("seen kept", "warm targets"): ([3, 1], 0),
        ("seen kept", "cold targets"): ([7], 0),
        ("seen removed", "all targets"): ([2, 7], 1),
        ("seen removed", "warm targets"): ([2], 1),
        ("seen removed", "cold targets"): ([7], 0),
    }


def test_save_and_load(tmp_path):
    path = tmp_path / "ranks.npz"
    small(baseline=True).save(path)
    loaded = Ranks.load(path)
    for field in dataclasses.fields(Ranks):
        np.testing.assert_array_equal(getattr(loaded, field.name), getattr(small(baseline=True), field.name))
    assert loaded.baseline is True
    assert [file.name for file in tmp_path.iterdir()] == ["ranks.npz"]
    np.savez(path, kept=np.ones(1))
    with pytest.raises(ValueError, match=r"ranks.npz lacks baseline, cold, removed, target, user, so it is no file of ranks"):
        Ranks.load(path)
    small().save(path)
    whole = path.read_bytes()
    for damaged in (whole[:200], whole[:-30], b"", b"none"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ranks.npz is damaged \(.*\); rank the system again \(jaxrec eval\)"):
            Ranks.load(path)


def test_ranks_without_sense_are_refused():
    with pytest.raises(ValueError, match=r"the arrays of Ranks differ in length: .*'target': 1"):
        small(target=np.array([1]))
    with pytest.raises(ValueError, match=r"one example per user, but user 2 has 3"):
        small(user=np.array([2, 2, 2]))
    with pytest.raises(ValueError, match=r"ranks start at 1, but kept holds 0"):
        small(kept=np.array([1, 0, 2]))


def test_different_questions_are_named():
    small().check_same_questions(small(), "A", "B")
    with pytest.raises(ValueError, match=r"A and B rank for different users: only one of them has 2 users \(2, 5\); rank both on the same"):
        small().check_same_questions(small(user=np.array([4, 0, 5])), "A", "B")
    with pytest.raises(ValueError, match=r"A and B have different targets for 1 user \(4\)"):
        small().check_same_questions(small(target=np.array([1, 8, 7])), "A", "B")
    with pytest.raises(ValueError, match=r"different cold flags for 1 user \(2\)"):
        small().check_same_questions(small(cold=np.zeros(3, bool)), "A", "B")
    with pytest.raises(ValueError, match=r"different seen items for 1 user \(0\)"):
        small().check_same_questions(small(removed=np.array([2, 1, 7])), "A", "B")


def test_a_generators_ranks_are_those_of_its_scores_as_far_as_its_beams_reach():
    asked = examples()
    scores = np.random.default_rng(5).normal(size=(USERS, ITEMS + 1)).astype(np.float32)
    full, beams = rank(Table(), scores, asked, items=ITEMS, length=6), rank(Best(), scores, asked, items=ITEMS, length=6)
    for name in ("kept", "removed"):
        wanted = np.asarray(getattr(full, name))
        np.testing.assert_array_equal(getattr(beams, name), np.where(wanted > Best().beams, ITEMS, wanted))
    with pytest.raises(ValueError, match="beams=5 give 5 items, and metrics look at the first 10; set method.beams to 10 or more"):
        rank(Best(beams=5), scores, asked, items=ITEMS, length=6)
    assert not rank(Best(), scores, asked, items=ITEMS, length=6, seen_removed=False).removed.any()
