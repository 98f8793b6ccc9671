"""The Bochs display as a PCI function: QEMU's bochs-display (docs/specs/standard-vga.rst, without the VGA ports)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from devices.bochs_display.constants import (
    DISPI_START,
    EDID_LENGTH,
    EDID_START,
    EXTENDED_LENGTH,
    EXTENDED_START,
    FRAMEBUFFER_BAR,
    IDENTITY,
    MMIO_BAR,
    MMIO_SIZE,
    Endianness,
    ExtendedRegister,
)
from devices.bochs_display.mode import DispiRegisters
from devices.bochs_display.options import BYTES_PER_PIXEL, BochsDisplayOptions
from devices.bochs_display.pixels import layout_of, to_bgrx
from devices.bochs_display.video_memory import VideoMemory
from devices.contract import MmapArea, RegionPart, SharedMemory
from devices.display import Display, Frame, NothingOnScanout, PixelBuffer, ScanoutInfo
from devices.edid.edid import edid
from devices.pci.function import Bar, PciFunction
from devices.pci.registers import Register, RegisterBlock, Window
from devices.work import pause

BYTES_BETWEEN_PAUSES = 1 << 20


class BochsDisplay(PciFunction, Display):
    """One screen, whose pixels clients write through a mapping of BAR 0, or by message. It has no interrupts.

    Raises nothing at what a guest writes.
    """

    name = "bochs-display"

    def __init__(self, options: BochsDisplayOptions | None = None) -> None:
        """Raises OSError where the host has no memory for it."""
        self.options = options or BochsDisplayOptions()
        self._preferred = self.options.width, self.options.height
        self._edid = self._make_edid()
        self._memory = VideoMemory(self.options.vgamem)
        self._dispi = DispiRegisters(self.options.vgamem)
        self._endianness = Endianness.LITTLE
        super().__init__(
            IDENTITY, bars={FRAMEBUFFER_BAR: self._framebuffer_bar(), MMIO_BAR: self._mmio_bar()}
        )

    def _framebuffer_bar(self) -> Bar:
        memory = self._memory
        return Bar(
            memory.size,
            (Window(0, memory.size, memory.read, memory.write, "framebuffer"),),
            prefetchable=True,
            mmap_areas=(MmapArea(0, memory.size),),
            shared=SharedMemory(memory.shared_fd),
        )

    def _mmio_bar(self) -> Bar:
        dispi, extended = self._dispi.block, self._extended_registers()
        windows = (
            Window(EDID_START, EDID_LENGTH, self._read_edid, name="edid"),
            Window(DISPI_START, dispi.length, dispi.read, dispi.write, "dispi", dispi.register_name),
            Window(
                EXTENDED_START, extended.length, extended.read, extended.write, "qext", extended.register_name
            ),
        )
        return Bar(MMIO_SIZE, windows)

    def _extended_registers(self) -> RegisterBlock:
        return RegisterBlock(
            EXTENDED_LENGTH,
            (
                Register(ExtendedRegister.SIZE, 4, lambda: EXTENDED_LENGTH, name="size"),
                Register(
                    ExtendedRegister.ENDIANNESS,
                    4,
                    lambda: self._endianness,
                    self._set_endianness,
                    name="endianness",
                ),
            ),
        )

    def _read_edid(self, offset: int, count: int) -> bytes:
        return self._edid[offset : offset + count].ljust(count, b"\0")

    def _set_endianness(self, value: int) -> None:
        if value in tuple(Endianness):
            self._endianness = Endianness(value)

    def function_reset(self) -> None:
        """No mode, and a black framebuffer; the mode that the screen prefers stays, as a monitor outlives a reboot."""
        self._dispi.reset()
        self._endianness = Endianness.LITTLE
        self._memory.clear()

    def close(self) -> None:
        """Give the framebuffer back; clients that have mapped it keep theirs."""
        self._memory.close()

    @property
    def display(self) -> Display:
        """The screen is the device itself."""
        return self

    @property
    def scanouts(self) -> Sequence[ScanoutInfo]:
        """The one screen."""
        mode = self._dispi.mode()
        width, height = (0, 0) if mode is None else (mode.width, mode.height)
        return [ScanoutInfo(0, True, *self._preferred, width, height)]

    def shown_parts(self) -> Sequence[RegionPart]:
        """The part of the framebuffer from the first pixel to the last, if a mode is set."""
        mode = self._dispi.mode()
        return () if mode is None else (RegionPart(FRAMEBUFFER_BAR, mode.offset, mode.end - mode.offset),)

    async def capture(self, scanout: int) -> Frame:
        """What is in the framebuffer now; the client may draw meanwhile.

        Raises :class:`NothingOnScanout` where no mode is set that could be shown, IndexError for another screen.
        """
        self._check_scanout(scanout)
        mode = self._dispi.mode()
        if mode is None:
            raise NothingOnScanout("the guest has set no mode that can be shown")
        big_endian = self._endianness is Endianness.BIG
        stride = mode.width * BYTES_PER_PIXEL
        pixels = bytearray(stride * mode.height)
        target = memoryview(pixels)
        pause_at = BYTES_BETWEEN_PAUSES
        for row in range(mode.height):
            start, place = mode.offset + row * mode.stride, target[row * stride : (row + 1) * stride]
            if mode.bpp == 32:
                self._memory.read_into(start, place)
            else:
                place[:] = to_bgrx(self._memory.read(start, mode.row_bytes), mode.bpp, big_endian=big_endian)
            if row * stride >= pause_at:
                pause_at += BYTES_BETWEEN_PAUSES
                await pause()
        layout = layout_of(mode.bpp, big_endian=big_endian)
        return Frame(0, PixelBuffer(mode.width, mode.height, stride, layout, bytes(pixels)))

    def set_mode(self, scanout: int, width: int, height: int, *, connected: bool = True) -> None:
        """Change the mode that the screen prefers; a driver sees it when it reads the EDID again.

        Raises IndexError for another screen, ValueError for a mode that does not fit in the framebuffer, and for a
        screen that is unplugged: there is no way to tell the driver.
        """
        self._check_scanout(scanout)
        if not connected:
            raise ValueError(f"the screen of {self.name} cannot be unplugged")
        self.options.check_mode(width, height)
        self._preferred = width, height
        self._edid = self._make_edid()

    def status(self) -> dict[str, object]:
        """The mode, and what the screen shows."""
        mode = self._dispi.mode()
        return {
            "vgamem": self.options.vgamem,
            "mode": None if mode is None else asdict(mode),
            "endianness": self._endianness.name.lower(),
            "scanouts": [asdict(info) for info in self.scanouts],
        }

    def _make_edid(self) -> bytes:
        return edid(*self._preferred, screen=0) if self.options.edid else b""

    def _check_scanout(self, scanout: int) -> None:
        if scanout != 0:
            raise IndexError(f"there is no scanout {scanout}: {self.name} has one")
