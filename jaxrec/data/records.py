"""Records: the canonical form of a dataset, two TFDS datasets in ArrayRecord files, written and read without TensorFlow.

`<name>/interactions` has one example per user: `user`, the internal item ids in time order, their times and ratings where the
source has them, and the user's further columns as JSON. `<name>/items` has one example per item, in the order of the internal ids:
its outside id and its further columns as JSON. Anything that reads TFDS reads them, for instance

    tfds.data_source("amazon_p5/interactions", split="train", data_dir="<the artifact's folder>/tfds")

or, where TensorFlow is installed, `tfds.load` with the same arguments.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming

from jaxrec.data.interactions import Interactions

_DESCRIPTIONS = {"interactions": "One example per user: items in time order.", "items": "One example per item, in the order of the internal ids."}
_VERSION = "1.0.0"
_FLAT = {"items": ("sequence", np.int32), "times": ("times", np.int64), "ratings": ("ratings", np.float32)}  # feature -> (attribute, dtype)


class _Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder of both configurations."""

    VERSION = tfds.core.Version(_VERSION)
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name, description=text) for name, text in _DESCRIPTIONS.items()]
    url_infos = None  # nothing is downloaded; finding this out itself would need a package that TFDS forgets to require

    def __init__(self, name: str, interactions: Interactions, **kwargs: Any):
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] (TFDS names classes; one class records every source here)
        self.interactions = interactions
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {"id": tfds.features.Text(), "columns": tfds.features.Text()}
        if self._records_users():
            features = {"user": tfds.features.Text(), "columns": tfds.features.Text()}
            for name, (attribute, dtype) in _FLAT.items():
                if getattr(self.interactions, attribute) is not None:
                    features[name] = tfds.features.Tensor(shape=(None,), dtype=dtype)
        return tfds.core.DatasetInfo(builder=self, description=__doc__, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        data = self.interactions
        if not self._records_users():
            for row, item in enumerate(data.items):
                yield row, {"id": item, "columns": _row_as_json(data.item_fields, row)}
            return
        flat = {name: array for name, (attribute, _) in _FLAT.items() if (array := getattr(data, attribute)) is not None}
        for row, user in enumerate(data.users):
            events = slice(data.offsets[row], data.offsets[row + 1])
            yield row, {"user": user, "columns": _row_as_json(data.user_fields, row)} | {name: array[events] for name, array in flat.items()}

    def _records_users(self) -> bool:
        return self.builder_config == self.BUILDER_CONFIGS[0]


def write(interactions: Interactions, folder: Path, *, name: str) -> None:
    """Writes `interactions` as the TFDS datasets `<name>/interactions` and `<name>/items` under `folder`.

    Raises:
      ValueError: there are no users or no items, which TFDS cannot record.
    """
    if not interactions.users or not interactions.items:
        raise ValueError(
            f"{name}: nothing to record, {len(interactions.users)} users and {len(interactions.items)} items are left; "
            f"check that the source's files are the right ones and its filters (min_user, min_item, ...) not too strict"
        )
    tfds.display_progress_bar(False)
    for config in _DESCRIPTIONS:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a banner and a farewell
            builder = _Records(naming.camelcase_to_snakecase(name), interactions, data_dir=str(folder), config=config, file_format="array_record")
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def read(folder: Path, *, name: str) -> Interactions:
    """Reads what `write` wrote: equal in order, values, dtypes and in which arrays exist."""
    users = _examples(folder, name, "interactions")
    items = _examples(folder, name, "items")
    flat = {attribute: np.concatenate([user[feature] for user in users], dtype=dtype) for feature, (attribute, dtype) in _FLAT.items() if feature in users[0]}
    return Interactions(
        users=[user["user"].decode() for user in users],
        items=[item["id"].decode() for item in items],
        offsets=np.cumsum([0, *(len(user["items"]) for user in users)], dtype=np.int64),
        **flat,
        item_fields=_columns(items),
        user_fields=_columns(users),
    )


def _examples(folder: Path, name: str, config: str) -> list[dict[str, Any]]:
    builder = tfds.builder_from_directory(folder / naming.camelcase_to_snakecase(name) / config / _VERSION)
    source = builder.as_data_source("train")  # pyright: ignore[reportCallIssue] (TFDS's decorator hides the parameters)
    return source.__getitems__(range(len(source)))  # one batched read: twice as fast as one by one


def _row_as_json(columns: Any, row: int) -> str:
    return json.dumps({name: column[row] for name, column in columns.items()}, ensure_ascii=False)


def _columns(examples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    rows = [json.loads(example["columns"]) for example in examples]
    return {name: [row[name] for row in rows] for name in rows[0]}
