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
Span = tuple[int, int]
"""Start and end."""
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
        self._latest: list[Span] = []
        """What has changed since the version before: start and end."""
        self._data = np.zeros(self.length, np.uint8)
        self._bytes = self._data.data
        self._base = _address(self._data)
        chunks = -(-self.length // CHUNK)
        self._known = bytearray(b"\1" * chunks if zeros else chunks)
        """A byte per chunk, which is 1 where the chunk is known."""
        self._hot = 0
        """The chunk that was the last to change."""
        self._views: Sequence[memoryview] = ()
        self._seen: list[tuple[memoryview, Bytes, int]] = []
        """The views of the last look, the same as arrays, and their addresses."""

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        self._known = bytearray(len(self._known))

    def look(self, offset: int, views: Sequence[memoryview]) -> News:
        """What is new in ``views``, which begin ``offset`` bytes into the memory.

        Looking at the same object again takes less time, so it must have the same views.
        """
        if views is not self._views:
            arrays = [np.frombuffer(view, np.uint8) for view in views]
            self._views = views
            self._seen = [(view, seen, _address(seen)) for view, seen in zip(views, arrays, strict=True)]
        part = offset
        spans: list[Span] = []
        for view, seen, place in self._seen:
            end = offset + len(view)
            for start, stop in self._changes(place - offset, offset, end):
                start, stop = self._narrowed(start, stop, seen[start - offset : stop - offset])
                if start < stop:
                    self._hot = start - start % CHUNK
                    self._bytes[start:stop] = view[start - offset : stop - offset]
                    spans.append((start, stop))
            offset = end
        pieces: list[Piece] = []
        if spans:
            self.version += 1
            self._latest = _joined(spans)
            for start, stop in spans:
                pieces += self._layout.placed(start, self._bytes[start:stop])
        # What another look has found, of a part that overlaps, has changed for who has not seen it yet.
        changes: list[tuple[int, int]] = []
        for start, stop in self._latest:
            start, stop = max(start, part), min(stop, offset)
            if start < stop:
                changes.append((start - part, stop - start))
        return News(self.version, changes, pieces)

    def _narrowed(self, start: int, stop: int, seen: Bytes) -> Span:
        """What has changed of a chunk that is known; of one that is not, all of it, and then it is."""
        chunk = start // CHUNK
        if self._known[chunk]:
            differs = (seen != self._data[start:stop]).tobytes()
            first = differs.find(1)
            if first < 0:
                return start, start  # the guest has changed it back meanwhile
            return start + first, start + differs.rfind(1) + 1
        # Where only a part of a chunk was looked at, the rest stays unknown.
        if start % CHUNK == 0 and (stop - start == CHUNK or stop == self.length):
            self._known[chunk] = 1
        return start, stop

    def _changes(self, seen: int, start: int, end: int) -> list[Span]:
        """Start and end of each chunk, or part of one, that is not as it was; what is seen of byte 0 is at ``seen``."""
        found: list[Span] = []
        base = self._base
        if 0 in self._known[start // CHUNK : -(-end // CHUNK)]:
            self._find(seen, start, end, BLOCKS[-1:], found)
            return found
        # Who draws, often goes on where he was: comparing what is before that and behind it takes two calls.
        hot = min(max(self._hot, start), end)
        behind = min(hot - hot % CHUNK + CHUNK, end)
        if start < hot and _memcmp(seen + start, base + start, hot - start):
            self._find(seen, start, hot, BLOCKS, found)
        if hot < behind and _memcmp(seen + hot, base + hot, behind - hot):
            found.append((hot, behind))
        if behind < end and _memcmp(seen + behind, base + behind, end - behind):
            self._find(seen, behind, end, BLOCKS, found)
        return found

    def _find(self, seen: int, start: int, end: int, sizes: Sequence[int], found: list[Span]) -> None:
        """Add what differs, which is looked for in blocks of the first of ``sizes``, and there in those of the next."""
        base, size = self._base, sizes[0]
        last = len(sizes) == 1
        at = start
        while at < end:
            stop = min(at - at % size + size, end)
            if _memcmp(seen + at, base + at, stop - at) or (last and not self._known[at // CHUNK]):
                if last:
                    found.append((at, stop))
                else:
                    self._find(seen, at, stop, sizes[1:], found)
            at = stop


def _address(array: Bytes) -> int:
    """Where its bytes are: what .ctypes.data says, in less time."""
    address: int = array.__array_interface__["data"][0]
    return address


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The same bytes in as few spans as possible: every look goes through them."""
    joined: list[Span] = []
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
