"""The default set of long documents, which needs no download: find the Python module whose documentation a sentence was taken from.

A document is all that a module says of itself, thousands of words; a query is the first sentence of one of its docstrings, which is then taken out of the
document. So the document that answers a query does not hold it, and which part of it answers is known: results can be cut by where it stands.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxrec.artifact import say
from jaxrec.data.builders.python_api import STANDARD_LIBRARY, PythonApi, source_files
from jaxrec.data.builders.python_docs import documented, first_sentence, split_of
from jaxrec.data.collection import Collection, CollectionSource, Qrels, Queries

_BLANK = "\n\n"  # between blocks, and nowhere else


@dataclasses.dataclass
class _Block:
    """What a module says of one function or class: a line with its signature, then its docstring, a line per paragraph."""

    heading: str
    text: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class PythonModules(CollectionSource):
    """Modules in the source of installed packages, by their docstrings.

    A document has the module's name as id and title. Its text begins with the module's own docstring; then come blocks, apart by blank lines, one for each
    documented function and class in the order of the source: its signature on a line, and its docstring. Code is not part of it.

    A query has the qualified name of what it was taken from as id. It is the first sentence of a docstring, of three words or more, that no other docstring
    begins with and that, once it is taken out, its document does not hold. Which split a query belongs to is decided by a hash of the module's name: the
    modules of the test have no query in training. All documents are there in every split.

    Attributes:
      packages: distributions to mine, by the name that pip installs; "python" is the standard library.
      words: a module with fewer words is left out.
      queries: taken from a module at most, chosen by hashes of their names.
    """

    packages: tuple[str, ...] = (STANDARD_LIBRARY, "flax", "jax", "matplotlib", "numpy", "optax", "scikit-learn", "scipy")
    words: int = 500
    queries: int = 8

    lexical: ClassVar[Mapping[str, bool]] = {"camel_case": True}

    def __post_init__(self):
        if self.words < 1 or self.queries < 1:
            raise ValueError(f"words={self.words} and queries={self.queries} must be 1 or more")

    def inputs(self) -> dict[str, Any]:
        """The versions of Python and of the mined packages."""
        return PythonApi(self.packages).inputs()

    def read(self) -> Collection:
        """Mines the packages.

        Raises:
          ModuleNotFoundError: a package is not installed.
          ValueError: no module in them has so many words.
        """
        modules: dict[str, tuple[str, dict[str, _Block]]] = {}  # (its own docstring, blocks by qualified name) by module
        for package in self.packages:
            for module, path in source_files(package):
                if path.suffix == ".py" and module not in modules:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # other people's invalid escape sequences
                        tree = ast.parse(path.read_bytes())
                    opening, blocks = _prose(ast.get_docstring(tree, clean=False)), _blocks(tree, module)
                    if len(_document(opening, blocks).split()) >= self.words:
                        modules[module] = opening, blocks
        if not modules:
            raise ValueError(f"no module in {', '.join(self.packages)} has words={self.words} in its docstrings; lower words, or mine other packages")
        names = sorted(modules)
        uses = Counter(block.sentence.casefold() for _, blocks in modules.values() for block in blocks.values())
        texts: list[str] = []
        asked: dict[str, list[tuple[str, str, int]]] = {}  # (name, sentence, row) by split
        for row, module in enumerate(names):
            opening, blocks = modules[module]
            chosen = self._choose(opening, blocks, {sentence for sentence, count in uses.items() if count == 1})
            asked.setdefault(split_of(module), []).extend((name, blocks[name].sentence, row) for name in chosen)
            texts.append(_document(opening, {name: _without_sentence(block) if name in chosen else block for name, block in blocks.items()}))
        lengths = [len(text.split()) for text in texts]
        say(f"  {len(names):,} modules of {int(np.median(lengths)):,} words (median; the longest {max(lengths):,}) in {', '.join(self.packages)}")
        queries = {split: Queries([name for name, _, _ in some], [text for _, text, _ in some]) for split, some in sorted(asked.items()) if some}
        qrels = {s: Qrels.gather(np.arange(len(asked[s])), [row for _, _, row in asked[s]], np.ones(len(asked[s]), int), count=len(asked[s])) for s in queries}
        return Collection(names, names, texts, queries, qrels)

    def _choose(self, opening: str, blocks: dict[str, _Block], single: set[str]) -> list[str]:
        """The names, in the order of the source, of the blocks whose sentences are queries."""

        def asks(name: str) -> bool:
            sentence = blocks[name].sentence
            if len(sentence.split()) < 3 or sentence.casefold() not in single:
                return False
            return sentence not in _document(opening, {**blocks, name: _without_sentence(blocks[name])})

        order = sorted(blocks, key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen: list[str] = []
        for name in order:
            if len(chosen) == self.queries:
                break
            if asks(name):
                chosen.append(name)
        return [name for name in blocks if name in chosen]


def answer_spans(collection: Collection, split: str) -> np.ndarray:
    """[Q, 2] int64: where in the text of its document the block that a query of `PythonModules` was taken from begins and ends, in characters.

    The block's signature is still there, and what is left of its docstring.
    """
    spans = []
    for name, row in zip(collection.queries[split].ids, collection.qrels[split].documents, strict=True):
        text, heading = collection.texts[row], _heading(name, collection.ids[row])
        begin = text.find(_BLANK + heading)
        if begin < 0:
            raise ValueError(f"{split}: the document of query {name!r} has no block {heading!r}; spans are known of a collection of PythonModules")
        begin += len(_BLANK)
        end = text.find(_BLANK, begin)
        spans.append((begin, len(text) if end < 0 else end))
    return np.array(spans, np.int64)


def _blocks(tree: ast.Module, module: str) -> dict[str, _Block]:
    """By qualified name; of what is defined twice, in two branches, the first."""
    blocks: dict[str, _Block] = {}
    for name, node in documented(tree, module):
        if name not in blocks:
            docstring = ast.get_docstring(node, clean=False)
            if isinstance(node, ast.ClassDef):
                rest = ", ".join(ast.unparse(base) for base in node.bases) + ")"
            else:
                rest = f"{ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
            blocks[name] = _Block(_heading(name, module) + " ".join(rest.split()), _prose(docstring), first_sentence(docstring or ""))
    return blocks


def _heading(name: str, module: str) -> str:
    """How the block of a qualified name begins: its name within the module, and a parenthesis."""
    return f"{name.removeprefix(module + '.')}("


def _prose(docstring: str | None) -> str:
    """A line for each paragraph."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in inspect.cleandoc(docstring or "").split("\n\n"))
    return "\n".join(filter(None, paragraphs))


def _without_sentence(block: _Block) -> _Block:
    return dataclasses.replace(block, text=block.text.replace(block.sentence, "", 1).strip())


def _document(opening: str, blocks: Mapping[str, _Block]) -> str:
    """The module's own docstring, then a blank line and a block each."""
    return opening + "".join(f"{_BLANK}{block.heading}\n{block.text}".rstrip() for block in blocks.values())
