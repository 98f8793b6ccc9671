"""The log of guest pages that the device wrote: what a client asks for to migrate a guest, or to redraw a screen.

Kept by pages of :data:`PAGE_SIZE`, whatever size a request speaks of: a report in smaller units marks all of a page's,
in larger ones each unit with a dirty page in it. So a client may start with one size and ask with another
(linux/vfio.h, VFIO_DEVICE_FEATURE_DMA_LOGGING_START: the size is a hint).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.errors import DmaError
from server.dma.regions import ADDRESS_SPACE_SIZE
from server.dma.spans import Ints, Spans

_CHUNK_SHIFT: Final = 15
_CHUNK: Final = 1 << _CHUNK_SHIFT
"""Pages per bitmap: 128 MiB of guest memory in 4 KiB."""
_CHUNK_BYTES: Final = _CHUNK // 8
_FULL: Final = (1 << _CHUNK) - 1
MAX_CHUNKS: Final = 16_384
"""Bitmaps that may be kept, 64 MiB in all: 2 TiB of memory that is written everywhere, or so many scattered pages."""
_PAGES: Final = ADDRESS_SPACE_SIZE >> PAGE_SHIFT


class DirtyLog:
    """Which pages were written since they were last reported; inactive until :meth:`start`.

    Where more bitmaps would be needed than there may be, everything counts as written until :meth:`stop`, and
    ``on_overflow`` is called: a report of too much is slow, one of too little loses data.
    """

    def __init__(self, on_overflow: Callable[[], None], max_chunks: int = MAX_CHUNKS) -> None:
        self.active = False
        self._on_overflow = on_overflow
        self._max_chunks = max_chunks
        self._chunks: dict[int, int] = {}
        self._everything = False
        self._tracked = Spans.one(0, _PAGES)

    def start(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Log writes to ``ranges`` (guest address and length in bytes), or to everything where there are none.

        Raises DmaError: EINVAL (started already, an empty range), EOVERFLOW (a range wraps).
        """
        if self.active:
            raise DmaError(errno.EINVAL, "DMA logging is on already")
        for iova, length in ranges:
            _check_range(iova, length)
        self._tracked = _union(ranges) if ranges else Spans.one(0, _PAGES)
        self.active = True

    def stop(self) -> None:
        """Log no more, and forget what was logged."""
        self.active = False
        self._chunks.clear()
        self._everything = False

    def mark(self, start: int, end: int) -> None:
        """The bytes ``[start, end)`` of guest address space were written; does nothing while inactive."""
        if not self.active or end <= start:
            return
        first, behind = start >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1
        if len(self._tracked.start) == 1:
            self._set(max(first, int(self._tracked.start[0])), min(behind, int(self._tracked.end[0])))
        else:
            self._mark(Spans.one(first, behind))

    def mark_spans(self, spans: Spans) -> None:
        """The pages of ``spans`` were written; does nothing while inactive."""
        if self.active:
            self._mark(spans)

    def report(self, iova: int, length: int, page_size: int, written_now: Spans) -> bytes:
        """The bitmap of a range: a bit for each ``page_size`` bytes, little-endian, in whole u64s.

        ``written_now`` are pages that may be written at this moment: they are dirty each time. The rest is
        forgotten once it is reported. Time and memory are proportional to the bitmap and to what was written:
        the caller has checked that the client accepts a bitmap of that size. Raises DmaError: EINVAL (not active;
        a range that is empty, or does not begin where a unit can), EOVERFLOW (it wraps).
        """
        if not self.active:
            raise DmaError(errno.EINVAL, "DMA logging is off")
        _check_range(iova, length)
        if iova % min(page_size, PAGE_SIZE):
            raise DmaError(
                errno.EINVAL, f"a dirty bitmap from {iova:#x} on, where no page of {page_size} starts"
            )
        units = _Units(iova, length, page_size)
        written = written_now.both(self._tracked)
        if self._everything:
            written = self._tracked
        for start, end in zip(
            *(part.tolist() for part in written.clip(units.first, units.behind)), strict=True
        ):
            units.mark_span(start, end)
        for pages in self._take(units.first, units.behind):
            units.mark_pages(pages)
            self._keep_half_pages(pages, iova, iova + length)
        return units.pack()

    def _mark(self, spans: Spans) -> None:
        spans = spans.both(self._tracked)
        for first, behind in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
            self._set(first, behind)

    def _set(self, first: int, behind: int) -> None:
        while first < behind and not self._everything:
            number = first >> _CHUNK_SHIFT
            base = number << _CHUNK_SHIFT
            stop = min(behind, base + _CHUNK)
            bits = _FULL if stop - first == _CHUNK else (1 << stop - first) - 1 << first - base
            self._chunks[number] = self._chunks.get(number, 0) | bits
            if len(self._chunks) > self._max_chunks:
                self._everything = True
                self._chunks.clear()
                self._on_overflow()
            first = stop

    def _take(self, first: int, behind: int) -> Iterator[Ints]:
        """The logged pages of ``[first, behind)``, bitmap by bitmap; they are in the log no longer."""
        low, high = first >> _CHUNK_SHIFT, (behind - 1 >> _CHUNK_SHIFT) + 1
        few = high - low < len(self._chunks)
        for number in range(low, high) if few else list(self._chunks):
            if not low <= number < high or number not in self._chunks:
                continue
            bits = self._chunks.pop(number)
            base = number << _CHUNK_SHIFT
            wanted = _FULL & ((1 << min(behind - base, _CHUNK)) - (1 << max(first - base, 0)))
            if bits & ~wanted:
                self._chunks[number] = bits & ~wanted
            packed = np.frombuffer((bits & wanted).to_bytes(_CHUNK_BYTES, "little"), np.uint8)
            yield np.flatnonzero(np.unpackbits(packed, bitorder="little")) + base

    def _keep_half_pages(self, pages: Ints, start: int, end: int) -> None:
        """A page that is reported in part stays in the log: the other part has not been reported."""
        first, last = start >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT
        for half in (first,) * (start % PAGE_SIZE > 0) + (last,) * (end % PAGE_SIZE > 0):
            if half in pages:
                self._set(half, half + 1)


