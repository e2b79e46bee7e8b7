"""Vectors of a file of texts by a small language model: the encoder against rows made by hand, and interruptions that leave no trace."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from jaxrec.artifact import locked
from jaxrec.data.builders.synthetic import Synthetic
from jaxrec.interop import safetensors_files
from jaxrec.nn import language_families
from jaxrec.nn.attention import AttentionKind
from jaxrec.nn.language_model import LanguageModel
from jaxrec.nn.token_prepending import TokenPrepending, batch, embed, lay_out
from jaxrec.param import create
from jaxrec.stages import text_vectors
from jaxrec.stages.embeddings import TextEmbeddings
from jaxrec.stages.language_model_embeddings import LanguageModelEncoder
from jaxrec.stages.text_encoders import BertEncoder, TextEncoder
from jaxrec.stages.text_vectors import open_encoder, read_texts, write_vectors

LETTERS = "abcdefghijklmnopqrstuvwxyzABC .:?"
BEGIN = len(LETTERS)
MODEL = LanguageModel(vocabulary=BEGIN + 1, dim=16, layers=3, heads=2, hidden=24, length=40, attention=AttentionKind(positions="rotary"))
PREPENDING = TokenPrepending(exit=2, max_blocks=4)
TEXTS = ["one. Art is two.", "", "Be", "a long text. But it is cut. And how is that. Alas", "Be", "last one?", "c"]


def tokenizer(row="<begin> $A"):
    """A token for each letter, and one that begins a row."""
    found = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(LETTERS)}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    found.add_special_tokens(["<begin>", "<more>"])
    found.post_processor = TemplateProcessing(single=row, special_tokens=[("<begin>", BEGIN)])
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    params = create(MODEL.spec(), jax.random.key(0))
    safetensors_files.write(folder, language_families.to_config(MODEL), language_families.to_hf(MODEL, params))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def encoder(folder):
    return LanguageModelEncoder(str(folder), PREPENDING, batch=2)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": number} if number % 2 else text) + "\n" for number, text in enumerate(TEXTS)))
    return path


@dataclass(frozen=True)
class Lengths(TextEncoder):
    """A text's length and a one."""

    batch: int = field(default=1, metadata={"fingerprint": False})

    def encode(self, texts):
        return np.array([[len(text), 1] for text in texts], np.float32)


def ids(text):
    return [LETTERS.index(letter) for letter in text]


def test_rows_are_made_of_sentences_the_prompt_and_special_tokens(folder, encoder, tmp_path):
    params = language_families.from_hf(MODEL, safetensors_files.open_tensors(folder))
    shutil.copytree(folder, tmp_path / "ends")
    tokenizer("$A <begin>").save(str(tmp_path / "ends" / "tokenizer.json"))  # as models do that embed by a token at the end
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "ends" / "config.json").write_text(json.dumps(config | {"bos_token_id": BEGIN - 1}))  # so that no placeholder is the first token
    text = TEXTS[0]
    cases = [
        (encoder, ([BEGIN], []), [4, 16]),
        (dataclasses.replace(encoder, blocks=6), ([BEGIN], []), [6, 12, 16]),
        (dataclasses.replace(encoder, prompt="a: {text} b"), ([BEGIN, *ids("a: ")], ids(" b")), [4, 16]),
        (dataclasses.replace(encoder, model=str(tmp_path / "ends")), ([BEGIN - 1], [BEGIN]), [4, 16]),
    ]
    run = jax.jit(embed, static_argnums=1)
    for each, pieces, ends in cases:
        rows = batch(PREPENDING, [lay_out(PREPENDING, pieces, ids(text), ends, length=40)], width=32, size=2)
        np.testing.assert_allclose(each.encode([text])[0], run(params, PREPENDING, rows)[0], atol=1e-5)
    assert len({each.encode([text]).tobytes() for each, *_ in cases}) == 4


