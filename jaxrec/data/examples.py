"""Examples: the questions of an evaluation, one per user: given this history, which item came next?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """Histories and what came next.

    Attributes:
      sequence: [E] int32 item ids 1..items of all histories, flat (whole, never cut: `seen` means all of it).
      offsets: [B + 1] int64; example b's history is `sequence[offsets[b]:offsets[b + 1]]`, never empty.
      target: [B] int32 the item that came next.
      user: [B] int32 the user's row.
      cold: [B] bool, True where the target never occurs in the training histories.
      time: [E] int32 seconds since the data set's first event, or None.
    """

    sequence: np.ndarray
    offsets: np.ndarray
    target: np.ndarray
    user: np.ndarray
    cold: np.ndarray
    time: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    def history(self, index: int) -> np.ndarray:
        """The whole history of one example, oldest first."""
        return self.sequence[self.offsets[index] : self.offsets[index + 1]]

    def select(self, index: np.ndarray) -> Examples:
        """Some of the examples, by their numbers."""
        lengths = np.diff(self.offsets)[index]
        event = np.repeat(self.offsets[index], lengths) + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        parts = (self.target[index], self.user[index], self.cold[index], None if self.time is None else self.time[event])
        return Examples(self.sequence[event], np.r_[0, np.cumsum(lengths)], *parts)

    def batches(self, size: int, length: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches of exactly `size` examples in the vocabulary of `jaxrec.method.Batch`, histories cut to their last `length` items.

        Beside history, segment, position, user [B, T] and target [B] each batch has `seen` [B, S]: the distinct items of the whole
        history, 0 = padding (S is one number for all batches, so one compile serves), and `weight` [B]: 0 for the rows that only
        fill up the last batch.
        """
        distinct = [np.unique(self.history(b)) for b in range(len(self))]
        most = max((len(items) for items in distinct), default=1)
        for begin in range(0, len(self), size):
            index = np.arange(begin, min(begin + size, len(self)))
            batch = pad_histories([self.history(int(b)) for b in index], length, rows=size)
            if self.time is not None:
                times = [self.time[self.offsets[b] : self.offsets[b + 1]] for b in index]
                batch["time"] = pad_histories(times, length, rows=size)["history"]
            seen = np.zeros((size, most), np.int32)
            for row, b in enumerate(index):
                seen[row, : len(distinct[b])] = distinct[b]
            user = np.zeros(size, np.int32)
            user[: len(index)] = self.user[index]
            target = np.ones(size, np.int32)
            target[: len(index)] = self.target[index]
            weight = (np.arange(size) < len(index)).astype(np.float32)
            yield batch | {"seen": seen, "target": target, "weight": weight, "user": np.broadcast_to(user[:, None], (size, length)).copy()}


def pad_histories(histories: list[np.ndarray], length: int, *, rows: int | None = None) -> dict[str, np.ndarray]:
    """history, segment and position [B, T] of ragged histories: their last `length` items from the left, 0 after.

    With `rows`, empty rows are added up to that many.
    """
    rows = len(histories) if rows is None else rows
    history = np.zeros((rows, length), np.int32)
    for row, items in enumerate(histories):
        tail = items[-length:]
        history[row, : len(tail)] = tail
    lengths = np.array([min(len(items), length) for items in histories] + [0] * (rows - len(histories)))
    position = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    segment = (position < lengths[:, None]).astype(np.int32)
    return {"history": history, "segment": segment, "position": position * segment}
