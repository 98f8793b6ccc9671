"""The memory of one part of a virtqueue: seen in place where it can be pinned, copied where it cannot."""

from __future__ import annotations

import errno
import sys
from struct import Struct

from devices.contract import GuestMemory, GuestMemoryError, GuestRange, PinnedPages, Prot

_HALF = Struct("<H")
_LITTLE_ENDIAN = sys.byteorder == "little"
_COPY_INSTEAD = (errno.EFAULT, errno.ENOMEM)


class RingPart:
    """``length`` bytes at ``address``: a descriptor table, an available ring or a used ring.

    :meth:`open` at the start of each run; the view that it finds serves until :meth:`close`, and no longer
    than the pages are mapped. After that, and where memory cannot be pinned, accesses copy.
    """

    __slots__ = ("_copies", "_halves", "_memory", "_pins", "_prot", "_range", "address", "view")

    def __init__(self, address: int, length: int, prot: Prot) -> None:
        self.address = address
        self.view: memoryview | None = None
        self._halves: memoryview | None = None
        """The view as 16-bit numbers of the host, where these are the ring's."""
        self._range = GuestRange(address, length)
        self._prot = prot
        self._memory: GuestMemory | None = None
        self._pins: PinnedPages | None = None
        self._copies = False

    def open(self, memory: GuestMemory) -> None:
        """Pin the part unless it is pinned, and take the view. Raises GuestMemoryError where nothing is."""
        if memory is not self._memory:
            self.release()
            self._memory = memory
            self._copies = memory.observed
        if self._copies:
            return
        pins = self._pins
        if pins is None or pins.revoked:
            try:
                pins = memory.pin_pages((self._range,), self._prot, self._unmapped)
            except GuestMemoryError as error:
                if error.errno not in _COPY_INSTEAD:
                    raise
                self._copies = True
                return
            self._pins = pins
        views = pins.views()
        if len(views) == 1:
            self.view = view = views[0]
            if _LITTLE_ENDIAN and len(view) % _HALF.size == 0:
                self._halves = view.cast("H")
        else:
            self.release()
            self._memory = memory
            self._copies = True

    def close(self) -> None:
        """Let go of the view, which is good during one run only; the pages stay pinned."""
        self.view = self._halves = None

    def release(self) -> None:
        """Let go of view and pins."""
        self.view = self._halves = None
        self._memory = None
        self._copies = False
        if self._pins is not None:
            pins, self._pins = self._pins, None
            pins.release()

    async def load(self, offset: int, layout: Struct) -> tuple[int, ...]:
        """Unpack ``layout`` from ``offset``."""
        if self.view is not None:
            return layout.unpack_from(self.view, offset)
        return layout.unpack(await self._reach().read(self.address + offset, layout.size))

    async def store(self, offset: int, layout: Struct, *values: int) -> None:
        """Pack ``values`` at ``offset``."""
        if self.view is not None:
            layout.pack_into(self.view, offset, *values)
        else:
            await self._reach().write(self.address + offset, layout.pack(*values))

    async def store_half(self, offset: int, value: int) -> None:
        """Store 16 bits at ``offset``, which is even, at once.

        Drivers read indexes while they are written, and must see the old one or the new one. ``pack_into`` writes
        zeros first.
        """
        if self._halves is not None:
            self._halves[offset // _HALF.size] = value
        elif self.view is not None:
            self.view[offset : offset + _HALF.size] = _HALF.pack(value)
        else:
            await self._reach().write(self.address + offset, _HALF.pack(value))

    def _reach(self) -> GuestMemory:
        if self._memory is None:
            raise GuestMemoryError(errno.ENODEV, "the virtqueue's memory is not open")
        return self._memory

    def _unmapped(self, pins: PinnedPages) -> None:
        if pins is self._pins:
            self.view = self._halves = None
            self._pins = None
        pins.release()
