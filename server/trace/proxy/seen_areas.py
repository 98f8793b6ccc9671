"""What passes a proxy and says where a display has its framebuffer, which the client maps and draws in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from devices.contract import MmapArea, Region, RegionPart, SharedMemory
from protocol import (
    Command,
    Message,
    PciRegion,
    ProtocolError,
    RegionFlags,
    RegionInfo,
    RegionReadReply,
    SparseMmap,
    decode_reply,
)
from protocol.wire import Buffer
from server.trace.fd_facts import fd_facts
from server.trace.mapped_areas import MappedAreas
from server.trace.recorder import Recorder

MAX_LOOKED_AT = 16 << 20
"""Bytes of all areas that are looked at: which part is on the screen is not known, and looking takes time."""
MAX_AREAS = 64
"""Areas of a region that are looked at."""
CLASS_AT = 0x0B
"""Where the base class is in configuration space (PCI 3.0, 6.2.1)."""
DISPLAY = 0x03
"""The base class of display controllers."""


class _Seen:
    """A device of which only what passes is known."""

    regions: Sequence[Region] = ()

    def __init__(self) -> None:
        self.pci_class: int | None = None

    def shown_parts(self) -> Sequence[RegionPart] | None:
        return None if self.pci_class == DISPLAY else ()


class SeenAreas(MappedAreas):
    """The mappable areas of BARs that the server has offered, looked at when its device turns out to be a display.

    Only those in memfds: a read of any other file may wait for somebody.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._seen = _Seen()
        self._known: set[int] = set()
        self._ended = False
        super().__init__(self._seen, recorder)
        self._room = MAX_LOOKED_AT

    def hear(self, message: Message, fds: Sequence[int]) -> None:
        """The server has sent ``message`` with ``fds``, which stay the caller's."""
        command = message.header.command
        if self._ended or not message.header.is_reply or message.header.is_error:
            return
        if command == Command.REGION_READ and self._seen.pci_class is None:
            self._hear_read(message)
        elif command == Command.DEVICE_GET_REGION_INFO and fds:
            with suppress(ProtocolError, OSError):
                info = decode_reply(message.header, message.payload)
                if isinstance(info, RegionInfo) and self._is_new(info):
                    self._known.add(info.index)
                    self._add_areas(info, fds)

    def look(self) -> Iterator[None]:
        """As the base class; of a display without areas there is nothing to say."""
        return super().look() if self._areas else iter(())

    @property
    def recording_ended(self) -> bool:
        """As the base class; also after :meth:`finish`, as for what is no display."""
        return self._ended or super().recording_ended

    def finish(self) -> None:
        """As the base class; what is offered from now on is not looked at."""
        try:
            super().finish()
        finally:
            self._ended = True

    def before(self, message: Buffer) -> None:
        """Nothing: this is called when a message has been passed on, which is too late."""

    def before_passing(self, message: Buffer) -> None:
        """The client has sent ``message``, which the server gets next."""
        if self._seen.pci_class == DISPLAY:
            super().before(message)

    def _hear_read(self, message: Message) -> None:
        with suppress(ProtocolError):
            read = decode_reply(message.header, message.payload)
            if isinstance(read, RegionReadReply) and read.region == PciRegion.CONFIG:
                at = CLASS_AT - read.offset
                if 0 <= at < len(read.data):
                    self._seen.pci_class = read.data[at]
                    if self._seen.pci_class != DISPLAY:
                        self.finish()  # which looks at nothing, as nobody has begun to

    def _is_new(self, info: RegionInfo) -> bool:
        mappable = bool(info.flags & RegionFlags.MMAP) and info.needed is None
        return mappable and info.index <= PciRegion.BAR5 and info.index not in self._known

    def _add_areas(self, info: RegionInfo, fds: Sequence[int]) -> None:
        """Raises OSError."""
        sparse = [one.areas for one in info.capabilities if isinstance(one, SparseMmap)]
        places = [(area.offset, area.size) for area in sparse[0]] if sparse else [(0, info.size)]
        # One file for each, as some servers have it, or one for all.
        files = fds if len(fds) > 1 else [*fds] * len(places)
        for fd, (offset, size) in list(zip(files, places, strict=False))[:MAX_AREAS]:
            end = min(offset + size, info.size, offset + self._room)
            if fd_facts(fd).kind == "memfd" and offset < end <= os.fstat(fd).st_size - info.offset:
                self.add(info.index, MmapArea(offset, end - offset), SharedMemory(fd, info.offset))
