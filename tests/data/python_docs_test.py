"""PythonDocs: what is a document, what is a query, and that neither gives the other away."""

from __future__ import annotations

import ast

import pytest

from jaxrec.data.builders import python_docs
from jaxrec.data.builders.python_docs import PythonDocs
from jaxrec.data.collection import Collection

MODULE = '''
"""The module."""
def plain(a, b: int = 1) -> int:
    """Adds two numbers. Then returns them.

    More.
    """
    # a comment
    def inner():
        """Hidden words."""
    return a + b

def silent(): return 1

class Thing(Base):
    """A thing with parts, e.g. wheels and such."""
    size = 3
    def method(self):
        """Turns the thing around"""
        return self.size
    def quiet(self): return 2

try:
    import fast
except ImportError:
    pass
else:
    def ignored(): pass
if True:
    def branch():
        """Takes a branch."""
'''


def documented(source: str) -> dict[str, tuple[str, str]]:
    """Text and query by qualified name."""
    nodes = dict(python_docs.documented(ast.parse(source), "m"))
    return {name: (python_docs._code(node), python_docs.first_sentence(ast.get_docstring(node, clean=False) or "")) for name, node in nodes.items()}


def test_documents_are_code_without_docstrings_and_comments():
    found = documented(MODULE)
    assert list(found) == ["m.plain", "m.Thing", "m.Thing.method", "m.branch"]
    assert found["m.plain"] == ("def plain(a, b: int=1) -> int:\n\n    def inner():\n        ...\n    return a + b", "Adds two numbers.")
    assert found["m.Thing"] == (
        "class Thing(Base):\n    size = 3\n\n    def method(self):\n        ...\n\n    def quiet(self):\n        ...",
        "A thing with parts, e.g. wheels and such.",
    )
    assert found["m.Thing.method"] == ("def method(self):\n    return self.size", "Turns the thing around")
    assert found["m.branch"] == ("def branch():\n    ...", "Takes a branch.")


def test_splits_follow_the_name_and_keep_their_shares():
    splits = [python_docs.split_of(f"package.module.function{number}") for number in range(4000)]
    assert splits[:50] == [python_docs.split_of(f"package.module.function{number}") for number in range(50)]
    # Binomial: three standard deviations of a share of .1 among 4000 are .014.
    assert abs(splits.count("validation") / 4000 - 0.1) < 0.015 and abs(splits.count("test") / 4000 - 0.1) < 0.015


@pytest.fixture(scope="module")
def collection() -> Collection:
    return PythonDocs(packages=("absl-py", "optax"), length=400).get()


def test_real_packages_give_unique_queries_for_known_documents(collection):
    assert collection.ids == sorted(set(collection.ids)) and collection.ids == collection.titles
    assert "optax._src.alias.adam" in collection.ids
    assert {name.partition(".")[0] for name in collection.ids} == {"absl", "optax"}
    assert len(set(collection.texts)) > 0.99 * len(collection.texts) and max(map(len, collection.texts)) == 400
    assert set(collection.queries) == {"train", "validation", "test"}
    texts = [text for _, some in collection.queries.values() for text in some]
    assert len({text.casefold() for text in texts}) == len(texts) > 400
    assert min(len(text.split()) for text in texts) >= 3
    for split, (ids, _) in collection.queries.items():
        assert [collection.ids[row] for row in collection.qrels[split].documents] == ids
        assert all(python_docs.split_of(name) == split for name in ids)


def test_no_document_holds_a_docstring(collection):
    assert not any('"""' in text for text in collection.texts)


def test_the_set_is_the_same_however_often_it_is_mined(collection):
    again = PythonDocs(packages=("absl-py",), length=400).read()
    rows = {name: row for row, name in enumerate(collection.ids)}
    assert [collection.texts[rows[name]] for name in again.ids] == again.texts


def test_errors_name_the_value_and_the_fix(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="'no-such-package', which is not installed"):
        PythonDocs(packages=("no-such-package",)).read()
    with pytest.raises(ValueError, match="length=0 leaves nothing of a document; use 1 or more"):
        PythonDocs(length=0)
    monkeypatch.setattr(python_docs, "_documented", lambda package: iter(()))
    with pytest.raises(ValueError, match="no function or class in absl-py has a docstring; mine other packages"):
        PythonDocs(packages=("absl-py",)).read()
