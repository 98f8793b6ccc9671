"""A proxy between sides that break the protocol, or break off: it goes on, and keeps no fd."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from protocol import (
    HEADER,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaUnmap,
    GetInfo,
    IrqAction,
    IrqData,
    SetIrqs,
    encode,
    encode_reply,
    encode_request,
)
from server.client import open_client
from server.trace.proxy.pump import MAX_BACKLOG
from tests.server.register_device import BAR0, MSIX, PAGE, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import Pair, open_twin, running_proxy, send_at_once
from tests.server.transports.raw import RawClient, error_of
from tests.server.transports.test_pressure import victim

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
BOTH_MODES = pytest.mark.parametrize("full", [False, True], ids=["plain", "full"])


@pytest.fixture
def fds() -> Iterator[list[int]]:
    """One of each kind."""
    reader, writer = os.pipe()
    fds = [os.memfd_create("guest"), os.eventfd(0), os.open("/dev/null", os.O_RDWR), reader, writer]
    os.ftruncate(fds[0], PAGE)
    yield fds
    for fd in fds:
        os.close(fd)


def reasons(log: list[EventDict]) -> list[str]:
    return [event["reason"] for event in log if event["event"] == "client_dropped"]


async def begin_something(pair: Pair, fds: list[int]) -> None:
    """Leave requests of all kinds without an answer."""
    await pair.client.command(DmaMap(0, PAGE, READ_WRITE), fds[:1], message_id=1)
    await pair.client.command(DmaUnmap(0, PAGE), message_id=2)
    connect = SetIrqs(MSIX, 0, 1, IrqData.EVENTFD, IrqAction.TRIGGER)
    await pair.client.command(connect, fds[1:2], message_id=3)
    for _ in range(3):
        for fd in (await pair.server.message()).fds:
            os.close(fd)


@BOTH_MODES
@pytest.mark.parametrize("who", ["client", "server"])
async def test_the_end_of_one_side_is_the_end_of_the_other(
    pair: Pair, fds: list[int], log: list[EventDict], who: str
) -> None:
    await begin_something(pair, fds)
    first, second = (pair.client, pair.server) if who == "client" else (pair.server, pair.client)
    first.sock.close()
    with trio.fail_after(60):
        assert await second.ends()
    second.sock.close()
    with trio.fail_after(60):
        while not (left := [event for event in log if event["event"] == "client_left"]):
            await trio.testing.wait_all_tasks_blocked()
    assert left[0]["ended_by"] == who


@BOTH_MODES
@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("fd", [0, 1, 3])
async def test_half_a_message_with_an_fd_leaves_nothing(
    pair: Pair, fds: list[int], sender: str, fd: int
) -> None:
    source, target = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
    half = encode_request(1, DmaMap(0, PAGE, READ_WRITE))[:20]
    await source.send(half, [fds[fd]])
    await trio.testing.wait_all_tasks_blocked()
    source.sock.close()
    with trio.fail_after(60):
        data, ancillary, _, _ = await target.sock.recvmsg(100, 100)
        for _, _, received in ancillary:
            os.close(int.from_bytes(received, "little"))
        assert half.startswith(data)


@BOTH_MODES
async def test_a_client_that_is_killed_in_the_middle_of_a_message_makes_room_for_the_next(
    tmp_path: Path, full: bool
) -> None:
    async with (
        running_server(RegisterDevice()) as server,
        running_proxy(server.path, tmp_path, full=full) as proxy,
        victim(replace(server, path=proxy.path)) as process,
    ):
        process.kill()
        with trio.fail_after(60):
            async with open_client(proxy.path) as client:
                assert await client.region_read(BAR0, 0, 4) == bytes(4)


@pytest.mark.parametrize("full", [True])
@pytest.mark.parametrize(("size", "code"), [(3, errno.EINVAL), (2**32 - 1, errno.E2BIG)])
async def test_a_client_that_breaks_its_stream_is_answered_what_it_had_asked_and_then_refused(
    pair: Pair, log: list[EventDict], size: int, code: int
) -> None:
    broken = HEADER.pack(2, Command.REGION_READ, size, 0, 0)
    send_at_once(pair.client, (encode_request(1, GetInfo()) + broken, []))
    request = await pair.server.message()
    await pair.server.send(encode_reply(1, request.header.command, b"good"))
    assert bytes((await pair.client.message()).payload) == b"good"
    assert await pair.server.ended()
    pair.server.sock.close()
    refusal = await pair.client.message()
    assert (error_of(refusal), refusal.header.message_id) == (code, 2)
    assert await pair.client.ended()
    assert len(reasons(log)) == 1


GARBAGE = {
    "no header": b"\xff" * 64,
    "no region info": encode_reply(1, Command.DEVICE_GET_REGION_INFO, b"short"),
    "a chain that is a ring": encode_reply(
        1, Command.DEVICE_GET_REGION_INFO, struct.pack("=IIIIQQHHI", 40, 8, 0, 32, 0, 0, 2, 1, 32)
    ),
    "no sub-regions": encode_reply(1, Command.DEVICE_GET_REGION_IO_FDS, b"short"),
}


@pytest.mark.parametrize("full", [True])
@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_server_that_makes_no_sense_ends_the_connection(
    pair: Pair, fds: list[int], log: list[EventDict], garbage: str
) -> None:
    await begin_something(pair, fds)
    await pair.server.send(GARBAGE[garbage], fds[:3])
    with trio.fail_after(60):
        assert await pair.client.ends()
        assert await pair.server.ends()
    assert len(reasons(log)) == 1


@pytest.mark.parametrize("full", [True])
@pytest.mark.parametrize("sender", ["client", "server"])
async def test_garbage_on_the_twin_socket_ends_the_connection(
    pair: Pair, log: list[EventDict], sender: str
) -> None:
    clients, servers = await open_twin(pair)
    with clients, servers:
        await (clients if sender == "client" else servers).send(b"\xff" * 64)
        with trio.fail_after(60):
            assert await pair.client.ends()
            assert await pair.server.ends()
    assert len(reasons(log)) == 1


@pytest.mark.parametrize("full", [True])
@pytest.mark.parametrize("sender", ["client", "server"])
async def test_more_fds_than_a_message_may_have_end_the_connection(
    pair: Pair, fds: list[int], sender: str
) -> None:
    side = pair.client if sender == "client" else pair.server
    await side.send(encode_request(1, DmaMap(0, PAGE, READ_WRITE)), fds[:1] * 17)
    with trio.fail_after(60):
        assert await pair.client.ends() if sender == "server" else await pair.server.ends()


@pytest.mark.parametrize("full", [True])
async def test_a_server_that_asks_and_does_not_read_is_not_answered_for_ever(
    pair: Pair, fds: list[int]
) -> None:
    os.ftruncate(fds[0], 1 << 20)
    await pair.client.command(DmaMap(0, 1 << 20, READ_WRITE), fds[:1], no_reply=True)
    await pair.server.message()
    request = encode_request(1, DmaRead(0, 1 << 20))
    asked, stalled = 0, False
    while asked < 100_000 * len(request):
        try:
            asked += os.write(pair.server.sock.fileno(), (request * 64)[asked % len(request) :])
            stalled = False
        except BlockingIOError:
            if stalled:
                break
            stalled = True
            await trio.testing.wait_all_tasks_blocked()
    assert asked < 100_000 * len(request)
    answered = [one for one in pair.proxy.messages(Command.DMA_READ) if one.inbound]
    assert len(answered) <= MAX_BACKLOG // (1 << 20) + 2
    for _ in range(20):
        assert len((await pair.server.message()).payload) == 16 + (1 << 20)


@BOTH_MODES
@pytest.mark.parametrize("seed", range(25))
async def test_any_messages_with_any_fds_in_any_order_leave_nothing(
    pair: Pair, fds: list[int], seed: int
) -> None:
    chosen = random.Random(seed)  # noqa: S311 - a test that can be repeated
    clients, servers = await open_twin(pair)
    sides = [pair.client, pair.server, RawClient(clients), RawClient(servers)]
    with clients, servers:
        async with trio.open_nursery() as nursery:
            for side in sides:
                nursery.start_soon(drain, side)
            for _ in range(100):
                side = chosen.choice(sides[:2] if chosen.random() < 0.8 else sides[2:])
                with suppress(OSError):
                    await side.send(
                        any_message(chosen), chosen.choices(fds, k=chosen.choice([0, 0, 1, 2, 16]))
                    )
            pair.client.sock.shutdown(socket.SHUT_RDWR)
            pair.server.sock.shutdown(socket.SHUT_RDWR)


def any_message(chosen: random.Random) -> bytes:
    """Mostly what is nearly right: known commands, few message ids, addresses that are mapped, right sizes."""
    command = chosen.choice([*Command, chosen.randrange(1 << 16)])
    numbers = [0, 1, 4, 8, PAGE, 2 * PAGE, 32, 0x24, (1 << 64) - 1, chosen.randrange(1 << 64)]
    layout = chosen.choice(["=IIQQQ", "=IIQQ", "=QQ", "=IIIII", "=IIII", "=IIIIQQ", "=QII"])
    fields = [
        chosen.choice(numbers) & (0xFFFFFFFF if kind == "I" else 0xFFFFFFFFFFFFFFFF) for kind in layout[1:]
    ]
    payload = struct.pack(layout, *fields) + bytes(chosen.choice([0, 0, 1, 4, 8, 100]))
    flags = chosen.choice([0, 0, 1, 1, 0x10, 0x21, chosen.randrange(64)])
    return encode(chosen.randrange(4), command, flags, payload)


async def drain(side: RawClient) -> None:
    """Read what comes, and close the fds that come along, until the end."""
    with suppress(OSError):
        while True:
            data, ancillary, _, _ = await side.sock.recvmsg(1 << 16, socket.CMSG_SPACE(253 * 4))
            for _, _, received in ancillary:
                for (fd,) in struct.iter_unpack("=i", received):
                    os.close(fd)
            if not data:
                return
