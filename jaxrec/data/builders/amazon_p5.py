"""Amazon reviews 2014, five-core, as prepared for S3Rec and used by P5 and TIGER: Beauty, Sports and Outdoors, Toys and Games.

McAuley et al., 2015, arXiv:1506.04757 (the reviews); Zhou et al., 2020, arXiv:2008.07873 (the preparation). Order in time, no times, no ratings.
"""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrec.artifact import checksum
from jaxrec.data.builders.text_lines import Sequences, read_json_lines, repeated
from jaxrec.data.interactions import Interactions
from jaxrec.data.source import Source, locate

_CATEGORIES = ("beauty", "sports", "toys")
_FILES = ("sequences.txt.gz", "items.jsonl.gz")


@dataclasses.dataclass(frozen=True)
class AmazonP5(Source):
    """Amazon reviews 2014, five-core: one category, beauty, sports or toys.

    Folder `amazon_<category>_p5`:

    - `sequences.txt.gz`: a line per user, `user item item ...`, integers from 1, in time order.
    - `items.jsonl.gz`: a line per item, `{"id": 1, "asin": "B004...", "title"?: text, "categories"?: [[root, ..., leaf], ...], "attribute_ids"?: [int, ...]}`.

    Internal item ids are the file's ids; outside ids are the ASINs. Item fields, where the file has them: `title`; `categories`, the
    labels of all paths without their root (which all items share) and without repetition; `attributes`,
    the numbers of S3Rec's attributes, whose names were not published.
    """

    category: Literal["beauty", "sports", "toys"]
    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def __post_init__(self):
        if self.category not in _CATEGORIES:
            raise ValueError(f"category={self.category!r} is not one of {', '.join(_CATEGORIES)}")

    def inputs(self) -> dict[str, Any]:
        return {name: checksum(self._folder() / name) for name in _FILES}

    def read(self) -> Interactions:
        sequences_path, items_path = (self._folder() / name for name in _FILES)
        sequences = Sequences.read(sequences_path)
        rows = read_json_lines(items_path, required={"id": int, "asin": str})
        for line, row in enumerate(rows, start=1):
            if row["id"] != line:
                raise ValueError(f"{items_path}:{line}: expected id {line}, got {row['id']}; ids must be 1, 2, 3 ... in order")
            if not all(isinstance(path, list) for path in row.get("categories") or []):
                raise ValueError(f"{items_path}:{line}: categories must be a list of paths [[root, ..., leaf], ...], got {row['categories']!r}")
        again = repeated(np.array([row["asin"] for row in rows]))
        if again.any():
            line = int(np.argmax(again)) + 1
            raise ValueError(f"{items_path}:{line}: ASIN {rows[line - 1]['asin']} appears a second time; each item must have one line")
        known = np.arange(1, len(rows) + 1)
        fields: dict[str, list[Any]] = {}
        if any("title" in row for row in rows):
            fields["title"] = [html.unescape(row.get("title") or "") for row in rows]
        if any("categories" in row for row in rows):
            fields["categories"] = [_labels(row.get("categories") or []) for row in rows]
        if any("attribute_ids" in row for row in rows):
            fields["attributes"] = [[str(number) for number in row.get("attribute_ids") or []] for row in rows]
        return Interactions(
            users=[str(user) for user in sequences.users],
            items=[row["asin"] for row in rows],
            offsets=sequences.offsets,
            sequence=(sequences.rows_in(known, items_path) + 1).astype(np.int32),
            item_fields=fields,
        )

    def _folder(self) -> Path:
        hint = "The preparation is that of S3Rec (Zhou et al., 2020), with a line of JSON per item; the docstring of AmazonP5 gives both formats."
        return locate(self.data_dir, _FILES, dataset=f"amazon_{self.category}_p5", hint=hint)


def _labels(paths: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(label for path in paths for label in path[1:]))
