"""Text rows: tokens that give the text back, windows that follow each other, splits that do not mix."""

import gzip

import numpy as np
import pytest

from jaxrec.data.builders.tiny_shakespeare import TinyShakespeare
from jaxrec.data.text import UNKNOWN, SyntheticText, TextRows, Tokens, train_tokenizer


def test_characters_and_pieces_give_the_text_back():
    text = "First Citizen:\nBefore we proceed,\n\nhear me  speak."
    for pieces in (0, 300):
        tokenizer = train_tokenizer(text, pieces)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id(UNKNOWN) == 0 and 0 not in ids
    assert len(train_tokenizer(text, 0).encode(text).ids) == len(text)
    assert len(train_tokenizer(text * 9, 300).encode(text).ids) < len(text)
    assert train_tokenizer(text, 0).encode("B\u00df").ids[1] == 0  # a character that training has not seen
    with pytest.raises(ValueError, match="pieces=100 cannot hold the 256 bytes"):
        Tokens(SyntheticText(), pieces=100)


def test_rows_are_consecutive_tokens_and_their_successors():
    data = TextRows(Tokens(SyntheticText(words=400)), length=16, stride=5, batch=4)
    ids = data.tokens.get().ids["train"]
    rows = data.rows("train", 16, 5)
    assert len(rows["token"]) == (len(ids) - 17) // 5 + 1
    for number in (0, 3, len(rows["token"]) - 1):
        np.testing.assert_array_equal(rows["token"][number], ids[5 * number : 5 * number + 16])
        np.testing.assert_array_equal(rows["target"][number], ids[5 * number + 1 : 5 * number + 17])
    batch = data.batches()[0]
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        "token": ((4, 16), np.int32),
        "target": ((4, 16), np.int32),
        "segment": ((4, 16), np.int32),
        "mask": ((4, 16), np.float32),
    }
    assert data.info() == {"vocabulary": data.tokens.get().tokenizer.get_vocab_size(), "length": 16}
    assert data.smoke().capacity == 16


def test_a_text_too_short_for_a_row_is_refused():
    data = TextRows(Tokens(SyntheticText(words=400)), length=10**6)
    with pytest.raises(ValueError, match=r"the train text has .* tokens, and a row needs 1,000,001; choose length below"):
        data.batches()
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        TextRows(Tokens(SyntheticText()), length=0)


def test_shakespeare_is_split_in_order(tmp_path):
    text = "".join(chr(97 + n % 26) for n in range(1000))
    (tmp_path / "input.txt.gz").write_bytes(gzip.compress(text.encode()))
    splits = TinyShakespeare(str(tmp_path)).get()
    assert splits["train"] + splits["validation"] + splits["test"] == text
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [900, 50, 50]
    with pytest.raises(FileNotFoundError, match=r"tinyshakespeare: input.txt.gz not found in .*char-rnn"):
        TinyShakespeare(str(tmp_path / "nowhere")).get()
