"""Item vectors: texts, encoders against brute force, files of vectors and what is wrong with them."""

import dataclasses
import json
import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from jaxrec.data.interactions import Interactions
from jaxrec.data.sequences import Sequences
from jaxrec.data.source import Source
from jaxrec.experiment import Experiment
from jaxrec.interop import safetensors_files
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.bert import BERT, pool
from jaxrec.nn.features import Feature
from jaxrec.nn.modernbert import ModernBERT
from jaxrec.nn.t5 import T5
from jaxrec.param import create, flatten
from jaxrec.stages.embeddings import EmbeddingFile, TextEmbeddings, item_texts
from jaxrec.stages.pretrained import PretrainedBert
from jaxrec.stages.text_encoders import BertEncoder, TextEncoder, TfidfSvd, padded_length, unit

ITEMS = ["p1", "p2", "p3", "p4"]
FIELDS = {
    "brand": ["Acme", "", None, None],
    "title": ["Red  Nail\nLacquer", "Coconut Oil", "", ""],
    "categories": [["Makeup", "Nails"], ["Skin"], ["Makeup"], []],
    "text": ["It is red.", "", "", ""],
    "codes": [["17", "4"], [], ["3"], ["4"]],
    "price": [1.5, 2, None, 3],
}
WORDS = ["red", "nail", "lacquer", "coconut", "oil", "skin", "makeup", "nails", "hair", "brush", "of", "the", "and", "dry"]


@dataclass(frozen=True)
class Shop(Source):
    """Four items, one of them without any text."""

    items: tuple[str, ...] = tuple(ITEMS)

    def read(self) -> Interactions:
        sequence = np.arange(1, len(self.items) + 1, dtype=np.int32)
        fields = {name: values[: len(self.items)] for name, values in FIELDS.items()}
        return Interactions(["u"], list(self.items), np.array([0, len(sequence)]), sequence, item_fields=fields)


@dataclass(frozen=True)
class Lengths(TextEncoder):
    """A text's length and a one; counts how often it was asked."""

    asked: ClassVar[list[list[str]]] = []

    def encode(self, texts):
        self.asked.append(list(texts))
        return np.array([[len(text), 1] for text in texts], np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


def test_an_item_s_text_is_its_title_and_its_worded_fields():
    interactions = Shop().read()
    first, *rest = item_texts(interactions)
    assert first == "Red Nail Lacquer\nbrand: Acme\ncategories: Makeup, Nails\nIt is red."
    assert rest == ["Coconut Oil\ncategories: Skin", "categories: Makeup", ""]
    assert item_texts(interactions, ("codes", "title")) == ["codes: 17, 4\nRed Nail Lacquer", "Coconut Oil", "codes: 3", "codes: 4"]
    with pytest.raises(ValueError, match=r"the items have no field titel; they have brand, title, categories"):
        item_texts(interactions, ("titel",))


def test_vectors_are_a_mapped_column_built_once_and_silent_items_are_told(capsys):
    Lengths.asked.clear()
    column = TextEmbeddings(Shop(), Lengths())
    vectors = column.get()
    assert isinstance(vectors, np.memmap) and vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[:, 1], [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(vectors[2:, 0], [len("Coconut Oil\ncategories: Skin"), len("categories: Makeup"), len("p4")])
    assert "1 of 4 items have no text (p4 first); their ids are encoded in its place" in capsys.readouterr().err
    assert column.info() == {"of": "item", "kind": "vector", "rows": 5, "width": 2, "size": 0}
    assert len(Lengths.asked) == 1


def test_the_fingerprint_is_of_what_changes_the_vectors():
    column = TextEmbeddings(Shop())
    same = [dataclasses.replace(column, name="other"), TextEmbeddings(Shop(), TfidfSvd(dim=128))]
    other = [TextEmbeddings(Shop(), TfidfSvd(dim=64)), TextEmbeddings(Shop(), fields=("title",)), TextEmbeddings(Shop(("a", "b")))]
    assert {artifact.fingerprint() for artifact in same} == {column.fingerprint()}
    assert len({artifact.fingerprint() for artifact in [column, *other]}) == 4


def test_a_model_uses_the_column_by_its_name():
    column = TextEmbeddings(Shop(), Lengths(), name="lengths")
    data = Sequences(Shop(), length=3, columns=(column,))
    features = (Feature("lengths", kind="vector"),)
    experiment = Experiment(method=SASRec(features=features), data=data, steps=1, name="shop")
    resolved = experiment.resolve()
    assert resolved.tables["features.lengths.table"] == column
    assert (resolved.method.features[0].rows, resolved.method.features[0].width) == (5, 2)
    assert resolved.method.spec().features["lengths"].table.shape == column.get().shape
    small = experiment.smoked().resolve()
    assert small.tables["features.lengths.table"].get().shape[0] == small.method.items + 1


def tfidf(texts):
    """Dense TF-IDF by the formula, unit rows."""
    words = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in texts])
    idf = 1 + np.log((1 + len(texts)) / (1 + (counts > 0).sum(0)))
    weights = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    return weights / np.linalg.norm(weights, axis=1, keepdims=True)


