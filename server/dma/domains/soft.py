"""The ``soft`` domain: an IOMMU whose page table is the CPU's. It needs no privilege and no hardware."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.dma.address_space import PAGE_SIZE, AddressSpace
from server.dma.backing import BackingFile
from server.dma.domain import DmaDomain, DmaSegment, FileRun, coalesce
from server.dma.domains.iova import IovaAllocator
from server.dma.errors import DmaError

LARGEST_APERTURE = 1 << 40
SMALLEST_APERTURE = 1 << 30

_ALIGN = 1 << 30  # the largest huge page, so that an aligned IOVA is an aligned address
_SPARE_MAPPINGS = 8192
"""Of the mappings that the kernel allows the process, those left to everything else in it."""


class SoftDomain(DmaDomain):
    """One large range of address space, the aperture; a dma_addr is an offset in it.

    Mapping a run of guest pages is one mmap of the client's file over the aperture, so scattered pages
    become one contiguous range, seen by the CPU through :meth:`view`, without copying. Unmapped parts of
    the aperture read as zeros and swallow writes (:class:`server.dma.address_space.AddressSpace`), so a
    view that outlives its pin neither crashes the process nor shows the page that was there; a slice taken
    before :meth:`close` stays harmless after it. An address may be given out again, so a stale view can
    show a later pin of the same domain.

    Files on hugetlbfs can be mapped in whole huge pages only. Such a file is mapped once, as a whole, while
    any of its pages is in use: its pages are contiguous in the domain where they are contiguous in the
    file.
    """

    name = "soft"
    runs_limited_by = "sysctl vm.max_map_count"

    def __init__(self, size: int = LARGEST_APERTURE) -> None:
        """Reserve ``size`` bytes, or the largest half of it that the kernel gives. Raises DmaError (ENOMEM)."""
        self._aperture = _reserve(size)
        # Address 0 is no page's: engines take it for "none".
        self._iovas = IovaAllocator(PAGE_SIZE, self._aperture.size - PAGE_SIZE)
        self._windows: dict[BackingFile, _Window] = {}
        self._lingering: deque[tuple[int, int]] = deque()
        self._max_mappings = _max_map_count() - _SPARE_MAPPINGS

    @property
    def size(self) -> int:
        """Bytes in the aperture."""
        return self._aperture.size

    @property
    def address(self) -> int:
        """Where dma_addr 0 would be in this process's address space."""
        return self._aperture.address

    @property
    def memory(self) -> memoryview:
        """The whole aperture: ``memory[dma_addr]`` is the byte that a device engine finds there."""
        return self._aperture.view

    @property
    def max_runs(self) -> int:
        """What vm.max_map_count leaves: a run is a kernel mapping, and so is each gap between runs."""
        return self._max_mappings - self._iovas.holes

    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:
        """One segment for the whole list, huge pages apart. Raises OSError (ENOMEM) with nothing changed."""
        small = [run for run in runs if run.backing.page_size == PAGE_SIZE]
        length = sum(run.length for run in small)
        base = self._map_small(small, length, writable=writable) if small else 0
        if len(small) == len(runs):
            return [DmaSegment(base, length)]
        try:
            return self._segments(runs, base)
        except OSError:
            if small:
                self._unmap_small(base, length)
            raise

    def unmap(self, dma_addr: int, length: int) -> None:
        """Put zeros where the pages were; where the kernel has no mapping left to do so, later."""
        end = dma_addr + length
        for window in self._windows.values():
            low, high = max(dma_addr, window.iova), min(end, window.iova + window.length)
            if low < high:
                self._drop(window, high - low)
                if dma_addr < low:
                    self.unmap(dma_addr, low - dma_addr)
                if high < end:
                    self.unmap(high, end - high)
                return
        self._unmap_small(dma_addr, length)
        # One for one: where the kernel has no mapping left, going through all of them each time would take for ever.
        if self._lingering:
            self._unmap_small(*self._lingering.popleft())

    def make_writable(self, dma_addr: int, length: int) -> None:
        """Raises OSError (ENOMEM) where the kernel has no mapping left."""
        for window in self._windows.values():
            if window.iova <= dma_addr < window.iova + window.length:
                return
        self._aperture.protect(dma_addr, length, writable=True)

    def make_readonly(self, dma_addr: int, length: int) -> None:
        """Where the kernel has no mapping left, the pages stay writable."""
        for window in self._windows.values():
            if window.iova <= dma_addr < window.iova + window.length:
                return
        with suppress(OSError):
            self._aperture.protect(dma_addr, length, writable=False)

    @property
    def held_pages(self) -> int:
        """Pages that the kernel had no mapping left to take out."""
        return sum(length for _, length in self._lingering) // PAGE_SIZE

    def stats(self) -> dict[str, object]:
        """The size of the aperture, how many runs it can hold, and what could not be taken out yet."""
        return {"aperture_bytes": self.size, "max_runs": self.max_runs, "lingering_pages": self.held_pages}

    def view(self, dma_addr: int, length: int) -> memoryview:
        """A slice of the aperture; writing to pages mapped read-only through it faults."""
        return self._aperture.view[dma_addr : dma_addr + length]

    def _map_small(self, runs: Sequence[FileRun], length: int, *, writable: bool) -> int:
        base = self._iovas.alloc(length)
        cursor = base
        try:
            for backing, offset, size, *_ in coalesce(runs):
                self._aperture.map_file(cursor, size, fd=backing.fd, file_offset=offset, writable=writable)
                cursor += size
        except OSError:
            self._unmap_small(base, length)
            raise
        return base

    def _unmap_small(self, iova: int, length: int) -> None:
        try:
            self._aperture.clear(iova, length)
        except OSError:
            self._lingering.append((iova, length))
        else:
            self._iovas.free(iova, length)

    def _segments(self, runs: Sequence[FileRun], cursor: int) -> list[DmaSegment]:
        """The segments of a list with huge pages in it, whose small pages are mapped from ``cursor``."""
        segments: list[DmaSegment] = []
        taken: list[tuple[_Window, int]] = []
        try:
            for backing, offset, length, *_ in runs:
                if backing.page_size == PAGE_SIZE:
                    start, cursor = cursor, cursor + length
                else:
                    window = self._window(backing, offset + length)
                    window.used += length
                    taken.append((window, length))
                    start = window.iova + offset
                if segments and segments[-1].dma_addr + segments[-1].length == start:
                    segments[-1] = DmaSegment(segments[-1].dma_addr, segments[-1].length + length)
                else:
                    segments.append(DmaSegment(start, length))
        except OSError:
            for window, length in taken:
                self._drop(window, length)
            raise
        return segments

    def _window(self, backing: BackingFile, end: int) -> _Window:
        """The mapping of a whole huge-page file."""
        window = self._windows.get(backing)
        if window is None:
            window = _Window(backing, self._iovas.alloc(backing.size, backing.page_size), backing.size)
            try:
                self._aperture.map_file(
                    window.iova, window.length, fd=backing.fd, file_offset=0, writable=backing.writable
                )
            except OSError:
                self._iovas.free(window.iova, window.length)
                raise
            self._windows[backing] = window
        if end > window.length:
            raise DmaError(errno.ENOMEM, "the file has grown since its first page was pinned")
        return window

    def _drop(self, window: _Window, length: int) -> None:
        window.used -= length
        if window.used == 0:
            del self._windows[window.backing]
            self._unmap_small(window.iova, window.length)


class _Window:
    """A whole file in the aperture; ``used`` bytes of it are pinned."""

    __slots__ = ("backing", "iova", "length", "used")

    def __init__(self, backing: BackingFile, iova: int, length: int) -> None:
        self.backing = backing
        self.iova = iova
        self.length = length
        self.used = 0


def _reserve(size: int) -> AddressSpace:
    while size >= SMALLEST_APERTURE:
        try:
            return AddressSpace(size, _ALIGN)
        except OSError:
            size //= 2
    raise DmaError(errno.ENOMEM, f"no {SMALLEST_APERTURE:#x} bytes of address space for the soft DMA domain")


def _max_map_count() -> int:
    return int(Path("/proc/sys/vm/max_map_count").read_text())
