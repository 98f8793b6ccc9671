"""Traces that somebody made up to do harm are replayed, or refused, in bounded time and with bounded means."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol import (
    Command,
    DmaMap,
    DmaMapFlags,
    IrqAction,
    IrqData,
    PciIrq,
    RegionRead,
    RegionReadReply,
    SetIrqs,
)
from protocol.trace import TraceError
from server.cli import main
from server.trace.reader import TraceReader
from server.trace.replay import pace
from server.trace.replay.comparison import Mask
from server.trace.replay.intervals import MAX_BYTES, MAX_COMMANDS, RecordedSession, recorded_sessions
from server.trace.replay.pace import Pace
from tests.server.register_device import BAR0, PAGE, RegisterDevice
from tests.server.running import TRANSPORTS
from tests.server.trace.replay.sessions import BASE, STUCK, Squares, replayed
from tests.server.trace.replay.traces import EVENTFD, MEMFD, made_up

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

READ_WRITE = DmaMapFlags.READ | DmaMapFlags.WRITE


def eventfds(
    start: int, count: int, index: int = PciIrq.MSIX, action: IrqAction = IrqAction.TRIGGER
) -> SetIrqs:
    return SetIrqs(index, start, count, IrqData.EVENTFD, action)


async def test_as_many_vectors_as_there_are_numbers_are_sent_and_not_walked(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(eventfds(0, 2**32 - 1))
        trace.ask(eventfds(2**31, 2**31 - 1), message_id=2)
    report = await replayed(path, RegisterDevice())
    assert report.sent == 3


@pytest.mark.parametrize(("start", "count"), [(2048, 1), (2**32 - 9, 2)])
async def test_vectors_that_no_device_has_are_refused(tmp_path: Path, start: int, count: int) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(eventfds(start, count), (EVENTFD,) * count)
    with pytest.raises(TraceError, match="message 3 hands over eventfds for vectors up to"):
        await replayed(path, RegisterDevice())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_vector_may_be_set_up_again_before_the_server_has_answered(
    tmp_path: Path, transport: str
) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        for message_id in (1, 2, 3):
            trace.ask(eventfds(0, 1), (EVENTFD,), message_id=message_id)
        for message_id in (1, 2, 3):
            trace.reply(Command.DEVICE_SET_IRQS, message_id=message_id)
    report = await replayed(path, RegisterDevice(), transport=transport)
    assert report.same, report.first
    assert report.replies == 4


async def test_eventfds_for_masking_are_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(eventfds(0, 1, PciIrq.INTX, IrqAction.UNMASK), (EVENTFD,))
    assert (await replayed(path, RegisterDevice())).sent == 2


async def test_more_eventfds_than_a_message_can_have_are_said_and_not_blamed_on_the_server(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        trace.ask(eventfds(0, 300), (EVENTFD,) * 300)
    report = await replayed(path, RegisterDevice())
    assert report.first is not None
    assert report.first.what == "a message cannot be sent: Invalid argument"


async def test_regions_one_over_the_other_leave_no_fd_behind(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = tmp_path / "trace"
    with made_up(path) as trace:
        for number in range(1, 40):
            facts = (MEMFD,) if number % 3 else ()
            trace.ask(DmaMap(BASE + number % 5 * PAGE, 3 * PAGE, READ_WRITE), facts, message_id=number)
        trace.recorder.wrote(BASE, b"x")
    for memory in ("shared", "message"):
        assert not (await replayed(path, Squares(), memory=memory, options=STUCK)).same


def test_a_trace_of_many_sessions_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace"
    with made_up(path, sessions=30):
        pass
    read = 0
    walk = TraceReader.__iter__

    def counted(reader: TraceReader) -> Iterator[object]:
        nonlocal read
        read += 1
        return walk(reader)

    monkeypatch.setattr(TraceReader, "__iter__", counted)
    with TraceReader(path) as reader:
        sessions = [(session.number, len(list(session.intervals()))) for session in recorded_sessions(reader)]
    assert sessions == [(number, 1) for number in range(1, 31)]
    assert read == 1


def test_a_session_that_is_given_up_half_way_does_not_become_a_part_of_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with made_up(path, sessions=3):
        pass
    with TraceReader(path) as reader:
        numbers = [next(session.intervals()).commands[0].number for session in recorded_sessions(reader)]
    assert numbers == [1, 3, 5]


def test_what_is_sent_at_once_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    size = 1 << 20
    with made_up(path) as trace:
        for _ in range(3 * MAX_COMMANDS):
            trace.ask(RegionRead(0, BAR0, 8), no_reply=True)
        for _ in range(20):
            trace.reply(Command.REGION_READ, RegionReadReply(0, BAR0, bytes(size)))
    with TraceReader(path) as reader:
        intervals = list(RecordedSession(reader, 1).intervals())
    assert sum(len(one.commands) for one in intervals) == 3 * MAX_COMMANDS + 1
    assert max(len(one.commands) for one in intervals) == MAX_COMMANDS
    assert max(one.bytes for one in intervals) < MAX_BYTES + 2 * size
    assert sum(one.bytes > size for one in intervals) == 2


async def test_pauses_are_kept_up_to_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    kept = Pace(original=True)
    began = trio.current_time()
    second = 10**9
    await kept.keep(100 * second)
    await kept.keep(103 * second)
    assert trio.current_time() - began == pytest.approx(3)
    assert kept.waits(104 * second)
    await kept.keep(50 * second)  # the clock was set
    assert trio.current_time() - began == pytest.approx(3)
    await kept.keep(365 * 24 * 3600 * second)
    assert trio.current_time() - began == pytest.approx(3 + pace.MAX_GAP)
    fast = Pace(original=False)
    await fast.keep(0)
    await fast.keep(10 * second)
    assert not fast.waits(20 * second)
    assert trio.current_time() - began == pytest.approx(3 + pace.MAX_GAP)


def test_a_mask_over_a_whole_address_space_costs_what_was_read() -> None:
    data = bytearray(b"\xff" * 8)
    Mask.parse("BAR4:0:10000000000000000").clear(4, 1 << 40, data)
    assert data == bytes(8)
    data = bytearray(b"\xff" * 8)
    Mask.parse("BAR4:4:100000000000:0x0ff0").clear(4, 2, data)
    assert data == b"\xff\xff\x0f\xf0\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "device", ["virtio-gpu,max_hostmem=900000000G", "virtio-gpu,max_hostmem=2G,width=640"]
)
def test_a_trace_does_not_have_a_device_take_what_memory_it_likes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    path = tmp_path / "trace"
    with made_up(path, device=device):
        pass
    assert main(["trace", "replay", "--serve", "recorded", str(path)]) == 1
    said = capsys.readouterr().err
    assert device.split(",")[1] in said
    assert "--serve DEVICE" in said


@pytest.mark.parametrize("device", ["", "toaster", "virtio-gpu,max_hostmem=much", "virtio-gpu,scanouts"])
def test_a_device_that_cannot_be_made_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    path = tmp_path / "trace"
    with made_up(path, device=device):
        pass
    assert main(["trace", "replay", "--serve", "recorded", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"vgpud: {path} ")
