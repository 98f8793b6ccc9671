"""``vgpud trace diff --events``: guest memory and interrupts."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import DeviceReset
from protocol.trace import SessionInfo, digest, pack_content
from server.trace.diff import exchanges
from server.trace.recorder import SHORT
from tests.server.trace.diff.test_diff import diff
from tests.server.trace.show_files import GPU, TraceFile, event

READ, WRITE, INTERRUPT = 1, 2, 3
STORED = 1


def eventful(*events: bytes, info: SessionInfo = GPU) -> TraceFile:
    """A message, and what happened because of it."""
    trace = TraceFile(info).request(1, DeviceReset())
    trace.record(3, b"".join(events), 7)
    return trace


def read(data: bytes) -> bytes:
    return event(READ, 0, 0, len(data), 0x1000, data)


def test_equal_events_are_equal_however_they_are_gathered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = eventful(read(b"abc"), event(WRITE, 0, 0, 1, 0x2000, b"x"), event(INTERRUPT, 0, 2, 0, 1))
    b = eventful(read(b"abc"))
    b.record(3, event(WRITE, 0, 0, 1, 0x2000, b"x") + event(INTERRUPT, 0, 2, 0, 1), 900)

    assert diff(a, b, tmp_path, capsys, "--events") == (
        0,
        [
            "1 message equal, 0 differ, 0 only in A, 0 only in B",
            "3 events equal, 0 differ, 0 only in A, 0 only in B",
        ],
    )


def test_other_bytes_in_memory_are_a_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = diff(eventful(read(b"\1")), eventful(read(b"\2")), tmp_path, capsys, "--events")

    assert status == 1
    assert lines[-4:-2] == [
        "~          0.000007    memory read              0x1000-0x1000 (1 byte) 0x01",
        "~          0.000007    memory read              0x1000-0x1000 (1 byte) 0x02  [data: 0x01 -> 0x02]",
    ]
    assert lines[-1] == "0 events equal, 1 differ, 0 only in A, 0 only in B"


def test_an_interrupt_that_only_one_has_is_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = eventful(read(b"a")), eventful(read(b"a"), event(INTERRUPT, 0, 2, 0, 1))

    status, lines = diff(a, b, tmp_path, capsys, "--events", "--context", "0")

    assert status == 1
    assert lines[1:] == [
        "+          0.000007    interrupt                MSIX 1",
        "1 message equal, 0 differ, 0 only in A, 0 only in B",
        "1 event equal, 0 differ, 0 only in A, 1 only in B",
    ]


def test_memory_is_compared_however_it_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytes(range(256)) * 4
    assert len(data) > SHORT
    a, b, c = eventful(read(data)), TraceFile(), TraceFile()
    for trace, content in ((b, data), (c, data[:-1] + b"!")):
        trace.request(1, DeviceReset())
        key = digest(memoryview(content))
        place = len(trace.data)
        trace.record(2, pack_content(key, content)[4:], 3)
        trace.record(3, event(READ, STORED, 0, len(content), 0x1000, key + place.to_bytes(8, "little")), 7)

    assert diff(a, b, tmp_path, capsys, "--events")[0] == 0
    status, lines = diff(a, c, tmp_path, capsys, "--events")
    assert status == 1
    assert lines[-3].endswith("  [data: 1 byte from +0x3ff on, 0xff -> 0x21]")


def test_without_the_option_events_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = eventful(read(b"a")), eventful(*[event(INTERRUPT, 0, 2, 0, 1)] * 5)

    assert diff(a, b, tmp_path, capsys) == (0, ["1 message equal, 0 differ, 0 only in A, 0 only in B"])


def test_many_events_behind_a_request_that_waits_are_not_held(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "MAX_AHEAD", 10)
    a, b = (eventful(*[event(INTERRUPT, 0, 2, 0, 1)] * 100) for _ in range(2))

    assert diff(a, b, tmp_path, capsys, "--events")[0] == 0