class _Units:
    """The bits of a report, a unit of ``page_size`` bytes each from ``iova`` on: pages are marked, bits come out.

    ``first`` and ``behind`` are the first page of all and the one behind the last.
    """

    def __init__(self, iova: int, length: int, page_size: int) -> None:
        self.first = iova >> PAGE_SHIFT
        self.behind = (iova + length - 1 >> PAGE_SHIFT) + 1
        self._per_page = max(PAGE_SIZE // page_size, 1)
        self._pages_per = max(page_size // PAGE_SIZE, 1)
        self._skip = (iova - (self.first << PAGE_SHIFT)) // page_size
        self._bits = np.zeros(-(-length // page_size), np.bool_)

    def mark_span(self, start: int, end: int) -> None:
        """Mark the pages ``[start, end)``, which are within the range."""
        low = (start - self.first) // self._pages_per * self._per_page - self._skip
        high = ((end - 1 - self.first) // self._pages_per + 1) * self._per_page - self._skip
        self._bits[max(low, 0) : high] = True

    def mark_pages(self, pages: Ints) -> None:
        """Mark single pages, which are within the range."""
        units = (pages - self.first) // self._pages_per * self._per_page - self._skip
        if self._per_page == 1:
            self._bits[units] = True
            return
        for unit in units.tolist():
            self._bits[max(unit, 0) : unit + self._per_page] = True

    def pack(self) -> bytes:
        """The bitmap, in whole u64s."""
        words = np.zeros(-(-len(self._bits) // 64) * 64, np.bool_)
        words[: len(self._bits)] = self._bits
        return np.packbits(words, bitorder="little").tobytes()


def _check_range(iova: int, length: int) -> None:
    if length <= 0:
        raise DmaError(errno.EINVAL, "DMA logging of an empty range")
    if iova + length > ADDRESS_SPACE_SIZE:
        raise DmaError(errno.EOVERFLOW, f"{iova:#x}+{length:#x} wraps")


def _union(ranges: Sequence[tuple[int, int]]) -> Spans:
    """The pages that any of the ranges touches."""
    merged: list[list[int]] = []
    for iova, length in sorted(ranges):
        first, behind = iova >> PAGE_SHIFT, (iova + length - 1 >> PAGE_SHIFT) + 1
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], behind)
        else:
            merged.append([first, behind])
    start, end = np.array(merged, np.int64).T
    return Spans(start, end)