def test_a_row_does_not_begin_with_a_placeholder(folder, encoder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    tokenizer("$A").save(str(tmp_path / "bare" / "tokenizer.json"))
    bare = dataclasses.replace(encoder, model=str(tmp_path / "bare"))
    with pytest.raises(ValueError, match=r"rows would begin with a placeholder, .* give a prompt with something before \{text\}, like 'Text: \{text\}'"):
        bare.encode(["Be"])
    assert dataclasses.replace(bare, prompt="a: {text}").encode(["Be"]).any()
    assert dataclasses.replace(bare, prepending=TokenPrepending("vanilla", exit=2)).encode(["Be"]).any()  # which has none


def test_a_vector_depends_on_its_text_alone_and_cut_texts_are_counted(encoder):
    together, cut = encoder.encode_and_count(TEXTS)
    assert together.shape == (7, 16) and together.dtype == np.float32 and cut == 1
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1, 1, 1, 1], atol=1e-6)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_array_equal(encoder.encode([text])[0], vector)
    # 40 tokens: the begin, three sentences with two placeholders each, and what is left of the text
    np.testing.assert_array_equal(encoder.encode([TEXTS[3][:33]])[0], together[3])
    assert np.abs(encoder.encode([TEXTS[3][:32]])[0] - together[3]).max() > 1e-4
    assert encoder.encode([]).shape == (0, 16)


def test_every_plan_gives_a_vector_of_its_own(encoder):
    plans = ("vanilla", "echo", "tp", "htp")
    found = [dataclasses.replace(encoder, prepending=dataclasses.replace(PREPENDING, plan=plan)).encode([TEXTS[0]]) for plan in plans]
    assert all(np.isfinite(each).all() for each in found) and len({each.tobytes() for each in found}) == len(plans)


def test_a_file_becomes_the_vectors_of_its_texts(encoder, texts, tmp_path, capsys):
    written = write_vectors(encoder, texts, tmp_path / "out.npy", chunk=3)
    assert dataclasses.astuple(written) == (tmp_path / "out.npy", 7, 16, 1, 1)
    assert written.text() == f"wrote 7 vectors of 16 to {tmp_path / 'out.npy'}, 1 of the texts cut, 1 empty"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), encoder.encode(TEXTS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.npy", "texts.jsonl"]
    assert write_vectors(encoder, texts, tmp_path / "out.npy", chunk=3) == written and "is complete" in capsys.readouterr().err
    (tmp_path / "texts.txt").write_bytes("\ufeffone. Art is two.\r\n\r\nBe".encode())
    assert list(read_texts(tmp_path / "texts.txt")) == TEXTS[:3]
    assert write_vectors(encoder, tmp_path / "texts.txt", tmp_path / "new" / "folder", chunk=8).path == tmp_path / "new" / "folder" / "vectors.npy"
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "folder" / "vectors.npy"), np.load(tmp_path / "out.npy")[:3])


