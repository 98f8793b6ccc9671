"""Clients that do not read, that hang up in the queue, and that are killed in the middle of a message."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from devices.contract import GuestRange, PinnedPages, Prot
from protocol import GetInfo, GetRegionInfo, RegionRead, RegionReadReply, Version, encode_request
from protocol.codec import PackableRequest
from server.client import open_client
from server.native import connection
from server.native.serve import ConnectionOptions
from tests.fds import open_fds
from tests.server.register_device import BAR0, BAR3, PAGE, RegisterDevice
from tests.server.running import Server, running_server
from tests.server.transports.raw import RawClient, greeted_client, raw_client
from tests.server.transports.test_handshake import assert_served

FAR_TOO_MUCH = 16 << 20
"""Bytes of requests; the kernel's buffers of both directions hold a fraction of it."""

VICTIM = """
import os, socket, sys, time
from protocol import DmaMap, DmaMapFlags, RegionRead, Version, encode_request
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
memory = os.memfd_create("guest")
os.ftruncate(memory, 4 * 4096)
sock.sendall(encode_request(1, Version(0, 1)))
assert sock.recv(4096)
request = DmaMap(0, 4 * 4096, DmaMapFlags.READ | DmaMapFlags.WRITE)
socket.send_fds(sock, [encode_request(2, request)], [memory])
assert sock.recv(4096)
socket.send_fds(sock, [encode_request(3, RegionRead(0, 0, 4))[:20]], [memory])
print("in the middle", flush=True)
time.sleep(600)
"""


async def flood(client: RawClient, request: PackableRequest) -> int:
    """Send ``request`` until the server takes no more; returns how many whole ones were sent."""
    data = encode_request(1, request) * 64
    one = len(data) // 64
    sent, stalled = 0, False
    while sent < FAR_TOO_MUCH:
        try:
            sent += os.write(client.sock.fileno(), data[sent % one :])
            stalled = False
        except BlockingIOError:
            if stalled:
                return sent // one
            stalled = True
            await trio.testing.wait_all_tasks_blocked()
    pytest.fail("the server goes on serving a client that does not read")


async def test_a_client_that_reads_late_gets_every_reply(server: Server, device: RegisterDevice) -> None:
    device.data[BAR0][:8] = b"register"
    async with greeted_client(server.path) as client:
        asked = await flood(client, RegionRead(0, BAR0, 8))
        session = server.engine.session
        assert session is not None
        assert 0 < session.counters.region_reads < asked
        with trio.fail_after(60):
            for _ in range(asked):
                assert RegionReadReply.unpack((await client.message()).payload).data == b"register"
    await assert_served(server)


async def test_replies_with_fds_that_nobody_reads_take_no_fds(
    device: RegisterDevice, options: ConnectionOptions
) -> None:
    device.share_bar3()
    async with running_server(device, options) as server:
        async with greeted_client(server.path) as client:
            before = open_fds()
            await flood(client, GetRegionInfo(BAR3, argsz=256))
            assert open_fds() <= before + 1  # that of the one reply which waits for room
        await assert_served(server)


async def test_others_talk_to_the_process_while_a_client_does_not_read(
    server: Server, options: ConnectionOptions
) -> None:
    async with running_server(RegisterDevice(), options) as other, greeted_client(server.path) as client:
        await flood(client, GetInfo())
        await assert_served(other)


async def test_a_client_that_hangs_up_while_it_waits_is_in_nobodys_way(server: Server) -> None:
    async with open_client(server.path) as first:
        for _ in range(3):
            async with raw_client(server.path) as waiting:
                await waiting.command(Version(0, 1))
                await trio.testing.wait_all_tasks_blocked()
        assert (await first.get_info()).num_regions == 9
    await assert_served(server)


@asynccontextmanager
async def victim(server: Server) -> AsyncIterator[trio.Process]:
    """A client in a process of its own, in the middle of a message."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", VICTIM, os.fspath(server.path)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with process.stdout:
            with trio.fail_after(60):
                assert await process.stdout.receive_some() == b"in the middle\n"
            yield process
    finally:
        process.kill()
        await process.wait()


async def test_a_client_that_is_killed_takes_its_memory_along(
    server: Server, device: RegisterDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client is another process, which may not get to run for longer than that.
    monkeypatch.setattr(connection, "STALLED_SECONDS", math.inf)
    told: list[PinnedPages] = []
    async with victim(server) as process:
        memory = device.attached.memory
        pins = memory.pin_pages([GuestRange(PAGE, PAGE)], Prot.READ | Prot.WRITE, told.append)
        assert not pins.revoked
        process.kill()
        with trio.fail_after(60):
            await process.wait()
            while server.engine.session is not None:
                await trio.lowlevel.checkpoint()
    assert pins.revoked
    await assert_served(server)
