"""Who comes and goes while sessions are recorded: clients that leave or break the rules, several, and the server."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
from structlog.typing import EventDict

from devices.contract import GuestMemoryError
from protocol import (
    HEADER,
    Command,
    DmaMap,
    DmaMapFlags,
    DmaRead,
    DmaReadReply,
    GetInfo,
    MessageType,
    RegionRead,
    RegionWrite,
    Version,
    encode,
    encode_request,
)
from protocol.pcapng import Direction, section
from server.fds import ReceivedFds
from server.trace import recording
from server.trace.fd_facts import fd_facts
from server.trace.reader import TracedMessage, TraceReader
from server.trace.recording import Recording
from server.trace.ring import TraceRing
from tests.server.register_device import BAR0, CONFIG, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.test_command_line import serving
from tests.server.trace.recorded_server import (
    DOORBELL,
    INFO,
    STUCK_SECONDS,
    Bed,
    Log,
    guest_memory,
    kinds,
    watched_client,
)
from tests.server.transports.raw import error_of, raw_client

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE
GREETED = ["session", "VERSION", "VERSION reply"]
ASKED = ["REGION_READ", "REGION_READ reply"]
ID = RegionRead(0, CONFIG, 4)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


@pytest.fixture(params=TRANSPORTS)
def bed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bed]:
    device = RegisterDevice()
    yield Bed(device, request.param, tmp_path / "trace")
    device.close()


@pytest.mark.parametrize(
    "broken",
    [
        HEADER.pack(9, Command.REGION_READ, 3, 0, 0),
        HEADER.pack(9, Command.REGION_READ, 2**32 - 1, 0, 0),
        HEADER.pack(9, Command.REGION_WRITE, 15, 0, 0) + bytes(100),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_recorded_up_to_there(bed: Bed, broken: bytes) -> None:
    async with bed.recorded() as server, watched_client(server.path, Log()) as client:
        await client.say_version()
        await client.ask(ID)
        await client.send(encode_request(1, ID) + broken + encode_request(2, ID))
        await client.message()
        assert error_of(await client.message()) != 0
        assert await client.ends()
    *before, malformed, reply, last = bed.seen
    assert kinds([*before, reply]) == GREETED + ASKED + ASKED
    assert malformed[:2] == ("malformed", Direction.INBOUND)
    assert malformed[2].data == broken + encode_request(2, ID)
    assert f"a message of {HEADER.unpack(broken[:16])[2]} bytes" in malformed[2].reason
    assert HEADER.unpack(last[2])[0] == 9


async def test_a_client_that_sends_too_many_fds_is_recorded_up_to_there(bed: Bed) -> None:
    with guest_memory() as memory:
        async with bed.recorded() as server, watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.ask(ID)
            await client.command(DmaMap(0, PAGE, READ_WRITE), [memory] * 17)
            assert await client.ends()
        seen = bed.seen
        assert kinds(seen[:5]) == GREETED + ASKED
        kind, direction, malformed, facts = seen[5]
        assert (kind, direction) == ("malformed", Direction.INBOUND)
        assert malformed.data[16:] == DmaMap(0, PAGE, READ_WRITE).pack()
        assert "more file descriptors" in malformed.reason
        assert set(facts.fds) == {fd_facts(memory)}


@pytest.mark.parametrize("cut", [1, 15, 16, 40])
async def test_a_client_that_is_killed_in_a_message_is_recorded_up_to_the_one_before(
    bed: Bed, cut: int
) -> None:
    with guest_memory() as memory:
        async with bed.recorded() as server:
            async with watched_client(server.path, Log()) as client:
                await client.say_version()
                await client.ask(ID)
                await client.send(encode_request(1, DmaMap(0, PAGE, READ_WRITE))[:cut], [memory])
                await trio.testing.wait_all_tasks_blocked()
            async with watched_client(server.path, Log()) as client:
                await client.say_version()
        seen = bed.seen
        kind, _, malformed, facts = seen.pop(len(GREETED + ASKED))
        assert (kind, malformed.data) == ("malformed", encode_request(1, DmaMap(0, PAGE, READ_WRITE))[:cut])
        assert "ended in the middle" in malformed.reason
        assert facts.fds == (fd_facts(memory),)
        assert kinds(seen) == GREETED + ASKED + GREETED


async def test_a_client_that_does_not_wait_for_replies_is_recorded(bed: Bed) -> None:
    async with bed.recorded() as server:
        async with watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.send(encode_request(0, ID) * 20)
        await trio.testing.wait_all_tasks_blocked()
    assert kinds(bed.seen).count("REGION_READ") == 20


@pytest.mark.parametrize("what", [b"", b"VERSION"])
async def test_a_client_that_says_nothing_leaves_no_session(bed: Bed, what: bytes) -> None:
    async with bed.recorded() as server, raw_client(server.path) as client:
        await client.send(what)
    assert bed.seen == []


async def test_a_client_that_is_refused_at_once_is_a_session(bed: Bed) -> None:
    async with bed.recorded() as server:
        async with watched_client(server.path, Log()) as client:
            assert await client.refusal(Version(7, 0)) == errno.EOPNOTSUPP
        async with watched_client(server.path, Log()) as client:
            assert error_of(await client.ask(GetInfo())) != 0
    names = kinds(bed.seen)
    assert names == [*GREETED, "session", "DEVICE_GET_INFO", "DEVICE_GET_INFO reply"]


async def test_a_client_that_is_refused_behind_another_is_a_session_and_in_the_file_at_once(bed: Bed) -> None:
    async with bed.recorded() as server:
        async with watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.ask(ID)
        await trio.testing.wait_all_tasks_blocked()
        assert kinds(bed.seen) == GREETED + ASKED
        async with watched_client(server.path, Log()) as client:
            assert await client.refusal(Version(7, 0)) == errno.EOPNOTSUPP
        await trio.testing.wait_all_tasks_blocked()
        assert kinds(bed.seen) == GREETED + ASKED + GREETED


async def test_a_client_that_waits_for_the_device_is_recorded_behind_the_one_before(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    async with bed.recorded() as server, watched_client(server.path, Log()) as second:
        async with watched_client(server.path, Log()) as first:
            await first.say_version()
            await second.command(Version(0, 1))
            await trio.testing.wait_all_tasks_blocked()
            await first.ask(ID)
        await second.message()
        await second.ask(GetInfo())
    info = ["DEVICE_GET_INFO", "DEVICE_GET_INFO reply"]
    assert kinds(bed.seen) == GREETED + ASKED + GREETED + info


async def test_a_client_that_finds_the_device_busy_does_not_come_between(
    bed: Bed, autojump_clock: trio.testing.MockClock
) -> None:
    async with bed.recorded() as server, watched_client(server.path, Log()) as first:
        await first.say_version()
        async with watched_client(server.path, Log()) as second:
            assert error_of(await second.say_version()) == errno.EBUSY
        await first.ask(ID)
    assert kinds(bed.seen) == GREETED + ASKED


async def test_what_a_device_cannot_do_is_recorded_as_its_error(bed: Bed) -> None:
    bed.device.broken.add("region_read")
    async with bed.recorded() as server, watched_client(server.path, Log()) as client:
        await client.say_version()
        assert await client.refusal(ID) == errno.EIO
    assert kinds(bed.seen) == GREETED + ASKED
    assert HEADER.unpack_from(bed.seen[-1][2])[4] == errno.EIO


async def test_a_client_that_refuses_a_message_of_the_device_is_recorded(bed: Bed) -> None:
    done: list[int | None] = []

    async def run() -> None:
        try:
            await bed.device.attached.memory.read(0, 8)
        except GuestMemoryError as error:
            done.append(error.errno)

    bed.device.on_write[DOORBELL] = lambda _: bed.device.attached.defer(run())
    async with bed.recorded() as server, watched_client(server.path, Log()) as client:
        await client.say_version()
        await client.ask(DmaMap(0, PAGE, READ_WRITE))
        await client.ask(RegionWrite(DOORBELL, BAR0, b"go"))
        request = (await client.message()).header
        await client.send(
            HEADER.pack(request.message_id, request.command, 16, MessageType.REPLY | 1 << 5, errno.EPERM)
        )
        await client.ask(GetInfo())
    assert done == [errno.EPERM]
    assert kinds(bed.seen)[-4:-2] == ["DMA_READ", "DMA_READ reply"]
    assert DmaReadReply.command == DmaRead.command


async def test_a_full_disk_is_reported_once_and_nobody_else_notices(bed: Bed) -> None:
    ring = TraceRing(Path("/dev/full"), 4 << 20)
    reported: list[OSError] = []
    ring.when_failed = reported.append
    options = with_transport(bed.transport, recording=Recording(ring, INFO))
    async with running_server(bed.device, options) as server:
        for _ in range(3):
            async with watched_client(server.path, Log()) as client:
                await client.say_version()
                for _ in range(10):
                    await client.ask(RegionWrite(0, 4, bytes(100_000)))
                assert not (await client.ask(ID)).header.is_error
    ring.close()
    assert [error.errno for error in reported] == [errno.ENOSPC]


def messages_in(path: Path) -> int:
    with TraceReader(path) as reader:
        return sum(isinstance(one, TracedMessage) for one in reader)


async def until_there_are(count: int, path: Path) -> None:
    with trio.fail_after(STUCK_SECONDS):
        while messages_in(path) < count:
            await trio.lowlevel.checkpoint()


async def test_what_was_recorded_is_in_the_file_before_long(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "FLUSH_SECONDS", 0)
    async with bed.recorded() as server, watched_client(server.path, Log()) as client:
        await client.say_version()
        await until_there_are(2, bed.trace)
        await client.ask(ID)
        await until_there_are(4, bed.trace)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_trace_of_a_server_that_is_ended_is_readable(
    tmp_path: Path, transport: str, number: signal.Signals
) -> None:
    socket, trace = tmp_path / "socket", tmp_path / "trace"
    trace.write_bytes(section("an earlier server"))
    with serving("--socket-path", str(socket), "--trace", str(trace), "--transport", transport) as process:
        async with watched_client(socket, Log()) as client:
            await client.say_version()
            for _ in range(20):
                await client.ask(RegionRead(0, 7, 64))
            if number == signal.SIGKILL:
                await until_there_are(42, trace)
            process.send_signal(number)
            await client.ends()
        process.wait(STUCK_SECONDS)
    assert messages_in(trace) == 42
    assert trace.stat().st_mode & 0o777 == 0o600


async def test_fds_of_messages_that_nobody_takes_are_told_of_and_closed(bed: Bed) -> None:
    with guest_memory() as memory:
        async with bed.recorded() as server, watched_client(server.path, Log()) as client:
            await client.say_version()
            await client.send(encode(1, Command.REGION_READ, MessageType.COMMAND, ID.pack()), [memory] * 3)
            assert error_of(await client.message()) == errno.EINVAL
            ReceivedFds((await client.ask(GetInfo())).fds).close()
    assert [len(one[3].fds) for one in bed.seen if one[0] == "message"] == [0, 0, 3, 0, 0, 0]
