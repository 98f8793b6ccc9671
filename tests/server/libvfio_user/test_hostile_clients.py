"""Clients that send what the library cannot take, or die at the worst moment; and what the session has afterwards.

What the session has is always what the client was told that it has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing
from structlog.typing import EventDict

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import (
    DeviceReset,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    RegionRead,
    RegionWrite,
    Version,
    encode_request,
)
from protocol.codec import PackableRequest
from tests.fds import open_fds
from tests.server.register_device import BAR0, CONFIG, PAGE, RegisterDevice
from tests.server.running import Server, running_server, with_transport
from tests.server.transports.raw import RawClient, error_of, greeted_client
from tests.server.transports.test_dma import memfd
from tests.server.transports.test_endurance import keep, until_left
from tests.server.transports.test_handshake import assert_served, dropped

MAP_FLAGS = DmaMapFlags.READ | DmaMapFlags.WRITE
ALL = DmaUnmapFlags.ALL
DIE = 0x20
MORTAL_CLIENT = """
import os, socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
for request in sys.argv[2:]:
    client.sendall(bytes.fromhex(request))
    client.recv(1 << 16)
sys.stdin.read()
"""
"""Sends requests, reads what comes for each, and waits to be killed."""


@pytest.fixture
async def server(device: RegisterDevice, log: list[EventDict]) -> AsyncIterator[Server]:
    async with running_server(device, with_transport("libvfio-user")) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[RawClient]:
    async with greeted_client(server.path) as client:
        yield client


def regions(server: Server) -> object:
    session = server.engine.session
    assert session is not None
    return session.memory.stats()["regions"]


def errors(log: list[EventDict]) -> list[str]:
    return [event["event"] for event in log if event["log_level"] in ("warning", "error")]


@pytest.mark.parametrize("count", [1, 2, 16])
async def test_fds_with_an_access_are_refused_and_closed_and_the_connection_goes_on(
    server: Server, client: RawClient, count: int
) -> None:
    before = open_fds()
    for value in (RegionRead(0, CONFIG, 4), RegionWrite(0, BAR0, b"1234"), DeviceReset()):
        assert await client.refusal(value, [client.sock.fileno()] * count) == errno.EINVAL
        assert open_fds() == before
        assert not (await client.ask(value)).header.is_error


@pytest.mark.parametrize("count", [17, 32, 200])
async def test_more_fds_than_a_message_may_have_end_the_connection(
    server: Server, log: list[EventDict], count: int
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    with memfd(PAGE) as fd:
        async with greeted_client(server.path) as client:
            await client.send(encode_request(1, DmaMap(0, PAGE, MAP_FLAGS)), [fd] * count)
            assert await client.ends()
    await until_left(server)
    assert open_fds() == before
    assert len(dropped(log)) == 1
    await assert_served(server)


async def test_two_fds_with_a_map_are_refused_and_nothing_is_kept(server: Server, client: RawClient) -> None:
    with memfd(PAGE) as fd:
        before = open_fds()
        assert await client.refusal(DmaMap(0, PAGE, MAP_FLAGS), [fd, fd]) == errno.EINVAL
        assert regions(server) == 0
        assert open_fds() == before
        assert not (await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])).header.is_error
    assert regions(server) == 1


async def test_a_map_that_says_that_its_fd_can_be_mapped_is_a_map(server: Server, client: RawClient) -> None:
    """The library refuses the flag, so it must not see it."""
    with memfd(PAGE) as fd:
        request = DmaMap(0, PAGE, MAP_FLAGS | DmaMapFlags.MAPPABLE)
        assert not (await client.ask(request, [fd])).header.is_error
        assert regions(server) == 1
        assert await client.refusal(DmaMap(PAGE, PAGE, DmaMapFlags(8)), [fd]) == errno.EINVAL
    assert regions(server) == 1
    assert not (await client.ask(DmaUnmap(0, PAGE))).header.is_error
    assert regions(server) == 0


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 47])
async def test_the_fd_of_a_map_may_come_with_either_piece_of_it(
    server: Server, client: RawClient, cut: int
) -> None:
    with memfd(4 * PAGE) as fd:
        for number, with_first in enumerate((True, False)):
            data = encode_request(7, DmaMap(number * PAGE, PAGE, MAP_FLAGS))
            await client.send(data[:cut], [fd] if with_first else [])
            await trio.testing.wait_all_tasks_blocked()
            assert regions(server) == number
            await client.send(data[cut:], [] if with_first else [fd])
            assert not (await client.message()).header.is_error
            assert regions(server) == number + 1
    assert server.engine.session is not None
    assert server.engine.session.memory.stats()["files"] == 1


async def test_a_map_behind_accesses_in_one_packet_gets_its_fd(server: Server, client: RawClient) -> None:
    read = encode_request(1, RegionRead(0, CONFIG, 4))
    with memfd(PAGE) as fd:
        await client.send(read * 2)
        await client.send(encode_request(2, DmaMap(0, PAGE, MAP_FLAGS)) + read, [fd])
    assert [(await client.message()).header.is_error for _ in range(4)] == [False] * 4
    assert server.engine.session is not None
    assert server.engine.session.memory.stats()["files"] == 1


@pytest.mark.parametrize("whole", [RegionRead(0, CONFIG, 4), DmaMap(0, PAGE, MAP_FLAGS)], ids=["read", "map"])
async def test_a_client_that_leaves_in_a_message_that_never_ends_leaves_nothing(
    server: Server, whole: PackableRequest
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    data = encode_request(1, whole)
    for count in (1, 15, 16, len(data) - 1):
        async with greeted_client(server.path) as client:
            with memfd(PAGE) as fd:
                await client.send(data[:count], [fd])
            await trio.testing.wait_all_tasks_blocked()
            assert regions(server) == 0
        await until_left(server)
    assert open_fds() == before
    await assert_served(server)


async def test_what_the_session_has_is_what_the_client_was_told(server: Server, client: RawClient) -> None:
    two = DmaUnmap(0, 4 * PAGE)
    steps: list[tuple[PackableRequest, int, int]] = [
        (DmaUnmap(flags=ALL), 0, 0),
        (DmaUnmap(0, PAGE), errno.ENOENT, 0),
        (DmaMap(0, 2 * PAGE, MAP_FLAGS), 0, 1),
        (DmaMap(PAGE, PAGE, MAP_FLAGS), errno.EEXIST, 1),
        (DmaMap(0, 2 * PAGE, MAP_FLAGS), errno.EEXIST, 1),
        (DmaUnmap(0, PAGE), errno.EINVAL, 1),
        (DmaUnmap(PAGE, PAGE), errno.EINVAL, 1),
        (DmaMap(2 * PAGE, PAGE, MAP_FLAGS), 0, 2),
        (DmaUnmap(0, 2 * PAGE + PAGE // 2), errno.EINVAL, 2),
        (two, 0, 0),
        (two, errno.ENOENT, 0),
        (DmaMap(2 * PAGE, PAGE, MAP_FLAGS), 0, 1),
        (DmaMap(0, 2 * PAGE, DmaMapFlags.READ), 0, 2),
        (DmaMap(1 << 40, 0, MAP_FLAGS), errno.EINVAL, 2),
        (DmaMap((1 << 64) - PAGE, 2 * PAGE, MAP_FLAGS), errno.EINVAL, 2),
        (DmaUnmap(flags=ALL), 0, 0),
        (DmaUnmap(flags=ALL), 0, 0),
    ]
    for number, (request, code, count) in enumerate(steps):
        reply = await client.ask(request)
        assert (reply.header.error if reply.header.is_error else 0, regions(server)) == (code, count), number
        assert not (await client.ask(RegionRead(0, CONFIG, 4))).header.is_error


async def test_the_session_and_the_library_agree_where_the_library_is_full(
    server: Server, client: RawClient
) -> None:
    for _ in range(2):
        for number in range(16):
            assert not (await client.ask(DmaMap(number * PAGE, PAGE, MAP_FLAGS))).header.is_error
        assert not (await client.ask(DmaMap(1 << 30, PAGE, MAP_FLAGS))).header.is_error
        assert regions(server) == 17
        assert not (await client.ask(DmaUnmap(1 << 30, PAGE))).header.is_error
        for number in range(8):
            assert not (await client.ask(DmaUnmap(2 * number * PAGE, 2 * PAGE))).header.is_error
            assert regions(server) == 14 - 2 * number


async def test_a_device_that_raises_when_its_memory_is_taken_away_does_not_keep_it(
    server: Server, device: RegisterDevice, client: RawClient, log: list[EventDict]
) -> None:
    def broken(_pages: PinnedPages) -> None:
        raise RuntimeError("on_unmap")

    with memfd(PAGE) as fd:
        for request in (DmaUnmap(0, PAGE), DmaUnmap(flags=ALL)):
            assert not (await client.ask(DmaMap(0, PAGE, MAP_FLAGS), [fd])).header.is_error
            pin = device.attached.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, broken)
            assert not (await client.ask(request)).header.is_error
            assert pin.revoked
            assert regions(server) == 0
    failures = [event["error"] for event in log if event["event"] == "unmap_callback_failed"]
    assert failures == [repr(RuntimeError("on_unmap"))] * 2
    assert not (await client.ask(RegionRead(0, CONFIG, 4))).header.is_error


@pytest.mark.parametrize(
    "die",
    [
        lambda client: client.sock.shutdown(socket.SHUT_RDWR),
        lambda client: client.sock.shutdown(socket.SHUT_RD),
        lambda client: client.sock.shutdown(socket.SHUT_WR),
        lambda client: client.sock.close(),
    ],
    ids=["shut down", "deaf", "dumb", "closed"],
)
async def test_a_client_that_closes_while_more_of_its_requests_wait_ends_only_itself(
    server: Server, device: RegisterDevice, die: Callable[[RawClient], None]
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    async with greeted_client(server.path) as client:
        await client.ask(DmaMap(0, PAGE, MAP_FLAGS))
        device.on_write[DIE] = lambda _data: die(client)
        write = encode_request(1, RegionWrite(DIE, BAR0, b"1234"))
        await client.send(write + encode_request(2, RegionRead(0, CONFIG, 4)) * 3)
        # The device closes the socket while this task may be waiting for it.
        with trio.fail_after(60), contextlib.suppress(trio.ClosedResourceError):
            while client.sock.fileno() >= 0 and not await client.ended():
                pass
    await until_left(server)
    device.on_write.clear()
    assert open_fds() == before
    await assert_served(server)


async def test_a_client_that_is_killed_inside_a_callback_leaves_nothing_behind(
    server: Server, device: RegisterDevice, log: list[EventDict]
) -> None:
    await assert_served(server)
    await until_left(server)
    before = open_fds()
    pins: list[PinnedPages] = []
    requests = [
        encode_request(0, Version(0, 1)),
        encode_request(1, DmaMap(0, PAGE, MAP_FLAGS)),
        encode_request(2, RegionWrite(DIE, BAR0, b"die!")),
    ]
    for _ in range(3):
        with memfd(PAGE) as fd, mortal_client(server, requests) as process:
            killed = trio.Event()

            def die(_data: bytes) -> None:
                memory = server.engine.session
                assert memory is not None
                memory.memory.unmap(0, PAGE)
                memory.memory.map(0, PAGE, Prot.READ, os.dup(fd))
                pins.append(device.attached.memory.pin_pages([GuestRange(0, PAGE)], Prot.READ, keep))
                process.kill()
                process.wait()
                killed.set()  # noqa: B023

            device.on_write[DIE] = die
            with trio.fail_after(60):
                await killed.wait()
        await until_left(server)
        assert pins[-1].revoked
        assert open_fds() == before
    await assert_served(server)
    assert "device_fault" not in errors(log)


def mortal_client(server: Server, requests: list[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", MORTAL_CLIENT, str(server.path), *(request.hex() for request in requests)],
        stdin=subprocess.PIPE,
    )


async def test_a_reply_to_nothing_ends_the_connection_as_it_does_natively(
    server: Server, client: RawClient
) -> None:
    data = bytearray(encode_request(1, RegionRead(0, CONFIG, 4)))
    data[8] = 1
    await client.send(bytes(data))
    assert await client.ends()
    await until_left(server)
    await assert_served(server)


async def test_an_empty_access_and_one_beyond_the_librarys_size_are_answered(client: RawClient) -> None:
    assert not (await client.ask(RegionRead(0, BAR0, 0))).header.is_error
    assert error_of(await client.ask(RegionRead(0, BAR0, 1 << 19))) == errno.EINVAL
    assert not (await client.ask(RegionRead(0, BAR0, PAGE))).header.is_error
