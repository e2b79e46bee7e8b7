"""A generator's bundle answers as `generate` does; lists of denied and allowed items mean the same for it and for an encoder's."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.data.examples import pad_histories
from jaxrec.data.sequences import Sequences
from jaxrec.experiment import Experiment
from jaxrec.methods.generative import tiger, tiger_decoder
from jaxrec.methods.generative.sid_generator import tiny_sids
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.param import create, flatten, unflatten
from jaxrec.serve import bundle as bundle_module
from jaxrec.serve.bundle import Bundle, Recommendation
from jaxrec.serve.export import export
from jaxrec.serve.programs import LISTED

ITEMS, LENGTH, BEAMS = 30, 6, 8
SIDS, ARRAYS = tiny_sids(ITEMS, (6, 5))
HISTORIES = [np.array(history) for history in ([3, 8, 29, 8], [17], [30, 1, 2, 3, 4, 5, 6, 7])]


def names(numbers: Iterable[int]) -> list[str]:
    return [f"item-{number - 1}" for number in numbers]


OUTSIDE = [names(history) for history in HISTORIES]


def written(folder: Path, method: Any, params: Any = None) -> tuple[Bundle, Any, Any]:
    """(the bundle, its method, its parameters)."""
    experiment = Experiment(method=SASRec(dim=8, layers=1), data=Sequences(Synthetic(users=20, items=ITEMS), length=LENGTH), steps=1, name="tiny").resolve()
    if method is None:
        method = experiment.method
    params = jax.jit(functools.partial(create, method.spec()))(jax.random.key(3)) if params is None else params
    export(dataclasses.replace(experiment, method=method), params, 7, folder)
    return Bundle.open(folder), method, params


def with_ids(method: Any) -> Any:
    """Parameters with the semantic IDs of the catalogue in place."""
    params = jax.jit(functools.partial(create, method.spec()))(jax.random.key(3))
    arrays = {f"sids.{name}": jnp.asarray(leaf) for name, leaf in flatten(ARRAYS).items()}
    return unflatten(method.spec(), flatten(params) | arrays)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A bundle with few beams, of a model that looks at users."""
    method = dataclasses.replace(tiger_decoder.tiny()[0], sids=SIDS, beams=BEAMS, users=5, separators=True)
    return written(tmp_path_factory.mktemp("searched") / "bundle", method, with_ids(method))


@pytest.fixture(scope="module")
def exhaustive(tmp_path_factory):
    """(bundle, for each history the log-probabilities of all items by number) of a model with a beam for every item."""
    method = dataclasses.replace(tiger.tiny()[0], sids=SIDS, beams=ITEMS)
    bundle, _, params = written(tmp_path_factory.mktemp("exhaustive") / "bundle", method, with_ids(method))
    _, items, log_probs = jax.jit(functools.partial(method.generate, beams=ITEMS))(params, pad_histories(HISTORIES, LENGTH))
    assert (np.sort(items, axis=1) == np.arange(1, ITEMS + 1)).all()
    return bundle, [dict(zip(row.tolist(), scores.tolist(), strict=True)) for row, scores in zip(np.asarray(items), np.asarray(log_probs), strict=True)]


def check(answers: list[list[Recommendation]], scores: list[dict[int, float]], k: int, may: Any) -> None:
    """The answers are the k best items that each history may be given, with their scores."""
    assert len(answers) == len(scores)
    for history, row, scored in zip(HISTORIES, answers, scores, strict=True):
        best = sorted((item for item in scored if may(item, history)), key=lambda item: -scored[item])[:k]
        assert [answer.item for answer in row] == names(best)
        np.testing.assert_allclose([answer.score for answer in row], [scored[item] for item in best], rtol=1e-5, atol=1e-5)


def lists(bundle: Bundle, scores: list[dict[int, float]], **options: Any) -> None:
    """Every combination of the lists against brute force."""
    recommend = functools.partial(bundle.recommend, OUTSIDE, **options)
    check(recommend(5), scores, 5, lambda item, history: item not in history)
    check(recommend(ITEMS, keep_seen=True), scores, ITEMS, lambda item, history: True)
    deny, allow = {1, 8, 11, 12, 13}, {8, 9, 11, 17, 23}
    check(recommend(20, deny=names(deny)), scores, 20, lambda item, history: item not in deny and item not in history)
    check(recommend(20, deny=names(deny), keep_seen=True), scores, 20, lambda item, history: item not in deny)
    check(recommend(4, allow=names(allow)), scores, 4, lambda item, history: item in allow and item not in history)
    check(recommend(20, allow=names(allow), keep_seen=True), scores, 20, lambda item, history: item in allow)  # fewer than asked for
    check(recommend(20, allow=names(allow), deny=names(deny)), scores, 20, lambda item, history: item in allow - deny and item not in history)
    assert recommend(5, allow=[]) == recommend(5, allow=names(deny), deny=names(deny)) == [[], [], []]
    check(recommend(22, deny=[]), scores, 22, lambda item, history: item not in history)


