"""A server that floods the replay, or does not listen to it, is given up in time, and costs a bounded amount."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol import (
    HEADER,
    HEADER_SIZE,
    Capabilities,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaWrite,
    GetRegionInfo,
    Header,
    Message,
    MessageType,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    SparseArea,
    SparseMmap,
    TwinSocket,
    Version,
    encode,
    encode_reply,
    encode_request,
)
from protocol.decoder import DEFAULT_MAX_FDS
from server.fds import ReceivedFds
from server.socket_path import listen_at
from server.trace.reader import TraceReader
from server.trace.replay import server_connection
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.player import MAX_PATIENCE, Meanwhile, ReplayOptions
from server.trace.replay.replay import host, replay
from server.trace.replay.report import Report
from server.trace.replay.server_connection import MAX_HELD, MAX_HELD_FDS, ServerConnection
from tests.fds import open_fds
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.replay.sessions import BASE, PATIENCE, STUCK
from tests.server.trace.replay.traces import made_up

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

Misbehave = Callable[[trio.SocketStream], Awaitable[None]]
VERSION_REPLY = encode_reply(0, Command.VERSION, Version(0, 1))


async def replayed_to(misbehave: Misbehave, folder: Path, options: ReplayOptions = PATIENCE) -> Report:
    """Replay a read to a server that does as it likes once it has a client."""
    path = folder / "trace"
    with made_up(path) as trace:
        trace.ask(RegionRead(0, BAR0, 4))
        trace.reply(Command.REGION_READ, RegionReadReply(0, BAR0, bytes(4)))

    async def serve(listener: trio.SocketListener) -> None:
        async with listener:
            stream = await listener.accept()
        async with stream:
            try:
                await misbehave(stream)
            except trio.BrokenResourceError:
                return

    with listen_at(folder / "socket") as sock, TraceReader(path) as reader:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup())))
            report = await replay(RecordedSession(reader, 1), folder / "socket", options=options)
            nursery.cancel_scope.cancel()
    return report


async def test_a_reply_too_many_is_a_divergence(tmp_path: Path) -> None:
    async def answer_twice(stream: trio.SocketStream) -> None:
        await stream.send_all(VERSION_REPLY * 3)
        while True:
            data = await stream.receive_some()
            if HEADER.unpack_from(data)[1] == Command.REGION_READ:
                reply = RegionReadReply(0, BAR0, bytes(4))
                await stream.send_all(encode_reply(1, Command.REGION_READ, reply))
                await trio.sleep_forever()

    report = await replayed_to(answer_twice, tmp_path)
    assert report.replies == 2
    assert report.first is not None
    assert report.first.what == "2 messages with id 0 reply to nothing"
    assert report.stopped is None


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[ServerConnection, trio.SocketStream]]:
    """The replay's side, and the server's."""
    ours, theirs = socket.socketpair()
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with trio.open_nursery() as nursery:
        client = ServerConnection(ours, nursery, PATIENCE.timeout)
        yield client, server
        client.close()
        await server.aclose()
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
        before = open_fds()
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
        before = open_fds()
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
        before = open_fds()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for _ in range(20):
                client.agreed(request, Message(header, memoryview(answer.pack()), (theirs.fileno(),)))
            assert open_fds() == before + 3


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


async def test_a_server_that_does_not_read_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "trace"

    with made_up(path) as trace:
        for _ in range(100):
            trace.ask(RegionWrite(0, BAR0, bytes(64 << 10)), no_reply=True)

    async def serve(listener: trio.SocketListener) -> None:
        async with await listener.accept() as stream:
            await stream.send_all(VERSION_REPLY)
            await trio.sleep_forever()

    with listen_at(tmp_path / "socket") as sock, TraceReader(path) as reader:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener)
            report = await replay(RecordedSession(reader, 1), tmp_path / "socket", options=STUCK)
            nursery.cancel_scope.cancel()
    assert report.first is not None
    assert report.first.what == "the server did not take a message within 0.3 s"


async def test_a_server_that_asks_for_memory_for_ever_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(DmaMap(BASE, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE))
        trace.reply(Command.DMA_MAP)

    async def ask_on(stream: trio.SocketStream) -> None:
        await stream.send_all(VERSION_REPLY)
        while True:
            await stream.send_all(encode_request(1, DmaRead(BASE, 8)))
            await stream.receive_some()

    began = trio.current_time()
    report = await replayed_to(ask_on, tmp_path, ReplayOptions(timeout=1.0))
    assert report.first is not None
    assert report.first.what == "the reply did not come within 1 s"
    assert trio.current_time() - began < 2 * MAX_PATIENCE


async def test_a_server_that_writes_nothing_for_ever_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(DmaMap(BASE, PAGE, DmaMapFlags.READ | DmaMapFlags.WRITE), no_reply=True)
        trace.recorder.wrote(BASE, b"something")

    async def write_on(listener: trio.SocketListener) -> None:
        async with await listener.accept() as stream:
            await stream.send_all(VERSION_REPLY)
            with suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(encode_request(1, DmaWrite(BASE, b"")))
                    await stream.receive_some()
                    await trio.sleep(0.1)

    began = trio.current_time()
    with listen_at(tmp_path / "socket") as sock, TraceReader(path) as reader:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(write_on, listener)
            with trio.fail_after(100):
                report = await replay(
                    RecordedSession(reader, 1), tmp_path / "socket", options=ReplayOptions(timeout=1.0)
                )
            nursery.cancel_scope.cancel()
    assert report.first is not None
    assert report.first.what.startswith("the server did not write 73 6f 6d")
    assert trio.current_time() - began < 2 * MAX_PATIENCE


async def test_areas_that_are_not_taken_are_a_divergence_that_names_the_region(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    info = RegionInfo(3, RegionFlags.MMAP, PAGE, 0, (SparseMmap((SparseArea(0, 8),) * 5000),))
    with made_up(path) as trace:
        trace.ask(GetRegionInfo(3, 1 << 20))
        trace.reply(Command.DEVICE_GET_REGION_INFO, info)

    async def offer(listener: trio.SocketListener) -> None:
        async with await listener.accept() as stream:
            await stream.receive_some()
            await stream.send_all(VERSION_REPLY)
            await stream.receive_some()
            await stream.send_all(encode_reply(1, Command.DEVICE_GET_REGION_INFO, info))
            await trio.sleep_forever()

    with listen_at(tmp_path / "socket") as sock, TraceReader(path) as reader:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(offer, listener)
            report = await replay(RecordedSession(reader, 1), tmp_path / "socket", options=PATIENCE)
            nursery.cancel_scope.cancel()
    assert report.first is not None
    assert "5000 mappable areas of BAR3" in report.first.what
    assert report.stopped is None


async def test_a_look_at_the_screen_that_does_not_end_is_given_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def look(_time: int, meanwhile: Meanwhile) -> None:
        await meanwhile(trio.sleep_forever)

    path = tmp_path / "trace"
    with made_up(path):
        pass
    device = RegisterDevice()
    with TraceReader(path) as reader:
        hosted = host(device, TRANSPORTS["native"]())
        report = await replay(RecordedSession(reader, 1), hosted, options=PATIENCE, when_done=look)
    device.close()
    assert report.first is not None
    assert report.first.what == "what was to be done meanwhile was not done within 60 s"


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
