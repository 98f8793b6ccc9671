"""What a driver of a Bochs display does, by the numbers of vbe_display_api.txt and standard-vga.rst."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from devices.bochs_display import BochsDisplay, BochsDisplayOptions
from devices.display import Frame, PixelBuffer
from devices.testing import FakeHost

VRAM, MMIO, CONFIG = 0, 2, 7
MIB = 1 << 20
DISPI, QEXT = 0x500, 0x600
ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY_64K = range(11)
ENABLED, GETCAPS, LFB_ENABLED = 0x01, 0x02, 0x40
QEXT_SIZE, QEXT_ENDIANNESS = 0x600, 0x604
LITTLE, BIG = 0x1E1E1E1E, 0xBEBEBEBE


class Driver:
    """A Bochs display on a host, and accesses to it."""

    def __init__(self, **options: Any) -> None:
        self.device = BochsDisplay(BochsDisplayOptions(**options))
        self.host = FakeHost()
        self.device.connect(self.host)

    def read(self, offset: int, width: int, region: int = MMIO) -> int:
        return int.from_bytes(self.device.region_read(region, offset, width), "little")

    def write(self, offset: int, value: int, width: int, region: int = MMIO) -> None:
        self.device.region_write(region, offset, memoryview(value.to_bytes(width, "little")))

    def get(self, index: int) -> int:
        return self.read(DISPI + 2 * index, 2)

    def set(self, index: int, value: int) -> None:
        self.write(DISPI + 2 * index, value, 2)

    def enable(self, width: int, height: int, bpp: int = 32, **others: int) -> None:
        """Set a mode as drivers do it: off, everything, on."""
        self.set(ENABLE, 0)
        values = {
            "XRES": width,
            "YRES": height,
            "BPP": bpp,
            "VIRT_WIDTH": width,
            "X_OFFSET": 0,
            "Y_OFFSET": 0,
        }
        for name, value in (values | others).items():
            self.set(globals()[name], value)
        self.set(ENABLE, ENABLED | LFB_ENABLED)

    @property
    def fd(self) -> int:
        """What a client gets to map."""
        shared = self.device.regions[VRAM].shared
        assert shared is not None
        return shared.fd

    def draw(self, offset: int, pixels: bytes) -> None:
        """Write to the framebuffer as through a mapping: the device is not told."""
        assert os.pwrite(self.fd, pixels, offset) == len(pixels)

    def screen(self) -> PixelBuffer:
        frame = self.host.drive(self.device.capture(0))
        assert isinstance(frame, Frame)
        assert (frame.scanout, frame.cursor) == (0, None)
        return frame.buffer


@contextmanager
def plugged_in(**options: Any) -> Iterator[Driver]:
    driver = Driver(**options)
    try:
        yield driver
    finally:
        driver.device.close()


def words(*values: int, width: int = 4) -> bytes:
    """Little-endian pixels."""
    return b"".join(value.to_bytes(width, "little") for value in values)


def rows(buffer: PixelBuffer) -> Sequence[bytes]:
    """The pixels of each row, without padding."""
    return [
        buffer.pixels[row * buffer.stride : row * buffer.stride + 4 * buffer.width]
        for row in range(buffer.height)
    ]
