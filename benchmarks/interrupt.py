"""Long benchmarks in pieces: interrupted after some minutes, they save, and the same command goes on."""

from __future__ import annotations

import argparse
import signal
import threading


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """The option `--minutes`."""
    parser.add_argument("--minutes", type=float, default=0, help="interrupt, saving first, after so many minutes")


def interrupt_after(minutes: float) -> None:
    """Interrupts this process after so many minutes, as Ctrl-C would; 0 = never."""
    if minutes:
        timer = threading.Timer(60 * minutes, signal.raise_signal, (signal.SIGINT,))
        timer.daemon = True
        timer.start()
