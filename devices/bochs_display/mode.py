"""The display interface's registers, and the mode that they say."""

from __future__ import annotations

from dataclasses import dataclass

from devices.bochs_display.constants import (
    DISPI_ID5,
    MAX_BPP,
    MAX_XRES,
    MAX_YRES,
    VIDEO_MEMORY_UNIT,
    DispiIndex,
    Enable,
)
from devices.pci.registers import Register, RegisterBlock

BYTES_BY_BPP = {15: 2, 16: 2, 24: 3, 32: 4}
"""Bytes of a pixel by bits per pixel. 8 bits are indexes in a palette, which VGA has and this device does not."""

_READ_ONLY = (DispiIndex.ID, DispiIndex.VIDEO_MEMORY_64K)
_CAPABILITIES = {DispiIndex.XRES: MAX_XRES, DispiIndex.YRES: MAX_YRES, DispiIndex.BPP: MAX_BPP}


@dataclass(frozen=True, slots=True)
class Mode:
    """``height`` rows of ``width`` pixels, from byte ``offset`` of the framebuffer, one every ``stride`` bytes."""

    width: int
    height: int
    bpp: int
    stride: int
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's pixels."""
        return self.width * BYTES_BY_BPP[self.bpp]

    @property
    def end(self) -> int:
        """The byte of the framebuffer behind the last pixel."""
        return self.offset + self.stride * (self.height - 1) + self.row_bytes


class DispiRegisters:
    """The 16-bit registers. Guests write them in any order, at any time, and any value.

    A value that no mode has stays where it was written, as on QEMU's device: the screen shows nothing meanwhile.
    """

    def __init__(self, vgamem: int) -> None:
        self._vgamem = vgamem
        self._values = [0] * len(DispiIndex)
        self.reset()
        self.block = RegisterBlock(2 * len(DispiIndex), [self._register(index) for index in DispiIndex])

    def reset(self) -> None:
        """Power-on values: no mode."""
        self._values[:] = [0] * len(DispiIndex)
        self._values[DispiIndex.ID] = DISPI_ID5
        self._values[DispiIndex.VIDEO_MEMORY_64K] = self._vgamem // VIDEO_MEMORY_UNIT

    def mode(self) -> Mode | None:
        """The mode, None where there is none, or where it would show more than the framebuffer has."""
        value = self._values
        width, height, bpp = (value[index] for index in (DispiIndex.XRES, DispiIndex.YRES, DispiIndex.BPP))
        if not value[DispiIndex.ENABLE] & Enable.ENABLED or bpp not in BYTES_BY_BPP:
            return None
        if not (0 < width <= MAX_XRES and 0 < height <= MAX_YRES):
            return None
        stride = max(value[DispiIndex.VIRT_WIDTH], width) * BYTES_BY_BPP[bpp]
        offset = value[DispiIndex.Y_OFFSET] * stride + value[DispiIndex.X_OFFSET] * BYTES_BY_BPP[bpp]
        mode = Mode(width, height, bpp, stride, offset)
        return mode if mode.end <= self._vgamem else None

    def _register(self, index: DispiIndex) -> Register:
        def read() -> int:
            if index in _CAPABILITIES and self._values[DispiIndex.ENABLE] & Enable.GETCAPS:
                return _CAPABILITIES[index]
            return self._values[index]

        def write(value: int) -> None:
            self._values[index] = value

        return Register(2 * index, 2, read, None if index in _READ_ONLY else write, index.name.lower())
