"""A peer that lives in another Python: requests and answers are lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Process:
    """Runs `script` of this folder under `python` and keeps it, so that its turns and ours can alternate.

    Args:
      python: an interpreter that has the peer's packages.
      script: file name.
      threads: how many the peer may use.
    """

    def __init__(self, python: str, script: str, threads: int):
        self._name = script
        command = [python, str(Path(__file__).parent / script), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.versions: dict[str, str] = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends one request and waits for its answer. Raises RuntimeError if the peer has died."""
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the peer."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._name} ended with status {self._process.wait()}; its own message is above. Does its Python have the packages it imports?"
            )
        return json.loads(line)
