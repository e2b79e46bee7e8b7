"""Source: where interactions come from. One subclass per dataset, in `builders/`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jaxrec.artifact import Artifact, say
from jaxrec.data.interactions import Interactions


class Source(Artifact):
    """A dataset: a frozen dataclass that reads raw data into `Interactions`.

    `get()` reads the raw data once, records it as a TFDS dataset (`array_record`: the canonical, checksummed form), packs that
    into flat memory-mapped arrays, and from then on only maps the arrays.
    """

    def read(self) -> Interactions:
        """Reads the raw data. Errors name file, line and fix."""
        raise TypeError(f"{type(self).__name__} is a source without a read method")

    def build(self, folder: Path) -> None:
        from jaxrec.data import records  # tensorflow_datasets takes a second to import and only a build needs it

        interactions = self.read()
        say(f"  {len(interactions.users):,} users, {len(interactions.items):,} items, {len(interactions.sequence):,} interactions")
        records.write(interactions, folder / "tfds", name=type(self).__name__)
        records.read(folder / "tfds", name=type(self).__name__).save(folder)

    def load(self, folder: Path) -> Interactions:
        return Interactions.open(folder)


def locate(data_dir: str, files: Sequence[str], *, dataset: str, hint: str) -> Path:
    """The folder that holds all of `files`: `data_dir` if given, else `$JAXREC_DATA_DIR/<dataset>`, else `data/<dataset>`.

    Raises:
      FileNotFoundError: names each missing file, the folder where it belongs, and `hint`: where it comes from.
    """
    root = Path(data_dir) if data_dir else Path(os.environ.get("JAXREC_DATA_DIR") or "data") / dataset
    missing = [name for name in files if not (root / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{dataset}: {', '.join(missing)} not found in {root.absolute()}. {hint} Put the file there, or point JAXREC_DATA_DIR at "
            f"the folder that holds {dataset}/, or set the source's data_dir."
        )
    return root
