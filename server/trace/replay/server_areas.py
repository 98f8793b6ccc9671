"""What the recorded client wrote to areas of the device that it had mapped, written again."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from protocol import ProtocolError, RegionFlags, RegionInfo, SparseMmap
from protocol.trace import AreaChange
from server.trace.reader import TraceReader

MAX_WAITING = 1 << 14
"""Changes that are remembered until the client asks for the region that they are of."""


class _Part(NamedTuple):
    """A mappable part of a region: its first byte is at ``place`` in the file ``fd``."""

    start: int
    end: int
    fd: int
    place: int


class ServerAreas:
    """The areas that the server lets be mapped. Where it offers no file for one, replay does without."""

    def __init__(self, reader: TraceReader) -> None:
        self._reader = reader
        self._parts: dict[int, list[_Part]] = {}
        """By region."""
        self._waiting: list[AreaChange] = []

    def offered(self, payload: memoryview, fds: Sequence[int]) -> None:
        """The server has described a region; ``fds``, which came along, stay the caller's. Raises TraceError."""
        try:
            info = RegionInfo.unpack(payload)
        except ProtocolError:
            return  # for somebody else to report
        if info.needed is not None:
            return  # the client asks again, with room for all of it
        self._drop(info.index)
        if not info.flags & RegionFlags.MMAP:
            return
        sparse = [one.areas for one in info.capabilities if isinstance(one, SparseMmap)]
        areas = [(area.offset, area.size) for area in sparse[0]] if sparse else [(0, info.size)]
        # One for each, as some servers have it, or one for all.
        files = fds if len(fds) > 1 else [*fds] * len(areas)
        parts = self._parts.setdefault(info.index, [])
        for fd, (offset, size) in zip(files, areas, strict=False):
            end = min(offset + size, info.size)
            if _is_file_of(fd, info.offset + end):
                parts.append(_Part(offset, end, os.dup(fd), info.offset + offset))
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            self.put(change)

    def put(self, change: AreaChange) -> None:
        """Write what is in a mappable part, and nothing of the rest. Raises TraceError."""
        if change.region not in self._parts:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(change)
            return
        data = memoryview(self._reader.data(change))
        for part in self._parts[change.region]:
            start, end = max(part.start, change.offset), min(part.end, change.offset + len(data))
            if start < end:
                with suppress(OSError):  # sealed, or shorter by now: a client could not write either
                    piece = data[start - change.offset : end - change.offset]
                    os.pwrite(part.fd, piece, part.place + start - part.start)

    def close(self) -> None:
        """Close every file."""
        for index in list(self._parts):
            self._drop(index)

    def _drop(self, index: int) -> None:
        for part in self._parts.pop(index, ()):
            os.close(part.fd)


def _is_file_of(fd: int, size: int) -> bool:
    """Whether ``fd`` is a file of at least ``size`` bytes. Others block, or do who knows what when written to."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and size <= status.st_size
