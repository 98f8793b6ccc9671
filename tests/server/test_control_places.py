"""More clients of the control socket than there are places, and clients that say nothing."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from server.accepting import RETRY_SECONDS
from server.control_client import status
from server.control_places import CROWDED_SECONDS, MAX_CLIENTS
from server.control_protocol import MAX_LINE
from server.log import REPEATS
from server.socket_path import BACKLOG
from tests.fds import open_fds
from tests.server.register_device import RegisterDevice
from tests.server.running import Server, running_server
from tests.server.transports.test_listener import no_fds_left

REQUEST = b'{"command":"status"}\n'


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with running_server(RegisterDevice()) as server:
        yield server


async def connected(server: Server, count: int, stack: AsyncExitStack) -> list[trio.SocketStream]:
    """So many clients that the server has seen, and that say nothing."""
    streams = [
        await stack.enter_async_context(await trio.open_unix_socket(str(server.control)))
        for _ in range(count)
    ]
    await trio.testing.wait_all_tasks_blocked()
    return streams


async def ask(stream: trio.SocketStream) -> bool:
    await stream.send_all(REQUEST)
    answer = b""
    while not answer.endswith(b"\n"):
        answer += await stream.receive_some(MAX_LINE)
    return bool(json.loads(answer)["ok"])


async def test_who_has_no_place_yet_costs_no_fd(server: Server) -> None:
    before = open_fds()
    async with AsyncExitStack() as stack:
        await connected(server, 3 * MAX_CLIENTS, stack)
        assert open_fds() - before == 3 * MAX_CLIENTS + MAX_CLIENTS


async def test_clients_that_say_nothing_lock_nobody_out(server: Server, autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        silent = await connected(server, MAX_CLIENTS, stack)
        began = trio.current_time()
        assert (await status(server.control))["device"] == "registers"
        assert trio.current_time() - began <= CROWDED_SECONDS
        assert await silent[0].receive_some(1) == b""
        assert await ask(silent[1])


async def test_a_backlog_full_of_clients_that_say_nothing_is_over_before_a_client_gives_up(
    server: Server, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        await connected(server, MAX_CLIENTS + BACKLOG, stack)
        assert (await status(server.control))["device"] == "registers"


async def test_who_was_answered_last_keeps_its_place_longest(
    server: Server, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS, stack)
        await trio.sleep(CROWDED_SECONDS / 2)
        assert await ask(clients[0])
        (late,) = await connected(server, 1, stack)
        assert await ask(late)
        assert await clients[1].receive_some(1) == b""
        assert await ask(clients[0])


async def test_nobody_goes_while_nobody_waits(server: Server, autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS, stack)
        await trio.sleep(2 * CROWDED_SECONDS)
        for client in clients:
            assert await ask(client)


async def test_a_place_that_becomes_free_is_for_who_waits(server: Server, autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS + 1, stack)
        began = trio.current_time()
        await clients[3].aclose()
        assert await ask(clients[-1])
        assert trio.current_time() == began


async def test_who_comes_when_all_others_have_gone_is_served(server: Server) -> None:
    async with AsyncExitStack() as stack:
        await connected(server, MAX_CLIENTS, stack)
    await trio.testing.wait_all_tasks_blocked()
    assert (await status(server.control))["device"] == "registers"


async def test_a_server_without_fds_goes_on_when_it_has_some_and_does_not_fill_the_log(
    server: Server, autojump_clock: MockClock
) -> None:
    with structlog.testing.capture_logs() as log, trio.socket.socket(trio.socket.AF_UNIX) as sock:
        with no_fds_left():
            await sock.connect(os.fspath(server.control))
            await trio.sleep(2 * REPEATS * RETRY_SECONDS)
        levels = [event["log_level"] for event in log if event.get("socket") == "control"]
        assert levels.count("warning") == REPEATS
        assert set(levels) == {"warning", "debug"}
        assert await ask(trio.SocketStream(sock))
