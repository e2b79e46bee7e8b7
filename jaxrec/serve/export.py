"""Export: a trained encoder or generator as a `Bundle`, a folder that recommends without the code that trained it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrec.artifact import replacing, say
from jaxrec.data.interactions import Interactions
from jaxrec.data.passages import Passages
from jaxrec.data.sequences import with_histories
from jaxrec.evals.encoding import encode
from jaxrec.experiment import Experiment, describe
from jaxrec.index import ScannIndex
from jaxrec.index.multivector import ExactMultiVector, Plaid
from jaxrec.index.multivector.plaid import NORM
from jaxrec.index.scann import installed
from jaxrec.method import Encoder, Generator
from jaxrec.param import Tree, fingerprint, flatten
from jaxrec.serve.bundle import MANIFEST, write_manifest
from jaxrec.serve.programs import LISTED, single, write_encoder, write_generator, write_retriever
from jaxrec.serve.search_bundle import RETRIEVER

ITEMS = 8192  # items that are encoded at once
EXACT = 100_000  # documents up to which a search of all of them is fast enough


def export(experiment: Experiment, params: Tree, step: int, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """Writes a bundle, whole or not at all; a bundle that is there already is replaced.

    Args:
      experiment: resolved; its method is an `Encoder` with one vector per query and item, or a `Generator`. One that is both is served as an encoder.
        With `Passages` as data it is an `Encoder` of texts, and a `SearchBundle` is written.
      params: of the method.
      step: of the parameters.
      folder: to write.
      metrics: how good it is, for the manifest.

    Raises:
      TypeError: the method is neither.
      ValueError: an encoder that gives several vectors per query or item, or a generator that takes no lists of denied and allowed items.
      FileExistsError: `folder` exists and is no bundle.
    """
    if isinstance(experiment.data, Passages):
        return export_search(experiment, params, step, folder, metrics=metrics)
    method, data = experiment.method, with_histories(experiment.data)
    if not isinstance(method, (Encoder, Generator)):
        raise TypeError(
            f"{type(method).__name__} does not encode queries and items into vectors, and does not generate items; "
            "only an Encoder or a Generator can be exported"
        )
    interactions, length = data.source.get(), data.length
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    with replacing(folder, MANIFEST, "a bundle") as partial:
        if isinstance(method, Encoder):
            system = _write_encoder(partial, method, params, leaves, length, len(interactions.items))
        else:
            programs, inputs = write_generator(partial, method, leaves, length)
            system = {"system": "generator", "beams": method.beams, "listed": LISTED, "programs": programs, "inputs": inputs}
        _write_names(partial, interactions, users="user" in system["inputs"])
        times = {"time_origin": None if interactions.times is None else int(interactions.times.min())}
        _seal(partial, experiment, leaves, step, metrics, {"items": len(interactions.items), "length": length, **times, **system})
    found = f"{system['dim']} dimensions" if "dim" in system else f"{system['beams']} beams"
    say(f"wrote {folder}: {len(interactions.items):,} items, {found}")


def export_search(experiment: Experiment, params: Tree, step: int, folder: Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """As `export`, of an `Encoder` of texts: a `SearchBundle`. Up to `EXACT` documents are searched exactly, more of unit vectors through centroids."""
    method, data = experiment.method, experiment.data
    assert isinstance(data, Passages)
    if not isinstance(method, Encoder):
        raise TypeError(f"{type(method).__name__} does not encode texts into vectors; only an Encoder can be exported with {type(data).__name__}")
    collection = data.collection()
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    documents = encode(method, params, data.tokens()["documents"], "document", pad=data.info()["pad"])
    encoder = fingerprint(leaves)
    if len(documents) <= EXACT:
        engine = ExactMultiVector(fingerprint=encoder)
    else:  # Plaid keeps directions alone
        unit = np.allclose(np.linalg.norm(documents.values, axis=1), 1, atol=NORM)
        engine = Plaid(fingerprint=encoder) if unit else ExactMultiVector(storage="float16", fingerprint=encoder)
    engine.add(np.arange(len(documents)), documents.values, np.diff(documents.offsets))
    with replacing(folder, MANIFEST, "a bundle") as partial:
        programs = write_retriever(partial, method, leaves, data.query_length)
        engine.save(partial / "index")
        data.tokenizer.get().save(str(partial / "tokenizer.json"))
        with open(partial / "documents.jsonl", "w", encoding="utf8") as file:
            for document in zip(collection.ids, collection.titles, collection.texts, strict=True):
                file.write(json.dumps(dict(zip(("id", "title", "text"), document, strict=True)), ensure_ascii=False) + "\n")
        lengths = {"query_length": data.query_length, "document_length": data.document_length}
        said = {"system": RETRIEVER, "documents": len(documents), "dim": documents.values.shape[1], "engine": type(engine).__name__, "encoder": encoder}
        frame = dataclasses.asdict(data.tokenizer.frame())
        _seal(partial, experiment, leaves, step, metrics, {**said, **lengths, "frame": frame, "programs": programs})
    say(f"wrote {folder}: {len(documents):,} documents, {len(documents.values):,} vectors of {documents.values.shape[1]} dimensions")


def _seal(folder: Path, experiment: Experiment, leaves: Mapping[str, np.ndarray], step: int, metrics: Mapping[str, float] | None, said: dict[str, Any]) -> None:
    """Writes the parameters and the configuration, and what the bundle is."""
    np.savez(folder / "params.npz", allow_pickle=False, **{name: _plain(leaf) for name, leaf in leaves.items()})
    (folder / "experiment.json").write_text(json.dumps(describe(experiment), indent=1))
    manifest = {
        "name": experiment.name,
        "method": type(experiment.method).__name__,
        "step": step,
        "metrics": dict(metrics or {}),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {package: _version(package) for package in ("jaxrec", "jax", "jaxlib", "numpy", "scann")},
        "dtypes": {name: str(leaf.dtype) for name, leaf in leaves.items()},
        **said,
    }
    write_manifest(folder, manifest)


def _write_encoder(folder: Path, method: Encoder, params: Tree, leaves: Mapping[str, Any], length: int, items: int) -> dict[str, Any]:
    """Writes the query encoder and the vectors of the items, with their index; returns what the manifest says of them."""
    programs, inputs = write_encoder(folder, method, leaves, length)
    vectors = item_vectors(method, params, items)  # [N + 1, D]
    np.save(folder / "items.npy", vectors, allow_pickle=False)
    # Where ScaNN does not exist, the index is one that never builds a tree.
    ScannIndex(np.arange(1, len(vectors)), vectors[1:], **{} if installed() else {"exact_below": sys.maxsize}).save(folder / "index")
    return {"system": "encoder", "dim": vectors.shape[1], "programs": programs, "inputs": inputs}


def item_vectors(method: Encoder, params: Tree, items: int) -> np.ndarray:
    """[N + 1, D] float32 vectors of the items, row = id; row 0 is that of padding."""

    @jax.jit
    def encode(params: Tree, ids: jax.Array) -> jax.Array:
        return single(method.encode_item(params, {"item": ids}).values, method, "item")

    ids = np.arange(items + 1, dtype=np.int32)
    size = min(ITEMS, len(ids))
    ids = np.concatenate([ids, np.zeros(-len(ids) % size, np.int32)])  # whole chunks, so that one program serves all
    vectors = [np.asarray(encode(params, chunk)) for chunk in ids.reshape(-1, size)]
    return np.concatenate(vectors)[: items + 1]


def _plain(array: np.ndarray) -> np.ndarray:
    """The array, or its bits where NumPy's files do not know the type (bfloat16)."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _write_names(folder: Path, interactions: Interactions, *, users: bool) -> None:
    with open(folder / "items.jsonl", "w") as file:
        for row, (item, title) in enumerate(zip(interactions.items, interactions.titles(), strict=True)):
            columns = {name: column[row] for name, column in interactions.item_fields.items() if name != "title"}
            file.write(json.dumps({"id": item, "title": title, "columns": columns}) + "\n")
    if users:
        (folder / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in interactions.users))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # not installed, or run from its sources
        return None
