"""The life of connections through a proxy: who ends them, who comes next, and what becomes of the trace."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.typing import EventDict

from protocol import (
    Command,
    DmaMap,
    DmaMapFlags,
    DmaReadReply,
    GetInfo,
    Version,
    encode_error,
    encode_reply,
    encode_request,
)
from server.client import open_client
from server.socket_path import listen_at
from server.trace.proxy.proxy import serve_proxy
from server.trace.ring import TraceRing
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import running_server
from tests.server.trace.proxy.proxies import (
    Pair,
    running_proxy,
    send_at_once,
)
from tests.server.transports.raw import RawClient, raw_client

DMA_MAP = encode_request(2, DmaMap(0, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE))


@pytest.mark.parametrize("cut", [1, 15, 16, 20])
@pytest.mark.parametrize("sender", ["client", "server"])
async def test_half_a_message_and_the_end_behind_it_pass(pair: Pair, sender: str, cut: int) -> None:
    half = (DMA_MAP if sender == "client" else encode_reply(7, Command.VERSION, Version(0, 1)))[:cut]
    source, target = (pair.client, pair.server) if sender == "client" else (pair.server, pair.client)
    await source.send(half)
    source.sock.close()
    with trio.fail_after(60):
        assert await target.sock.recv(100) == half
        assert await target.sock.recv(100) == b""


@pytest.mark.parametrize("_order_of_tasks", range(10))
async def test_what_a_server_says_last_reaches_a_client_that_goes_on_talking(
    pair: Pair, _order_of_tasks: int
) -> None:
    await pair.client.command(GetInfo())
    await pair.server.message()
    last = encode_error(7, Command.DEVICE_GET_INFO, errno.EBUSY)
    send_at_once(pair.server, (last + last, []))
    pair.server.sock.close()
    send_at_once(pair.client, (DMA_MAP, []))
    for _ in range(2):
        assert (await pair.client.message()).header.error == errno.EBUSY
    with trio.fail_after(60):
        assert await pair.client.ended()


async def test_a_client_that_does_not_read_ends_its_connection_by_leaving(pair: Pair) -> None:
    reply = encode_reply(1, Command.DMA_READ, DmaReadReply(0, bytes(4 << 20)))

    async def send_for_ever() -> None:
        while True:
            await pair.server.send(reply)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_soon, pair.client)
        with trio.fail_after(60), pytest.raises((BrokenPipeError, ConnectionResetError)):
            await send_for_ever()


async def leave_soon(client: RawClient) -> None:
    await trio.testing.wait_all_tasks_blocked()
    client.sock.close()


async def test_clients_are_served_one_after_another_and_each_is_a_session(
    tmp_path: Path, log: list[EventDict]
) -> None:
    async with (
        running_server(RegisterDevice()) as server,
        running_proxy(server.path, tmp_path, full=False) as proxy,
    ):
        for number in range(3):
            async with open_client(proxy.path) as client:
                await client.region_write(BAR0, 0, bytes([number]) * 4)
            async with raw_client(proxy.path):
                pass  # who says nothing leaves no session
        async with open_client(proxy.path):
            pass
    assert len(proxy.sessions()) == 4
    assert [bytes(one.payload[-4:]) for one in proxy.messages(Command.REGION_WRITE)[::2]] == [
        bytes([number]) * 4 for number in range(3)
    ]
    attached = [event for event in log if event["event"] == "client_attached" and "server" in event]
    assert {event["pid"] for event in attached} == {os.getpid()}
    assert len(attached) == 7


async def test_a_client_is_hung_up_on_where_no_server_is_and_the_next_one_is_served(
    tmp_path: Path, log: list[EventDict]
) -> None:
    async with running_proxy(tmp_path / "server", tmp_path, full=False) as proxy:
        async with raw_client(proxy.path) as client:
            with trio.fail_after(60):
                assert await client.ended()
        (event,) = [event for event in log if event["event"] == "client_dropped"]
        assert event["reason"] == f"no server answers at {tmp_path / 'server'}: No such file or directory"
        assert event["pid"] == os.getpid()
        async with running_server(RegisterDevice()) as server:
            (tmp_path / "server").symlink_to(server.path)
            async with open_client(proxy.path) as client_of_server:
                await client_of_server.get_info()


async def test_with_once_the_first_client_that_said_something_is_the_last(tmp_path: Path) -> None:
    ring = TraceRing(tmp_path / "trace")
    path = tmp_path / "proxy"
    async with running_server(RegisterDevice()) as server:
        with listen_at(path) as listener, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve_proxy, listener, server.path, ring, once=True))
                async with raw_client(path):
                    pass
                async with open_client(path) as client:
                    await client.get_info()
    ring.close()


async def test_a_trace_that_cannot_be_written_does_not_stop_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[OSError] = []
    async with (
        running_server(RegisterDevice()) as server,
        running_proxy(server.path, tmp_path, full=False) as proxy,
        open_client(proxy.path) as client,
    ):
        full = os.open("/dev/full", os.O_WRONLY)
        proxy.ring.when_failed = failed.append
        os.dup2(full, proxy.ring._fd)
        os.close(full)
        proxy.ring.flush()
        await client.region_write(BAR0, 0, b"1234")
        assert await client.region_read(BAR0, 0, 4) == b"1234"
    assert [error.errno for error in failed] == [errno.ENOSPC]
