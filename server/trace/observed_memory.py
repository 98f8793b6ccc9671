"""Guest memory whose every access by the device is recorded."""

from __future__ import annotations

import errno
import sys
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, Self

from devices.contract import DmaSegment, GuestMemoryError, GuestRange, Look, OnUnmap, PinnedPages, Prot
from server.dma.memory import GuestMemoryMap
from server.dma.pin import Pin, part_of
from server.dma.regions import DmaRegion

_READ = Prot.READ.value
_WRITE = Prot.WRITE.value


class MemoryObserver(Protocol):
    """Told of what a device does with memory that its client shared. What goes by message, others see."""

    def read(self, address: int, data: bytes | memoryview) -> None:
        """The device read ``data``."""

    def wrote(self, address: int, data: bytes | memoryview) -> None:
        """The device wrote ``data``."""

    def looked(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> Look:
        """The device looks at memory in place: what is ``offset`` bytes into ``pins``.

        ``ranges`` are the start and the end of what is pinned, in order.
        """


class ObservedMemory(GuestMemoryMap):
    """As :class:`GuestMemoryMap`, for devices that a recorder watches."""

    observed = True

    def __init__(self, observer: MemoryObserver, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observer = observer

    def view(self, address: int, length: int, prot: Prot) -> memoryview | None:
        """None: what is done with a view, nobody would see. Raises as the base class does."""
        super().view(address, length, prot)
        return None

    async def read(self, address: int, length: int) -> bytes:
        """As the base class, and recorded."""
        region = self._find(address)
        if region is not None and 0 <= length <= region.end - address and region.allows[_READ]:
            backing = region.backing
            if backing is not None:
                start = address + region.delta
                data = bytes(backing.memory[_READ][start : start + length])
                self._observer.read(address, data)
                return data
        return await self._read_parts(address, length)

    async def write(self, address: int, data: bytes | memoryview) -> None:
        """As the base class, and recorded."""
        region = self._find(address)
        if region is not None and address + len(data) <= region.end and region.allows[_WRITE]:
            backing = region.backing
            if backing is not None:
                if self.dirty.active:
                    self.dirty.mark(address, address + len(data))
                start = address + region.delta
                backing.memory[_WRITE][start : start + len(data)] = data
                self._observer.wrote(address, data)
                return
        await self._write_parts(address, data)

    def pin_pages(  # type: ignore[override]  # what is in hand is not the cache's own handle
        self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap
    ) -> PinnedPages:
        """As the base class; EFAULT for writing, since nobody would see what is written."""
        if prot & Prot.WRITE:
            raise GuestMemoryError(errno.EFAULT, "the session is recorded: write instead")
        told: list[weakref.ref[ObservedPin]] = []

        def unmapped(_pin: PinnedPages) -> bool | None:
            observed = told[0]()
            return None if observed is None else on_unmap(observed)

        pin = super().pin_pages(ranges, prot, unmapped)
        caller = sys._getframe(1)
        pin.origin = (
            f"{caller.f_code.co_filename}:{caller.f_lineno}"  # and not here, should the device leak it
        )
        observed = ObservedPin(pin, self._observer)
        told.append(weakref.ref(observed))
        return observed

    def _read_shared(self, region: DmaRegion, address: int, size: int) -> bytes | memoryview:
        data = bytes(super()._read_shared(region, address, size))
        self._observer.read(address, data)
        return data

    def _write_shared(self, region: DmaRegion, address: int, data: memoryview) -> None:
        super()._write_shared(region, address, data)
        self._observer.wrote(address, data)


class ObservedPin:
    """A pin for reading, whose looks are recorded; otherwise what it is made from."""

    def __init__(self, pin: Pin, observer: MemoryObserver) -> None:
        self._pin = pin
        self._ranges = pin.scatter.ranges()
        self._observer = observer
        self._part: tuple[int, int] | None = None
        self._views: Sequence[memoryview] = ()
        """What was looked at last: mostly it is the same part of a picture again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def length(self) -> int:
        """Bytes in all ranges together."""
        return self._pin.length

    @property
    def segments(self) -> Sequence[DmaSegment]:
        """The DMA segments."""
        return self._pin.segments

    @property
    def revoked(self) -> bool:
        """Whether the pages are no longer pinned."""
        return self._pin.revoked

    def dma_addr(self, address: int) -> int:
        """The dma_addr of a guest address."""
        return self._pin.dma_addr(address)

    def dma_addrs(self, addresses: Sequence[int]) -> Sequence[int]:
        """The dma_addrs of many."""
        return self._pin.dma_addrs(addresses)

    def views(self) -> Sequence[memoryview]:
        """The memory in place: a look at all of it."""
        return self.look(0, self._pin.length).views

    def look(self, offset: int, length: int) -> Look:
        """A part of the memory in place, and its version."""
        views = self._pin.views()
        if self._part != (offset, length):
            self._part, self._views = (offset, length), part_of(views, offset, length)
        return self._observer.looked(self, self._ranges, offset, self._views)

    def release(self) -> None:
        """Let go of the pages."""
        self._pin.release()
