"""What a client writes to areas of the device that it has mapped, found by looking again and again.

Such writes are no messages: all that can be seen is what is there. A look costs time for every byte that is looked at,
so the device is asked which parts matter (:meth:`devices.contract.Device.shown_parts`), and looks come seldom where
nothing changes, and never take more than a tenth of the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

import trio

from devices.contract import Device, MmapArea, Region, RegionPart, SharedMemory
from protocol import HEADER, HEADER_SIZE, REGION_ACCESS, Command
from protocol.wire import Buffer
from server.session import WORK_SLICE_NS
from server.trace.contents import MAX_COPIES, Copy, Layout
from server.trace.recorder import Recorder

PIECE = 64 << 10
"""Bytes that are looked at without a look at the clock."""
PAUSE_SECONDS = 0.1
"""Between two looks where something changes."""
IDLE_SECONDS = 0.4
"""Between two looks where nothing has changed for a while."""
SHARE = 10
"""Looks take one part of so many of the time."""

_NS_PER_SECOND = 10**9
_READ_END = HEADER_SIZE + REGION_ACCESS.size


class LookedAt(Protocol):
    """What :class:`MappedAreas` needs to know of a device; see :class:`devices.contract.Device`."""

    @property
    def regions(self) -> Sequence[Region]:
        """All regions, by index."""

    def shown_parts(self) -> Sequence[RegionPart] | None:
        """What is worth looking at; None is everything."""


class _Area:
    """A mappable area, and a copy of what was seen there."""

    def __init__(self, index: int, area: MmapArea, shared: SharedMemory) -> None:
        self.index = index
        self.start = area.offset
        self.end = area.offset + area.length
        self.copy = Copy(Layout([(self.start, self.end)]), zeros=True)
        self._origin = shared.offset
        self._fd = _reopened(shared.fd)

    def read_into(self, target: memoryview, offset: int) -> int:
        """Read from ``offset`` in the region on; how many bytes, which are fewer where the file is too short."""
        # Not through a mapping: that would allocate what was never written, and end us where a client cuts the file.
        return os.preadv(self._fd, [target], self._origin + offset)

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1  # somebody may be in the middle of a look, and the number is another file's soon


class MappedAreas:
    """The mappable areas of a device, until the end of the ``with`` block, which looks once more.

    False where there are none. Implements :class:`server.trace.recorder.AreaWatch`.
    """

    def __init__(self, device: LookedAt, recorder: Recorder) -> None:
        """Raises OSError where an area's file cannot be opened."""
        self._device = device
        self._recorder = recorder
        self._areas: list[_Area] = []
        self._scratch = memoryview(bytearray(PIECE))
        self._shown: Sequence[RegionPart] | None = ()
        self._news = False
        """Whether something has changed since the last look that went to its end."""
        self._room = MAX_COPIES
        try:
            for index, area, shared in _shared_areas(device.regions):
                self.add(index, area, shared)
        except BaseException:
            self._close()
            raise

    def add(self, index: int, area: MmapArea, shared: SharedMemory) -> None:
        """Look at another area, unless copies would take too much. Raises OSError where its file cannot be opened."""
        if area.length <= self._room:
            self._areas.append(_Area(index, area, shared))
            self._room -= area.length
            self._recorder.areas = self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Look once more, and never again; a look that somebody is in the middle of ends with OSError."""
        try:
            if self._areas and not self.recording_ended:
                self._look_at_once()
        finally:
            self._close()

    def __bool__(self) -> bool:
        return bool(self._areas)

    @property
    def recording_ended(self) -> bool:
        """Whether nothing is recorded any more."""
        return self._recorder.ended

    def look(self) -> Iterator[None]:
        """Look at all that is shown, a piece at a time, and record what has changed. Raises OSError."""
        shown = self._device.shown_parts()
        for area, start, end in self._parts(shown):
            for at in range(start, end, PIECE):
                self._see(area, at, min(at + PIECE, end))
                yield
        if self._news or shown != self._shown:
            self._recorder.looked_at_areas(whole=True)
            self._news = False
            self._shown = shown

    @property
    def found(self) -> bool:
        """Whether something has changed since a look last went to its end."""
        return self._news

    def before(self, message: Buffer) -> None:
        """Look before a message is served that reads an area or destroys what is in one."""
        if self.recording_ended:
            return
        _, command, _, flags, _ = HEADER.unpack_from(message)
        if command == Command.DEVICE_RESET:
            self._look_at_once()
        elif command == Command.REGION_READ and len(message) == _READ_END and not flags & 1:
            offset, index, count = REGION_ACCESS.unpack_from(message, HEADER_SIZE)
            with suppress(OSError):
                for area, start, end in self._parts([RegionPart(index, offset, count)]):
                    for at in range(start, end, PIECE):
                        self._see(area, at, min(at + PIECE, end))

    def forget(self) -> None:
        """Whatever is looked at next is new."""
        self._shown = ()
        for area in self._areas:
            area.copy.forget()

    def _parts(self, wanted: Sequence[RegionPart] | None) -> Iterator[tuple[_Area, int, int]]:
        """Areas, and the start and the end of what of them is wanted; None is everything."""
        for area in self._areas:
            if wanted is None:
                yield area, area.start, area.end
                continue
            for part in wanted:
                start, end = max(part.offset, area.start), min(part.offset + part.length, area.end)
                if part.index == area.index and start < end:
                    yield area, start, end

    def _see(self, area: _Area, start: int, end: int) -> None:
        seen = self._scratch[: area.read_into(self._scratch[: end - start], start)]
        if not seen:
            return
        for offset, data in area.copy.look(start - area.start, [seen]).pieces:
            self._news = True
            self._recorder.area_changed(area.index, offset, data)

    def _look_at_once(self) -> None:
        with suppress(OSError):
            for _ in self.look():
                pass

    def _close(self) -> None:
        self._recorder.areas = None
        for area in self._areas:
            area.close()
        self._areas.clear()


async def keep_looking(areas: MappedAreas) -> None:
    """Look again and again, as often as is worth it, and as long as somebody records what is found."""
    pause = PAUSE_SECONDS
    while not areas.recording_ended:
        spent, found = 0, False
        began = time.monotonic_ns()
        with suppress(OSError):
            for _ in areas.look():
                found = found or areas.found
                now = time.monotonic_ns()
                if now - began > WORK_SLICE_NS:
                    spent += now - began
                    await trio.lowlevel.checkpoint()
                    began = time.monotonic_ns()
        spent += time.monotonic_ns() - began
        pause = PAUSE_SECONDS if found else min(2 * pause, IDLE_SECONDS)
        await trio.sleep(max(pause, (SHARE - 1) * spent / _NS_PER_SECOND))


def has_mappable_areas(device: Device) -> bool:
    """Whether there is something to look at."""
    return any(True for _ in _shared_areas(device.regions))


def _shared_areas(regions: Sequence[Region]) -> Iterator[tuple[int, MmapArea, SharedMemory]]:
    for index, region in enumerate(regions):
        if region.shared is not None:
            for area in region.mmap_areas or (MmapArea(0, region.size),):
                yield index, area, region.shared


def _reopened(fd: int) -> int:
    """A file of our own for reading, since clients have the device's, and may change its flags."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)
