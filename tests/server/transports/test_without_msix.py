"""A virtio GPU with ``msix=off`` as a client sees it: no MSI-X anywhere, and interrupts by INTx."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from devices.models import MODELS
from devices.registry import create_device
from protocol import IrqAction, IrqData, PciIrq, PciRegion, SetIrqs
from server.client import VfioUserClient, open_client
from server.client.requests import RemoteError
from server.native.serve import ConnectionOptions
from tests.server.running import Server, running_server

BAR4, CONFIG = PciRegion.BAR4, PciRegion.CONFIG
CAPABILITIES_POINTER, MSIX_CAPABILITY = 0x34, 0x11
DRIVER_FEATURE_SELECT, DRIVER_FEATURE, DEVICE_STATUS, ISR = 0x08, 0x0C, 0x14, 0x1000
CONFIGURATION_CHANGED = b"\x02"
INTX_TRIGGER = SetIrqs(PciIrq.INTX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER)
INTX_UNMASK = SetIrqs(PciIrq.INTX, 0, 1, IrqData.NONE, IrqAction.UNMASK)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
async def gpu(options: ConnectionOptions) -> AsyncIterator[Server]:
    async with running_server(create_device(MODELS, "virtio-gpu,msix=off"), options) as server:
        yield server


async def capabilities(client: VfioUserClient) -> list[int]:
    config = await client.region_read(CONFIG, 0, 256)
    found, at = [], config[CAPABILITIES_POINTER]
    while at:
        found.append(config[at])
        at = config[at + 1]
    return found


async def start_driver(client: VfioUserClient) -> None:
    """From reset to DRIVER_OK, with VERSION_1 and no queues (virtio 1.3, 3.1.1)."""
    await client.region_write(BAR4, DEVICE_STATUS, b"\x03")
    await client.region_write(BAR4, DRIVER_FEATURE_SELECT, b"\x01\0\0\0")
    await client.region_write(BAR4, DRIVER_FEATURE, b"\x01\0\0\0")
    await client.region_write(BAR4, DEVICE_STATUS, b"\x0b")
    await client.region_write(BAR4, DEVICE_STATUS, b"\x0f")
    assert await client.region_read(BAR4, DEVICE_STATUS, 1) == b"\x0f"


async def test_there_is_no_msix_to_be_seen(gpu: Server) -> None:
    async with open_client(gpu.path) as client:
        assert MSIX_CAPABILITY not in await capabilities(client)
        assert (await client.get_irq_info(PciIrq.MSIX)).count == 0
        assert (await client.get_irq_info(PciIrq.INTX)).count == 1
        assert (await client.get_region_info(PciRegion.BAR1))[0].size == 0
        assert (await client.get_region_info(BAR4))[0].size == 0x4000


async def test_a_vector_of_msix_cannot_be_connected(gpu: Server, eventfd: int) -> None:
    connect = SetIrqs(PciIrq.MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER)
    async with open_client(gpu.path) as client:
        with pytest.raises(RemoteError) as refused:
            await client.set_irqs(connect, [eventfd])
        assert refused.value.errno == errno.EINVAL


async def test_each_interrupt_comes_through_intx_once_it_is_unmasked(gpu: Server, eventfd: int) -> None:
    display = gpu.engine.display
    async with open_client(gpu.path) as client:
        await client.set_irqs(INTX_TRIGGER, [eventfd])
        await start_driver(client)
        for width in (800, 1024):
            display.set_mode(0, width, 600)
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(eventfd)
            assert os.eventfd_read(eventfd) == 1
            assert await client.region_read(BAR4, ISR, 1) == CONFIGURATION_CHANGED
            await client.set_irqs(INTX_UNMASK)