def sentences(count, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


@pytest.mark.parametrize("dim", [3, 14])
def test_tfidf_svd_by_brute_force(dim):
    texts = sentences(30)
    got = TfidfSvd(dim).encode(texts)
    left, strength, _ = np.linalg.svd(tfidf(texts), full_matrices=False)
    wanted = left[:, :dim] * strength[:dim]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert got.shape == (30, dim) and got.dtype == np.float32
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, atol=1e-5)  # singular vectors have no sign
    np.testing.assert_array_equal(got, TfidfSvd(dim).encode(texts))


def test_few_words_give_few_columns(capsys):
    assert TfidfSvd().encode(["red oil", "dry oil", "red oil", "hair of the brush", "?"]).shape == (5, 5)
    assert "5 texts of 7 words give 5 of dim=128 columns" in capsys.readouterr().err
    got = TfidfSvd(min_count=2).encode(["red oil", "dry oil", "red oil", "hair"])
    assert got.shape == (4, 2)
    np.testing.assert_array_equal(got[3], 0)  # none of its words is kept
    np.testing.assert_allclose(np.linalg.norm(got[:3], axis=1), 1, atol=1e-6)


def test_tfidf_svd_says_what_it_cannot():
    with pytest.raises(ValueError, match=r"no word stands in min_count=1 of the 2 texts; lower min_count"):
        TfidfSvd().encode(["?", "!"])
    with pytest.raises(ValueError, match=r"dim=0 and min_count=1 must be at least 1"):
        TfidfSvd(dim=0)


def test_rows_of_no_direction_stay_zero():
    np.testing.assert_allclose(unit(np.array([[3.0, 4.0], [0, 0], [1e-9, 0]])), [[0.6, 0.8], [0, 0], [0, 0]], atol=1e-7)


TINY = BERT(vocabulary=len(WORDS) + 4, length=16, dim=8, layers=2, heads=2, hidden=12)
CONFIG = {
    "model_type": "bert",
    "vocab_size": TINY.vocabulary,
    "max_position_embeddings": TINY.length,
    "hidden_size": TINY.dim,
    "num_hidden_layers": TINY.layers,
    "num_attention_heads": TINY.heads,
    "intermediate_size": TINY.hidden,
    "type_vocab_size": TINY.types,
    "hidden_act": "gelu",
    "layer_norm_eps": TINY.epsilon,
    "hidden_dropout_prob": TINY.dropout,
}


@pytest.fixture(scope="module")
def params():
    leaves = create(TINY.spec(), jax.random.key(0))
    return jax.tree.map(lambda leaf: 5 * leaf, leaves)  # as drawn, all words are nearly one


@pytest.fixture
def model(tmp_path, params):
    return published(tmp_path / "model", CONFIG, TINY.to_hf(params))


