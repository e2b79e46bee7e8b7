"""Lengths to pad to: few, so that few programs are compiled."""

from __future__ import annotations


def padded_length(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96 ...: few lengths, so few programs to compile, with at most half of a text's length in padding above 16."""
    padded = 16
    while padded < length:
        padded = padded * 3 // 2 if padded & (padded - 1) == 0 else padded * 4 // 3
    return padded
