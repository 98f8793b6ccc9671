"""Accepting clients when there are too many of them, or too few fds."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import trio
from structlog.typing import EventDict
from trio.testing import MockClock

from server.listener import MAX_CONNECTIONS
from server.native.serve import HANDSHAKE_SECONDS
from tests.server.running import Server
from tests.server.transports.raw import RawClient, raw_client
from tests.server.transports.test_handshake import assert_served


@contextmanager
def no_fds_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_client_that_comes_when_there_are_no_fds_is_accepted_later(
    server: Server, log: list[EventDict], autojump_clock: MockClock
) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        with no_fds_left():
            await sock.connect(os.fspath(server.path))
            await trio.sleep(0.05)
        assert {event["event"] for event in log} == {"accept_failed"}
        assert not (await RawClient(sock).say_version()).header.is_error


async def test_more_silent_clients_than_there_may_be_block_nobody_for_ever(
    server: Server, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            await stack.enter_async_context(raw_client(server.path))
        async with raw_client(server.path) as client:
            assert not (await client.say_version()).header.is_error
        assert trio.current_time() >= HANDSHAKE_SECONDS
    await assert_served(server)
