"""Which request a reply answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import Command, DeviceReset, DmaRead, DmaReadReply, GetIrqInfo, RegionWrite, RegionWriteReply
from protocol.trace import SessionInfo
from server.trace import pairing
from server.trace.pairing import DecodedMessage, Unanswered, walk
from server.trace.reader import FD_COST, TraceReader
from tests.server.trace.show_files import GPU, MEMFD, TraceFile

WRITE = RegionWrite(0, 0, b"\1")
WRITTEN = RegionWriteReply(0, 0, 1)


def pairs(trace: TraceFile, path: Path) -> tuple[dict[int, int | None], list[int]]:
    """Each reply's request, by number, and the requests without a reply."""
    trace.save(path)
    answers: dict[int, int | None] = {}
    unanswered = []
    with TraceReader(path) as reader:
        for item in walk(reader):
            if isinstance(item, Unanswered):
                unanswered.append(item.request.message.number)
            elif isinstance(item, DecodedMessage) and item.is_reply:
                request = item.request
                answers[item.message.number] = None if request is None else request.message.number
    return answers, unanswered


def test_an_id_may_be_used_again(tmp_path: Path) -> None:
    trace = TraceFile()
    trace.request(5, WRITE).reply(5, Command.REGION_WRITE, WRITTEN)
    trace.request(5, WRITE).reply(5, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({2: 1, 4: 3}, [])


def test_requests_of_one_id_that_wait_together_are_answered_in_order(tmp_path: Path) -> None:
    trace = TraceFile()
    trace.request(0, WRITE).request(0, WRITE).request(1, WRITE)
    trace.reply(1, Command.REGION_WRITE, WRITTEN)
    trace.reply(0, Command.REGION_WRITE, WRITTEN).reply(0, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({4: 3, 5: 1, 6: 2}, [])


def test_a_reply_answers_a_request_of_its_command(tmp_path: Path) -> None:
    trace = TraceFile()
    trace.request(1, WRITE).request(1, DeviceReset())
    trace.reply(1, Command.DEVICE_RESET).reply(1, Command.DMA_MAP)

    assert pairs(trace, tmp_path / "trace") == ({3: 2, 4: None}, [1])


def test_both_sides_have_ids_of_their_own(tmp_path: Path) -> None:
    trace = TraceFile()
    trace.request(1, DmaRead(0, 1), server=True).request(1, DmaRead(0, 2))
    trace.reply(1, Command.DMA_READ, DmaReadReply(0, b"12"))
    trace.reply(1, Command.DMA_READ, DmaReadReply(0, b"1"), client=True)

    assert pairs(trace, tmp_path / "trace") == ({3: 2, 4: 1}, [])


def test_posted_commands_wait_for_nothing(tmp_path: Path) -> None:
    trace = TraceFile()
    trace.request(1, WRITE, posted=True).request(1, WRITE)
    trace.reply(1, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({3: 2}, [])


def test_a_client_is_not_answered_in_the_next_session(tmp_path: Path) -> None:
    trace = TraceFile().request(1, WRITE).session(GPU)
    trace.request(2, WRITE).reply(1, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({3: None}, [1, 2])


def test_a_session_that_goes_on_has_the_requests_from_before(tmp_path: Path) -> None:
    trace = TraceFile().request(1, WRITE).session(SessionInfo("x", continued=True))
    trace.reply(1, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({2: 1}, [])


def test_the_oldest_requests_are_forgotten_when_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_WAITING", 2)
    trace = TraceFile()
    for number in range(4):
        trace.request(number, GetIrqInfo(0))
    for number in range(4):
        trace.error(number, Command.DEVICE_GET_IRQ_INFO, 22)

    assert pairs(trace, tmp_path / "trace") == ({5: None, 6: None, 7: 3, 8: 4}, [1, 2])


def test_the_oldest_requests_are_forgotten_when_many_fds_wait_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_HELD", 5 * FD_COST)
    trace = TraceFile()
    for _ in range(3):
        trace.request(1, GetIrqInfo(0), fds=[MEMFD, MEMFD])
    trace.error(1, Command.DEVICE_GET_IRQ_INFO, 22)

    assert pairs(trace, tmp_path / "trace") == ({4: 2}, [1, 3])


def test_the_oldest_requests_are_forgotten_when_long_ones_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "MAX_HELD", 250)
    trace = TraceFile()
    trace.request(1, RegionWrite(0, 0, bytes(84))).request(1, RegionWrite(0, 0, bytes(84)))
    trace.request(1, RegionWrite(0, 0, bytes(84)))
    trace.reply(1, Command.REGION_WRITE, WRITTEN)

    assert pairs(trace, tmp_path / "trace") == ({4: 2}, [1, 3])
