"""The log of guest pages that the device wrote: what a client asks for to migrate a guest, or to redraw a screen.

Kept by pages of :data:`PAGE_SIZE`, whatever size a request speaks of: a report in smaller units marks all of a page's,
in larger ones each unit with a dirty page in it. So a client may start with one size and ask with another
(linux/vfio.h, VFIO_DEVICE_FEATURE_DMA_LOGGING_START: the size is a hint).
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.dirty_bitmap import FEW, Bits, DirtyBitmap, filled
from server.dma.errors import DmaError
from server.dma.regions import ADDRESS_SPACE_SIZE
from server.dma.spans import Spans

_CHUNK_SHIFT: Final = 15
_CHUNK: Final = 1 << _CHUNK_SHIFT
"""Pages per bitmap: 128 MiB of guest memory in 4 KiB."""
_CHUNK_BYTES: Final = _CHUNK // 8
MAX_CHUNKS: Final = 16_384
"""Bitmaps that may be kept, 64 MiB in all: 2 TiB of memory that is written everywhere, or so many scattered pages."""
_EVERYTHING: Final = Spans.one(0, ADDRESS_SPACE_SIZE >> PAGE_SHIFT)


class DirtyLog:
    """Which pages were written since they were last reported; inactive until :meth:`start`.

    Where more bitmaps would be needed than there may be, everything counts as written until :meth:`stop`, and
    ``on_overflow`` is called: a report of too much is slow, one of too little loses data.
    """

    def __init__(self, on_overflow: Callable[[], None], max_chunks: int = MAX_CHUNKS) -> None:
        self.active = False
        self._on_overflow = on_overflow
        self._max_chunks = max_chunks
        self._chunks: dict[int, bytearray] = {}
        self._overflown = False
        self._track(_EVERYTHING)

    def start(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Log writes to ``ranges`` (guest address and length in bytes), or to everything where there are none.

        Raises DmaError: EINVAL (started already, an empty range), EOVERFLOW (a range wraps).
        """
        if self.active:
            raise DmaError(errno.EINVAL, "DMA logging is on already")
        for iova, length in ranges:
            _check_range(iova, length)
        self._track(_union(ranges) if ranges else _EVERYTHING)
        self.active = True

    def stop(self) -> None:
        """Log no more, and forget what was logged."""
        self.active = False
        self._chunks.clear()
        self._overflown = False

    def mark(self, start: int, end: int) -> None:
        """The bytes ``[start, end)`` of guest address space were written; does nothing while inactive."""
        if not self.active or end <= start:
            return
        first, last = start >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT
        if first == last:
            # A ring's page, or a fence's, is written again and again.
            chunk = self._chunks.get(first >> _CHUNK_SHIFT)
            if chunk is not None and chunk[(first & _CHUNK - 1) >> 3] >> (first & 7) & 1:
                return
        self._mark(first, last + 1)

    def mark_spans(self, spans: Spans) -> None:
        """The pages of ``spans`` were written; does nothing while inactive."""
        if not self.active:
            return
        if len(spans.start) <= FEW:
            for first, behind in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
                self._mark(first, behind)
            return
        spans = self._part(spans)
        borders = np.flatnonzero(np.diff(spans.start >> _CHUNK_SHIFT)) + 1
        for low, high in pairwise((0, *borders.tolist(), len(spans.start))):
            self._set_spans(spans.take(slice(low, high)))

    def check_report(self, iova: int, length: int, page_size: int) -> None:
        """Raise what :meth:`report` would raise for this range."""
        if not self.active:
            raise DmaError(errno.EINVAL, "DMA logging is off")
        _check_range(iova, length)
        if iova % min(page_size, PAGE_SIZE):
            raise DmaError(
                errno.EINVAL, f"a dirty bitmap from {iova:#x} on, where no page of {page_size} starts"
            )

    def report(self, iova: int, length: int, page_size: int, written_now: Spans) -> bytes:
        """The bitmap of a range: a bit for each ``page_size`` bytes, little-endian, in whole u64s.

        ``written_now`` are pages that may be written at this moment: they are dirty each time. The rest is
        forgotten once it is reported. Time and memory are proportional to the bitmap and to what was written:
        the caller has checked that the client accepts a bitmap of that size. Raises DmaError: EINVAL (not active;
        a range that is empty, or does not begin where a unit can), EOVERFLOW (it wraps).
        """
        self.check_report(iova, length, page_size)
        bitmap = DirtyBitmap(iova, length, page_size)
        bitmap.mark_spans(self._tracked if self._overflown else self._part(written_now))
        # A page that is reported in part stays in the log: the other part has not been reported.
        whole = slice(-(-iova // PAGE_SIZE), iova + length >> PAGE_SHIFT)
        for page, bits in self._take(bitmap.first, bitmap.behind, whole):
            bitmap.mark_bits(page, bits)
        return bitmap.pack()

    def _track(self, spans: Spans) -> None:
        self._tracked = spans
        # As lists, too: a look into an array costs more than a mark does.
        self._starts: list[int] = spans.start.tolist()
        self._ends: list[int] = spans.end.tolist()

    def _part(self, spans: Spans) -> Spans:
        """The part of ``spans`` that is tracked."""
        if len(self._starts) == 1:
            return spans.clip(self._starts[0], self._ends[0])
        return spans.both(self._tracked)

    def _mark(self, first: int, behind: int) -> None:
        """Put the pages ``[first, behind)`` into the log as far as they are tracked."""
        index = bisect_right(self._ends, first)
        while index < len(self._starts) and self._starts[index] < behind:
            self._set(max(first, self._starts[index]), min(behind, self._ends[index]))
            index += 1

    def _set(self, first: int, behind: int) -> None:
        while first < behind:
            number = first >> _CHUNK_SHIFT
            chunk = self._chunks.get(number) or self._new_chunk(number)
            if chunk is None:
                return
            base = number << _CHUNK_SHIFT
            stop = min(behind, base + _CHUNK)
            _set_bits(chunk, first - base, stop - base)
            first = stop

    def _set_spans(self, spans: Spans) -> None:
        """Put spans that begin in the same bitmap into the log."""
        if len(spans.start) > FEW:
            number = int(spans.start[0]) >> _CHUNK_SHIFT
            chunk = self._chunks.get(number) or self._new_chunk(number)
            if chunk is None:
                return
            base = number << _CHUNK_SHIFT
            bits = filled(spans.start[:-1] - base, spans.end[:-1] - base, _CHUNK)
            array = np.frombuffer(chunk, np.uint8)
            array |= np.packbits(bits, bitorder="little")
            # Only the last one can reach into other bitmaps.
            spans = spans.take(slice(-1, None))
        for first, behind in zip(spans.start.tolist(), spans.end.tolist(), strict=True):
            self._set(first, behind)

    def _new_chunk(self, number: int) -> bytearray | None:
        """An empty bitmap; None where no more may be kept, and everything counts as written."""
        if self._overflown:
            return None
        if len(self._chunks) >= self._max_chunks:
            self._overflown = True
            self._chunks.clear()
            self._on_overflow()
            return None
        chunk = self._chunks[number] = bytearray(_CHUNK_BYTES)
        return chunk

    def _take(self, first: int, behind: int, whole: slice) -> Iterator[tuple[int, Bits]]:
        """The log of the pages ``[first, behind)``, bitmap by bitmap: a page number, and the bits from there on.

        The pages ``whole`` of them are in the log no longer.
        """
        low, high = first >> _CHUNK_SHIFT, (behind - 1 >> _CHUNK_SHIFT) + 1
        some = range(low, high) if high - low < len(self._chunks) else list(self._chunks)
        for number in some:
            chunk = self._chunks.get(number)
            if chunk is None or not low <= number < high:
                continue
            base = number << _CHUNK_SHIFT
            bits = np.unpackbits(np.frombuffer(chunk, np.uint8), bitorder="little").view(np.bool_)
            start = max(first - base, 0)
            yield base + start, bits[start : behind - base]
            if whole.start <= base and base + _CHUNK <= whole.stop:
                del self._chunks[number]
                continue
            bits[max(whole.start - base, 0) : max(whole.stop - base, 0)] = False
            if bits.any():
                chunk[:] = np.packbits(bits, bitorder="little").tobytes()
            else:
                del self._chunks[number]


def _set_bits(chunk: bytearray, low: int, high: int) -> None:
    """Set the bits ``[low, high)``, one at least; bit 0 of byte 0 is the first."""
    first, last = low >> 3, high - 1 >> 3
    head, tail = 0xFF << (low & 7) & 0xFF, 0xFF >> (-high & 7)
    if first == last:
        chunk[first] |= head & tail
        return
    chunk[first] |= head
    chunk[first + 1 : last] = b"\xff" * (last - first - 1)
    chunk[last] |= tail


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
