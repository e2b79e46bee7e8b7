"""Task pairs: rows that hold context and candidate in their places, labels that say which is right, few shots, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec.data.task_pairs import Question, SyntheticTasks, TaskPairs, Tasks, TaskTexts, some, tokenize_pairs
from jaxrec.data.tokenizers import WordPiece

SOURCE = SyntheticTasks(questions=6)
DATA = TaskPairs(SOURCE, WordPiece(TaskTexts(SOURCE), size=512), length=32, batch=8)


def test_a_row_is_a_context_and_a_candidate():
    tokenizer, tasks = DATA.tokenizer.get(), SOURCE.get()
    rows = DATA.questions("test")
    assert rows["text"].shape == rows["type"].shape == (18, 4, 32) and rows["task"].tolist() == np.repeat([0, 1, 2], 6).tolist()
    start, end, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]"))
    for number, question in enumerate(tasks.questions["test"]):
        for text, types, candidate in zip(rows["text"][number], rows["type"][number], question.candidates, strict=True):
            first, second = (tokenizer.encode(part, add_special_tokens=False).ids for part in (question.context, candidate))
            expected = [start, *first, end, *second, end]
            assert text.tolist() == expected + [pad] * (32 - len(expected))
            assert types.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1) + [0] * (32 - len(expected))


def test_the_context_is_cut_before_the_candidate():
    tokenizer = DATA.tokenizer.get()
    words = [f"b{'aeiou'[number % 5]}{number}" for number in range(20)]
    question = Question(0, " ".join(words[:12]), [words[12], " ".join(words[:20])])
    pieces = tokenizer.encode(question.context, add_special_tokens=False).ids
    ids, types, cut = tokenize_pairs(tokenizer, [question], 10)
    second = tokenizer.encode(words[12], add_special_tokens=False).ids
    assert cut == 2 and ids[0, 0, 1 : 8 - len(second)].tolist() == pieces[: 7 - len(second)] and ids[0, 0, -1 - len(second) : -1].tolist() == second
    assert ids[0, 1, 2:9].tolist() == pieces[:7] and types[0, 1].tolist() == [0, 0] + [1] * 8  # no place is left for the context


def test_a_training_row_for_each_candidate():
    questions = DATA.questions("train")
    for negatives, shots in ((0, 0), (2, 0), (1, 2)):
        data = dataclasses.replace(DATA, negatives=negatives, shots=shots)
        batches = data.batches()
        asked, candidates = (shots or 6) * 3, (1 + negatives) if negatives else 4
        rows = {name: np.asarray(array) for name, array in batches.arrays.items()}
        assert batches.rows == asked * candidates and rows["label"].sum() == asked and rows["label"][::candidates].all() and (rows["mask"] == 1).all()
        kept = np.concatenate([np.flatnonzero(questions["task"] == task)[: shots or None] for task in range(3)])
        np.testing.assert_array_equal(rows["text"].reshape(asked, candidates, -1), questions["text"][kept, :candidates])
        np.testing.assert_array_equal(rows["task"], np.repeat(questions["task"][kept], candidates))
    batch = DATA.batches()[0]
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        "text": ((8, 32), "int32"),
        "type": ((8, 32), "int32"),
        "task": ((8,), "int32"),
        "label": ((8,), "int32"),
        "mask": ((8,), "float32"),
    }
    assert DATA.info()["tasks"] == 3 and DATA.info()["pad"] == 0 and DATA.capacity == 32
    assert DATA.smoke().batches().rows == 3 * 20 * 4


def test_synthetic_tasks_prefer_their_own_words():
    tasks = SyntheticTasks(questions=40).read()
    for task in range(3):
        used = [{word for q in tasks.questions[split] if q.task == task for word in q.candidates[0].split()} for split in ("train", "test")]
        assert len(used[0]) == 10 and used[1] <= used[0]
    assert SyntheticTasks(questions=40, seed=1).read() != tasks


def test_some_are_the_first_of_each_task():
    rows = {"task": np.array([0, 1, 0, 1, 1]), "text": np.arange(5)}
    assert some(rows, 1)["text"].tolist() == [0, 1] and some(rows, 2)["text"].tolist() == [0, 1, 2, 3] and some(rows, 0)["text"].tolist() == [0, 1, 2, 3, 4]


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="questions have 2 or 3 candidates; all need one number of them, 2 or more"):
        Tasks(["a"], {"train": [Question(0, "", ["x", "y"]), Question(0, "", ["x", "y", "z"])]})
    with pytest.raises(ValueError, match="questions have 1 candidates"):
        Tasks(["a"], {"train": [Question(0, "", ["x"])]})
    with pytest.raises(ValueError, match="questions have no candidates"):
        Tasks(["a"], {"train": []})
    with pytest.raises(ValueError, match="task 'b' has no test question"):
        Tasks(["a", "b"], {"test": [Question(0, "", ["x", "y"])]})
    with pytest.raises(ValueError, match="negatives=4 are more than the 3 wrong candidates of a question; use 0 for all"):
        dataclasses.replace(DATA, negatives=4).batches()
    with pytest.raises(ValueError, match="length=4 must be at least 5, negatives=0 and shots=0 at least 0"):
        dataclasses.replace(DATA, length=4)
