"""What the recorded client wrote to areas of the device that it had mapped, written again."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

from protocol import ProtocolError, RegionFlags, RegionInfo, SparseMmap
from protocol.trace import AreaChange
from server.dma import libc
from server.fds import ReceivedFds
from server.trace.reader import TraceReader
from server.trace.text.names import Names

MAX_WAITING = 1 << 14
"""Changes that are remembered until the client asks for the region that they are of."""
MAX_WAITING_BYTES = 16 << 20
"""Bytes of such changes; what is stored by hash has none."""
MAX_REGIONS = 64
"""Regions whose areas are known: more than any PCI function has."""
MAX_AREAS = 1 << 12
"""Areas of a region."""
MAX_FILES = 128
"""Files of all regions together. They are the server's, and it can send as many as it likes."""


class AreasRefused(Exception):  # noqa: N818 - an event of the replay
    """The areas that a server offers make no sense, or cost too much; the text says of which region, and why."""


class _Part(NamedTuple):
    """A mappable part of a region: its first byte is at ``place`` in the file ``fd``."""

    start: int
    end: int
    fd: int
    place: int


class _Areas(NamedTuple):
    """The mappable parts of a region, in order, none of which overlap; and the files that they are in."""

    parts: Sequence[_Part]
    files: Sequence[int]


_NONE = _Areas((), ())
_END = attrgetter("end")


class ServerAreas:
    """The areas that the server lets be mapped. Where it offers no file for one, replay does without."""

    def __init__(self, reader: TraceReader) -> None:
        self._reader = reader
        self._areas: dict[int, _Areas] = {}
        """By region."""
        self._waiting: dict[int, list[AreaChange]] = {}
        """By region, too."""
        self._waiting_count = self._waiting_bytes = 0

    def offered(self, payload: memoryview, fds: Sequence[int]) -> None:
        """The server has described a region; ``fds``, which came along, stay the caller's.

        Raises TraceError, and AreasRefused, after which replay does without the region.
        """
        try:
            info = RegionInfo.unpack(payload)
        except ProtocolError:
            return  # for somebody else to report
        if info.needed is not None:
            return  # the client asks again, with room for all of it
        self._drop(info.index)
        if not info.flags & RegionFlags.MMAP:
            return
        name = Names.region(info.index)
        if len(self._areas) >= MAX_REGIONS:
            raise AreasRefused(
                f"the server lets {name} be mapped, and {MAX_REGIONS} others: it is done without"
            )
        self._areas[info.index] = _NONE
        waiting = self._waited_for(info.index)
        self._areas[info.index] = self._kept(sorted(_parts(info, name, fds)), name)
        for change in waiting:
            self.put(change)

    def put(self, change: AreaChange) -> None:
        """Write what is in a mappable part, and nothing of the rest. Raises TraceError."""
        areas = self._areas.get(change.region)
        if areas is None:
            self._wait(change)
            return
        data: memoryview | None = None
        for index in range(bisect_right(areas.parts, change.offset, key=_END), len(areas.parts)):
            part = areas.parts[index]
            start, end = max(part.start, change.offset), min(part.end, change.offset + change.length)
            if start >= end:
                break
            data = memoryview(self._reader.data(change)) if data is None else data
            with suppress(OSError):  # sealed, or shorter by now: a client could not write either
                piece = data[start - change.offset : end - change.offset]
                os.pwrite(part.fd, piece, part.place + start - part.start)

    def close(self) -> None:
        """Close every file."""
        for index in list(self._areas):
            self._drop(index)

    def _wait(self, change: AreaChange) -> None:
        """Remember a change, if there is room."""
        size = len(change.data or b"")
        if self._waiting_count < MAX_WAITING and self._waiting_bytes + size <= MAX_WAITING_BYTES:
            self._waiting.setdefault(change.region, []).append(change)
            self._waiting_count += 1
            self._waiting_bytes += size

    def _waited_for(self, region: int) -> list[AreaChange]:
        """The changes that have been waiting for ``region``, which wait no more."""
        changes = self._waiting.pop(region, [])
        self._waiting_count -= len(changes)
        self._waiting_bytes -= sum(len(change.data or b"") for change in changes)
        return changes

    def _kept(self, parts: list[_Part], name: str) -> _Areas:
        """``parts``, which are in order, with files of our own: one for each of the server's. Raises AreasRefused."""
        for one, other in pairwise(parts):
            if other.start < one.end:
                raise AreasRefused(
                    f"the server's mappable areas of {name} overlap at {other.start:#x}: they are done without"
                )
        theirs = list(dict.fromkeys(part.fd for part in parts))
        if len(theirs) + sum(len(areas.files) for areas in self._areas.values()) > MAX_FILES:
            raise AreasRefused(
                f"the server has more than {MAX_FILES} files to map: those of {name} are done without"
            )
        ours: dict[int, int] = {}
        try:
            for fd in theirs:
                ours[fd] = os.dup(fd)
        except OSError as error:
            ReceivedFds(list(ours.values())).close()
            raise AreasRefused(f"the server's files of {name} are done without: {error.strerror}") from error
        return _Areas([part._replace(fd=ours[part.fd]) for part in parts], list(ours.values()))

    def _drop(self, index: int) -> None:
        for fd in self._areas.pop(index, _NONE).files:
            os.close(fd)


def _parts(info: RegionInfo, name: str, fds: Sequence[int]) -> Iterator[_Part]:
    """The areas that are in a file, as far as they are in the region; the fds are the server's. Raises AreasRefused."""
    sparse = [one.areas for one in info.capabilities if isinstance(one, SparseMmap)]
    areas = [(area.offset, area.size) for area in sparse[0]] if sparse else [(0, info.size)]
    if len(areas) > MAX_AREAS:
        raise AreasRefused(
            f"the server has {len(areas)} mappable areas of {name}, and {MAX_AREAS} is the most: they are done without"
        )
    sizes = {fd: _file_size(fd) for fd in fds}
    # One for each, as some servers have it, or one for all.
    files = fds if len(fds) > 1 else [*fds] * len(areas)
    for fd, (offset, size) in zip(files, areas, strict=False):
        end = min(offset + size, info.size)
        if offset < end and info.offset + end <= sizes[fd]:
            yield _Part(offset, end, fd, info.offset + offset)


def _file_size(fd: int) -> int:
    """How many bytes a file has. -1 for what is none: that blocks, or does who knows what when written to.

    And for a file on FUSE: a write waits for the process that serves it, which may be the server.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or libc.filesystem_type(fd) == libc.FUSE_SUPER_MAGIC:
        return -1
    return status.st_size
