"""A host made of a bytearray, for tests of devices and for trying one out.

    host = FakeHost(memory_size=1 << 20)
    device.connect(host)
    device.region_write(0, 0x10, memoryview(b"..."))

Work runs when it is deferred. Part of the public interface: third parties test their devices with it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Self

from devices import work
from devices.contract import DmaSegment, GuestMemoryError, GuestRange, Look, OnUnmap, Prot, Work

_PAGE_MASK = -4096


class FakePinnedPages:
    """Pinned pages of a :class:`FakeMemory`; the dma_addr of a page is its guest address."""

    def __init__(
        self,
        memory: FakeMemory,
        ranges: Sequence[GuestRange],
        prot: Prot,
        on_unmap: OnUnmap,
    ) -> None:
        self.ranges = tuple(ranges)
        self.length = sum(length for _, length in ranges)
        self.prot = prot
        self.revoked = False
        self.on_unmap = on_unmap
        self._memory = memory

    @property
    def segments(self) -> Sequence[DmaSegment]:
        """One segment per range, neighbours not coalesced."""
        return [DmaSegment(address, length) for address, length in self.ranges]

    def dma_addr(self, address: int) -> int:
        """The address itself, where it is in a page of one of the ranges."""
        if self.revoked or not any(
            start & _PAGE_MASK <= address < start + length - 1 | ~_PAGE_MASK for start, length in self.ranges
        ):
            raise GuestMemoryError(errno.EINVAL, f"guest address {address:#x} is not part of this pin")
        return address

    def dma_addrs(self, addresses: Sequence[int]) -> Sequence[int]:
        """The addresses themselves."""
        return [self.dma_addr(address) for address in addresses]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def views(self) -> Sequence[memoryview]:
        """One view per run of ranges that follow each other in the guest."""
        if self.revoked:
            raise GuestMemoryError(errno.EINVAL, "these pages are no longer pinned")
        runs: list[GuestRange] = []
        for address, length in self.ranges:
            if runs and runs[-1].address + runs[-1].length == address:
                runs[-1] = GuestRange(runs[-1].address, runs[-1].length + length)
            else:
                runs.append(GuestRange(address, length))
        return [self._memory.slice(address, length, self.prot) for address, length in runs]

    def look(self, offset: int, length: int) -> Look:
        """A part of :meth:`views`, of unknown version."""
        parts: list[memoryview] = []
        for view in self.views():
            part = view[offset : offset + length]
            parts += [part] if part else []
            offset = max(offset - len(view), 0)
            length -= len(part)
        return Look(parts)

    def release(self) -> None:
        """Take the pages off the memory's list of pins."""
        self.revoked = True
        for pins in (self._memory.pins, self._memory.leaving):
            if self in pins:
                pins.remove(self)


class FakeMemory:
    """Guest memory of ``size`` bytes from address ``base``; shared, or reachable by message only."""

    def __init__(self, size: int, *, base: int = 0, shared: bool = True) -> None:
        self.data = bytearray(size)
        self.base = base
        self.shared = shared
        self.observed = False
        self.pins: list[FakePinnedPages] = []
        self.leaving: list[FakePinnedPages] = []
        self.holes: list[GuestRange] = []

    def slice(self, address: int, length: int, prot: Prot) -> memoryview:
        """The memory in place; EINVAL outside of it or in a hole."""
        start = address - self.base
        if start < 0 or start + length > len(self.data):
            raise GuestMemoryError(errno.EINVAL, f"{address:#x}+{length:#x} is not mapped")
        for hole in self.holes:
            if address < hole.address + hole.length and hole.address < address + length:
                raise GuestMemoryError(errno.EINVAL, f"{address:#x}+{length:#x} is not mapped")
        view = memoryview(self.data)[start : start + length]
        return view if prot & Prot.WRITE else view.toreadonly()

    async def read(self, address: int, length: int) -> bytes:
        """Read at once, or by message where the memory is not shared."""
        view = self.slice(address, length, Prot.READ)
        return bytes(view) if self.shared else await work.read_message(address, length)

    async def write(self, address: int, data: bytes | memoryview) -> None:
        """Write at once, or by message where the memory is not shared."""
        view = self.slice(address, len(data), Prot.WRITE)
        if self.shared:
            view[:] = data
        else:
            await work.write_message(address, bytes(data))

    def view(self, address: int, length: int, prot: Prot) -> memoryview | None:
        """The memory in place, None where it is not shared."""
        view = self.slice(address, length, prot)
        return view if self.shared else None

    def pin_pages(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> FakePinnedPages:
        """Pin ``ranges``; EFAULT where the memory is not shared."""
        for address, length in ranges:
            self.slice(address, length, prot)
        if not self.shared:
            raise GuestMemoryError(errno.EFAULT, "the client did not share this memory")
        pins = FakePinnedPages(self, ranges, prot, on_unmap)
        self.pins.append(pins)
        return pins

    def unmap(self, address: int, length: int) -> None:
        """Take memory away as a client would: holders of pins are told, then the pins are revoked.

        Those whose holders asked for time stay in :attr:`leaving` until they are released.
        """
        self.holes.append(GuestRange(address, length))
        for pins in list(self.pins):
            if any(start < address + length and address < start + size for start, size in pins.ranges):
                wants_time = pins.on_unmap(pins)
                if wants_time is True and not pins.revoked:
                    self.leaving.append(pins)
                else:
                    pins.release()


class FakeLog:
    """Keeps ``(level, event, fields)`` of everything that was said."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def debug(self, event: str, **fields: object) -> None:
        """Keep a debug event."""
        self.events.append(("debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        """Keep an info event."""
        self.events.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        """Keep a warning."""
        self.events.append(("warning", event, fields))


class FakeHost:
    """A host that runs deferred work at once, answers messages from its memory, and counts interrupts."""

    def __init__(self, memory_size: int = 1 << 20, *, memory_base: int = 0, shared: bool = True) -> None:
        self.memory = FakeMemory(memory_size, base=memory_base, shared=shared)
        self.log = FakeLog()
        self.interrupts: list[tuple[int, int]] = []
        self.now = 0
        self._queue: list[Work] = []
        self._running = False

    def trigger(self, index: int, vector: int) -> None:
        """Remember that ``(index, vector)`` was raised."""
        self.interrupts.append((index, vector))

    def clock(self) -> int:
        """The time that the test set in :attr:`now`."""
        return self.now

    def defer(self, work: Work) -> None:
        """Run ``work`` at once, or after the work that is running."""
        self._queue.append(work)
        if self._running:
            return
        self._running = True
        try:
            while self._queue:
                self.drive(self._queue.pop(0))
        finally:
            self._running = False

    def drive(self, coroutine: Work) -> object:
        """Run ``coroutine`` to its end, and give what it returned."""
        answer: bytes | None = None
        try:
            while True:
                request = coroutine.send(answer)
                answer = self._answer(request)
        except StopIteration as stop:
            result: object = stop.value
            return result

    def _answer(self, request: work.Request) -> bytes | None:
        if isinstance(request, work.ReadMessage):
            return bytes(self.memory.slice(request.address, request.length, Prot.READ))
        if isinstance(request, work.WriteMessage):
            self.memory.slice(request.address, len(request.data), Prot.WRITE)[:] = request.data
        return None
