"""PythonModules: what a document holds and no longer holds, and where the answers stand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxrec.data.builders import python_module_docs
from jaxrec.data.builders.python_docs import split_of
from jaxrec.data.builders.python_module_docs import PythonModules, answer_spans
from jaxrec.data.collection import Collection, Qrels, Queries, SyntheticCollection

TREES = '''
"""Tools for trees.

They grow."""

class Oak(Tree, kind="oak"):
    """A tree with acorns. It is old.

    Lives long, and
    stands still.
    """
    def fell(self, axe: str = "big") -> None:
        """Takes the tree down. Mind
        your head."""
        return "secret code"

if FAST:
    def water(tree):
        """Waters all of the trees."""
else:
    def water(trees):
        """Waters some of the trees."""

def undocumented(): pass

def prune(tree):
    """Cuts it."""
'''
SHRUBS = '''
"""Tools for shrubs, which can do more than: Waters all of the trees."""
def trim(shrub):
    """Takes the tree down. For shrubs."""
def shape(shrub):
    """Makes a ball of the shrub."""
def copy(shrub):
    """Makes a ball of the shrub. Twice: copies cannot be told apart."""
def fence():
    """Plants the shrubs in rows.

    Plants the shrubs in rows. Then again.
    """
'''


@pytest.fixture
def garden(tmp_path, monkeypatch):
    """PythonModules of two modules of a package of their own."""
    for name, source in (("trees", TREES), ("shrubs", SHRUBS)):
        (tmp_path / f"{name}.py").write_text(source)
    files = [("garden.trees", tmp_path / "trees.py"), ("garden.shrubs", tmp_path / "shrubs.py"), ("garden.fast", tmp_path / "fast.so")]
    monkeypatch.setattr(python_module_docs, "source_files", lambda package: iter(files))
    return PythonModules(packages=("absl-py",), words=5)


@pytest.fixture(scope="module")
def collection() -> Collection:
    return PythonModules(packages=("absl-py", "optax"), words=200, queries=3).get()


def asked(collection: Collection) -> dict[str, str]:
    """Sentences by the name of what they were taken from."""
    return {name: text for ids, texts in collection.queries.values() for name, text in zip(ids, texts, strict=True)}


def test_a_document_is_what_a_module_says_without_the_queries(garden):
    collection = garden.read()
    assert collection.ids == collection.titles == ["garden.shrubs", "garden.trees"]
    assert collection.texts[1] == (
        "Tools for trees.\nThey grow.\n\n"
        "Oak(Tree)\nIt is old.\nLives long, and stands still.\n\n"
        "Oak.fell(self, axe: str='big') -> None\nTakes the tree down. Mind your head.\n\n"  # another docstring begins so
        "water(tree)\n\n"
        "prune(tree)\nCuts it."  # too short to ask
    )
    assert asked(collection) == {"garden.trees.Oak": "A tree with acorns.", "garden.trees.water": "Waters all of the trees."}
    assert "Plants the shrubs in rows. Plants the shrubs in rows." not in collection.texts[0]  # a paragraph stays a line


def test_spans_are_where_the_answers_stand(garden):
    collection = garden.read()
    for split, (names, _) in collection.queries.items():
        found = [collection.texts[row][slice(*span)] for row, span in zip(collection.qrels[split].documents, answer_spans(collection, split), strict=True)]
        wanted = {"garden.trees.Oak": "Oak(Tree)\nIt is old.\nLives long, and stands still.", "garden.trees.water": "water(tree)"}
        assert found == [wanted[name] for name in names]


def test_no_more_queries_than_asked_for(garden):
    assert len(asked(PythonModules(packages=("absl-py",), words=5, queries=1).read())) == 1


def test_real_modules_hold_no_query_and_split_by_module(collection):
    assert collection.ids == sorted(set(collection.ids)) and min(len(text.split()) for text in collection.texts) > 150
    assert set(collection.queries) == {"train", "validation", "test"}
    sentences = asked(collection)
    assert len({text.casefold() for text in sentences.values()}) == len(sentences) > 60
    for split, (names, texts) in collection.queries.items():
        rows, spans = collection.qrels[split].documents, answer_spans(collection, split)
        assert len(rows) == len(names) and (np.bincount(rows) <= 3).all()
        assert {split_of(collection.ids[row]) for row in rows} == {split}
        for name, text, row, (begin, end) in zip(names, texts, rows, spans, strict=True):
            module, document = collection.ids[row], collection.texts[row]
            assert name.startswith(module + ".") and text not in document
            block = document[begin:end]
            assert block.startswith(name.removeprefix(module + ".") + "(") and "\n\n" not in block
            assert document[begin - 2 : begin] == "\n\n" and document[end : end + 2] in ("", "\n\n")


def test_the_set_is_the_same_however_often_it_is_mined(collection):
    again = PythonModules(packages=("absl-py", "optax"), words=200, queries=3).read()
    assert (again.ids, again.texts) == (collection.ids, collection.texts) and asked(again) == asked(collection)


def test_errors_name_the_value_and_the_fix(garden):
    with pytest.raises(ValueError, match="words=0 and queries=8 must be 1 or more"):
        PythonModules(words=0)
    with pytest.raises(ModuleNotFoundError, match="'no-such-package', which is not installed"):
        PythonModules(packages=("no-such-package",)).get()
    with pytest.raises(ValueError, match="no module in absl-py has words=1000 in its docstrings; lower words, or mine other packages"):
        PythonModules(packages=("absl-py",), words=1000).read()
    other = Collection(["m"], [""], ["text"], {"test": Queries(["m.f"], ["asks something"])}, {"test": Qrels.gather([0], [0], [1], count=1)})
    with pytest.raises(ValueError, match=r"test: the document of query 'm\.f' has no block 'f\('; spans are known of a collection of PythonModules"):
        answer_spans(other, "test")
    assert isinstance(PythonModules().smoke(), SyntheticCollection)
