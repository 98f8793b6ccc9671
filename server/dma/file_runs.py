"""Where guest pages are in the files that the client shares."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from devices.contract import GuestMemoryError, Prot
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.domain import FileRun
from server.dma.regions import DmaRegion, DmaRegionTable
from server.dma.run_rows import RunFlags
from server.dma.spans import Ints, Spans

_PAGE_MASK = -PAGE_SIZE
NO_INTS: Ints = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class FilePieces:
    """Guest pages in any order, cut where regions end: piece ``i`` of ``pages`` is ``runs[i]`` in a file.

    ``flags`` are RunFlags: what is permitted was checked, and every piece is a mapping of its own.
    """

    pages: Spans
    runs: Sequence[FileRun]
    flags: Ints


NOTHING = FilePieces(Spans(NO_INTS, NO_INTS), (), NO_INTS)


def file_pieces(regions: DmaRegionTable, pages: Spans, prot: int) -> FilePieces:
    """Look ``pages`` up, which may be in any order.

    Raises GuestMemoryError. EINVAL: there is a hole. EPERM: a region does not permit ``prot``. EFAULT: the client does
    not share the memory, or has truncated its file.
    """
    if not len(pages.start):
        return NOTHING
    start: list[int] = []
    end: list[int] = []
    runs: list[FileRun] = []
    for first, behind in zip(pages.start.tolist(), pages.end.tolist(), strict=True):
        for region, low, high in regions.parts(first << PAGE_SHIFT, behind << PAGE_SHIFT, prot):
            start.append(low >> PAGE_SHIFT)
            end.append(high >> PAGE_SHIFT)
            runs.append(_file_run(region, low, high))
    flags = np.full(len(runs), prot | RunFlags.SEAM.value, np.int64)
    return FilePieces(Spans(np.array(start, np.int64), np.array(end, np.int64)), runs, flags)


def file_views(regions: DmaRegionTable, ranges: Iterable[tuple[int, int]], prot: Prot) -> list[memoryview]:
    """The memory of ``ranges`` (guest addresses, start and end) in the mapping of its files, region by region."""
    views: list[memoryview] = []
    for start, end in ranges:
        for region, low, high in regions.parts(start, end, prot.value):
            run = _file_run(region, low & _PAGE_MASK, high)
            offset = low + region.delta
            views.append(run.backing.memory[prot][offset : offset + high - low])
    return views


def _file_run(region: DmaRegion, start: int, end: int) -> FileRun:
    backing = region.backing
    if backing is None:
        raise GuestMemoryError(errno.EFAULT, f"the client does not share guest address {start:#x}")
    if not backing.sealed:
        backing.check_size(end + region.delta)
    return FileRun(backing, start + region.delta, end - start, region.allows[Prot.WRITE], region.generation)
