"""What a run says while it goes: a progress bar or line, a JSON line per report, TensorBoard curves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from jaxrec.artifact import say


class Log:
    """Reports to the terminal, `metrics.jsonl` and, where tensorboardX is installed, `tensorboard/` in the workdir.

    A run is worth more than its curves: where they cannot be written any more, it says so once and goes on.

    Args:
      workdir: of the run.
      steps: of the whole run.
      done: steps done before this process, which do not count into speed.
      per_step: histories of one step.
      quiet: no terminal output (processes other than the first).
    """

    def __init__(self, workdir: Path, steps: int, *, done: int = 0, per_step: float = 0.0, quiet: bool = False):
        self._workdir, self._steps, self._done, self._per_step, self._quiet = workdir, steps, done, per_step, quiet
        self._began = time.perf_counter()
        self._records: list[Lines | Board] = []
        if not quiet:
            self._records.append(Lines(workdir / "metrics.jsonl"))
            with contextlib.suppress(ImportError):  # a bare accelerator image: JSON lines alone
                self._records.append(Board(workdir / "tensorboard"))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Records values at a step and shows them: behind the bar on a terminal, in a line of their own elsewhere."""
        if self._quiet:
            return
        seconds = time.perf_counter() - self._began
        rate = (step - self._done) / seconds if seconds > 0 else 0.0
        row = {"seconds": round(seconds, 3), "histories_per_second": round(rate * self._per_step, 1)}
        values = {name: float(value) for name, value in values.items()}
        try:
            for record in self._records:
                record.write(step, row, values)
        except OSError as error:
            self._stop_recording(error)
        left = (self._steps - step) / rate if rate > 0 else 0.0
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self._show(step, f"step {step:,}/{self._steps:,}  {shown}  {rate * self._per_step:,.0f} examples/s  ETA {clock(left)}")

    def note(self, message: str) -> None:
        """Prints a line of its own."""
        if not self._quiet:
            self._end_line()
            say(message)

    def close(self) -> None:
        if not self._quiet:
            self._end_line()
        for record in self._records:
            record.close()

    def _stop_recording(self, error: OSError) -> None:
        self.note(f"metrics are not recorded in {self._workdir} any more, only shown here: {error}")
        for record in self._records:
            with contextlib.suppress(OSError):  # what lies in a buffer is lost
                record.close()
        self._records = []

    def _show(self, step: int, line: str) -> None:
        if sys.stderr.isatty():
            whole = f"{bar(step / self._steps if self._steps else 1.0)} {line}"
            sys.stderr.write("\r\033[K" + whole[: shutil.get_terminal_size().columns - 1])  # a line that wraps could not be written over
            sys.stderr.flush()
        else:
            say(line)

    def _end_line(self) -> None:
        if sys.stderr.isatty():
            sys.stderr.write("\n")


class Lines:
    """Appends a JSON object per report to a file; a line is in it whole or not at all."""

    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in close()

    def write(self, step: int, row: Mapping[str, float], values: Mapping[str, float]) -> None:
        line = (json.dumps({"step": step, **row, **values}) + "\n").encode()
        if (written := self._file.write(line)) < len(line):  # the disk was full in the middle of it
            self._file.truncate(self._file.tell() - written)
            raise OSError(f"{self._file.name} took {written} of the {len(line)} bytes of a line; is the disk full?")

    def close(self) -> None:
        self._file.close()


class Board:
    """Writes a TensorBoard event per value, in this thread: tensorboardX's `SummaryWriter` has a thread of its own, whose errors nobody can catch."""

    def __init__(self, folder: Path):
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined] - protobuf makes it
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(exist_ok=True)
        self._file = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"))
        self._file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def write(self, step: int, row: Mapping[str, float], values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._file.write(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)).SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def bar(share: float, width: int = 20) -> str:
    """A share, 0..1, as a bar: `[#####...............]  25%`."""
    filled = int(share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}] {share:4.0%}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
