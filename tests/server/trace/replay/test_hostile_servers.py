"""A server that floods the replay, or does not listen to it, is given up in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol import (
    HEADER,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaWrite,
    GetRegionInfo,
    RegionFlags,
    RegionInfo,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    SparseArea,
    SparseMmap,
    Version,
    encode_reply,
    encode_request,
)
from server.socket_path import listen_at
from server.trace.reader import TraceReader
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.player import MAX_PATIENCE, Meanwhile, ReplayOptions
from server.trace.replay.replay import host, replay
from server.trace.replay.report import Report
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
