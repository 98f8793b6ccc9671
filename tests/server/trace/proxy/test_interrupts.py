"""Interrupts through a proxy that sees everything: recorded, and no later than the messages behind them."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from protocol import (
    Command,
    GetInfo,
    IrqAction,
    IrqData,
    SetIrqs,
    encode_error,
    encode_reply,
)
from protocol.trace import Interrupt
from server.client import open_client
from server.fds import ReceivedFds
from server.trace.reader import TracedEvents, TracedMessage
from tests.fds import open_fds
from tests.server.register_device import BAR0, INTX, MSIX, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import FROM_SERVER, Pair, running_proxy

TRIGGER = IrqAction.TRIGGER


@pytest.fixture
def full() -> bool:
    return True


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    """The client's."""
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(4)]
    yield fds
    for fd in fds:
        os.close(fd)


def connecting(start: int, count: int, index: int = MSIX) -> SetIrqs:
    return SetIrqs(index, start, count, IrqData.EVENTFD, TRIGGER)


async def ask(pair: Pair, request: SetIrqs, fds: list[int], code: int = 0) -> ReceivedFds:
    """Have the client set interrupts, and the server do it, or refuse with ``code``; the fds that the server got."""
    await pair.client.command(request, fds)
    got = await pair.server.message()
    header = got.header
    assert SetIrqs.unpack(got.payload) == request
    reply = encode_reply(header.message_id, header.command)
    await pair.server.send(encode_error(header.message_id, header.command, code) if code else reply)
    assert (await pair.client.message()).header.error == code
    return ReceivedFds(got.fds)


async def is_told(eventfd: int) -> bool:
    """Wait for an interrupt; it came once."""
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(eventfd)
    return os.eventfd_read(eventfd) == 1


async def hears_nothing(pair: Pair, eventfd: int) -> bool:
    """True when a message that was sent behind an interrupt is here, and the interrupt is not."""
    await pair.server.command(GetInfo())
    await pair.client.message()
    try:
        os.eventfd_read(eventfd)
    except BlockingIOError:
        return True
    return False


async def test_an_interrupt_of_a_device_arrives_before_the_reply_behind_it_and_is_recorded(
    tmp_path: Path, eventfds: list[int]
) -> None:
    device = RegisterDevice()
    device.on_write[0] = lambda _: device.attached.trigger(MSIX, 3)
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=True) as proxy,
        open_client(proxy.path) as client,
    ):
        await client.set_irqs(connecting(2, 2), eventfds[:2])
        await client.region_write(BAR0, 0, b"fire")
        assert os.eventfd_read(eventfds[1]) == 1
        device.attached.trigger(MSIX, 2)
        assert await is_told(eventfds[0])
    recorded = proxy.recorded()
    write = next(
        at
        for at, one in enumerate(recorded)
        if isinstance(one, TracedMessage) and one.header.command == Command.REGION_WRITE
    )
    fired, reply, later = recorded[write + 1 : write + 4]
    assert isinstance(fired, TracedEvents)
    assert fired.events == (Interrupt(MSIX, 3),)
    assert isinstance(reply, TracedMessage)
    assert reply.direction is FROM_SERVER
    assert isinstance(later, TracedEvents)
    assert later.events == (Interrupt(MSIX, 2),)
    (asked, _) = proxy.messages(Command.DEVICE_SET_IRQS)
    assert [facts.kind for facts in asked.facts.fds] == ["eventfd", "eventfd"]


async def test_each_vector_is_passed_on_to_its_own_eventfd(pair: Pair, eventfds: list[int]) -> None:
    with await ask(pair, connecting(4, 4), eventfds) as servers:
        assert len(servers) == 4
        for number in (2, 0, 3, 1):
            os.eventfd_write(servers.numbers[number], 1)
            assert await is_told(eventfds[number])
    await pair.server.command(GetInfo())  # events are written with the message behind them
    await pair.client.message()
    assert pair.proxy.events() == [Interrupt(MSIX, 4 + number) for number in (2, 0, 3, 1)]


async def test_interrupts_reach_the_client_as_soon_as_it_has_set_them(
    pair: Pair, eventfds: list[int]
) -> None:
    await pair.client.command(connecting(0, 1), eventfds[:1])
    with ReceivedFds((await pair.server.message()).fds) as fds:
        os.eventfd_write(fds.numbers[0], 1)
        assert await is_told(eventfds[0])


