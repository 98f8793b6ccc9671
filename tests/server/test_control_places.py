"""More clients of the control socket than there are places, and clients that say nothing."""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from devices.display import Frame, PixelBuffer, PixelLayout
from server.accepting import RETRY_SECONDS
from server.control import ANSWER_SECONDS
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
SLOW_REQUEST = b'{"command":"screenshot"}\n'
FRAME = Frame(0, PixelBuffer(2, 1, 8, PixelLayout.BGRX, bytes(range(8))))


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


async def ask(stream: trio.SocketStream, request: bytes = REQUEST) -> bool:
    await stream.send_all(request)
    answer = b""
    while b"\n" not in answer:
        data = await stream.receive_some(MAX_LINE)
        assert data, "the server hung up"
        answer += data
    return bool(json.loads(answer[: answer.index(b"\n")])["ok"])


def take_long(server: Server, monkeypatch: pytest.MonkeyPatch, seconds: float, frame: Frame = FRAME) -> None:
    """Have every screenshot take that long, and be ``frame``."""

    async def capture(_scanout: int) -> Frame:
        await trio.sleep(seconds)
        return frame

    monkeypatch.setattr(server.engine, "capture", capture)


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


async def test_who_is_being_answered_does_not_go_for_who_waits(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_long(server, monkeypatch, 1.5 * CROWDED_SECONDS)
    answered = 0

    async def take(stream: trio.SocketStream) -> None:
        nonlocal answered
        assert await ask(stream, SLOW_REQUEST)
        answered += 1

    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS + MAX_CLIENTS // 2, stack)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(take, client)
    assert answered == len(clients)


async def test_who_says_nothing_goes_before_who_is_being_answered(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_long(server, monkeypatch, 3 * CROWDED_SECONDS)

    async def take(stream: trio.SocketStream) -> None:
        assert await ask(stream, SLOW_REQUEST)

    async with AsyncExitStack() as stack:
        *busy, silent = await connected(server, MAX_CLIENTS, stack)
        async with trio.open_nursery() as nursery:
            for client in busy:
                nursery.start_soon(take, client)
            began = trio.current_time()
            assert (await status(server.control))["device"] == "registers"
            assert trio.current_time() - began <= CROWDED_SECONDS
        assert await silent.receive_some(1) == b""


async def test_who_says_nothing_once_answered_goes_like_anybody_else(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_long(server, monkeypatch, 1.5 * CROWDED_SECONDS)

    async def take(stream: trio.SocketStream) -> None:
        assert await ask(stream, SLOW_REQUEST)

    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS, stack)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(take, client)
            began = trio.current_time()
            assert (await status(server.control))["device"] == "registers"
            assert trio.current_time() - began == pytest.approx(2.5 * CROWDED_SECONDS)


async def test_who_does_not_take_its_answer_goes_like_who_says_nothing(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Frame(0, PixelBuffer(1024, 1024, 4096, PixelLayout.BGRX, bytes(4 << 20)))
    take_long(server, monkeypatch, CROWDED_SECONDS, large)
    async with AsyncExitStack() as stack:
        for client in await connected(server, MAX_CLIENTS, stack):
            await client.send_all(SLOW_REQUEST)
        began = trio.current_time()
        assert (await status(server.control))["device"] == "registers"
        assert trio.current_time() - began == pytest.approx(2 * CROWDED_SECONDS)


async def test_a_server_that_ends_while_it_answers_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        async with running_server(RegisterDevice()) as server:
            take_long(server, monkeypatch, math.inf)
            (client,) = await connected(server, 1, stack)
            await client.send_all(SLOW_REQUEST)
            await trio.testing.wait_all_tasks_blocked()
        assert await client.receive_some(1) == b""


async def test_an_answer_that_does_not_come_is_a_refusal_and_its_place_is_not_lost(
    server: Server, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_long(server, monkeypatch, math.inf)

    async def take(stream: trio.SocketStream) -> None:
        assert not await ask(stream, SLOW_REQUEST)
        assert await ask(stream)

    async with AsyncExitStack() as stack:
        clients = await connected(server, MAX_CLIENTS, stack)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(take, client)
            began = trio.current_time()
            (late,) = await connected(server, 1, stack)
            assert await ask(late)
            assert trio.current_time() - began <= ANSWER_SECONDS + CROWDED_SECONDS


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
