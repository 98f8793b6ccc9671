"""The guest's memory in a replay: memfds with what the device is to find in them."""

from __future__ import annotations

import errno
import fcntl
import os
from bisect import bisect_right
from dataclasses import dataclass

from protocol import DmaMap, DmaUnmap, DmaUnmapFlags
from protocol.trace import TraceError
from server.trace.fd_facts import FdFacts

MAX_BYTES = 4 << 30
"""Memory that a trace may make a replay fill."""
CHECK_EVERY = 256

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class _Region:
    start: int
    end: int
    fd: int
    offset: int


class ReplayMemory:
    """DMA regions by address; files are made once for each file of the recorded client."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int, int], int] = {}
        self._private: dict[int, int] = {}
        """Files of regions that the recorded client had no file for, by address."""
        self._regions: list[_Region] = []
        self._puts = 0

    def map(self, request: DmaMap, facts: FdFacts | None) -> int:
        """Add a region; returns its fd, which stays this object's. Raises TraceError."""
        need = request.offset + request.size
        try:
            if facts is None:
                fd = self._private[request.address] = _make_file(need)
            else:
                size = max(facts.size, need)
                key = (facts.device, facts.inode, size)
                if key not in self._files:
                    self._files[key] = _make_file(size)
                fd = self._files[key]
        except (OSError, OverflowError, ValueError) as error:
            raise TraceError(f"no memory of {need} bytes for a DMA region: {error}") from error
        self.unmap(DmaUnmap(request.address, request.size))  # what the server refuses, the replay takes anew
        self._regions.append(_Region(request.address, request.address + request.size, fd, request.offset))
        self._regions.sort(key=lambda region: region.start)
        return fd

    def unmap(self, request: DmaUnmap) -> None:
        """Remove the regions within a range, or all."""
        start, end = request.address, request.address + request.size
        everything = bool(request.flags & DmaUnmapFlags.ALL)
        kept = []
        for region in self._regions:
            if everything or (start <= region.start and region.end <= end):
                private = self._private.pop(region.start, None)
                if private is not None:
                    os.close(private)
            else:
                kept.append(region)
        self._regions = kept

    def put(self, address: int, data: bytes) -> None:
        """Write to the guest's memory; where no region is, nothing happens. Raises TraceError over MAX_BYTES."""
        for fd, offset, start, size in self._parts(address, len(data)):
            try:
                os.pwrite(fd, data[start : start + size], offset)
            except (OSError, OverflowError) as error:
                raise TraceError(f"guest memory at {address:#x} cannot be filled: {error}") from error
        self._puts += 1
        if self._puts % CHECK_EVERY == 0:
            used = sum(
                os.fstat(fd).st_blocks * _BLOCK for fd in (*self._files.values(), *self._private.values())
            )
            if used > MAX_BYTES:
                raise TraceError(f"the trace fills more than {MAX_BYTES >> 30} GiB of guest memory")

    def get(self, address: int, length: int) -> bytes:
        """Read the guest's memory. Raises OSError (EINVAL) where it is not mapped."""
        pieces: list[bytes] = []
        found = 0
        for fd, offset, _, size in self._parts(address, length):
            pieces.append(os.pread(fd, size, offset))
            found += size
        if found != length:
            raise OSError(errno.EINVAL, f"{address:#x}+{length:#x} is not mapped")
        return b"".join(pieces)

    def close(self) -> None:
        """Close every file."""
        for fd in (*self._files.values(), *self._private.values()):
            os.close(fd)
        self._files.clear()
        self._private.clear()
        self._regions.clear()

    def _parts(self, address: int, length: int) -> list[tuple[int, int, int, int]]:
        """Where the mapped bytes of a range are: fd, offset in the file, offset in the range, length."""
        parts: list[tuple[int, int, int, int]] = []
        at, end = address, address + length
        index = max(bisect_right(self._regions, at, key=lambda region: region.start) - 1, 0)
        while at < end and index < len(self._regions):
            region = self._regions[index]
            start, stop = max(at, region.start), min(end, region.end)
            if start < stop:
                parts.append((region.fd, region.offset + start - region.start, start - address, stop - start))
                at = stop
            elif region.start >= end:
                break
            index += 1
        return parts


def _make_file(size: int) -> int:
    fd = os.memfd_create("guest memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
