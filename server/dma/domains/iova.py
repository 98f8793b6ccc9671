"""Allocates ranges of IO virtual addresses: best fit, holes coalesced, O(log n) in their number."""

from __future__ import annotations

import errno

from sortedcontainers import SortedList

from server.dma.address_space import PAGE_SIZE
from server.dma.errors import DmaError


class IovaAllocator:
    """Hands out page-aligned ranges of ``[start, start + size)``, and of what is added later.

    Any page-aligned part of what was allocated may be freed, in any order. Freed neighbours become one hole
    at once, so fragmentation never outlives the allocations that cause it. ``start`` must not be 0 where a
    device takes address 0 for "none".
    """

    def __init__(self, start: int = 0, size: int = 0) -> None:
        self._length_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}
        self._by_length: SortedList[tuple[int, int]] = SortedList()
        self.free_bytes = 0
        if size:
            self.add(start, size)

    def add(self, start: int, size: int) -> None:
        """Hand out from ``[start, start + size)`` too, which is no neighbour of anything else."""
        self._add_hole(start, size)

    @property
    def holes(self) -> int:
        """How many separate free ranges there are."""
        return len(self._length_at)

    def alloc(self, length: int, align: int = PAGE_SIZE) -> int:
        """The address of ``length`` bytes aligned to ``align`` (a power of two). Raises DmaError (ENOMEM)."""
        wanted = length + align - PAGE_SIZE
        index = self._by_length.bisect_left((wanted, 0))
        if index == len(self._by_length):
            raise DmaError(errno.ENOMEM, f"no free IO virtual address range of {length:#x} bytes")
        hole_length, hole = self._by_length[index]
        iova: int = hole + (-hole % align)
        self._remove_hole(hole, hole_length)
        if iova > hole:
            self._add_hole(hole, iova - hole)
        end, hole_end = iova + length, hole + hole_length
        if end < hole_end:
            self._add_hole(end, hole_end - end)
        return iova

    def free(self, iova: int, length: int) -> None:
        """Give back a range that was allocated and not freed since."""
        end = iova + length
        after = self._length_at.get(end)
        if after is not None:
            self._remove_hole(end, after)
            end += after
        before = self._start_before.get(iova)
        if before is not None:
            self._remove_hole(before, iova - before)
            iova = before
        if iova < end:
            self._add_hole(iova, end - iova)

    def _add_hole(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start
        self._by_length.add((length, start))
        self.free_bytes += length

    def _remove_hole(self, start: int, length: int) -> None:
        del self._length_at[start]
        del self._start_before[start + length]
        self._by_length.remove((length, start))
        self.free_bytes -= length
