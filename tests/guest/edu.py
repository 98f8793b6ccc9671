"""QEMU's educational PCI device as a DMA engine, driven from user space in a guest.

Its registers are those of QEMU's docs/specs/edu.rst: a buffer of 4096 bytes inside the device, and a DMA engine that
copies between it and an address on the bus.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct

import trio

PCI_DEVICES = Path("/sys/bus/pci/devices")
BAR_BYTES = 1 << 20
BUFFER = 0x40000
BUFFER_BYTES = 4096

_IDENTIFICATION, _DMA_SOURCE, _DMA_DESTINATION, _DMA_COUNT, _DMA_COMMAND = 0x00, 0x80, 0x88, 0x90, 0x98
_START, _TO_MEMORY = 1, 2
_PCI_COMMAND = 4
_MEMORY_AND_BUS_MASTER = 6
_COMMAND = Struct("<H")

_VFIO_DEVICE_GET_REGION_INFO = 0x3B6C
_REGION_INFO = Struct("=IIIIQQ")
_BAR0, _CONFIG = 0, 7


def find_edu() -> str:
    """The PCI address of the device."""
    for folder in sorted(PCI_DEVICES.iterdir()):
        if (folder / "vendor").read_text() == "0x1234\n" and (folder / "device").read_text() == "0x11e8\n":
            return folder.name
    raise LookupError("there is no edu device")


class Edu:
    """The device behind its mapped BAR 0."""

    def __init__(self, bar: mmap.mmap) -> None:
        self._bar = bar
        assert self._register(_IDENTIFICATION).value & 0xFFFF == 0x00ED

    async def take(self, dma_addr: int, count: int) -> None:
        """Copy ``count`` bytes at ``dma_addr`` into the device's buffer."""
        await self._transfer(dma_addr, BUFFER, count, _START)

    async def give(self, dma_addr: int, count: int) -> None:
        """Copy ``count`` bytes of the device's buffer to ``dma_addr``."""
        await self._transfer(BUFFER, dma_addr, count, _START | _TO_MEMORY)

    async def _transfer(self, source: int, destination: int, count: int, command: int) -> None:
        for register, value in ((_DMA_SOURCE, source), (_DMA_DESTINATION, destination), (_DMA_COUNT, count)):
            ctypes.c_uint64.from_buffer(self._bar, register).value = value
        self._register(_DMA_COMMAND).value = command
        with trio.fail_after(120):
            while self._register(_DMA_COMMAND).value & _START:
                await trio.lowlevel.checkpoint()

    def _register(self, offset: int) -> ctypes.c_uint32:
        return ctypes.c_uint32.from_buffer(self._bar, offset)


@contextmanager
def edu_of_vfio(fd: int) -> Iterator[Edu]:
    """The device of a VFIO device fd, which stays the caller's."""
    command = _region_offset(fd, _CONFIG) + _PCI_COMMAND
    (bits,) = _COMMAND.unpack(os.pread(fd, _COMMAND.size, command))
    os.pwrite(fd, _COMMAND.pack(bits | _MEMORY_AND_BUS_MASTER), command)
    yield Edu(mmap.mmap(fd, BAR_BYTES, offset=_region_offset(fd, _BAR0)))


@contextmanager
def edu_of_sysfs(name: str) -> Iterator[Edu]:
    """The device ``name``, without any driver."""
    folder = PCI_DEVICES / name
    (folder / "enable").write_text("1")
    with (folder / "config").open("r+b", buffering=0) as config:
        config.seek(_PCI_COMMAND)
        (bits,) = _COMMAND.unpack(config.read(_COMMAND.size))
        config.seek(_PCI_COMMAND)
        config.write(_COMMAND.pack(bits | _MEMORY_AND_BUS_MASTER))
    with (folder / "resource0").open("r+b", buffering=0) as resource:
        yield Edu(mmap.mmap(resource.fileno(), BAR_BYTES))


def _region_offset(fd: int, index: int) -> int:
    info = bytearray(_REGION_INFO.pack(_REGION_INFO.size, 0, index, 0, 0, 0))
    fcntl.ioctl(fd, _VFIO_DEVICE_GET_REGION_INFO, info)
    offset: int = _REGION_INFO.unpack(info)[5]
    return offset
