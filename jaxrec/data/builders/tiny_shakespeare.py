"""Tiny Shakespeare: 1.1 million characters of the plays in one file, the small corpus of language modelling (Karpathy 2015, char-rnn)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxrec.artifact import checksum
from jaxrec.data.builders.text_lines import decode, read_bytes
from jaxrec.data.source import locate
from jaxrec.data.text import TextSource

_FILE = "input.txt.gz"


@dataclasses.dataclass(frozen=True)
class TinyShakespeare(TextSource):
    """The first nine tenths of the text to train on, then half a tenth each to validate and to test.

    Folder `tinyshakespeare`: `input.txt.gz`, the text, gzipped or not.

    Attributes:
      data_dir: the folder; empty: `$JAXREC_DATA_DIR/tinyshakespeare`.
    """

    data_dir: str = dataclasses.field(default="", metadata={"fingerprint": False})

    def inputs(self) -> dict[str, Any]:
        return {_FILE: checksum(self._path())}

    def read(self) -> dict[str, str]:
        text = decode(read_bytes(self._path()), self._path())
        first, second = len(text) * 90 // 100, len(text) * 95 // 100
        return {"train": text[:first], "validation": text[first:second], "test": text[second:]}

    def _path(self) -> Path:
        hint = "It is data/tinyshakespeare/input.txt of github.com/karpathy/char-rnn."
        return locate(self.data_dir, (_FILE,), dataset="tinyshakespeare", hint=hint) / _FILE
