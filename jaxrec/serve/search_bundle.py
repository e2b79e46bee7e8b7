"""SearchBundle: a folder that answers questions with documents. It needs jax, numpy and tokenizers, and neither the experiment's code nor its data.

manifest.json     what the bundle is, with size and SHA-256 of every other file;  manifest.sha256: its own
experiment.json   the configuration that was trained, for the record
params.npz        parameters by dotted name
query*.stablehlo  the query encoder for any b, by jax.export: (parameters, {"query": [b, Tq]}) -> vectors [b, N, D] and their mask [b, N]
tokenizer.json    of queries and documents
documents.jsonl   outside id, title and text of document 0, 1, ...
index/            a `MultiVectorIndex` over the documents
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from jaxrec.data.tokenizers import Frame, open_tokenizer, tokenize
from jaxrec.index.multivector import ExactMultiVector, MultiVectorIndex, Plaid
from jaxrec.serve.bundle import AGAIN, MANIFEST, near, read_manifest

RETRIEVER = "retriever"  # of manifest["system"]
ENGINES: dict[str, type[MultiVectorIndex]] = {"ExactMultiVector": ExactMultiVector, "Plaid": Plaid}
BATCH = 32  # queries that are encoded at once; smaller batches are padded to a power of two, so that few programs are compiled


@dataclass(frozen=True)
class Found:
    """One document that was found: its outside id, title and text, and its score."""

    document: str
    title: str
    text: str
    score: float


class SearchBundle:
    """What `jaxrec export` wrote of a text retriever, opened. Immutable, so threads may share it."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        """Use `open`, which checks the files first."""
        self.folder, self.manifest = folder, manifest
        with open(folder / "documents.jsonl", encoding="utf8") as file:
            self.documents: list[dict[str, str]] = [json.loads(line) for line in file]
        self._row = {document["id"]: row for row, document in enumerate(self.documents)}
        self._tokenizer = open_tokenizer(folder / "tokenizer.json")
        self._frame = Frame.of(manifest["frame"])
        self._index = ENGINES[manifest["engine"]].load(folder / "index", fingerprint=manifest["encoder"])
        program = jax.export.deserialize(bytearray((folder / manifest["programs"][jax.default_backend().replace("gpu", "cuda")]).read_bytes()))
        self._program = jax.jit(program.call)
        with np.load(folder / "params.npz", allow_pickle=False) as file:
            self._params = jax.device_put({name: file[name].view(np.dtype(kind)) for name, kind in manifest["dtypes"].items()})

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> SearchBundle:
        """Opens a bundle after checking that every file is the one that was exported; arguments and errors as of `Bundle.open`.

        Raises:
          ValueError: also for a bundle that recommends items instead of finding documents.
        """
        folder = Path(folder)
        if not is_search_bundle(folder):
            raise ValueError(f"{folder} is no bundle that searches documents; open one that recommends items with Bundle.open")
        return cls(folder, read_manifest(folder, verify))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [B, N, D] float32 of queries and their mask [B, N]; words beyond the model's `query_length` are not seen.

        Raises:
          ValueError: a query without text.
        """
        if isinstance(texts, str):
            raise ValueError(f"the queries are the text {texts!r}; give a list of texts")
        if empty := [place for place, text in enumerate(texts) if not text.strip()]:
            raise ValueError(f"query {empty[0]} has no text; ask something")
        ids, _ = tokenize(self._tokenizer, texts, self.manifest["query_length"], "query", self._frame)
        answers = []
        for low in range(0, len(ids), BATCH):
            some = ids[low : low + BATCH]
            width = 1 << (len(some) - 1).bit_length()
            padded = np.concatenate([some, np.repeat(some[:1], width - len(some), axis=0)])
            answers.append([np.asarray(part)[: len(some)] for part in self._program(self._params, {"query": padded})])
        values, masks = zip(*answers, strict=True)
        return np.concatenate(values), np.concatenate(masks)

    def search(self, texts: Sequence[str], k: int, *, allow: Sequence[str] | None = None, deny: Sequence[str] | None = None) -> list[list[Found]]:
        """The k best documents for each query, best first, equal scores by the earlier document; fewer where `allow` and `deny` leave no more.

        Args:
          texts: the queries.
          k: how many.
          allow: outside ids of the only documents that may be found; None: all.
          deny: outside ids of documents that may not.

        Raises:
          ValueError: an empty query, an unknown id, or more documents asked for than there are; names them and what to do.
        """
        if not len(texts):
            return []
        filtered = None if allow is None and deny is None else np.setdiff1d(self._rows(allow), self._rows(deny or []))
        values, mask = self.encode(texts)
        rows, scores = self._index.search(values, k, mask=mask, filter=filtered)
        return [[self._found(row, score) for row, score in zip(*answer, strict=True) if row >= 0] for answer in zip(rows, scores, strict=True)]

    def _found(self, row: int, score: float) -> Found:
        document = self.documents[row]
        return Found(document["id"], document["title"], document["text"], float(score))

    def _rows(self, ids: Sequence[str] | None) -> np.ndarray:
        if ids is None:
            return np.arange(len(self.documents))
        if unknown := [name for name in ids if name not in self._row]:
            raise ValueError(f"the bundle holds no document {unknown[0]!r}{near(unknown[0], self._row)}; its ids are like {', '.join(list(self._row)[:3])}")
        return np.array([self._row[name] for name in ids], np.int64)


def is_search_bundle(folder: Path) -> bool:
    """Whether `folder` is a bundle, and one that finds documents.

    Raises:
      FileNotFoundError: it is no bundle.
    """
    if not (Path(folder) / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} is no bundle (it has no {MANIFEST}); make one: jaxrec export experiments/NAME.py --to {folder}")
    try:
        return json.loads((Path(folder) / MANIFEST).read_text()).get("system") == RETRIEVER
    except ValueError:  # of UTF-8 or of JSON
        raise ValueError(f"{Path(folder) / MANIFEST} cannot be read; {AGAIN}") from None
