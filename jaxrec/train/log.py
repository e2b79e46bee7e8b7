"""What a run says while it goes: a progress line, a JSON line per report, TensorBoard curves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from jaxrec.artifact import say


class Log:
    """Reports to the terminal, `metrics.jsonl` and, where tensorboardX is installed, `tensorboard/` in the workdir.

    Args:
      workdir: of the run.
      steps: of the whole run.
      done: steps done before this process, which do not count into speed.
      per_step: histories of one step.
      quiet: no terminal output (processes other than the first).
    """

    def __init__(self, workdir: Path, steps: int, *, done: int = 0, per_step: float = 0.0, quiet: bool = False):
        self._steps, self._done, self._per_step, self._quiet = steps, done, per_step, quiet
        self._began = time.perf_counter()
        self._file = None if quiet else open(workdir / "metrics.jsonl", "a", buffering=1)  # noqa: SIM115 - closed in close()
        self._board = None
        if not quiet:
            try:
                from tensorboardX import SummaryWriter

                self._board = SummaryWriter(str(workdir / "tensorboard"))
            except ImportError:  # a bare accelerator image: JSON lines alone
                pass

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Records values at a step and refreshes the progress line."""
        if self._quiet:
            return
        seconds = time.perf_counter() - self._began
        rate = (step - self._done) / seconds if seconds > 0 else 0.0
        row = {"step": step, "seconds": round(seconds, 3), "histories_per_second": round(rate * self._per_step, 1), **{k: float(v) for k, v in values.items()}}
        assert self._file is not None
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, float(value), step)
        left = (self._steps - step) / rate if rate > 0 else 0.0
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        line = f"step {step:,}/{self._steps:,}  {shown}  {rate * self._per_step:,.0f} examples/s  ETA {clock(left)}"
        self._show(line)

    def note(self, message: str) -> None:
        """Prints a line of its own."""
        if not self._quiet:
            self._end_line()
            say(message)

    def close(self) -> None:
        if self._file is not None:
            self._end_line()
            self._file.close()
        if self._board is not None:
            self._board.close()

    def _show(self, line: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K" + line)
            sys.stderr.flush()
        else:
            say(line)

    def _end_line(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
