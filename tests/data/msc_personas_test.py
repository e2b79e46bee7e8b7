"""Personas: tasks by shared sentences, parts and splits that do not mix, wrong candidates that are wrong, and errors that name the entry."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxrec.data.builders.msc_personas import MscPersonas, plain_text, read_turns

TRAITS = ("I have a dog.", "I am married.", "I am vegan.", "I like music.")
SIZES = (120, 90, 60, 50)  # speakers with each trait; some have two


def conversations(count: int = 200) -> list[dict]:
    """Speakers with a sentence of their own and one of their trait, the trait's first or last."""
    random = np.random.default_rng(0)
    traits = [[] for _ in range(2 * count)]
    for trait, size in zip(TRAITS, SIZES, strict=True):
        for number in random.choice(2 * count, size, replace=False):
            traits[number].append(trait)
    personas = [[*traits[n][:1], f"I am number {n}.", f"My house is number {n}.", *traits[n][1:]] for n in range(2 * count)]
    return [{"Speaker 1": personas[2 * n], "Speaker 2": personas[2 * n + 1], "in_dataset": 0} for n in range(count)]


def write(folder: Path, rows) -> str:
    (folder / "msc_personas_all.json.gz").write_bytes(gzip.compress(json.dumps({"train": rows, "valid": [], "test": []}).encode()))
    return str(folder)


OWNER = {" ".join(row[other]): 2 * n + place for n, row in enumerate(conversations()) for place, other in enumerate(("Speaker 2", "Speaker 1"))}


def number_of(sentence: str) -> int:
    return int(sentence.split()[-1].rstrip("."))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return write(tmp_path_factory.mktemp("personas"), conversations())


@pytest.mark.parametrize(("part", "names"), [("retrain", ["dog", "vegan"]), ("adapt", ["married", "music"])])
def test_tasks_are_the_speakers_of_a_common_word(folder, part, names):
    rows = conversations()
    speakers = [row[name] for row in rows for name in ("Speaker 1", "Speaker 2")]
    rarest = [next((trait.split()[-1].rstrip(".") for trait in TRAITS[::-1] if trait in said), "") for said in speakers]
    source = MscPersonas(part, tasks=2, speakers=45, candidates=5, data_dir=folder)
    tasks = source.read()
    assert list(tasks.names) == names
    asked = {name: set() for name in names}
    for split, folds in (("train", range(6)), ("validation", [6]), ("test", range(7, 10))):
        for task, context, candidates in tasks.questions[split]:
            speaker = OWNER[context]
            assert rarest[speaker] == names[task] and speaker // 2 % 10 in folds and candidates[0] in speakers[speaker]
            assert len(candidates) == 5 == len(set(candidates)) and not set(candidates[1:]) & set(speakers[speaker])
            for wrong in (number_of(candidate) for candidate in candidates[1:] if candidate not in TRAITS):
                assert wrong // 2 % 10 in folds
            assert not any(names[task] in plain_text(candidate).split() for candidate in candidates[1:])
            asked[names[task]].add((speaker, candidates[0]))
    for name, found in asked.items():  # every sentence of every speaker of the group, of which there are 45 at most
        group = [number for number, trait in enumerate(rarest) if trait == name][:45]
        assert found == {(number, sentence) for number in group for sentence in speakers[number]}


def test_the_draw_is_its_seed_and_the_cache_its_file(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    source = MscPersonas(tasks=2, candidates=5, data_dir=folder)
    assert source.get() == source.read()
    other = MscPersonas(tasks=2, candidates=5, seed=1, data_dir=folder).read()
    assert [question.candidates[0] for question in other.questions["train"]] == [question.candidates[0] for question in source.read().questions["train"]]
    assert other != source.read()


def test_spelling_does_not_part_a_trait():
    assert plain_text("I'm a Vegan!") == plain_text("im vegan") == "im vegan"
    assert plain_text("The") == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"Speaker 1": ["I run."]}, r"train\[1\]\['Speaker 2'\] must be a list of sentences, got None; correct or remove the entry"),
        ({"Speaker 1": "I run.", "Speaker 2": []}, r"train\[1\]\['Speaker 1'\] must be a list of sentences, got I run"),
        ({"Speaker 1": ["..."], "Speaker 2": []}, r"train\[1\]\['Speaker 1'\] must be a list of sentences, got \['\.\.\.'\]"),
        ([], r"train\[1\]\['Speaker 1'\] must be a list"),
    ],
)
def test_a_bad_entry_is_named(tmp_path, row, message):
    write(tmp_path, [conversations()[0], row])
    with pytest.raises(ValueError, match=message):
        read_turns(tmp_path / "msc_personas_all.json.gz")


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "msc_personas_all.json.gz"
    source = MscPersonas(tasks=2, candidates=5, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"msc_personas: msc_personas_all.json.gz not found in .*LoCoMo"):
        source.get()
    file.write_text('{"train": [\n1,]}')
    with pytest.raises(ValueError, match=r"json.gz:2: not JSON \(.* at column \d+\); fetch the file again"):
        source.read()
    file.write_text('{"valid": []}')
    with pytest.raises(ValueError, match="must be a JSON object with a list 'train'"):
        source.read()


def test_what_the_file_does_not_hold_cannot_be_asked(folder, tmp_path):
    with pytest.raises(ValueError, match="sentences that are said twice end in 4 words; lower tasks=5 to 2 or less"):
        MscPersonas(tasks=5, data_dir=folder).read()
    with pytest.raises(ValueError, match=r"candidates=900 of a question are too many for the train split, which has \d+ others; ask for fewer"):
        MscPersonas(tasks=2, candidates=900, data_dir=folder).read()
    with pytest.raises(ValueError, match="task 'dog' has no validation question; choose fewer tasks, or larger ones"):
        MscPersonas(tasks=1, candidates=2, data_dir=write(tmp_path, conversations()[:6])).read()
    with pytest.raises(ValueError, match="part='test' must be 'retrain' or 'adapt'"):
        MscPersonas("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tasks=0 and speakers=100 must be at least 1, and candidates=20 at least 2"):
        MscPersonas(tasks=0)


def test_the_published_file(data_dir):
    if not (folder := data_dir / "msc_personas").is_dir():
        pytest.skip("needs msc_personas")
    parts = {part: MscPersonas(part, data_dir=str(folder)).read() for part in ("retrain", "adapt")}
    assert len({*parts["retrain"].names, *parts["adapt"].names}) == 20 and parts["retrain"].names[0] == "dog"
    for tasks in parts.values():
        counts = np.bincount([question.task for question in tasks.questions["train"]])
        assert len(counts) == 10 and counts.min() > 100
        assert all(len(question.candidates) == 20 for questions in tasks.questions.values() for question in questions)
    texts = {split: {q.candidates[0] + q.context for tasks in parts.values() for q in tasks.questions[split]} for split in ("train", "test")}
    assert not texts["train"] & texts["test"]
