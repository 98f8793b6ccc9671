"""GET_IRQ_INFO and SET_IRQS through a socket, and what becomes of the eventfds that come with them."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from protocol import Command, GetInfo, GetIrqInfo, IrqAction, IrqData, IrqFlags, IrqInfo, SetIrqs
from server.client import open_client
from tests.fds import open_fds
from tests.server.register_device import ERR, INTX, MSI, MSIX, MSIX_VECTORS, RegisterDevice
from tests.server.running import Server
from tests.server.transports.raw import error_of, greeted_client

TRIGGER = IrqAction.TRIGGER


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("index", "info"),
    [
        (INTX, IrqInfo(INTX, IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED, 1)),
        (MSI, IrqInfo(MSI, IrqFlags.EVENTFD | IrqFlags.NORESIZE, 1)),
        (MSIX, IrqInfo(MSIX, IrqFlags.EVENTFD | IrqFlags.MASKABLE, MSIX_VECTORS)),
        (ERR, IrqInfo(ERR, IrqFlags.EVENTFD, 1)),
    ],
)
async def test_an_interrupt_index_says_what_it_is(server: Server, index: int, info: IrqInfo) -> None:
    async with open_client(server.path) as client:
        assert await client.get_irq_info(index) == info


@pytest.mark.parametrize("index", [5, 255, 2**32 - 1])
async def test_an_interrupt_index_that_does_not_exist_is_refused(
    server: Server, eventfd: int, index: int
) -> None:
    async with greeted_client(server.path) as client:
        assert await client.refusal(GetIrqInfo(index)) == errno.EINVAL
        assert await client.refusal(SetIrqs(index, 0, 0, IrqData.NONE, TRIGGER)) == errno.EINVAL
        assert await client.refusal(SetIrqs(index, 0, 1, IrqData.EVENTFD, TRIGGER), [eventfd]) == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "start", "count", "tail", "fds"),
    [
        (0x04 | 0x20, MSIX_VECTORS, 1, b"", 1),
        (0x04 | 0x20, MSIX_VECTORS - 1, 2, b"", 2),
        (0x04 | 0x20, 2**32 - 1, 1, b"", 1),
        (0x04 | 0x20, 0, 2**32 - 1, b"", 1),
        (0x04 | 0x20, 0, 2, b"", 1),
        (0x04 | 0x20, 0, 1, b"", 2),
        (0x04 | 0x20, 0, 0, b"", 0),
        (0x01 | 0x20, 0, 1, b"", 1),
        (0x01 | 0x20, 0, MSIX_VECTORS + 1, b"", 0),
        (0x02 | 0x20, 0, 4, b"\1\1\1", 0),
        (0x01 | 0x08, 0, 0, b"", 0),
        (0x01, 0, 1, b"", 0),
        (0x20, 0, 1, b"", 0),
        (0x03 | 0x20, 0, 1, b"\1", 0),
        (0x01 | 0x28, 0, 1, b"", 0),
        (0x41 | 0x20, 0, 1, b"", 0),
    ],
)
async def test_a_set_irqs_that_makes_no_sense_is_refused_and_keeps_no_fd(
    server: Server, eventfd: int, flags: int, start: int, count: int, tail: bytes, fds: int
) -> None:
    """The flags are those of VFIO_DEVICE_SET_IRQS (linux/vfio.h)."""
    payload = struct.pack("=IIIII", 20 + len(tail), flags, MSIX, start, count) + tail
    async with greeted_client(server.path) as client:
        before = open_fds()
        assert (
            error_of(await client.ask_raw(Command.DEVICE_SET_IRQS, payload, [eventfd] * fds)) == errno.EINVAL
        )
        assert open_fds() == before
        assert not (await client.ask(GetInfo())).header.is_error


async def test_an_fd_that_is_no_eventfd_is_refused_and_none_of_the_message_is_kept(
    server: Server, device: RegisterDevice, eventfd: int
) -> None:
    reader, writer = os.pipe()
    async with greeted_client(server.path) as client:
        before = open_fds()
        request = SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, TRIGGER)
        assert await client.refusal(request, [eventfd, writer]) == errno.EINVAL
        assert open_fds() == before
        device.attached.trigger(MSIX, 0)
    os.close(reader)
    os.close(writer)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(eventfd)


async def test_an_eventfd_is_kept_until_it_is_replaced_or_switched_off(server: Server, eventfd: int) -> None:
    async with open_client(server.path) as client:
        before = open_fds()
        for _ in range(3):
            await client.set_irqs(SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, TRIGGER), [eventfd, eventfd])
            assert open_fds() == before + 2
        await client.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, TRIGGER))
        assert open_fds() == before + 1
        await client.set_irqs(SetIrqs(MSIX, 0, 0, IrqData.NONE, TRIGGER))
        assert open_fds() == before


async def test_a_client_fires_masks_and_unmasks_its_own_interrupts(
    server: Server, device: RegisterDevice, eventfd: int
) -> None:
    async with open_client(server.path) as client:
        await client.set_irqs(SetIrqs(INTX, 0, 1, IrqData.EVENTFD, TRIGGER), [eventfd])
        await client.set_irqs(SetIrqs(INTX, 0, 1, IrqData.NONE, TRIGGER))
        assert os.eventfd_read(eventfd) == 1
        device.attached.trigger(INTX, 0)
        with pytest.raises(BlockingIOError):  # VFIO_IRQ_INFO_AUTOMASKED: masked by the interrupt before
            os.eventfd_read(eventfd)
        await client.set_irqs(SetIrqs(INTX, 0, 1, IrqData.BOOL, IrqAction.UNMASK, (True,)))
        assert os.eventfd_read(eventfd) == 1


async def test_the_next_client_does_not_fire_the_eventfds_of_the_one_before(
    server: Server, device: RegisterDevice, eventfd: int
) -> None:
    async with open_client(server.path) as client:
        await client.set_irqs(SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, TRIGGER), [eventfd])
    async with open_client(server.path):
        device.attached.trigger(MSIX, 0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(eventfd)