def published(folder, config, tensors):
    """A folder as Hugging Face publishes one, with random weights and a tokenizer of whole words."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=16)  # a tokenizer's own habits must not matter
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_bert_encoder_gives_each_text_what_it_gives_it_alone(model, params):
    texts = [*sentences(20), "", "hair " * 30]
    got, cut = BertEncoder(str(model), length=16, batch=5).encode_and_count(texts)
    assert cut == 1  # the last, of 30 words; the others have 8 at most
    assert got.shape == (22, 8) and got.dtype == np.float32
    states = jax.jit(lambda ids, mask: pool(params(ids, mask), mask, "mean"))
    for text, vector in zip(texts, got, strict=True):
        ids = [2, *(4 + WORDS.index(word) for word in text.split()[:14]), 3]
        row = np.zeros((2, 1, 16), np.int32)
        row[0, 0, : len(ids)], row[1, 0, : len(ids)] = ids, 1
        np.testing.assert_allclose(vector, unit(np.asarray(states(*row)))[0], rtol=0, atol=1e-5)
    assert np.abs(got[:20] - got[:1]).max() > 0.1  # texts are told apart
    np.testing.assert_allclose(BertEncoder(str(model), length=16, batch=3).encode(texts[::-1])[::-1], got, rtol=0, atol=1e-5)


def test_a_modernbert_is_opened_by_its_config(tmp_path):
    encoder = ModernBERT(vocabulary=len(WORDS) + 4, length=16, dim=8, layers=2, heads=2, hidden=12, window=2)
    params = jax.tree.map(lambda leaf: 5 * leaf, create(encoder.spec(), jax.random.key(0)))
    model = published(tmp_path / "model", encoder.to_config(), encoder.to_hf(params))
    texts = sentences(3)
    ids = np.zeros((3, 16), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = [2, *(4 + WORDS.index(word) for word in text.split()[:14]), 3]
        row[: len(words)] = words
    wanted = jax.jit(lambda ids: params(ids, ids > 0)[:, 0])(ids)
    np.testing.assert_allclose(BertEncoder(str(model), length=16, pooling="cls").encode(texts), unit(np.asarray(wanted)), rtol=0, atol=1e-5)
    held = PretrainedBert(str(model)).get()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(held[name][: encoder.vocabulary], leaf[: encoder.vocabulary])


def test_a_model_that_does_more_than_pool_is_refused(model):
    kinds = ["models.Transformer", "models.Pooling", "models.Dense", "models.Normalize"]
    modules = [{"idx": number, "type": f"sentence_transformers.{kind}"} for number, kind in enumerate(kinds)]
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"modules.json asks for sentence_transformers.models.Dense after pooling"):
        BertEncoder(str(model), length=16).encode(["oil"])
    (model / "modules.json").write_text(json.dumps(modules[:2] + modules[3:]))
    assert BertEncoder(str(model), length=16).encode(["oil"]).shape == (1, 8)


def test_of_a_t5_the_encoder_reads(tmp_path):
    whole = T5(vocabulary=len(WORDS) + 4, dim=8, layers=2, decoder_layers=1, heads=2, head=4, hidden=12)
    params = create(whole.spec(), jax.random.key(0))
    model = published(tmp_path / "model", whole.to_config(), whole.to_hf(params))
    texts = sentences(3)
    ids = np.zeros((3, 16), np.int32)
    for row, text in zip(ids, texts, strict=True):
        words = [2, *(4 + WORDS.index(word) for word in text.split()[:14]), 3]
        row[: len(words)] = words
    wanted = jax.jit(lambda ids: pool(params(ids, ids > 0), ids > 0, "mean"))(ids)
    np.testing.assert_allclose(BertEncoder(str(model), length=16).encode(texts), unit(np.asarray(wanted)), rtol=0, atol=1e-5)


def test_bert_encoder_options(model):
    texts = sentences(3)
    raw, whole = (BertEncoder(str(model), length=16, batch=4, normalize=normalize).encode(texts) for normalize in (False, True))
    np.testing.assert_allclose(unit(raw), whole, atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 1e-2
    prefixed = BertEncoder(str(model), length=16, batch=4, prefix="of the ").encode(texts)
    np.testing.assert_allclose(prefixed, BertEncoder(str(model), length=16, batch=4).encode([f"of the {text}" for text in texts]), atol=1e-6)
    assert np.abs(BertEncoder(str(model), length=16, batch=4, pooling="cls").encode(texts) - whole).max() > 1e-3


def test_bert_encoder_is_known_by_its_content(model, tmp_path):
    column = TextEmbeddings(Shop(), BertEncoder(str(model), length=16))
    copy = shutil.copytree(model, tmp_path / "copy")
    moved = dataclasses.replace(column, encoder=BertEncoder(str(copy), length=16, batch=8))
    assert moved.fingerprint() == column.fingerprint()
    assert moved.fingerprint() != dataclasses.replace(moved, encoder=BertEncoder(str(copy), length=8)).fingerprint()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert moved.fingerprint() != column.fingerprint()
    assert column.get().shape == (5, 8)


def test_bert_encoder_reads_its_folder_once_and_a_column_keeps_nothing_of_it(model, monkeypatch):
    reads, own = [], safetensors_files.read
    monkeypatch.setattr(safetensors_files, "read", lambda folder: reads.append(folder) or own(folder))
    column = TextEmbeddings(Shop(), BertEncoder(str(model), length=16))
    for text in ("oil", "hair"):
        column.encoder.encode([text])
    assert reads == [model]
    fresh = dataclasses.replace(column, encoder=dataclasses.replace(column.encoder))
    held = dict(vars(fresh.encoder))
    fresh.vectors(Shop().read())
    assert vars(fresh.encoder) == held  # a column lives as long as its experiment, and weights would stay on the device


def test_bert_encoder_says_what_it_cannot(model, monkeypatch):
    def change(**entries):
        (model / "config.json").write_text(json.dumps(CONFIG | entries))

    encoder = BertEncoder(str(model), length=16)
    with pytest.raises(ValueError, match=r"length=32 is more than the 16 positions of .*; ask for length <= 16"):
        BertEncoder(str(model), length=32).encode(["oil"])
    change(hidden_size=16)
    with pytest.raises(ValueError, match=r"model: tensor embeddings.LayerNorm.bias has shape \(8,\), the config asks for \(16,\)"):
        encoder.encode(["oil"])
    change(model_type="electra")
    with pytest.raises(ValueError, match=r"model: config.json says model_type='electra'"):
        encoder.encode(["oil"])
    change()
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["oil"] = 18
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer.json gives id 18, and the model has 18 word pieces"):
        encoder.encode(["oil"])
    with pytest.raises(ValueError, match=r"length=1 must be at least 2"):
        BertEncoder(str(model), length=1)
    with pytest.raises(ValueError, match=r"pooling='max' is not one of mean, cls"):
        BertEncoder(str(model), pooling="max")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r"need the package tokenizers: pip install 'jaxrec\[hf\]'"):
        BertEncoder(str(model), length=16).encode(["oil"])
    (model / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json; it holds config.json, model.safetensors"):
        TextEmbeddings(Shop(), encoder).get()


def test_padded_lengths_are_few_and_long_enough():
    lengths = [padded_length(length) for length in range(1, 513)]
    assert sorted(set(lengths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(length <= padded for length, padded in enumerate(lengths, 1))
    assert all(padded <= 1.5 * length for length, padded in enumerate(lengths, 1) if length > 16)


ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
ORDER = [2, 0, 3, 1]


def write(path, rows, ids=None):
    """A file of vectors of the kind that its name ends in."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez(path, ids=np.array(ids), vectors=rows)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": ids, "vector": list(rows)}), path)
    return str(path)


