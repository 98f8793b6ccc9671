"""The connection to a server: what the server sends costs a bounded amount, and reaches who waits for it."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from protocol import (
    HEADER_SIZE,
    Capabilities,
    Command,
    DmaRead,
    DmaWrite,
    Header,
    Message,
    MessageType,
    TwinSocket,
    Version,
    encode,
    encode_reply,
    encode_request,
)
from protocol.decoder import DEFAULT_MAX_FDS
from server.fds import ReceivedFds
from server.trace.replay import server_connection
from server.trace.replay.server_connection import MAX_HELD, MAX_HELD_FDS, ServerConnection
from tests.fds import open_fds, settled_fds
from tests.server.trace.replay.sessions import PATIENCE

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

VERSION_REPLY = encode_reply(0, Command.VERSION, Version(0, 1))


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[ServerConnection, trio.SocketStream]]:
    """The replay's side, and the server's."""
    ours, theirs = socket.socketpair()
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with trio.open_nursery() as nursery:
        client = ServerConnection(ours, nursery, PATIENCE.timeout)
        try:
            yield client, server
        finally:
            client.close()
            server.socket.close()
            nursery.cancel_scope.cancel()


async def test_what_waits_to_be_taken_is_bounded_and_goes_on_when_it_is_taken() -> None:
    size = 8 << 20
    count = 2 * MAX_HELD // size
    message = encode(7, Command.REGION_READ, MessageType.REPLY, bytes(size))
    sent = 0
    async with connection() as (client, server), trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for _ in range(count):
                await server.send_all(message)
                sent += 1

        for _ in range(count):
            client.ask(7)
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert sent <= MAX_HELD // size + 1
        for _ in range(count):
            while not client.has_reply(7):
                await client.wait(5)
            assert len(client.take_reply(7).payload) == size
    assert sent == count


async def test_requests_that_are_never_served_stay_with_the_server() -> None:
    request = encode_request(1, DmaRead(0, 8))
    async with connection() as (_, server):
        sent = 0
        with trio.move_on_after(30):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    nonlocal sent
                    while True:
                        await server.send_all(request * 1000)
                        sent += 1000

                nursery.start_soon(send)
                while True:
                    before = sent
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    if sent == before:
                        nursery.cancel_scope.cancel()
                        break
        assert 1000 < sent < 2 * MAX_HELD >> 10


async def test_fds_that_come_with_what_nobody_wants_are_closed() -> None:
    read = encode_request(1, DmaRead(0, 8))
    async with connection() as (client, server):
        before = settled_fds()
        for data in (VERSION_REPLY, read):
            file = os.memfd_create("unwanted", os.MFD_CLOEXEC)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file] * 8))]
            await server.socket.sendmsg([data], ancillary)
            os.close(file)
        while client.next_request() is None:
            await client.wait(5)
        assert open_fds() == before
        assert client.unasked == {0: 1}


async def test_fds_that_wait_to_be_taken_are_bounded() -> None:
    data = encode(7, Command.REGION_READ, MessageType.REPLY)
    count = 3 * MAX_HELD_FDS // DEFAULT_MAX_FDS
    async with connection() as (client, server), trio.open_nursery() as nursery:
        before = settled_fds()
        with ReceivedFds([os.memfd_create("many", os.MFD_CLOEXEC)]) as file:
            ancillary = [
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [*file.numbers] * DEFAULT_MAX_FDS))
            ]

            async def send() -> None:
                for _ in range(count):
                    await server.socket.sendmsg([data], ancillary)

            for _ in range(count):
                client.ask(7)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert MAX_HELD_FDS <= open_fds() - before <= MAX_HELD_FDS + 3 * DEFAULT_MAX_FDS
            for _ in range(count):
                while not client.has_reply(7):
                    await client.wait(5)
                ReceivedFds(client.take_reply(7).fds).close()
        assert open_fds() == before


async def test_there_is_one_twin_socket_however_often_a_server_hands_one_over() -> None:
    request = Version(0, 1, Capabilities(twin_socket=TwinSocket(supported=True)))
    answer = Version(0, 1, Capabilities(twin_socket=TwinSocket(supported=True, fd_index=0)))
    header = Header(0, Command.VERSION, HEADER_SIZE, MessageType.REPLY, 0)
    async with connection() as (client, _):
        before = settled_fds()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(20):
                client.agreed(request, Message(header, memoryview(answer.pack()), (theirs.fileno(),)))
            assert open_fds() == before + 3


@pytest.mark.parametrize("first", ["main", "twin"])
async def test_what_makes_room_makes_it_for_both_sockets(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    large = bytes(16 << 10)
    monkeypatch.setattr(server_connection, "MAX_HELD", len(large) // 2)
    request = Version(0, 1, Capabilities(twin_socket=TwinSocket(supported=True)))
    answer = Version(0, 1, Capabilities(twin_socket=TwinSocket(supported=True, fd_index=0)))
    header = Header(0, Command.VERSION, HEADER_SIZE, MessageType.REPLY, 0)
    async with connection() as (client, server):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            client.agreed(request, Message(header, memoryview(answer.pack()), (theirs.fileno(),)))
            client.ask(1)
            client.ask(2)
            for socket_name in [first, *({"main", "twin"} - {first})]:
                data = large if socket_name == first else b""
                if socket_name == "twin":
                    ours.sendall(encode_request(1, DmaWrite(0, data)))
                else:
                    for number, payload in ((1, data), (2, b"")):
                        await server.send_all(encode(number, Command.REGION_READ, MessageType.REPLY, payload))
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert client.has_reply(1)
            assert client.next_request() is not None
            assert not client.has_reply(2)
            if first == "main":
                client.take_reply(1)
            else:
                client.take_request()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert client.has_reply(2)


async def test_two_replies_to_one_id_come_in_their_order() -> None:
    async with connection() as (client, server):
        client.ask(3)
        client.ask(3)
        for text in (b"first", b"second"):
            await server.send_all(encode(3, Command.REGION_READ, MessageType.REPLY, text))
        for text in (b"first", b"second"):
            while not client.has_reply(3):
                await client.wait(5)
            assert bytes(client.take_reply(3).payload) == text
        assert not client.awaits(3)


async def test_an_eventfd_that_gets_the_number_of_the_last_one_is_not_taken_for_it() -> None:
    async with connection() as (client, _):
        fd = first = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        client.watch(2, 0, fd)
        for vector in range(20):
            await trio.testing.wait_all_tasks_blocked()
            os.eventfd_write(fd, 1)
            await trio.lowlevel.checkpoint()  # who listens is about to look, or has just looked
            client.watch(2, vector, None)
            fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            assert fd == first
            client.watch(2, vector + 1, fd)
        client.collect()
        assert client.interrupts == {(2, 0): 1, **{(2, vector): 2 for vector in range(1, 20)}, (2, 20): 1}


async def test_others_have_their_turn_while_a_server_has_always_more_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Endless:
        """Instead of a channel: whoever reads it never waits."""

        def __init__(self, sock: socket.socket, *_: object) -> None:
            self.close = sock.close
            self.left = 100_000

        async def receive(self) -> Message:
            self.left -= 1
            assert self.left, "nobody else had a turn"
            return Message(Header(7, Command.REGION_READ, HEADER_SIZE, 1, 0), memoryview(b""), ())

    monkeypatch.setattr(server_connection, "Channel", Endless)
    async with connection() as (client, _):
        for _turn in range(5):
            await trio.lowlevel.checkpoint()
        assert client.unasked[7] > 0
