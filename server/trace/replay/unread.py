"""Ranges that a device is to read, some of them more than once."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Unread:
    """How often each byte of a large address space is still to be read. Cheap where there are many ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._counts: list[int] = []
        """Of runs of bytes with the same count, in order; they do not overlap, and no count is 0."""

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def first(self) -> int:
        """The lowest address; there has to be one."""
        return self._starts[0]

    def has(self, start: int, end: int) -> bool:
        """Whether any byte of a range is to be read."""
        first, last = self._overlapping(start, end)
        return first < last

    def add(self, start: int, end: int) -> None:
        """A range is to be read once more."""
        self._change(start, end, 1)

    def read(self, start: int, end: int) -> None:
        """A range was read once, or as much of it as is to be read."""
        self._change(start, end, -1)

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def _change(self, start: int, end: int, by: int) -> None:
        if start >= end:
            return
        first, last = self._overlapping(start, end)
        runs: list[tuple[int, int, int]] = []
        at = start
        for index in range(first, last):
            begin, stop, count = self._starts[index], self._ends[index], self._counts[index]
            low, high = max(begin, start), min(stop, end)
            runs += ((begin, low, count), (at, low, max(by, 0)), (low, high, count + by), (high, stop, count))
            at = high
        runs.append((at, end, max(by, 0)))
        kept = [run for run in runs if run[0] < run[1] and run[2] > 0]
        self._starts[first:last] = [run[0] for run in kept]
        self._ends[first:last] = [run[1] for run in kept]
        self._counts[first:last] = [run[2] for run in kept]
