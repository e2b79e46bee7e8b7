"""Item vectors: texts of items, files of vectors and what is wrong with them."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxrec.data.interactions import Interactions
from jaxrec.data.sequences import Sequences
from jaxrec.data.source import Source
from jaxrec.experiment import Experiment
from jaxrec.methods.sequential.sasrec import SASRec
from jaxrec.nn.features import Feature
from jaxrec.stages.embeddings import EmbeddingFile, TextEmbeddings, item_texts
from jaxrec.stages.text_encoders import TextEncoder, TfidfSvd

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
