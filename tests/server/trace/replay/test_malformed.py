"""What is no message is sent again, as far as it was recorded; what cannot be, ends the replay and says why."""

from __future__ import annotations

from errno import E2BIG, EINVAL
from pathlib import Path

import pytest

from protocol import HEADER, Command, GetInfo, encode_error, encode_request
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from server.trace.fd_facts import FdFacts, MessageFacts
from server.trace.reader import TracedMalformed, TraceReader
from server.trace.recorder import Recorder
from server.trace.recording import Recording
from server.trace.ring import TraceRing
from tests.server.register_device import RegisterDevice
from tests.server.running import TRANSPORTS, running_server, with_transport
from tests.server.trace.replay.sessions import replayed
from tests.server.transports.raw import error_of, raw_client

pytestmark = pytest.mark.usefixtures("no_fd_leaks")


async def record_broken(path: Path, broken: bytes, *, refused: bool, transport: str = "native") -> Path:
    """A client asks once, and sends ``broken``, which is refused, or hangs up behind it."""
    ring = TraceRing(path)
    options = with_transport(transport, recording=Recording(ring, SessionInfo("test", memory=True)))
    async with running_server(RegisterDevice(), options) as server:
        async with raw_client(server.path) as client:
            await client.say_version()
            await client.ask(GetInfo())
            await client.send(broken)
            if refused:
                assert error_of(await client.message()) != 0
                assert await client.ends()
        async with raw_client(server.path) as client:  # the one before is gone when this is attached
            await client.say_version()
    ring.close()
    return path


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [0, 15, 2**32 - 1])
async def test_a_message_of_an_impossible_size_is_refused_again(
    tmp_path: Path, transport: str, size: int
) -> None:
    broken = HEADER.pack(7, Command.REGION_READ, size, 0, 0) + b"more"
    trace = await record_broken(tmp_path / "trace", broken, refused=True, transport=transport)
    report = await replayed(trace, RegisterDevice(), transport=transport)
    assert report.same, report.first
    assert (report.sent, report.replies) == (3, 3)


async def test_another_error_is_a_divergence(tmp_path: Path) -> None:
    broken = HEADER.pack(7, Command.REGION_READ, 15, 0, 0)
    trace = await record_broken(tmp_path / "trace", broken, refused=True)
    data = trace.read_bytes()
    reply = encode_error(7, Command.REGION_READ, EINVAL)
    assert data.count(reply) == 1
    trace.write_bytes(data.replace(reply, encode_error(7, Command.REGION_READ, E2BIG)))
    report = await replayed(trace, RegisterDevice())
    assert report.first is not None
    assert "Invalid argument" in report.first.what


@pytest.mark.parametrize("cut", [1, 16, 31])
async def test_a_message_that_the_client_did_not_end_is_sent_as_far_as_it_came(
    tmp_path: Path, cut: int
) -> None:
    broken = encode_request(7, GetInfo())[:cut]
    trace = await record_broken(tmp_path / "trace", broken, refused=False)
    with TraceReader(trace) as reader:
        (malformed,) = (one.malformed for one in reader if isinstance(one, TracedMalformed))
    assert malformed.data == broken
    report = await replayed(trace, RegisterDevice())
    assert report.same, report.first
    assert (report.sent, report.replies) == (3, 2)


@pytest.mark.parametrize(
    ("direction", "facts", "reason"),
    [
        (Direction.OUTBOUND, MessageFacts(), "the recorded server broke the framing: too long"),
        (Direction.INBOUND, MessageFacts((FdFacts("eventfd"),)), "with file descriptors"),
        (Direction.INBOUND, MessageFacts(twin=True), "on the twin socket"),
    ],
)
async def test_what_cannot_be_done_again_ends_the_replay_without_a_divergence(
    tmp_path: Path, direction: Direction, facts: MessageFacts, reason: str
) -> None:
    trace = tmp_path / "trace"
    ring = TraceRing(trace)
    recorder = Recorder(ring, SessionInfo("test", memory=True))
    recorder.start()
    recorder.malformed(direction, b"whatever", "too long", facts.pack())
    recorder.flush()
    ring.close()
    report = await replayed(trace, RegisterDevice())
    assert report.stopped is not None
    assert reason in report.stopped
    assert (report.divergences, report.same, report.sent) == (0, False, 0)
