"""What a guest's driver does with an edu device.

Registers, bits and numbers are those of QEMU's docs/specs/edu.rst, and are written down here once more.
"""

from __future__ import annotations

import struct

from devices.contract import Work
from devices.edu import Edu
from devices.testing import FakeHost

BAR0, CONFIG = 0, 7
INTX, MSI = (0, 0), (1, 0)
ALL_ONES = 0xFFFFFFFF
ID, LIVENESS, FACTORIAL, STATUS, INTERRUPTS, RAISE, ACKNOWLEDGE = 0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
START, FROM_EDU, INTERRUPT = 1, 2, 4
BUFFER = 0x40000
RAM = 0x1000


class LaterHost(FakeHost):
    """A host that keeps deferred work until the test drives it."""

    def __init__(self, *, shared: bool = True) -> None:
        super().__init__(shared=shared)
        self.work: list[Work] = []

    def defer(self, work: Work) -> None:
        self.work.append(work)

    def run(self) -> None:
        while self.work:
            self.drive(self.work.pop(0))


def plugged_in(host: FakeHost, *, command: int = 6, msi: bool = False, device: Edu | None = None) -> Edu:
    """An edu on ``host``, by default with memory space and bus mastering on."""
    device = device or Edu()
    device.connect(host)
    device.region_write(CONFIG, 4, memoryview(struct.pack("<H", command)))
    device.region_write(CONFIG, 0x42, memoryview(struct.pack("<H", msi)))
    return device


def write(device: Edu, register: int, value: int, width: int = 4) -> None:
    device.region_write(BAR0, register, memoryview(value.to_bytes(width, "little")))


def read(device: Edu, register: int, width: int = 4) -> int:
    return int.from_bytes(device.region_read(BAR0, register, width), "little")


def start_dma(device: Edu, source: int, destination: int, count: int, command: int) -> None:
    for register, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command)):
        write(device, register, value, 8)


def buffer_of(device: Edu, host: FakeHost, length: int = 4096) -> bytes:
    """What is in the device's buffer, by way of guest memory."""
    start_dma(device, BUFFER, 0x8000, length, START | FROM_EDU)
    return bytes(host.memory.data[0x8000 : 0x8000 + length])


def line_is_up(device: Edu) -> bool:
    return bool(device.region_read(CONFIG, 6, 1)[0] & 0x08)
