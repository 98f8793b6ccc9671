"""What the device looked at in place: which of it is new, stored once per content."""

from __future__ import annotations

import ctypes
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Bytes that are compared, and stored, as one: a guest page, where what is looked at begins on one."""
MAX_COPIES = 512 << 20
"""Bytes that copies of what was looked at may take; beyond, each look is recorded anew."""

Bytes = NDArray[np.uint8]

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


class Copy:
    """What a pin's memory was when it was last looked at, so that only changes are recorded."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """``ranges``: the start and the end of each part of the pinned memory, in order."""
        self.length = sum(end - start for start, end in ranges)
        self.version = 0
        """Counts the looks that found something new."""
        self._ranges = ranges
        self._ends = np.cumsum([end - start for start, end in ranges]).tolist()
        self._data = np.zeros(self.length, np.uint8)
        self._known = np.zeros(-(-self.length // CHUNK), np.bool_)

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        self._known[:] = False

    def look(self, offset: int, views: Sequence[memoryview]) -> list[tuple[int, memoryview]]:
        """What is new in ``views``, which begin ``offset`` bytes into the memory: guest addresses and bytes."""
        news: list[tuple[int, memoryview]] = []
        for view in views:
            end = offset + len(view)
            seen = np.frombuffer(view, np.uint8)
            if not self._same(seen, offset, end):
                for start in self._changed(seen, offset, end):
                    stop = min(start - start % CHUNK + CHUNK, end)
                    part = self._data[start:stop]
                    part[:] = seen[start - offset : stop - offset]
                    news += self._placed(start, part.data)
                    # Where only a part of a chunk was looked at, the rest stays unknown.
                    if stop - start == CHUNK or (start % CHUNK == 0 and stop == self.length):
                        self._known[start // CHUNK] = True
            offset = end
        if news:
            self.version += 1
        return news

    def _same(self, seen: Bytes, start: int, end: int) -> bool:
        if not self._known[start // CHUNK : -(-end // CHUNK)].all():
            return False
        difference: int = _memcmp(seen.ctypes.data, self._data[start:end].ctypes.data, end - start)
        return difference == 0

    def _changed(self, seen: Bytes, start: int, end: int) -> Iterator[int]:
        """Where each chunk begins that is not as it was, or the part of it that was looked at."""
        first = start - start % CHUNK
        differs = seen != self._data[start:end]
        for chunk in range(first, end, CHUNK):
            begin, stop = max(chunk, start), min(chunk + CHUNK, end)
            if not self._known[chunk // CHUNK] or differs[begin - start : stop - start].any():
                yield begin

    def _placed(self, start: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """``data`` by guest address: a chunk may be in several places."""
        while data:
            index = bisect_right(self._ends, start)
            address, _ = self._ranges[index]
            before = self._ends[index - 1] if index else 0
            size = min(self._ends[index] - start, len(data))
            yield address + start - before, data[:size]
            data = data[size:]
            start += size


class Copies:
    """The copies of all pins; those of pins that are gone go by themselves."""

    def __init__(self) -> None:
        self._copies: weakref.WeakKeyDictionary[object, Copy] = weakref.WeakKeyDictionary()
        self._uncopied = 0

    def look(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> tuple[int, list[tuple[int, memoryview]]]:
        """The version of what is looked at, and what of it is new."""
        copy = self._copies.get(pins)
        if copy is None:
            copy = Copy(ranges)
            if copy.length + sum(other.length for other in self._copies.values()) > MAX_COPIES:
                self._uncopied += 1
                return -self._uncopied, copy.look(offset, views)
            self._copies[pins] = copy
        news = copy.look(offset, views)
        return copy.version, news

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        for copy in self._copies.values():
            copy.forget()
