"""A PCI function with a doorbell that interrupts, and an engine that copies guest memory.

Registers in BAR 0, little-endian: RING at 0x00 (write: raise MSI-X vector 0), COUNT at 0x04 (rings so far), SOURCE
at 0x08 and TARGET at 0x10 (64-bit guest addresses), LENGTH at 0x18 (write: copy so many bytes, then raise MSI-X
vector 1), STATUS at 0x1c (how the last copy ended).
"""

from __future__ import annotations

from enum import IntEnum

from devices.contract import GuestMemoryError
from devices.pci.config_space import PciIdentity
from devices.pci.function import Bar, MsixSpec, PciFunction
from devices.pci.registers import Register, RegisterBlock, Window

RUNG, COPIED = 0, 1
MAX_COPY = 1 << 20
IDENTITY = PciIdentity(vendor=0x1AF4, device=0x10F0, class_code=0xFF0000)


class Status(IntEnum):
    """Values of STATUS."""

    IDLE, BUSY, DONE, FAILED = range(4)


class Doorbell(PciFunction):
    """The function. What a guest writes is a number until it has been checked: nothing here raises at it."""

    name = "doorbell"

    def __init__(self) -> None:
        self._generation = 0
        self.function_reset()
        registers = (
            Register(0x00, 4, read=lambda: 0, write=self._ring, name="ring"),
            Register(0x04, 4, read=lambda: self._count, name="count"),
            Register(0x08, 8, read=lambda: self._source, write=self._set_source, name="source"),
            Register(0x10, 8, read=lambda: self._target, write=self._set_target, name="target"),
            Register(0x18, 4, read=lambda: self._length, write=self._start_copy, name="length"),
            Register(0x1C, 4, read=lambda: self._status, name="status"),
        )
        block = RegisterBlock(0x20, registers)
        window = Window(0, block.length, block.read, block.write, register_name=block.register_name)
        super().__init__(IDENTITY, bars={0: Bar(4096, (window,))}, msix=MsixSpec(vectors=2, bar=1))

    def function_reset(self) -> None:
        """Back to the power-on state; a copy that is still under way belongs to an older generation."""
        self._generation += 1
        self._count = self._source = self._target = self._length = 0
        self._status = Status.IDLE

    def function_disconnect(self) -> None:
        """Give up a copy that is under way, or was to begin: it was for the client that leaves."""
        self._generation += 1
        if self._status is Status.BUSY:
            self._status = Status.FAILED

    def _ring(self, _value: int) -> None:
        self._count = (self._count + 1) & 0xFFFFFFFF
        self.raise_msix(RUNG)

    def _set_source(self, address: int) -> None:
        self._source = address

    def _set_target(self, address: int) -> None:
        self._target = address

    def _start_copy(self, length: int) -> None:
        if self._status is Status.BUSY:
            return
        self._length = length
        self._status = Status.BUSY
        self.host.defer(self._copy(self._source, self._target, length, self._generation))

    async def _copy(self, source: int, target: int, length: int, generation: int) -> None:
        status = Status.FAILED
        try:
            if self.bus_master and length <= MAX_COPY:
                data = await self.host.memory.read(source, length)
                if generation == self._generation and self.bus_master:  # a wait for the client may be long
                    await self.host.memory.write(target, data)
                    status = Status.DONE
        except GuestMemoryError as error:
            self.host.log.info("copy_failed", reason=error.strerror)
        if generation == self._generation:
            self._status = status
            self.raise_msix(COPIED)
