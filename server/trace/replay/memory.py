"""The guest's memory in a replay: memfds with what the device is to find in them."""

from __future__ import annotations

import errno
import fcntl
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

from protocol import DmaMap, DmaUnmap, DmaUnmapFlags
from protocol.trace import TraceError
from server.trace.fd_facts import FdFacts

MAX_BYTES = 4 << 30
"""Memory that a trace may make a replay fill."""
CHECK_EVERY = 64 << 20
"""Bytes that are filled, in whole pages, between two looks at how many are."""
MAX_REGIONS = 1 << 17
"""DMA regions at a time: twice as many as a server lets be mapped that says nothing else (max_dma_maps)."""
MAX_LEAVING = 256
"""Regions that are remembered after they were unmapped, until :meth:`ReplayMemory.settle`."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_BLOCK = 512
_PAGE = 4096


@dataclass(slots=True, eq=False)
class _File:
    """A memfd, closed when nothing uses it."""

    fd: int
    uses: int = 0


@dataclass(frozen=True, slots=True)
class _Region:
    """What message ``number`` mapped, or what is left of it: ``start`` is at ``offset`` in the file."""

    start: int
    end: int
    file: _File
    offset: int
    number: int

    def part(self, start: int, end: int) -> _Region:
        return replace(self, start=start, end=end, offset=self.offset + start - self.start)


_START = attrgetter("start")


class ReplayMemory:
    """DMA regions by address; files are made once for each file of the recorded client.

    A client may unmap a range and map it anew without waiting for replies. So regions know which message mapped them,
    and a region that covers older ones takes their place. What has left the map is remembered until :meth:`settle`.
    """

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, int], _File] = {}
        """Those that the recorded client had, too, by device, inode and size."""
        self._open: set[_File] = set()
        self._regions: list[_Region] = []
        """In order of address; no two overlap."""
        self._leaving: list[_Region] = []
        self._filled = 0
        """Bytes since there was a look at how many are."""
        self.when_unmapped: Callable[[int, int], None] = _nothing
        """Told the start and the end of what is no longer mapped, or is mapped anew."""

    def map(self, request: DmaMap, facts: FdFacts | None, number: int) -> int | None:
        """Add the region that message ``number`` maps; its fd, if the client had one, which stays this object's.

        Raises TraceError.
        """
        start, end = request.address, request.address + request.size
        if start == end:
            return None
        if len(self._regions) >= MAX_REGIONS:
            raise TraceError(
                f"message {number} maps one more DMA region than the {MAX_REGIONS} that are taken"
            )
        file = self._file(request.offset + request.size, facts)
        region = _Region(start, end, file, request.offset, number)
        first, last = self._overlapping(start, end)
        covered = self._regions[first:last]
        before = [one.part(one.start, start) for one in covered[:1] if one.start < start]
        behind = [one.part(end, one.end) for one in covered[-1:] if end < one.end]
        self._regions[first:last] = [*before, region, *behind]
        for one in (*before, region, *behind):
            one.file.uses += 1
        self._leave(covered)
        self.when_unmapped(start, end)
        return None if facts is None else file.fd

    def unmap(self, request: DmaUnmap, number: int) -> None:
        """Message ``number`` removes the regions within a range, or all: those that were mapped before it."""
        start, end = request.address, request.address + request.size
        first, last = 0, len(self._regions)
        if not request.flags & DmaUnmapFlags.ALL:
            first = bisect_left(self._regions, start, key=_START)
            last = bisect_left(self._regions, end, lo=first, key=_START)
            if first < last and self._regions[last - 1].end > end:
                last -= 1
        self._remove(first, last, lambda region: region.number < number)

    def refused(self, request: DmaMap, number: int) -> None:
        """The server did not take what message ``number`` was to map."""
        first, last = self._overlapping(request.address, request.address + request.size)
        self._remove(first, last, lambda region: region.number == number)

    def settle(self) -> None:
        """Forget what has been unmapped."""
        while self._leaving:
            self._release(self._leaving.pop().file)

    def put(self, address: int, data: bytes) -> None:
        """Write to the guest's memory; where no region is, nothing happens. Raises TraceError over MAX_BYTES."""
        for region in (*self._covering(address, len(data)), *self._leaving):
            start, end = max(address, region.start), min(address + len(data), region.end)
            if start < end:
                self._filled += end - start + 2 * _PAGE  # a page at either end may be new
                try:
                    os.pwrite(
                        region.file.fd,
                        data[start - address : end - address],
                        region.offset + start - region.start,
                    )
                except (OSError, OverflowError) as error:
                    raise TraceError(f"guest memory at {address:#x} cannot be filled: {error}") from error
                if self._filled >= CHECK_EVERY:
                    self._check_size()

    def get(self, address: int, length: int) -> bytes:
        """Read the guest's memory. Raises OSError (EINVAL) where it is not mapped."""
        data = b"".join(_read(region, address, length) for region in self._covering(address, length))
        if len(data) != length:
            raise OSError(errno.EINVAL, f"{address:#x}+{length:#x} is not mapped")
        return data

    def found(self, address: int, length: int) -> list[bytes]:
        """What is in a range now, and in each region that had all of it since :meth:`settle`; nothing if unmapped."""
        found = [
            _read(region, address, length)
            for region in self._leaving
            if region.start <= address and address + length <= region.end
        ]
        try:
            return [self.get(address, length), *found]
        except OSError:
            return found

    def close(self) -> None:
        """Close every file."""
        for file in self._open:
            os.close(file.fd)
        self._open.clear()
        self._files.clear()
        self._regions.clear()
        self._leaving.clear()

    def _check_size(self) -> None:
        self._filled = 0
        if sum(os.fstat(file.fd).st_blocks * _BLOCK for file in self._open) > MAX_BYTES:
            raise TraceError(f"the trace fills more than {MAX_BYTES >> 30} GiB of guest memory")

    def _file(self, need: int, facts: FdFacts | None) -> _File:
        size = need if facts is None else max(facts.size, need)
        key = (0, 0, 0) if facts is None else (facts.device, facts.inode, size)
        if facts is not None and key in self._files:
            return self._files[key]
        try:
            file = _File(_make_file(size))
        except (OSError, OverflowError, ValueError) as error:
            raise TraceError(f"no memory of {need} bytes for a DMA region: {error}") from error
        self._open.add(file)
        if facts is not None:
            self._files[key] = file
            file.uses += 1
        return file

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        """Which regions have a part of a range: from, up to."""
        first = bisect_right(self._regions, start, key=_START)
        if first and self._regions[first - 1].end > start:
            first -= 1
        return first, bisect_left(self._regions, end, lo=first, key=_START)

    def _covering(self, address: int, length: int) -> list[_Region]:
        first, last = self._overlapping(address, address + length)
        return self._regions[first:last]

    def _remove(self, first: int, last: int, which: Callable[[_Region], bool]) -> None:
        leaving = [region for region in self._regions[first:last] if which(region)]
        self._regions[first:last] = [region for region in self._regions[first:last] if not which(region)]
        self._leave(leaving)
        for region in leaving:
            self.when_unmapped(region.start, region.end)

    def _leave(self, regions: list[_Region]) -> None:
        self._leaving += regions
        too_many = max(len(self._leaving) - MAX_LEAVING, 0)
        for region in self._leaving[:too_many]:
            self._release(region.file)
        del self._leaving[:too_many]

    def _release(self, file: _File) -> None:
        file.uses -= 1
        if not file.uses:
            self._open.remove(file)
            os.close(file.fd)


def _nothing(_start: int, _end: int) -> None:
    """Nobody wants to know."""


def _read(region: _Region, address: int, length: int) -> bytes:
    start, end = max(address, region.start), min(address + length, region.end)
    return os.pread(region.file.fd, end - start, region.offset + start - region.start)


def _make_file(size: int) -> int:
    fd = os.memfd_create("guest memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
