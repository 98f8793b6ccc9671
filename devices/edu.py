"""QEMU's educational device: a PCI function that computes factorials, copies guest memory and interrupts.

Registers, bits and numbers are those of QEMU's docs/specs/edu.rst. What that leaves open is as QEMU does it: accesses
that reach no register read all ones, and writes that would disturb work under way are ignored.
"""

from __future__ import annotations

from functools import partial
from math import factorial

from devices.contract import GuestMemoryError
from devices.pci.config_space import PciIdentity
from devices.pci.constants import InterruptPin
from devices.pci.function import Bar, PciFunction
from devices.pci.registers import Register, RegisterBlock, Window
from protocol.wire import U32_MAX

IDENTITY = PciIdentity(vendor=0x1234, device=0x11E8, class_code=0x00FF00, revision=0x10)
IDENTIFICATION = 0x010000ED
BAR_SIZE, DMA_REGISTERS, REGISTERS_END = 1 << 20, 0x80, 0xA0
BUFFER, BUFFER_SIZE = 0x40000, 4096
"""The device's own memory, as its DMA engine addresses it; it is no part of the BAR."""
DEFAULT_DMA_MASK = (1 << 28) - 1

# Bits of the status register, the DMA command register and the interrupt status register.
COMPUTING, INTERRUPT_AFTER_FACTORIAL = 0x01, 0x80
DMA_START, DMA_TO_RAM, INTERRUPT_AFTER_DMA = 0x01, 0x02, 0x04
FACTORIAL_DONE, DMA_DONE = 0x001, 0x100


class Edu(PciFunction):
    """The function. ``dma_mask`` has the bits of a guest address that its DMA engine drives; the others are lost."""

    name = "edu"

    def __init__(self, dma_mask: int = DEFAULT_DMA_MASK) -> None:
        self._dma_mask = dma_mask
        self._generation = 0
        self.function_reset()
        registers = self._describe_registers()
        self._registers = {register.offset: register for register in registers}
        names = RegisterBlock(REGISTERS_END, registers).register_name
        window = Window(0, BAR_SIZE, self._read, self._write, register_name=names)
        bars = {0: Bar(BAR_SIZE, (window,))}
        super().__init__(IDENTITY, bars=bars, msi_vectors=1, interrupt_pin=InterruptPin.INTA)

    def function_reset(self) -> None:
        """Back to the power-on state; work that is still under way belongs to an older generation."""
        self._generation += 1
        self._liveness = self._factorial = self._status = self._interrupts = 0
        self._dma = {"source": 0, "destination": 0, "count": 0, "command": 0}
        self._buffer = bytearray(BUFFER_SIZE)

    def function_disconnect(self) -> None:
        """Give up what is under way: it was for the client that leaves."""
        self._generation += 1
        self._status &= ~COMPUTING
        self._dma["command"] &= ~DMA_START

    def _describe_registers(self) -> tuple[Register, ...]:
        return (
            Register(0x00, 4, lambda: IDENTIFICATION, name="identification"),
            Register(0x04, 4, lambda: self._liveness, self._check_liveness, "liveness"),
            Register(0x08, 4, lambda: self._factorial, self._start_factorial, "factorial"),
            Register(0x20, 4, lambda: self._status, self._set_status, "status"),
            Register(0x24, 4, lambda: self._interrupts, name="interrupt_status"),
            Register(0x60, 4, lambda: U32_MAX, self._raise, "interrupt_raise"),
            Register(0x64, 4, lambda: U32_MAX, self._acknowledge, "interrupt_acknowledge"),
            self._dma_register(0x80, "source"),
            self._dma_register(0x88, "destination"),
            self._dma_register(0x90, "count"),
            Register(0x98, 8, lambda: self._dma["command"], self._start_dma, "dma_command"),
        )

    def _dma_register(self, offset: int, name: str) -> Register:
        return Register(offset, 8, lambda: self._dma[name], partial(self._set_dma, name), f"dma_{name}")

    def _register(self, offset: int, width: int) -> Register | None:
        allowed = width == 4 or (width == 8 and offset >= DMA_REGISTERS)
        return self._registers.get(offset) if allowed else None

    def _read(self, offset: int, count: int) -> bytes:
        register = self._register(offset, count)
        return b"\xff" * count if register is None else register.read().to_bytes(8, "little")[:count]

    def _write(self, offset: int, data: memoryview) -> None:
        register = self._register(offset, len(data))
        if register is not None and register.write is not None:
            register.write(int.from_bytes(data, "little"))

    def _check_liveness(self, value: int) -> None:
        self._liveness = ~value & U32_MAX

    def _set_status(self, value: int) -> None:
        self._status = self._status & COMPUTING | value & INTERRUPT_AFTER_FACTORIAL

    def _raise(self, reasons: int) -> None:
        self._interrupts |= reasons
        if self._interrupts:
            self.raise_msi(0)
            self.set_intx(True)

    def _acknowledge(self, reasons: int) -> None:
        self._interrupts &= ~reasons
        self.set_intx(self._interrupts != 0)

    def _start_factorial(self, number: int) -> None:
        if not self._status & COMPUTING:
            self._factorial = number
            self._status |= COMPUTING
            self.host.defer(self._compute(self._generation))

    async def _compute(self, generation: int) -> None:
        if generation == self._generation:
            self._factorial = factorial(min(self._factorial, 34)) & U32_MAX  # 0 from 34! on
            self._status &= ~COMPUTING
            if self._status & INTERRUPT_AFTER_FACTORIAL:
                self._raise(FACTORIAL_DONE)

    def _set_dma(self, register: str, value: int) -> None:
        if not self._dma["command"] & DMA_START:
            self._dma[register] = value

    def _start_dma(self, command: int) -> None:
        if command & DMA_START and not self._dma["command"] & DMA_START:
            self._dma["command"] = command
            self.host.defer(self._run_dma(self._generation))

    async def _run_dma(self, generation: int) -> None:
        try:
            if generation == self._generation:
                await self._transfer(**self._dma)
        except GuestMemoryError as error:
            self.host.log.info("dma_failed", reason=error.strerror)
        if generation == self._generation:
            self._dma["command"] &= ~DMA_START
            if self._dma["command"] & INTERRUPT_AFTER_DMA:
                self._raise(DMA_DONE)

    async def _transfer(self, source: int, destination: int, count: int, command: int) -> None:
        buffer = self._buffer  # a reset makes another one, even while this one waits for the client
        at = (source if command & DMA_TO_RAM else destination) - BUFFER
        if not self.bus_master or not 0 <= at <= BUFFER_SIZE - count:
            self.host.log.info("dma_refused", bus_master=self.bus_master, buffer_offset=at, count=count)
        elif command & DMA_TO_RAM:
            await self.host.memory.write(destination & self._dma_mask, bytes(buffer[at : at + count]))
        else:
            buffer[at : at + count] = await self.host.memory.read(source & self._dma_mask, count)
