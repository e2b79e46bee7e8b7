from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxrec.data.collection import SyntheticCollection
from jaxrec.data.passages import Negatives, Passages
from jaxrec.data.tokenizers import Frame, WordPiece, bert_frame, open_tokenizer, tokenize, tokenizer_info

SOURCE = SyntheticCollection(documents=40, queries=15, words=300)
DATA = Passages(SOURCE, WordPiece(SOURCE, size=400), batch=6, query_length=8, document_length=20)


@dataclasses.dataclass(frozen=True)
class GivenNegatives(Negatives):
    """The next two documents, of queries whose answer is row a: a + 1 and a + 2; query 3 has only one."""

    def get(self):
        query, document = DATA.pairs()
        rows = np.full((15, 2), -1, np.int32)
        rows[query] = (document[:, None] + np.array([1, 2])) % 40
        rows[3, 1] = -1
        return rows


def test_tokens_are_marked_cut_and_padded():
    tokenizer = DATA.tokenizer.get()
    text = SOURCE.get().texts[0]
    pieces = tokenizer.encode(text, add_special_tokens=False).ids
    ids, cut = tokenize(tokenizer, [text, "", " ".join([text] * 9)], 20, "document")
    start, mark, end, pad = (tokenizer.token_to_id(token) for token in ("[CLS]", "[unused1]", "[SEP]", "[PAD]"))
    assert ids[0].tolist() == ([start, mark, *pieces[:17], end] + [pad] * 20)[:20]
    assert ids[1].tolist() == [start, mark, end] + [pad] * 17
    assert ids[2, -1] == end and cut == (len(pieces) > 17) + 1
    assert tokenize(tokenizer, [text], 20, "query")[0][0, 1] == tokenizer.token_to_id("[unused0]") != mark
    with pytest.raises(ValueError, match="length=3 leaves no place for text"):
        tokenize(tokenizer, [text], 3, "query")


def test_a_text_may_speak_of_special_tokens():
    ids, _ = tokenize(DATA.tokenizer.get(), ["[PAD] [MASK] [unused1]"], 40, "document")
    special = {DATA.tokenizer.get().token_to_id(token) for token in ("[PAD]", "[MASK]")}
    text = ids[0][2 : int((ids[0] != DATA.info()["pad"]).nonzero()[0].max())]
    assert len(text) and not special & {*text.tolist()}


def test_a_frame_has_tokens_and_words_around_a_text():
    tokenizer = DATA.tokenizer.get()
    words = SOURCE.get().texts[0].split()
    frame = Frame(query=(7,), document=(), end=9, pad=1, query_prompt=words[0] + " ")
    assert Frame.of({**vars(frame), "query": [7], "document": []}) == frame
    prompted, plain = (tokenizer.encode(text, add_special_tokens=False).ids for text in (f"{words[0]} {words[1]}", words[1]))
    query, _ = tokenize(tokenizer, [words[1]], 12, "query", frame)
    document, cut = tokenize(tokenizer, [words[1]], 12, "document", frame)
    assert query[0].tolist() == ([7, *prompted, 9] + [1] * 12)[:12] and document[0].tolist() == ([*plain, 9] + [1] * 12)[:12] and not cut
    with pytest.raises(ValueError, match="length=1 leaves no place for text beside the 1 special tokens"):
        tokenize(tokenizer, ["x"], 1, "document", frame)


def test_what_a_method_learns_of_the_tokenizer():
    info = DATA.info()
    tokenizer = DATA.tokenizer.get()
    assert info["documents"] == 40 and (info["query_length"], info["document_length"]) == (8, 20)
    assert info["vocabulary"] == tokenizer.get_vocab_size() and info["pad"] == 0
    assert tokenizer.id_to_token(info["mask_token"]) == "[MASK]"
    assert all(tokenizer.id_to_token(piece).startswith("##") for piece in info["continues"]) and info["continues"]
    marked = WordPiece(SyntheticCollection(documents=3, queries=2), size=300)
    assert info["punctuation"] == () == marked.info()["punctuation"]  # made-up words have none


def test_punctuation_is_known(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: row for row, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", ",", "a", "."])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = open_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer_info(read, bert_frame(read))["punctuation"] == (7, 9)
    vocabulary.pop("[MASK]")
    tokenizer = Tokenizer(models.WordPiece({token: row for row, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"the tokenizer has no \[MASK\]"):
        bert_frame(open_tokenizer(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is no tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="size=100 cannot hold the letters"):
        WordPiece(SOURCE, size=100)


def test_a_row_is_a_query_and_a_document_that_answers_it():
    batches, tokens = DATA.batches(), DATA.tokens()
    assert batches.rows == 15
    seen = np.concatenate([batches[number]["query_row"] for number in range(5)])
    assert len(seen) == 30 and set(np.bincount(seen, minlength=15)) == {2}
    batch = batches[0]
    qrels = SOURCE.get().qrels["train"]
    for query, document, row, answer in zip(batch["query"], batch["document"], batch["query_row"], batch["document_row"], strict=True):
        np.testing.assert_array_equal(query, tokens["train"][row])
        np.testing.assert_array_equal(document, tokens["documents"][answer])
        assert answer in qrels.of(row)[0]
    halves = [DATA.batches(process, 2)[0]["query_row"] for process in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), batch["query_row"])


def test_hard_negatives_come_along():
    with_hard = dataclasses.replace(DATA, negatives=GivenNegatives(), hard=1)
    batch = with_hard.batches()[0]
    np.testing.assert_array_equal(batch["negative_row"][:, 0], (batch["document_row"] + 1) % 40)
    np.testing.assert_array_equal(batch["negative"], DATA.tokens()["documents"][batch["negative_row"]])
    with pytest.raises(ValueError, match=r"hard=2 negatives per row are asked for, and GivenNegatives has fewer"):
        dataclasses.replace(with_hard, hard=2).batches()
    for wrong in ({"hard": 1}, {"negatives": GivenNegatives()}):
        with pytest.raises(ValueError, match="negatives per row need negatives="):
            dataclasses.replace(DATA, **wrong)
