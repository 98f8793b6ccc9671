"""What the device looked at in place: which of it is new, stored once per content."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Bytes that are stored as one: a guest page, where what is looked at begins on one."""
BLOCKS = (128 * CHUNK, 16 * CHUNK, CHUNK)
"""Bytes that are compared at once; where they differ, in smaller blocks."""
MAX_COPIES = 512 << 20
"""Bytes that copies of what was looked at may take; beyond, each look is recorded anew."""

Bytes = NDArray[np.uint8]
Piece = tuple[int, memoryview]
"""A guest address, and the bytes there."""

_series = itertools.count(1)
"""Versions of one copy are in a row, and none is another copy's: who holds a copied picture may outlive the pin."""
_VERSIONS = 32
"""Bits for the versions of one copy."""

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


class News(NamedTuple):
    """What a look found."""

    version: int
    spans: Sequence[tuple[int, int]]
    """What of the part has changed since the version before: offsets and lengths in it."""
    pieces: Iterable[Piece]
    """What nobody has seen yet, by guest address; good until the next look."""


class Layout:
    """Where pinned memory is in the guest."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """``ranges``: the start and the end of each part of the pinned memory, in order."""
        self._ranges = ranges
        self._ends = list(itertools.accumulate(end - start for start, end in ranges))
        self.length = self._ends[-1] if self._ends else 0

    def placed(self, start: int, data: memoryview) -> Iterator[Piece]:
        """``data``, which is ``start`` bytes into the memory, by guest address: a chunk may be in several places."""
        while data:
            index = bisect_right(self._ends, start)
            address, _ = self._ranges[index]
            before = self._ends[index - 1] if index else 0
            size = min(self._ends[index] - start, len(data))
            yield address + start - before, data[:size]
            data = data[size:]
            start += size

    def anew(self, offset: int, views: Sequence[memoryview]) -> Iterator[Piece]:
        """All of ``views``, chunk by chunk."""
        for view in views:
            at = 0
            while at < len(view):
                size = min(CHUNK - (offset + at) % CHUNK, len(view) - at)
                yield from self.placed(offset + at, memoryview(bytes(view[at : at + size])))
                at += size
            offset += len(view)


class Copy:
    """What a pin's memory was when it was last looked at, so that only changes are recorded."""

    def __init__(self, layout: Layout, *, zeros: bool = False) -> None:
        """``zeros``: that is what was there, as far as readers know, before the first look."""
        self.length = layout.length
        self.version = next(_series) << _VERSIONS
        """Counts the looks that found something new."""
        self._layout = layout
        self._latest: list[tuple[int, int]] = []
        """What has changed since the version before: start and end."""
        self._data = np.zeros(self.length, np.uint8)
        self._base = self._data.ctypes.data
        self._known = np.full(-(-self.length // CHUNK), zeros, np.bool_)
        self._unknown = 0 if zeros else len(self._known)
        """How many chunks are not known."""
        self._hot = 0
        """The chunk that was the last to change."""

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        self._known[:] = False
        self._unknown = len(self._known)

    def look(self, offset: int, views: Sequence[memoryview]) -> News:
        """What is new in ``views``, which begin ``offset`` bytes into the memory."""
        part = offset
        spans: list[tuple[int, int]] = []
        for view in views:
            seen = np.frombuffer(view, np.uint8)
            end = offset + len(view)
            place: int = seen.__array_interface__["data"][0]  # what .ctypes.data says, in half the time
            for start, stop in self._changes(place - offset, offset, end):
                start, stop = self._narrowed(start, stop, seen[start - offset : stop - offset])
                if start < stop:
                    self._hot = start - start % CHUNK
                    self._data[start:stop] = seen[start - offset : stop - offset]
                    spans.append((start, stop))
            offset = end
        if spans:
            self.version += 1
            self._latest = _joined(spans)
        # What another look has found, of a part that overlaps, has changed for who has not seen it yet.
        changes = [(max(start, part), min(stop, offset)) for start, stop in self._latest]
        changes = [(start - part, stop - start) for start, stop in changes if start < stop]
        pieces = [
            piece
            for start, stop in spans
            for piece in self._layout.placed(start, self._data[start:stop].data)
        ]
        return News(self.version, changes, pieces)

    def _narrowed(self, start: int, stop: int, seen: Bytes) -> tuple[int, int]:
        """What has changed of a chunk that is known; of one that is not, all of it, and then it is."""
        chunk = start // CHUNK
        if self._known[chunk]:
            changed = np.flatnonzero(seen != self._data[start:stop])
            if not len(changed):
                return start, start  # the guest has changed it back meanwhile
            return start + int(changed[0]), start + int(changed[-1]) + 1
        # Where only a part of a chunk was looked at, the rest stays unknown.
        if start % CHUNK == 0 and (stop - start == CHUNK or stop == self.length):
            self._known[chunk] = True
            self._unknown -= 1
        return start, stop

    def _changes(self, seen: int, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Start and end of each chunk, or part of one, that is not as it was; what is seen of byte 0 is at ``seen``."""
        if self._unknown and not self._known[start // CHUNK : -(-end // CHUNK)].all():
            yield from self._differing(seen, start, end, BLOCKS[-1:])
            return
        # Who draws, often goes on where he was: comparing what is before that and behind it takes two calls.
        hot = min(max(self._hot, start), end)
        behind = min(hot - hot % CHUNK + CHUNK, end)
        for first, last in ((start, hot), (hot, behind), (behind, end)):
            if first >= last or not _memcmp(seen + first, self._base + first, last - first):
                continue
            if first == hot:
                yield first, last
            else:
                yield from self._differing(seen, first, last, BLOCKS)

    def _differing(self, seen: int, start: int, end: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
        base, size = self._base, sizes[0]
        last = len(sizes) == 1
        at = start
        while at < end:
            stop = min(at - at % size + size, end)
            if _memcmp(seen + at, base + at, stop - at) or (last and not self._known[at // CHUNK]):
                if last:
                    yield at, stop
                else:
                    yield from self._differing(seen, at, stop, sizes[1:])
            at = stop


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in as few spans as possible: every look goes through them."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


class Copies:
    """The copies of all pins; those of pins that are gone go by themselves."""

    def __init__(self) -> None:
        self._copies: weakref.WeakKeyDictionary[object, Copy] = weakref.WeakKeyDictionary()

    def look(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> News:
        """The version of what is looked at, and what of it is new."""
        copy = self._copies.get(pins)
        if copy is None:
            layout = Layout(ranges)
            if layout.length + sum(other.length for other in self._copies.values()) > MAX_COPIES:
                everything = [(0, sum(map(len, views)))]
                return News(next(_series) << _VERSIONS, everything, layout.anew(offset, views))
            copy = self._copies[pins] = Copy(layout)
        return copy.look(offset, views)

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        for copy in self._copies.values():
            copy.forget()
