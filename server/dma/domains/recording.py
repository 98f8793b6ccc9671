"""The ``recording`` domain: a page table in a dictionary, that checks what the cache asks of it.

It is what a new domain looks like at its smallest, and what tests use to see every mapping: its dma_addrs mean
nothing to any device, and it has no views.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from server.dma.address_space import PAGE_SIZE
from server.dma.backing import BackingFile
from server.dma.domain import DmaDomain, DmaSegment, FileRun
from server.dma.errors import DmaError

_FIRST_ADDRESS = 0x1000_0000


class MappedPage(NamedTuple):
    """A page that is in the domain: where it is in its file, and whether the device may write it."""

    backing: BackingFile
    offset: int
    writable: bool


class RecordingDomain(DmaDomain):
    """Gives every run addresses that were never used before, at most ``longest_segment`` bytes in one piece.

    A domain without a page table, such as one that gives out host physical addresses, cannot make scattered
    pages contiguous: a small ``longest_segment`` acts like one. ``pages`` is what is mapped now, by dma_addr;
    ``maps`` and ``unmaps`` count calls.
    """

    name = "recording"

    def __init__(
        self, *, longest_segment: int = 1 << 62, max_pages: int = 1 << 40, keeps_pages: bool = True
    ) -> None:
        """``keeps_pages``: whether to record at all; without, it gives addresses and takes no memory."""
        self._keeps_pages = keeps_pages
        self.pages: dict[int, MappedPage] = {}
        self.maps = 0
        self.unmaps = 0
        self._longest = longest_segment
        self._max_pages = max_pages
        self._next = _FIRST_ADDRESS

    @property
    def max_runs(self) -> int:
        """As many as there may be pages."""
        return self._max_pages

    def map_runs(self, runs: Sequence[FileRun], *, writable: bool) -> list[DmaSegment]:
        """Raises DmaError (ENOMEM) over ``max_pages``."""
        length = sum(run.length for run in runs)
        if not self._keeps_pages:
            self._next += length
            return [DmaSegment(self._next - length, length)]
        if len(self.pages) + length // PAGE_SIZE > self._max_pages:
            raise DmaError(errno.ENOMEM, "the recording domain is full")
        self.maps += 1
        segments: list[DmaSegment] = []
        for backing, offset, size, *_ in runs:
            for page in range(offset, offset + size, PAGE_SIZE):
                if segments and segments[-1].length < self._longest:
                    segments[-1] = DmaSegment(segments[-1].dma_addr, segments[-1].length + PAGE_SIZE)
                else:
                    self._next += PAGE_SIZE  # a gap, so that no two segments are neighbours
                    segments.append(DmaSegment(self._next, PAGE_SIZE))
                self.pages[self._next] = MappedPage(backing, page, writable)
                self._next += PAGE_SIZE
        return segments

    def unmap(self, dma_addr: int, length: int) -> None:
        """Raises KeyError where a page is not mapped: the cache is wrong then."""
        self.unmaps += 1
        if not self._keeps_pages:
            return
        for page in range(dma_addr, dma_addr + length, PAGE_SIZE):
            del self.pages[page]

    def make_writable(self, dma_addr: int, length: int) -> None:
        """Raises KeyError where a page is not mapped."""
        for page in range(dma_addr, dma_addr + length, PAGE_SIZE):
            self.pages[page] = self.pages[page]._replace(writable=True)

    def make_readonly(self, dma_addr: int, length: int) -> None:
        """Raises KeyError where a page is not mapped."""
        for page in range(dma_addr, dma_addr + length, PAGE_SIZE):
            self.pages[page] = self.pages[page]._replace(writable=False)

    def view(self, dma_addr: int, length: int) -> memoryview | None:  # noqa: ARG002 - the interface's
        """None: nothing is behind these addresses."""
        return None
