"""The default set for text retrieval, which needs no download: find the Python code that a sentence describes.

The first sentence of a docstring is a query; the code without its docstrings is the document that answers it. So the words of the query
are not simply those of the document: one must know that "parse a date" is `strptime`.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from jaxrec.artifact import say
from jaxrec.data.builders.python_api import STANDARD_LIBRARY, PythonApi, source_files
from jaxrec.data.builders.python_modules import first_paragraph
from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries

_Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_HELD_OUT = {"validation": 0.1, "test": 0.1}  # shares of the queries; the others are for training


@dataclasses.dataclass(frozen=True)
class PythonDocs(CollectionSource):
    """Documented functions and classes in the source of installed packages.

    A document has its qualified name as id and title, and as text its signature and body, formatted alike, without comments and
    docstrings. Of a class it is the attributes and the signatures of methods: the methods are documents of their own. Code that
    occurs twice is one document.

    A query is the first sentence of a docstring, if it has three words or more and no other document has the same. Which split it
    belongs to is decided by a hash of the document's name, so it stays there when packages change. All documents are there in
    every split.

    Attributes:
      packages: distributions to mine, by the name that pip installs; "python" is the standard library.
      length: a document's text is cut to this many characters.
    """

    packages: tuple[str, ...] = (STANDARD_LIBRARY, "numpy")
    length: int = 1200

    lexical: ClassVar[Mapping[str, bool]] = {"camel_case": True}

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length={self.length} leaves nothing of a document; use 1 or more")

    def inputs(self) -> dict[str, Any]:
        """The versions of Python and of the mined packages."""
        return PythonApi(self.packages).inputs()

    def read(self) -> Collection:
        """Mines the packages.

        Raises:
          ModuleNotFoundError: a package is not installed.
          ValueError: nothing in them is documented.
        """
        summaries: dict[str, str] = {}  # by qualified name
        texts: dict[str, str] = {}
        copies: set[str] = set()
        for package in self.packages:
            for name, node in _documented(package):
                text = _code(node)
                if name not in texts and text not in copies:
                    copies.add(text)
                    texts[name] = text[: self.length]
                    summaries[name] = first_sentence(ast.get_docstring(node, clean=False) or "")
        if not texts:
            raise ValueError(f"no function or class in {', '.join(self.packages)} has a docstring; mine other packages")
        names = sorted(texts)
        say(f"  {len(names):,} documented functions and classes in {', '.join(self.packages)}")
        uses = Counter(sentence.casefold() for sentence in summaries.values())
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            sentence = summaries[name]
            if len(sentence.split()) >= 3 and uses[sentence.casefold()] == 1:
                rows.setdefault(split_of(name), []).append(row)
        queries = {split: Queries([names[row] for row in some], [summaries[names[row]] for row in some]) for split, some in sorted(rows.items())}
        qrels = {split: Qrels.gather(np.arange(len(some)), some, np.ones(len(some), int), count=len(some)) for split, some in sorted(rows.items())}
        return Collection(names, names, [texts[name] for name in names], queries, qrels)


def _documented(package: str) -> Iterator[tuple[str, _Documented]]:
    """Qualified names and syntax trees of what has a docstring, in the order of the files, sorted, and of their lines."""
    for module, path in source_files(package):
        if path.suffix == ".py":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other people's invalid escape sequences
                yield from documented(ast.parse(path.read_bytes()), module)


def documented(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Documented]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Documented):
            name = f"{prefix}.{node.name}"
            if (ast.get_docstring(node, clean=False) or "").strip():
                yield name, node
            if isinstance(node, ast.ClassDef):  # a function within a function is part of its text
                yield from documented(node, name)
        elif isinstance(node, ast.If | ast.Try):
            yield from documented(node, prefix)


def _code(node: _Documented) -> str:
    """The source of a function or class without comments and docstrings; of a class's methods only the signatures."""
    bare = _Bare()
    return ast.unparse(bare.outline(node) if isinstance(node, ast.ClassDef) else bare.visit(node))


class _Bare(ast.NodeTransformer):
    """Takes the docstrings out of a syntax tree, on copies of what it changes."""

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, _Documented):
            return self.generic_visit(node)
        return self.generic_visit(_replace(node, _without_docstring(node)))

    def outline(self, node: ast.ClassDef) -> ast.ClassDef:
        body = [_replace(part, [ast.Expr(ast.Constant(...))]) if isinstance(part, _Documented) else part for part in _without_docstring(node)]
        return _replace(node, body)


def _without_docstring(node: _Documented) -> list[ast.stmt]:
    if ast.get_docstring(node, clean=False) is None:
        return node.body
    return node.body[1:] or [ast.Expr(ast.Constant(...))]


def _replace(node: _Documented, body: list[ast.stmt]) -> Any:
    changed = copy.copy(node)
    changed.body = body
    return changed


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring on one line: up to a full stop before a capital, or the first paragraph."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", first_paragraph(docstring))[0]


def split_of(name: str) -> str:
    """Where a query belongs, decided by its document's name alone."""
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64  # uniform in [0, 1)
    for split, share in _HELD_OUT.items():
        if draw < share:
            return split
        draw -= share
    return "train"