def test_a_file_of_vectors_in_every_form(tmp_path, capsys):
    shuffled, names = ROWS[ORDER], [ITEMS[row] for row in ORDER]
    (tmp_path / "ids.txt").write_text("\n".join(names))
    more, unknown = np.concatenate([shuffled, ROWS[:1]]), [*names, "p9"]
    files = [
        EmbeddingFile(Shop(), write(tmp_path / "plain.npy", ROWS)),
        EmbeddingFile(Shop(), write(tmp_path / "padded.npy", np.concatenate([np.zeros((1, 3)), ROWS]))),
        EmbeddingFile(Shop(), write(tmp_path / "shuffled.npy", shuffled), ids=str(tmp_path / "ids.txt")),
        EmbeddingFile(Shop(), write(tmp_path / "a.npz", shuffled, names)),
        EmbeddingFile(Shop(), write(tmp_path / "more.npz", more, unknown)),
        EmbeddingFile(Shop(), write(tmp_path / "a.parquet", shuffled, names)),
    ]
    for file in files:
        got = file.get()
        assert isinstance(got, np.memmap) and got.dtype == np.float32
        np.testing.assert_array_equal(got, np.concatenate([np.zeros((1, 3)), ROWS]))
        assert file.info() == {"of": "item", "kind": "vector", "rows": 5, "width": 3, "size": 0}
    assert "1 of 5 vectors are of items that the source does not have" in capsys.readouterr().err
    half = EmbeddingFile(Shop(), write(tmp_path / "half.npy", ROWS.astype(np.float16)))
    np.testing.assert_array_equal(half.get()[1:], ROWS.astype(np.float16))


def test_ids_written_as_numbers_are_outside_ids(tmp_path):
    file = EmbeddingFile(Shop(("10", "20", "30")), write(tmp_path / "a.npz", ROWS[:3], [30, 10, 20]))
    np.testing.assert_array_equal(file.get()[1:], ROWS[[1, 2, 0]])


