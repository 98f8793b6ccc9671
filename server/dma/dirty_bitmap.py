"""A dirty bitmap in the making: pages are marked, and bits for units of any size come out."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.wire import bitmap_size
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.spans import Ints, Spans

Bits = NDArray[np.bool_]

FEW: Final = 32
"""So many spans are set one by one; more of them at once, which takes time for every bit of the range."""


class DirtyBitmap:
    """The bits of a report, one per ``page_size`` bytes from ``iova`` on.

    ``first`` and ``behind`` are the first page that the range touches and the one behind the last; memory and time
    are proportional to the bitmap, whose size the caller has checked. Bits are kept for pages or larger units:
    smaller ones are all as their page is.
    """

    def __init__(self, iova: int, length: int, page_size: int) -> None:
        self.first = iova >> PAGE_SHIFT
        self.behind = (iova + length - 1 >> PAGE_SHIFT) + 1
        self._pages_per_bit = max(page_size // PAGE_SIZE, 1)
        self._units_per_bit = max(PAGE_SIZE // page_size, 1)
        self._skip = iova % PAGE_SIZE // page_size
        self._count = -(-length // page_size)
        self._size = bitmap_size(length, page_size)
        self._bits = np.zeros(-(-(self.behind - self.first) // self._pages_per_bit), np.bool_)

    def mark_spans(self, spans: Spans) -> None:
        """Mark pages, as far as they are in the range."""
        spans = spans.clip(self.first, self.behind)
        if not len(spans.start):
            return
        low = (spans.start - self.first) // self._pages_per_bit
        high = (spans.end - 1 - self.first) // self._pages_per_bit + 1
        if len(low) <= FEW:
            for start, end in zip(low.tolist(), high.tolist(), strict=True):
                self._bits[start:end] = True
            return
        # Spans that are apart may have a larger unit in common.
        begins = np.append(True, low[1:] > high[:-1])
        ends = np.append(begins[1:], True)
        self._bits |= filled(low[begins], high[ends], len(self._bits))

    def mark_bits(self, page: int, bits: Bits) -> None:
        """Mark those pages from ``page`` on, all of them in the range, whose bit is set."""
        offset = page - self.first
        per_bit = self._pages_per_bit
        if per_bit > 1:
            borders = np.arange(-(offset % per_bit), len(bits), per_bit)
            borders[0] = 0
            bits = np.logical_or.reduceat(bits, borders)
        start = offset // per_bit
        self._bits[start : start + len(bits)] |= bits

    def pack(self) -> bytes:
        """The bitmap, little-endian, in whole u64s."""
        bits = self._bits
        if self._units_per_bit > 1:
            bits = np.repeat(bits, self._units_per_bit)[self._skip : self._skip + self._count]
        return np.packbits(bits, bitorder="little").tobytes().ljust(self._size, b"\0")


def filled(start: Ints, end: Ints, size: int) -> Bits:
    """``size`` bits, of which those in ``[start[i], end[i])`` are set: ascending, disjoint ranges within them."""
    edges = np.zeros(size + 1, np.int8)
    edges[start] += 1
    edges[end] -= 1
    return np.cumsum(edges, dtype=np.int8, out=edges)[:size].view(np.bool_)