def test_an_interruption_leaves_no_trace(encoder, texts, tmp_path, monkeypatch, capsys):
    write_vectors(encoder, texts, tmp_path / "whole.npy", chunk=2)
    asked, own = [], LanguageModelEncoder.encode_and_count

    def stopping(self, some):
        asked.append(list(some))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return own(self, some)

    monkeypatch.setattr(LanguageModelEncoder, "encode_and_count", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_vectors(encoder, texts, tmp_path / "out.npy", chunk=2)
    assert not (tmp_path / "out.npy").exists() and len(list((tmp_path / "out.chunks").glob("*.npz"))) == 2
    for change, message in (
        ({"encoder": dataclasses.replace(encoder, prepending=dataclasses.replace(PREPENDING, exit=3))}, r"was made with exit=2, and now it is 3; repeat the"),
        ({"chunk": 3}, "was made with chunk=2, and now it is 3"),
        ({"encoder": Lengths()}, "was made with encoder='LanguageModelEncoder', and now it is 'Lengths'"),
    ):
        with pytest.raises(ValueError, match=message):
            write_vectors(**({"encoder": encoder, "source": texts, "output": tmp_path / "out.npy", "chunk": 2} | change))
    content = texts.read_text()
    texts.write_text(content + '"z"\n')
    with pytest.raises(ValueError, match=r"out.chunks was made of another input; choose another output, or remove it"):
        write_vectors(encoder, texts, tmp_path / "out.npy", chunk=2)
    texts.write_text(content)
    with locked(tmp_path / "out.chunks" / "lock"), pytest.raises(RuntimeError, match="is being written by another process"):
        write_vectors(encoder, texts, tmp_path / "out.npy", chunk=2)
    (tmp_path / "out.chunks" / "00000001.npz").write_bytes(b"PK")
    write_vectors(encoder, texts, tmp_path / "out.npy", chunk=2)
    said = capsys.readouterr().err
    assert "00000001.npz is damaged, and is written again" in said and "going on after 2 texts" in said
    assert asked == [TEXTS[:2], TEXTS[2:4], TEXTS[4:6], TEXTS[2:4], TEXTS[4:6], TEXTS[6:]]
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes() and not (tmp_path / "out.chunks").exists()


def test_what_stands_there_already_is_left_alone(texts, tmp_path, monkeypatch):
    np.save(tmp_path / "mine.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"mine.npy exists, and mine.json beside it does not say of what it was made; choose another output"):
        write_vectors(Lengths(), texts, tmp_path / "mine.npy")
    written = write_vectors(Lengths(), texts, tmp_path / "out.npy")
    assert written.cut is None and written.text().endswith("out.npy, 1 empty")
    with pytest.raises(ValueError, match=r"out.npy was made with chunk=256, and now it is 2"):
        write_vectors(Lengths(), texts, tmp_path / "out.npy", chunk=2)
    (tmp_path / "plain").write_text("mine")
    for output in ("plain", "plain/out.npy"):
        with pytest.raises(
            ValueError, match=r"plain is a file, and \S+plain/\w+.npy would lie in a folder of that name; choose another output, like \S+plain.npy"
        ):
            write_vectors(Lengths(), texts, tmp_path / output)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"folder.npy is a folder, and a file is to be written there; give \S+folder.npy/vectors.npy, or another name"):
        write_vectors(Lengths(), texts, tmp_path / "folder.npy")
    monkeypatch.setattr(Lengths, "inputs", lambda self: {"config.json": "1"})
    with pytest.raises(ValueError, match=r"out.npy was made of another model's file config.json; choose another output"):
        write_vectors(Lengths(), texts, tmp_path / "out.npy")


def test_files_of_others_where_this_one_writes_are_left_alone(texts, tmp_path):
    chunks = tmp_path / "out.chunks"
    for name, content, message in (
        ("out.json", '{"a": 1}', r"out.json exists, and does not say of what vectors were made, so it is left alone; choose another output, or move it"),
        ("out.json", "[1]", r"out.json exists, and does not say of what"),
        ("out.chunks", "x", r"out.chunks is where chunks would go, and out.chunks there is none of them, so it is left alone; choose another output"),
        ("out.chunks/notes.txt", "x", r"out.chunks is where chunks would go, and notes.txt there is none of them"),
        ("out.chunks/00000000.npz", "x", r"00000000.npz there is none of them"),  # nothing says that chunks were begun
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=message):
            write_vectors(Lengths(), texts, tmp_path / "out.npy")
        assert sorted(tmp_path.rglob("*")) == before and (tmp_path / name).read_text() == content
        (tmp_path / name).unlink()
    (chunks / "made_of.json").write_text("{}")
    (chunks / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt there is none of them"):
        write_vectors(Lengths(), texts, tmp_path / "out.npy")
    (chunks / "notes.txt").unlink()
    assert write_vectors(Lengths(), texts, tmp_path / "out.npy").texts == 7 and not chunks.exists()


def test_chunks_are_removed_while_nobody_else_may_write(texts, tmp_path, monkeypatch):
    def remove(folder):
        with pytest.raises(RuntimeError, match="busy"), locked(folder / "lock", wait=False, busy="busy"):
            pass
        removed.append(folder)

    removed = []
    monkeypatch.setattr(text_vectors.shutil, "rmtree", remove)
    write_vectors(Lengths(), texts, tmp_path / "out.npy")
    assert removed == [tmp_path / "out.chunks"]


def test_another_batch_goes_on(texts, tmp_path):
    written = write_vectors(Lengths(batch=1), texts, tmp_path / "out.npy", chunk=2)
    assert write_vectors(Lengths(batch=2), texts, tmp_path / "out.npy", chunk=2) == written


def test_what_dies_between_the_last_two_renames_is_mended(texts, tmp_path, monkeypatch):
    def dies(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(text_vectors.shutil, "rmtree", dies)
        write_vectors(Lengths(), texts, tmp_path / "out.npy", chunk=2)
    before = (tmp_path / "out.npy").read_bytes()
    write_vectors(Lengths(), texts, tmp_path / "out.npy", chunk=2)
    assert (tmp_path / "out.npy").read_bytes() == before and not (tmp_path / "out.chunks").exists()


def test_a_line_that_is_no_text_is_named(tmp_path):
    for name, content, message in (
        ("a.csv", b"x", r"a.csv is none of .jsonl, .txt; write a text, or an object with the text under 'text', on each line"),
        ("a.jsonl", b'"x"\n{', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"title": "x"}', r"a.jsonl:1: 'text' must be a string, got None; its keys are title"),
        ("a.jsonl", b"3", r"a.jsonl:1: 'text' must be a string, got 3"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl:1: lists or objects are nested too deeply"),
        ("a.jsonl", b'"x"\n"\\ud800 y"', r"a.jsonl:2: .* is half a character"),
        ("a.txt", b"x\n\xff", r"a.txt:2: byte 0xff is not UTF-8 text"),
        ("a.txt", b"", r"a.txt has no text; write one on each line"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            write_vectors(Lengths(), tmp_path / name, tmp_path / "out.npy")
        assert not (tmp_path / "out.chunks").exists()
    (tmp_path / "a.txt").write_text("x")
    write_vectors(Lengths(), tmp_path / "a.txt", tmp_path / "out.npy")  # none of these left anything that stands in the way
    with pytest.raises(FileNotFoundError, match=r"there is no file .*b.txt; give the path of the texts, .jsonl or .txt"):
        write_vectors(Lengths(), tmp_path / "b.txt", tmp_path / "out.npy")
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        write_vectors(Lengths(), tmp_path / "a.txt", tmp_path / "out.npy", chunk=0)


def test_the_model_decides_which_encoder_reads_it(folder, tmp_path):
    assert open_encoder(str(folder), plan="tp", start=2, blocks=64, dtype=None) == LanguageModelEncoder(str(folder), TokenPrepending("tp", start=2), blocks=64)
    assert open_encoder(str(folder), blocks="sentence") == LanguageModelEncoder(str(folder)) == open_encoder(str(folder))
    for wrong in ("words", "0", 0, -3):
        with pytest.raises(ValueError, match=r"must be 'sentence', or a number of tokens such as 64"):
            open_encoder(str(folder), blocks=wrong)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert open_encoder(str(tmp_path), pooling="cls", plan=None) == BertEncoder(str(tmp_path), pooling="cls")
    with pytest.raises(ValueError, match="is an encoder, which reads in both directions, and blocks, plan is of causal language models; leave it out"):
        open_encoder(str(tmp_path), plan="htp", blocks=3)


def test_misuse_is_told(folder, encoder, tmp_path):
    for change, message in (
        ({"batch": 0}, "LanguageModelEncoder: batch=0 must be at least 1$"),
        ({"blocks": -1}, "LanguageModelEncoder: blocks=-1 must be at least 0$"),
        ({"prompt": "x"}, r"prompt='x' must hold \{text\} 1 times for plan=htp"),
        ({"length": 41}, "length=41 is more than the 40 tokens that .* reads; ask for length <= 40"),
        ({"prepending": TokenPrepending()}, "exit=7 is more than the 3 layers of the model; ask for exit <= 3"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(encoder, **change).encode(["a"])
    with pytest.raises(ValueError, match=rf"text 1 has the token '<more>', number {BEGIN + 1}, and the model has vectors for {BEGIN + 1}; leave it out"):
        encoder.encode(["a", "b<more>"])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        dataclasses.replace(encoder, model=str(tmp_path)).encode(["a"])
    Tokenizer(models.BPE(vocab={chr(200 + number): number for number in range(BEGIN + 2)}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=f"tokenizer.json has {BEGIN + 2} tokens, and the model vectors for {BEGIN + 1}: it is of another model"):
        dataclasses.replace(encoder, model=str(tmp_path)).encode(["a"])


def test_vectors_of_the_same_files_are_the_same_artifact(folder, encoder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    source = Synthetic()
    fingerprint = TextEmbeddings(source, encoder).fingerprint()
    moved = TextEmbeddings(source, dataclasses.replace(encoder, model=str(copy), batch=5))
    assert moved.fingerprint() == fingerprint != TextEmbeddings(source, dataclasses.replace(encoder, blocks=6)).fingerprint()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content + b" ")
        assert moved.fingerprint() != fingerprint, name
        (copy / name).write_bytes(content)
    assert moved.fingerprint() == fingerprint
