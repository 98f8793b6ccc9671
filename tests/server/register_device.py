"""A device whose registers are plain memory, and which does whatever a test hooks to a write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from devices.contract import Device, Host, Irq, MmapArea, Region, RegionAccess, SharedMemory
from devices.display import Display

READ_WRITE = RegionAccess.READ | RegionAccess.WRITE
PAGE = 4096
BIG_SIZE = 4 << 20

BAR0, BAR1, BAR2, BAR3, BAR4, BAR5, ROM, CONFIG, VGA = range(9)
INTX, MSI, MSIX, ERR, REQ = range(5)

AREAS = (MmapArea(PAGE, PAGE), MmapArea(3 * PAGE, 2 * PAGE))
"""What clients of BAR3 may map."""
MSIX_VECTORS = 8


class DeviceBroken(Exception):  # noqa: N818 - what a device's own fault looks like
    """Raised where a test asked for it; no errno."""


class RegisterDevice(Device):
    """Regions of every kind: BAR0 memory, BAR1 read only, BAR2 write only, BAR3 mappable, BAR4 big.

    ``on_write`` holds what happens at a write to an offset of BAR0; ``broken`` the names of the methods that raise.
    """

    name = "registers"

    def __init__(self) -> None:
        self.host: Host | None = None
        self.on_write: dict[int, Callable[[bytes], None]] = {}
        self.broken: set[str] = set()
        self.resets = 0
        self.screens: Display | None = None
        self.answer: Callable[[bytes], bytes] = lambda data: data
        self.shared_fd = -1
        self._regions = [
            Region("BAR0", PAGE, READ_WRITE),
            Region("BAR1", 256, RegionAccess.READ),
            Region("BAR2", 256, RegionAccess.WRITE),
            Region("BAR3"),
            Region("BAR4", BIG_SIZE, READ_WRITE),
            Region("BAR5"),
            Region("ROM"),
            Region("CONFIG", 256, READ_WRITE),
            Region("VGA"),
        ]
        self.data = [bytearray(region.size) for region in self._regions]
        self.data[CONFIG][:4] = b"\x36\x1b\x01\x00"

    def share_bar3(self) -> None:
        """Back BAR3 with a memfd, of which :data:`AREAS` may be mapped."""
        self.shared_fd = os.memfd_create("bar3", os.MFD_CLOEXEC)
        os.ftruncate(self.shared_fd, 8 * PAGE)
        self._regions[BAR3] = Region("BAR3", 8 * PAGE, READ_WRITE, AREAS, SharedMemory(self.shared_fd))
        self.data[BAR3] = bytearray(8 * PAGE)

    def close(self) -> None:
        if self.shared_fd >= 0:
            os.close(self.shared_fd)

    @property
    def attached(self) -> Host:
        assert self.host is not None
        return self.host

    @property
    def regions(self) -> Sequence[Region]:
        return self._regions

    @property
    def irqs(self) -> Sequence[Irq]:
        return (
            Irq("INTX", 1, maskable=True, automasked=True),
            Irq("MSI", 1, noresize=True),
            Irq("MSIX", MSIX_VECTORS, maskable=True),
            Irq("ERR", 1),
            Irq("REQ", 1),
        )

    @property
    def display(self) -> Display | None:
        return self.screens

    def connect(self, host: Host) -> None:
        self._may_break("connect")
        self.host = host

    def disconnect(self) -> None:
        self.host = None
        self._may_break("disconnect")

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        self._may_break("region_read")
        return self.answer(bytes(self.data[index][offset : offset + count]))

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        self._may_break("region_write")
        self.data[index][offset : offset + len(data)] = data
        if index == BAR0 and offset in self.on_write:
            self.on_write[offset](bytes(data))

    def reset(self) -> None:
        self._may_break("reset")
        self.resets += 1

    def status(self) -> dict[str, object]:
        self._may_break("status")
        return {"resets": self.resets}

    def _may_break(self, what: str) -> None:
        if what in self.broken:
            raise DeviceBroken(what)
