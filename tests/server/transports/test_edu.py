"""The edu device as a client drives it: registers of QEMU's docs/specs/edu.rst, shared memory and an eventfd."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest
import trio

from devices.models import MODELS
from devices.registry import create_device
from protocol import IrqAction, IrqData, PciIrq, PciRegion, SetIrqs
from server.client import VfioUserClient, open_client
from server.native.serve import ConnectionOptions
from tests.server.running import running_server

RAM_SIZE = 1 << 20
BAR0, CONFIG = PciRegion.BAR0, PciRegion.CONFIG
FACTORIAL, STATUS, INTERRUPTS, ACKNOWLEDGE, SOURCE, COMMAND = 0x08, 0x20, 0x24, 0x64, 0x80, 0x98


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def ram_fd() -> Iterator[int]:
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, RAM_SIZE)
    yield fd
    os.close(fd)


async def interrupt(client: VfioUserClient, index: PciIrq, eventfd: int) -> int:
    """Wait for the interrupt and serve it as a driver does; returns what the interrupt status was."""
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(eventfd)
    assert os.eventfd_read(eventfd) == 1
    status = await client.region_read(BAR0, INTERRUPTS, 4)
    await client.region_write(BAR0, ACKNOWLEDGE, status)
    if index is PciIrq.INTX:
        await client.set_irqs(SetIrqs(index, 0, 1, IrqData.NONE, IrqAction.UNMASK))
    return int.from_bytes(status, "little")


async def transfer(client: VfioUserClient, source: int, destination: int, count: int, command: int) -> None:
    for offset, value in enumerate((source, destination, count, command)):
        await client.region_write(BAR0, SOURCE + 8 * offset, struct.pack("<Q", value))


@pytest.mark.parametrize("index", [PciIrq.INTX, PciIrq.MSI])
async def test_a_client_gets_a_factorial_and_its_memory_back_each_with_an_interrupt(
    options: ConnectionOptions, ram_fd: int, eventfd: int, index: PciIrq
) -> None:
    async with (
        running_server(create_device(MODELS, "edu"), options) as server,
        open_client(server.path) as client,
    ):
        assert (await client.get_irq_info(index)).count == 1
        await client.dma_map(0, RAM_SIZE, fd=ram_fd)
        await client.set_irqs(SetIrqs(index, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER), [eventfd])
        await client.region_write(CONFIG, 0x04, b"\x06\x00")  # memory space, bus master
        await client.region_write(CONFIG, 0x42, b"\x01\x00" if index is PciIrq.MSI else b"\x00\x00")
        assert await client.region_read(BAR0, 0x00, 4) == b"\xed\x00\x00\x01"
        await client.region_write(BAR0, STATUS, struct.pack("<I", 0x80))
        await client.region_write(BAR0, FACTORIAL, struct.pack("<I", 10))
        assert await interrupt(client, index, eventfd) == 0x001
        assert await client.region_read(BAR0, FACTORIAL, 4) == struct.pack("<I", 3628800)
        with mmap.mmap(ram_fd, RAM_SIZE) as ram:
            ram[0x1000:0x1005] = b"hello"
            await transfer(client, 0x1000, 0x40000, 5, 0x01 | 0x04)
            assert await interrupt(client, index, eventfd) == 0x100
            await transfer(client, 0x40000, 0x3000, 5, 0x01 | 0x02 | 0x04)
            assert await interrupt(client, index, eventfd) == 0x100
            assert ram[0x3000:0x3006] == b"hello\0"
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)
