"""The client's memory that the server does not see: a proxy has its files, and answers for the client."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from protocol import DmaMap, DmaMapFlags, DmaUnmap, DmaUnmapFlags
from server.dma.sorted_map import SortedMap
from server.trace.proxy.client_file import ClientFile, ClientFiles

MAX_REGIONS = 1 << 17
"""Regions of one client; a server of ours takes half as many."""
_ADDRESSES = 1 << 64
_FILE_END = 1 << 63


@dataclass(eq=False, slots=True)
class WithheldRegion:
    """The DMA addresses from ``start`` to ``end`` are at ``offset`` of ``file``."""

    start: int
    end: int
    flags: DmaMapFlags
    offset: int
    file: ClientFile


class Part(NamedTuple):
    """The addresses from ``start`` to ``end`` of ``region``."""

    region: WithheldRegion
    start: int
    end: int

    @property
    def offset(self) -> int:
        """Where that is in the region's file."""
        return self.region.offset + self.start - self.region.start


def read_parts(parts: Sequence[Part]) -> bytes:
    """What is there. Raises OSError: EPERM where the client forbids it, EFAULT where the file ends before it."""
    _check(parts, DmaMapFlags.READ)
    return b"".join(part.region.file.read(part.offset, part.end - part.start) for part in parts)


def write_parts(parts: Sequence[Part], data: bytes) -> None:
    """Put ``data`` there, which is as long. Raises as :func:`read_parts`."""
    _check(parts, DmaMapFlags.WRITE)
    first = parts[0].start
    for part in parts:
        part.region.file.write(part.offset, data[part.start - first : part.end - first])


def _check(parts: Sequence[Part], flag: DmaMapFlags) -> None:
    if not all(part.region.flags & flag for part in parts):
        raise OSError(errno.EPERM, "the client does not permit this access")


class WithheldMemory:
    """The regions whose files the server did not get."""

    def __init__(self) -> None:
        self._files = ClientFiles()
        self._regions: SortedMap[WithheldRegion] = SortedMap()
        self._offered: dict[WithheldRegion, None] = {}

    def __len__(self) -> int:
        return len(self._regions)

    def offer(self, request: DmaMap, fd: int) -> WithheldRegion | None:
        """A region that the server is asked to take; it can be accessed as soon as it does.

        None where the client has to be asked for this memory, because its file cannot be used here. ``fd`` belongs
        to this from here on.
        """
        file = self._files.acquire(fd)
        if file is None:
            return None
        start, end = request.address, request.address + request.size
        too_far = end > _ADDRESSES or request.offset + request.size > _FILE_END
        if start == end or too_far or len(self._regions) + len(self._offered) >= MAX_REGIONS:
            self._files.release(file)
            return None
        region = WithheldRegion(start, end, request.flags, request.offset, file)
        self._offered[region] = None
        return region

    def settle(self, region: WithheldRegion, accepted: bool) -> None:
        """The server has taken the region, or refused it."""
        del self._offered[region]
        if accepted:
            self._remove(region.start, region.end)
            self._regions[region.start] = region
        else:
            self._files.release(region.file)

    def settle_unmap(self, request: DmaUnmap, accepted: bool) -> None:
        """The server has let go of what ``request`` names, or refused to."""
        if not accepted:
            return
        if request.flags & DmaUnmapFlags.ALL:
            self._remove(0, _ADDRESSES)
        else:
            self._remove(request.address, min(request.address + request.size, _ADDRESSES))

    def find(self, address: int, count: int) -> list[Part] | None:
        """The regions that make up the range, in order; None where not all of it is here, or it is empty."""
        parts: list[Part] = []
        end = address + count
        while address < end:
            region = self._region_at(address)
            if region is None:
                return None
            stop = min(region.end, end)
            parts.append(Part(region, address, stop))
            address = stop
        return parts or None

    def close(self) -> None:
        """Give every file back."""
        for region in [*self._offered, *self._regions.values()]:
            self._files.release(region.file)
        self._offered.clear()
        self._regions.clear()

    def _region_at(self, address: int) -> WithheldRegion | None:
        region = self._regions.floor(address)
        if region is not None and address < region.end:
            return region
        # A server may ask before its reply to DMA_MAP is here.
        return next((offered for offered in self._offered if offered.start <= address < offered.end), None)

    def _remove(self, start: int, end: int) -> None:
        before = self._regions.floor(start)
        cut = [before] if before is not None and before.start < start < before.end else []
        for region in [*cut, *self._regions.between(start, end)]:
            self._regions.pop(region.start)
            self._files.release(region.file)