def test_answers_are_those_of_the_search_that_generate_makes(searched):
    bundle, method, params = searched
    users, seen = np.array([3, 0, 19]), [np.unique(history) for history in HISTORIES]
    batch = {**pad_histories(HISTORIES, LENGTH), "user": np.tile(users[:, None], (1, LENGTH)), "deny": pad_histories(seen, 8)["history"]}
    _, items, log_probs = jax.jit(functools.partial(method.generate, beams=BEAMS))(params, batch)
    answers = bundle.recommend(OUTSIDE, BEAMS, users=[f"user-{user}" for user in users])
    assert [[answer.item for answer in row] for row in answers] == [names(row) for row in items.tolist()]
    np.testing.assert_allclose([[answer.score for answer in row] for row in answers], log_probs, rtol=1e-5, atol=1e-5)
    others = bundle.recommend(OUTSIDE, BEAMS, users=["user-4", "user-4", "user-4"])
    assert [row[0].score for row in others] != [row[0].score for row in answers]  # and it matters who asks


def test_lists_of_a_generator_are_exact(exhaustive):
    lists(*exhaustive)


def test_long_lists_and_many_histories(exhaustive, monkeypatch):
    bundle, scores = exhaustive
    answers = bundle.recommend(OUTSIDE, 3)
    monkeypatch.setattr(bundle_module, "BATCH", 4)
    assert bundle.recommend(OUTSIDE * 4, 3) == answers * 4
    monkeypatch.setitem(bundle.manifest, "listed", {"deny": 2, "allow": 2})
    with pytest.raises(ValueError, match=r"8 items are to be denied, with those of the history; a generator takes 2; deny fewer, or .*keep_seen"):
        bundle.recommend(OUTSIDE[2:], 3)
    with pytest.raises(ValueError, match=r"3 items are to be allowed; a generator takes 2; allow fewer$"):
        bundle.recommend(OUTSIDE, 3, allow=names([9, 10, 11]))


@pytest.mark.parametrize("exact", [False, True])
def test_lists_of_an_encoder_are_exact(tmp_path, exact):
    bundle, method, params = written(tmp_path / "bundle", None)
    query = np.asarray(method.encode_query(params, pad_histories(HISTORIES, LENGTH)).values[:, 0])
    scores = query @ np.asarray(method.encode_item(params, {"item": jnp.arange(1, ITEMS + 1)}).values[:, 0]).T
    lists(bundle, [dict(enumerate(row.tolist(), 1)) for row in scores], exact=exact)
    assert bundle.manifest["system"] == "encoder"


def test_files_and_manifest_of_a_generator(searched, tmp_path):
    bundle, _, _ = searched
    said = {
        "system": "generator",
        "beams": BEAMS,
        "method": "TIGERDecoder",
        "inputs": ["history", "user"],
        "items": ITEMS,
        "listed": LISTED,
        "step": 7,
    }
    assert {name: bundle.manifest[name] for name in said} == said
    programs = {"deny": "generate.deny.stablehlo", "allow": "generate.allow.stablehlo"}
    assert bundle.manifest["programs"] == dict.fromkeys(("cpu", "cuda", "tpu"), programs)
    assert set(bundle.manifest["files"]) == {"experiment.json", "params.npz", "items.jsonl", "users.jsonl", *programs.values()}
    for file in programs.values():
        copy = tmp_path / "copy"
        shutil.copytree(bundle.folder, copy)
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{file} is not the file that was exported"):
            Bundle.open(copy)
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 9}, r"k=9 is more than the 8 items that 8 beams find; ask for k <= 8, or export again with --method.beams=9$"),
        ({"k": 31}, r"k=31 is more than the 30 items of the catalogue"),
        ({"exact": True}, r"TIGERDecoder searches with 8 beams and has no index to search exactly; leave out exact"),
        ({"deny": ["item-1", "itm-12"]}, r"deny: 1 of 2 items are not in the catalogue of 30: 'itm-12' \(did you mean 'item-12'"),
        ({"allow": ["itm-12"]}, r"allow: 1 of 1 items are not in the catalogue of 30: 'itm-12' \(did you mean 'item-12'"),
        ({"deny": "item-1"}, r"deny is the text 'item-1'; give a list of item ids"),
        ({"users": None}, r"this model needs users; pass users="),
    ],
)
def test_errors_of_a_query_name_the_fix(searched, options, message):
    with pytest.raises(ValueError, match=message):
        searched[0].recommend(OUTSIDE[:1], **{"k": 2, "users": ["user-1"]} | options)


def test_a_generator_has_no_query_vectors_and_must_look_at_lists(searched, tmp_path):
    bundle, _, params = searched
    with pytest.raises(ValueError, match=r"TIGERDecoder generates items and has no query vectors; ask recommend"):
        bundle.encode(HISTORIES)
    assert bundle.recommend([], 3) == []

    class Heedless(tiger_decoder.TIGERDecoder):
        def generate(self, params, batch, key=None, *, beams):
            return super().generate(params, {name: column for name, column in batch.items() if name != "deny"}, key, beams=beams)

    heedless = Heedless(**{field.name: getattr(searched[1], field.name) for field in dataclasses.fields(searched[1])})
    with pytest.raises(ValueError, match=r"Heedless.generate does not look at batch\['deny'\]; a generator that is served takes `deny` and `allow`"):
        written(tmp_path / "bundle", heedless, params)