def test_a_file_is_known_by_its_content(tmp_path):
    a, b = (EmbeddingFile(Shop(), write(tmp_path / name, ROWS)) for name in ("a.npy", "b.npy"))
    assert a.fingerprint() == b.fingerprint()
    write(tmp_path / "b.npy", ROWS + 1)
    assert a.fingerprint() != b.fingerprint()


def spoiled(row, value):
    rows = ROWS.astype(np.float64)
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("name", "rows", "ids", "message"),
    [
        ("a.npy", spoiled(2, [0, np.nan, 1]), None, r"a.npy: the vectors of 1 items hold NaN or inf, p3 first"),
        ("a.npy", spoiled(0, [0, 1e300, 1]), None, r"the vectors of 1 items hold NaN or inf, p1 first"),
        ("a.npy", spoiled([1, 3], 0), None, r"the vectors of 2 items are all zero, which has no direction, p2, p4 first"),
        ("a.npy", ROWS[:3], None, r"a.npy: 3 rows for 4 items; save one row per item"),
        ("a.npy", ROWS[[0, 0, 1, 2, 3]], None, r"5 rows for 4 items, so row 0 is padding, but it is not zero"),
        ("a.npy", ROWS.reshape(-1), None, r"vectors have shape \(12,\), expected \[items, width\]"),
        ("a.npy", ROWS[:, :0], None, r"vectors have shape \(4, 0\)"),
        ("a.npy", ROWS.astype(np.int64), None, r"vectors are int64, expected float32"),
        ("a.npy", ROWS.astype(object), None, r"a.npy cannot be read: it is no array of numbers \(.*Python objects.*\); save it by np.save"),
        ("a.npz", ROWS[:2], ["p1", "p3"], r"2 of 4 items have no vector, p2, p4 first \(the file begins p1, p3\)"),
        ("a.npz", ROWS[[0, 1, 2, 3, 0]], [*ITEMS, "p1"], r"a.npz: 1 ids stand more than once, 'p1' first"),
        ("a.npz", ROWS, ITEMS[:3], r"a.npz: 3 ids for 4 vectors"),
        ("a.parquet", [[1.0, 2], [3.0], [4.0, 5], [6.0, 7]], ITEMS, r"the vector of 'p2' has 1 numbers, that of 'p1' has 2"),
        ("a.parquet", [[1.0], None, [2.0], None], ITEMS, r"a.parquet cannot be read: 2 of its 4 rows have no vector"),
        ("a.parquet", [[1.0], [None], [2.0], [3.0]], ITEMS, r"the vectors of 1 items hold NaN or inf, p2 first"),
        ("a.parquet", [[1], [2], [3], [4]], ITEMS, r"vectors are int64"),
        ("a.parquet", ["1", "2", "3", "4"], ITEMS, r"its column vector holds string, expected a list of floats"),
    ],
)
def test_vectors_that_are_wrong_are_named(tmp_path, name, rows, ids, message):
    file = EmbeddingFile(Shop(), write(tmp_path / name, rows, ids))
    with pytest.raises(ValueError, match=message):
        file.get()


def test_files_that_are_wrong_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", vector=ROWS)
    pyarrow.parquet.write_table(pyarrow.table({"item": ITEMS, "vector": list(ROWS)}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("p1,1,2")
    for name in ("b.npy", "b.parquet"):
        (tmp_path / name).write_text("p1,1,2")
    np.save(tmp_path / "c.npy", ROWS)
    for path, ids, message in (
        ("a.npz", "", r"a.npz cannot be read: it has no array ids, vectors, only vector"),
        ("a.parquet", "", r"a.parquet cannot be read: it has no column id, only item, vector"),
        ("a.csv", "", r"'.csv' is not one of .npy, .npz, .parquet"),
        ("b.npy", "", r"b.npy cannot be read: it is no array of numbers"),
        ("b.parquet", "", r"b.parquet cannot be read: "),
        ("a.npz", str(tmp_path / "a.csv"), r"goes with a .npy; .*a.npz names its items itself"),
        ("c.npy", str(tmp_path / "a.csv"), r"a.csv: 1 ids for 4 vectors; give one id per vector"),
    ):
        with pytest.raises(ValueError, match=message):
            EmbeddingFile(Shop(), str(tmp_path / path), ids=ids).get()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.npy; check the path"):
        EmbeddingFile(Shop(), str(tmp_path / "none.npy")).get()
