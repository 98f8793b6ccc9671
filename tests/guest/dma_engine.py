"""The edu device as what DMA domains are for: it reads and writes at dma_addrs, and the kernel says what faults."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import trio

from server.dma.domain import DmaDomain
from server.dma.domains.noiommu import NoIommuDomain
from server.dma.domains.type1 import Type1Domain
from server.dma.domains.vfio import MapFlags, VfioContainer
from tests.guest.edu import BUFFER_BYTES, PCI_DEVICES, Edu, edu_of_sysfs, edu_of_vfio, find_edu

PAGE = BUFFER_BYTES
DMA_BITS = 28
"""QEMU's edu device takes no more unless it is told to, and then 32."""

_Result = TypeVar("_Result")

_NOTHING_READ, _NOTHING_WRITTEN = b"\xa5" * PAGE, b"\x5a" * PAGE
_LOG_SECONDS = 60.0
_OWN_PAGE = 1 << DMA_BITS
"""Where the device finds its own page: an address that the domain does not use."""


@dataclass
class DmaEngine:
    """The device, what makes DMA domains for it, and a page of its own through which its buffer is seen and filled.

    ``own_page_at`` says where the device finds that page. Nothing of it is the work of what is tested.
    """

    edu: Edu
    make_domain: Callable[[], DmaDomain]
    own_page: mmap.mmap
    own_page_at: Callable[[], int]

    async def load(self, data: bytes) -> None:
        """Fill the device's buffer."""
        self.own_page[:] = data
        await self.edu.take(self.own_page_at(), PAGE)

    async def read(self, dma_addr: int) -> bytes:
        """The page that the device finds at ``dma_addr``; other bytes than any page's where it finds none."""
        await self.load(_NOTHING_READ)
        await self.edu.take(dma_addr, PAGE)
        self.own_page[:] = _NOTHING_WRITTEN
        await self.edu.give(self.own_page_at(), PAGE)
        assert self.own_page[:] != _NOTHING_WRITTEN
        return self.own_page[:]

    async def write(self, dma_addr: int, data: bytes) -> None:
        """Have the device write up to a page of data at ``dma_addr``."""
        await self.load(data.ljust(PAGE, b"\0"))
        await self.edu.give(dma_addr, len(data))

    async def fail_to_read(self, dma_addr: int) -> bytes:
        """As :meth:`read`, and the kernel logs a fault of the IOMMU at ``dma_addr``; returns what was found."""
        return await _until_logged("Read", dma_addr, lambda: self.read(dma_addr))

    async def fail_to_write(self, dma_addr: int, data: bytes) -> None:
        """As :meth:`write`, and the kernel logs a fault of the IOMMU at ``dma_addr``."""
        await _until_logged("Write", dma_addr, lambda: self.write(dma_addr, data))


@contextmanager
def dma_engine(domain: str) -> Iterator[DmaEngine]:
    """The device of this machine, behind an IOMMU for type1."""
    own_page = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(own_page))
    own_page[0] = 1  # so that it is there
    name = find_edu()
    if domain == "noiommu":
        with edu_of_sysfs(name) as edu:
            yield DmaEngine(edu, NoIommuDomain, own_page, lambda: physical_address(address))
        return
    container = VfioContainer.open(iommu_group(name))
    fd = container.device(name)
    try:
        container.map_dma(_OWN_PAGE, address, PAGE, MapFlags.READ | MapFlags.WRITE)
        with edu_of_vfio(fd) as edu:
            yield DmaEngine(edu, lambda: Type1Domain(container, DMA_BITS), own_page, lambda: _OWN_PAGE)
    finally:
        os.close(fd)
        container.close()


def iommu_group(name: str) -> int:
    """The IOMMU group of a device."""
    return int((PCI_DEVICES / name / "iommu_group").readlink().name)


def physical_address(address: int) -> int:
    """Where memory of this process is (Documentation/admin-guide/mm/pagemap.rst)."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE * 8)
        entry = int.from_bytes(pagemap.read(8), sys.byteorder)
    assert entry >> 63, "the page is not in memory"
    return (entry & (1 << 55) - 1) * PAGE + address % PAGE


def move_away(physical: int) -> None:
    """Have the kernel move a page's content elsewhere (Documentation/ABI/testing/sysfs-memory-page-offline).

    Raises OSError (EBUSY) where it cannot. Compaction moves pages for the same reasons, but chooses them itself.
    """
    Path("/sys/devices/system/memory/soft_offline_page").write_text(f"{physical:#x}")


def compact_memory() -> None:
    """Have the kernel move all that it likes to move (Documentation/admin-guide/sysctl/vm.rst)."""
    Path("/proc/sys/vm/compact_memory").write_text("1")


async def _until_logged(
    access: Literal["Read", "Write"], dma_addr: int, attempt: Callable[[], Awaitable[_Result]]
) -> _Result:
    """Repeat what faults until the kernel says so: of many faults in 5 s it logs the first three (intel/dmar.c)."""
    wanted = f"DMAR: [DMA {access} ", f"fault addr {dma_addr:#x} ["
    lines: list[str] = []
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(log, 0, os.SEEK_END)
        with trio.move_on_after(_LOG_SECONDS):
            while True:
                result = await attempt()
                lines += _new_lines(log)
                if any(all(part in line for part in wanted) for line in lines):
                    return result
    finally:
        os.close(log)
    raise AssertionError(f"no fault of a {access} at {dma_addr:#x} in the kernel's log: {lines}")


def _new_lines(log: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            return
