"""Ranges of a large address space."""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Ranges:
    """Which addresses are among them. Memory is for ranges that neither overlap nor touch, however long they are."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """All from ``start`` to ``end``, which is behind it."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """None of these."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if start >= end or first >= last:
            return
        before, behind = (self._starts[first], start), (end, self._ends[last - 1])
        kept = [one for one in (before, behind) if one[0] < one[1]]
        self._starts[first:last] = [one[0] for one in kept]
        self._ends[first:last] = [one[1] for one in kept]

    def clear(self) -> None:
        """There are none."""
        self._starts.clear()
        self._ends.clear()

    def covers(self, start: int, end: int) -> bool:
        """Whether all of a range, which is not empty, is among them."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]
