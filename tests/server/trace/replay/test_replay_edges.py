"""Replays of sessions with private memory, to servers that go away, of traces that are damaged, and of long ones."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol import (
    Capabilities,
    Command,
    Decoder,
    MessageType,
    RegionRead,
    RegionReadReply,
    TwinSocket,
    Version,
    encode,
    encode_reply,
    encode_request,
)
from protocol.pcapng import Direction
from protocol.trace import SessionInfo, TraceError
from server.cli import main
from server.client import VfioUserClient, open_client
from server.socket_path import listen_at
from server.trace.reader import TraceReader
from server.trace.recorder import Recorder
from server.trace.recording import Recording
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.replay import replay
from server.trace.ring import MIN_LIMIT, TraceRing
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.trace.replay.sessions import (
    BASE,
    DOORBELL,
    PATIENCE,
    STUCK,
    U64,
    Squares,
    record,
    replayed,
    square_numbers,
)

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

on_both_transports = pytest.mark.parametrize("transport", TRANSPORTS)

TRACES = Path(__file__).parents[3] / "traces"


class Pages:
    """Memory that is reached by message."""

    def __init__(self) -> None:
        self.data = bytearray(PAGE)

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.data[address - BASE :][:count])

    def write(self, address: int, data: bytes) -> None:
        self.data[address - BASE : address - BASE + len(data)] = data


@on_both_transports
@pytest.mark.parametrize("twin", [False, True])
async def test_a_session_whose_memory_is_private_is_replayed(
    tmp_path: Path, transport: str, twin: bool
) -> None:
    path = tmp_path / "trace.pcapng"
    ring = TraceRing(path)
    recording = Recording(ring, SessionInfo("test", memory=True, interrupts=True))
    pages = Pages()
    capabilities = Capabilities(max_msg_fds=16, twin_socket=TwinSocket(supported=twin))
    async with (
        running_server(Squares(), with_transport(transport, recording=recording)) as server,
        open_client(server.path, memory=pages, capabilities=capabilities) as client,
    ):
        await client.dma_map(BASE, PAGE)
        for number in range(3):
            pages.data[:8] = U64.pack(number)
            await client.region_write(BAR0, DOORBELL, U64.pack(BASE))
            with trio.fail_after(PATIENCE.timeout):
                while U64.unpack(pages.data[8:16]) != (number + 1,):
                    await trio.lowlevel.checkpoint()
    ring.close()
    report = await replayed(path, Squares(), transport=transport)
    assert report.same, report.first
    assert (report.requests, report.reads, report.writes) == (6, 0, 0)

    class Wrong(Squares):
        async def work(self, address: int) -> None:
            await self.memory.read(address, U64.size)
            await self.memory.write(address + U64.size, U64.pack(77))

    assert not (await replayed(path, Wrong(), transport=transport)).same


@asynccontextmanager
async def server_that_answers(path: Path, count: int) -> AsyncIterator[None]:
    """Answers ``count`` requests, and hangs up."""

    async def serve(listener: trio.SocketListener) -> None:
        async with listener:
            stream = await listener.accept()
        decoder = Decoder(1 << 20)
        left = count
        async with stream:
            while left:
                decoder.feed(await stream.receive_some())
                for message in decoder:
                    left -= 1
                    reply = Version(0, 1) if message.header.command == Command.VERSION else b""
                    await stream.send_all(
                        encode_reply(message.header.message_id, message.header.command, reply)
                    )

    with listen_at(path) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup())))
            yield
            nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_up_is_a_divergence(tmp_path: Path) -> None:
    trace = await record(tmp_path, Squares(), square_numbers)
    path = tmp_path / "socket"
    async with server_that_answers(path, 1):
        with TraceReader(trace) as reader:
            report = await replay(RecordedSession(reader, 1), path, options=PATIENCE)
    assert not report.same
    assert report.first is not None
    assert "the server closed the connection" in report.first.what
    assert report.stopped is not None


async def test_without_a_server_the_reason_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = await record(tmp_path, Squares(), square_numbers)
    nobody = str(tmp_path / "nobody")
    assert await trio.to_thread.run_sync(main, ["trace", "replay", "--connect", nobody, str(trace)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("vgpud: ")


def write_trace(path: Path, reads: int, limit: int | None = None) -> None:
    """A session of that many reads, each with its reply."""
    ring = TraceRing(path, limit)
    recorder = Recorder(ring, SessionInfo("test"))
    recorder.start()
    recorder.message(Direction.INBOUND, encode_request(0, Version(0, 1)))
    recorder.message(Direction.OUTBOUND, encode_reply(0, Command.VERSION, Version(0, 1)))
    for number in range(reads):
        message_id = number % 1000
        recorder.message(Direction.INBOUND, encode_request(message_id, RegionRead(0, BAR0, 8)))
        reply = RegionReadReply(0, BAR0, bytes(8))
        recorder.message(Direction.OUTBOUND, encode_reply(message_id, Command.REGION_READ, reply))
    recorder.flush()
    ring.close()


async def test_a_trace_that_begins_in_the_middle_is_not_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.pcapng"
    write_trace(trace, 30_000, MIN_LIMIT)
    with TraceReader(trace) as reader:
        with pytest.raises(TraceError, match="--trace-limit"):
            RecordedSession(reader, 1)
        with pytest.raises(TraceError, match="no session 2"):
            RecordedSession(reader, 2)


async def test_a_trace_that_was_cut_short_is_replayed_up_to_there(tmp_path: Path) -> None:
    trace = await record(tmp_path, Squares(), square_numbers)
    whole = trace.read_bytes()
    for cut in random.Random(1).sample(range(200, len(whole)), 12):  # noqa: S311 - any will do
        trace.write_bytes(whole[:cut])
        report = await replayed(trace, Squares())
        assert report.same, (cut, report.first)


async def test_a_damaged_trace_is_an_error_and_nothing_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    trace = await record(tmp_path, Squares(), square_numbers)
    whole = trace.read_bytes()
    dice = random.Random(2)  # noqa: S311 - the same damage each time
    outcomes: set[bool | None] = set()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 8)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        trace.write_bytes(damaged)
        try:
            report = await replayed(trace, Squares(), options=STUCK)
            outcomes.add(report.same)
        except TraceError:
            outcomes.add(None)
    assert outcomes == {True, False, None}


async def test_the_command_says_with_its_exit_status_whether_all_was_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def look(client: VfioUserClient, _fd: int) -> None:
        assert await client.region_read(BAR0, 0, 4) == bytes(4)

    trace = await record(tmp_path, RegisterDevice(), look)
    async with running_server(RegisterDevice()) as server:
        command = [sys.executable, "-m", "server", "trace", "replay", "--connect", str(server.path)]
        done = await trio.run_process([*command, str(trace)], capture_stdout=True)
        assert b"all as recorded" in done.stdout
        server.engine.device.region_write(BAR0, 1, memoryview(b"\x80"))
        done = await trio.run_process([*command, str(trace)], capture_stdout=True, check=False)
        assert done.returncode == 1
        lines = done.stdout.decode().splitlines()
        assert lines[-2] == "message 4: data is 0x00008000, and was 0x00000000"
        assert "REGION_READ reply BAR0" in " ".join(lines[-3].split())
        masked = await trio.run_process([*command, "--mask", "BAR0:1:1:0x80", str(trace)])
        assert masked.returncode == 0


@pytest.mark.parametrize(("memory", "said"), [("shared", True), ("message", False)])
def test_where_shared_memory_may_be_what_makes_the_difference_the_exact_way_is_named(
    memory: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--serve", "virtio-gpu,width=800", "--memory", memory, "--timeout", "0.3"]
    assert main(["trace", "replay", *other, str(TRACES / "boot.pcapng")]) == 1
    assert ("see whether --memory message finds the same" in capsys.readouterr().out) is said


@pytest.mark.parametrize("mask", ["BAR0", "BAR9:1", "BAR0:x", "1:2:3:4:5"])
def test_a_mask_that_makes_no_sense_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mask: str
) -> None:
    assert main(["trace", "replay", "--serve", "virtio-gpu", "--mask", mask, os.devnull]) == 1
    assert "BAR0:8:4:0xff" in capsys.readouterr().err


def test_what_is_no_trace_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text"
    file.write_text("this is no trace, although it is long enough to be one\n" * 10)
    assert main(["trace", "replay", "--serve", "virtio-gpu", str(file)]) == 1
    assert capsys.readouterr().err == f"vgpud: {file}: this is not a pcapng file\n"


def test_commands_that_no_server_knows_are_replayed_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "trace.pcapng"
    ring = TraceRing(path)
    recorder = Recorder(ring, SessionInfo("test"))
    recorder.start()
    recorder.message(Direction.INBOUND, encode_request(0, Version(0, 1)))
    recorder.message(Direction.OUTBOUND, encode_reply(0, Command.VERSION, Version(0, 1)))
    recorder.message(Direction.INBOUND, encode(1, 999, MessageType.COMMAND, b"?"))
    recorder.message(Direction.INBOUND, encode_request(2, RegionRead(0, BAR0, 4)))
    reply = RegionReadReply(0, BAR0, bytes(4))
    recorder.message(Direction.OUTBOUND, encode_reply(2, Command.REGION_READ, reply))
    recorder.flush()
    ring.close()
    report = trio.run(replayed, path, RegisterDevice())
    assert report.first is not None
    assert report.first.what == "there is a reply to message id 1, and there was none"
