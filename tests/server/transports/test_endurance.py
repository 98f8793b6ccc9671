"""Clients that come and go in their hundreds, that never read, and what reaches the client."""

from __future__ import annotations

import contextlib
import os

import pytest
import trio
import trio.testing
from structlog.typing import EventDict

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import (
    Capabilities,
    Command,
    DmaMap,
    DmaMapFlags,
    IrqAction,
    IrqData,
    RegionRead,
    RegionWrite,
    SetIrqs,
    TwinSocket,
    encode_request,
)
from protocol.codec import PackableRequest
from server.client import open_client
from server.fds import ReceivedFds
from server.native.serve import ConnectionOptions
from tests.fds import open_fds
from tests.server.register_device import BAR0, BAR4, MSIX, PAGE, RegisterDevice
from tests.server.running import Server, mappings, running_server
from tests.server.transports.raw import RawClient, greeted_client, raw_client
from tests.server.transports.test_dma import memfd
from tests.server.transports.test_handshake import assert_served

ROUNDS = 200
TWIN = Capabilities(max_msg_fds=8, twin_socket=TwinSocket(supported=True), write_multiple=True)
READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
PIN = 0x40


def keep(_pages: PinnedPages) -> None:
    """A holder that does not let go when it is told to."""


async def until_left(server: Server) -> None:
    with trio.fail_after(60):
        while server.engine.session is not None:
            await trio.lowlevel.checkpoint()


async def busy_client(server: Server, device: RegisterDevice, *, cut_off: bool) -> None:
    """A client with everything that a client can have, gone in the middle of it."""
    pins: list[PinnedPages] = []

    def pin(_data: bytes) -> None:
        ranges = [GuestRange(0, PAGE), GuestRange(2 * PAGE, PAGE)]
        pins.append(device.attached.memory.pin_pages(ranges, Prot.READ | Prot.WRITE, keep))

    device.on_write[PIN] = pin
    async with raw_client(server.path) as client:
        reply = await client.say_version(TWIN)
        with memfd(4 * PAGE) as fd, ReceivedFds(reply.fds), contextlib.ExitStack() as events:
            eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
            for eventfd in eventfds:
                events.callback(os.close, eventfd)
            await client.ask(DmaMap(0, 4 * PAGE, READ_WRITE), [fd])
            await client.ask(SetIrqs(MSIX, 0, 2, IrqData.EVENTFD, IrqAction.TRIGGER), eventfds)
            await client.ask(RegionWrite(PIN, BAR0, bytes(4)))
            assert len(pins) == 1
            if cut_off:
                await client.send(encode_request(1, RegionWrite(0, BAR0, bytes(64)))[:40], [fd])
    await until_left(server)
    assert pins[0].revoked


async def test_hundreds_of_clients_leave_nothing_behind(server: Server, device: RegisterDevice) -> None:
    for cut_off in (False, True):
        await busy_client(server, device, cut_off=cut_off)
    fds, maps = open_fds(), mappings()
    for number in range(ROUNDS):
        await busy_client(server, device, cut_off=bool(number % 2))
    assert open_fds() == fds
    # The interpreter's own heap may take a few; a client's mappings would be hundreds.
    assert mappings() - maps < ROUNDS // 10
    assert server.engine.clients_served == ROUNDS + 2


async def test_hundreds_of_clients_that_say_nothing_leave_nothing_behind(server: Server) -> None:
    before = open_fds()
    for _ in range(ROUNDS):
        async with raw_client(server.path):
            await trio.testing.wait_all_tasks_blocked()
    await assert_served(server)
    with trio.fail_after(60):
        while open_fds() > before:
            await trio.lowlevel.checkpoint()


async def test_a_client_that_never_reads_is_served_no_further(server: Server, device: RegisterDevice) -> None:
    asked = 0
    request = encode_request(1, RegionRead(0, BAR4, 1 << 20))

    async def ask(client: RawClient) -> None:
        nonlocal asked
        while True:
            await client.send(request)
            asked += 1

    async with greeted_client(server.path) as client, trio.open_nursery() as nursery:
        nursery.start_soon(ask, client)
        # What the two sockets hold is the kernel's; beyond that the server keeps one reply, and takes no request.
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        session = server.engine.session
        assert session is not None
        assert session.counters.region_reads <= 2 < asked
    await until_left(server)
    await assert_served(server)


async def test_an_interrupt_reaches_the_clients_eventfd(server: Server, device: RegisterDevice) -> None:
    device.on_write[0x80] = lambda data: device.attached.trigger(MSIX, data[0])
    async with open_client(server.path) as client:
        eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        try:
            await client.set_irqs(SetIrqs(MSIX, 1, 3, IrqData.EVENTFD, IrqAction.TRIGGER), eventfds)
            for vector in (2, 2, 3, 7):
                await client.region_write(BAR0, 0x80, bytes([vector, 0, 0, 0]))
            assert os.eventfd_read(eventfds[1]) == 2
            assert os.eventfd_read(eventfds[2]) == 1
            with pytest.raises(BlockingIOError):
                os.eventfd_read(eventfds[0])
        finally:
            for eventfd in eventfds:
                os.close(eventfd)


async def test_several_servers_keep_their_clients_apart(options: ConnectionOptions) -> None:
    first, second = RegisterDevice(), RegisterDevice()
    async with (
        running_server(first, options) as one,
        running_server(second, options) as other,
        open_client(one.path) as client_of_one,
        open_client(other.path) as client_of_other,
    ):
        await client_of_one.region_write(BAR0, 0, b"\x11\x11\x11\x11")
        await client_of_other.region_write(BAR0, 0, b"\x22\x22\x22\x22")
        assert await client_of_one.region_read(BAR0, 0, 4) == b"\x11\x11\x11\x11"
        assert bytes(second.data[BAR0][:4]) == b"\x22\x22\x22\x22"


@pytest.mark.parametrize("method", ["region_read", "region_write", "reset"])
async def test_a_device_that_raises_is_an_error_for_the_client_and_a_line_in_the_log(
    server: Server, device: RegisterDevice, log: list[EventDict], method: str
) -> None:
    device.broken.add(method)
    requests: dict[str, PackableRequest] = {
        "region_read": RegionRead(0, BAR0, 4),
        "region_write": RegionWrite(0, BAR0, bytes(4)),
    }
    async with greeted_client(server.path) as client:
        request = requests.get(method)
        reply = await (client.ask_raw(Command.DEVICE_RESET) if request is None else client.ask(request))
        assert reply.header.is_error
        device.broken.clear()
        assert not (await client.ask(RegionRead(0, BAR0, 4))).header.is_error
    assert [event["event"] for event in log].count("device_fault") == 1