async def test_an_eventfd_that_replaces_another_is_the_only_one_that_is_told(
    pair: Pair, eventfds: list[int]
) -> None:
    before = open_fds()
    with await ask(pair, connecting(0, 1), eventfds[:1]) as first:
        with await ask(pair, connecting(0, 1), eventfds[1:2]) as second:
            os.eventfd_write(first.numbers[0], 1)
            assert await hears_nothing(pair, eventfds[0])
            os.eventfd_write(second.numbers[0], 1)
            assert await is_told(eventfds[1])
        assert open_fds() == before + 3  # the proxy's, its copy of the client's, and the server's first


async def test_what_the_server_refuses_leaves_the_eventfds_before(pair: Pair, eventfds: list[int]) -> None:
    with await ask(pair, connecting(0, 1), eventfds[:1]) as first:
        before = open_fds()
        (await ask(pair, connecting(0, 2), eventfds[1:3], errno.EINVAL)).close()
        assert open_fds() == before
        os.eventfd_write(first.numbers[0], 1)
        assert await is_told(eventfds[0])


@pytest.mark.parametrize(
    "request_",
    [connecting(0, 2), SetIrqs(MSIX, 0, 0, IrqData.NONE, TRIGGER)],
    ids=["these vectors", "all vectors"],
)
async def test_interrupts_that_are_switched_off_are_let_go_of(
    pair: Pair, eventfds: list[int], request_: SetIrqs
) -> None:
    before = open_fds()
    (await ask(pair, connecting(0, 1, INTX), eventfds[:1])).close()
    with await ask(pair, connecting(0, 2), eventfds[1:3]) as servers:
        (await ask(pair, request_, [])).close()
        os.eventfd_write(servers.numbers[0], 1)
        assert await hears_nothing(pair, eventfds[1])
    assert open_fds() == before + 2  # the proxy's for INTx, and its copy of the client's


@pytest.mark.parametrize("action", [IrqAction.MASK, IrqAction.UNMASK])
async def test_eventfds_that_the_client_signals_pass_as_they_are(
    pair: Pair, eventfds: list[int], action: IrqAction
) -> None:
    request = SetIrqs(INTX, 0, 1, IrqData.EVENTFD, action)
    with await ask(pair, request, eventfds[:1]) as servers:
        os.eventfd_write(eventfds[0], 5)
        assert os.eventfd_read(servers.numbers[0]) == 5


@pytest.mark.parametrize(
    "request_",
    [
        SetIrqs(MSIX, 1, 3, IrqData.NONE, TRIGGER),
        SetIrqs(MSIX, 0, 2, IrqData.BOOL, TRIGGER, (True, False)),
        SetIrqs(INTX, 0, 1, IrqData.NONE, IrqAction.UNMASK),
    ],
)
async def test_requests_that_raise_or_mask_leave_the_eventfds(
    pair: Pair, eventfds: list[int], request_: SetIrqs
) -> None:
    with await ask(pair, connecting(0, 4), eventfds) as servers:
        (await ask(pair, request_, [])).close()
        os.eventfd_write(servers.numbers[1], 1)
        assert await is_told(eventfds[1])


async def test_an_eventfd_that_the_server_makes_blocking_and_reads_itself_stops_nobody(
    pair: Pair, eventfds: list[int]
) -> None:
    with await ask(pair, connecting(0, 1), eventfds[:1]) as servers:
        fd = servers.numbers[0]
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        os.eventfd_write(fd, 2**64 - 2)
        os.eventfd_read(fd)
        await pair.server.command(GetInfo())
        with trio.fail_after(60):
            await pair.client.message()


async def test_a_clients_eventfd_that_is_full_and_blocks_stops_nobody(
    pair: Pair, eventfds: list[int]
) -> None:
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    with await ask(pair, connecting(0, 2), [full, eventfds[0]]) as servers:
        os.eventfd_write(servers.numbers[0], 1)
        os.eventfd_write(servers.numbers[1], 1)
        assert await is_told(eventfds[0])
    os.close(full)


async def test_a_client_that_leaves_takes_its_eventfds_along(tmp_path: Path, eventfds: list[int]) -> None:
    device = RegisterDevice()
    async with (
        running_server(device) as server,
        running_proxy(server.path, tmp_path, full=True) as proxy,
    ):
        before = open_fds()
        for _ in range(3):
            async with open_client(proxy.path) as client:
                await client.set_irqs(connecting(0, 4), eventfds)
            async with open_client(proxy.path) as client:
                device.attached.trigger(MSIX, 0)
                await client.get_info()
        with trio.fail_after(60):
            while open_fds() > before:
                await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(eventfds[0])
