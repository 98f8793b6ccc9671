"""What a recorder records: read back in order, in files that each make sense by themselves, whatever else happens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.contract import Look
from protocol import HEADER, HEADER_SIZE
from protocol.pcapng import Direction, Packet, Parser
from protocol.trace import EVENT, MAX_CONTENT, Interrupt, Malformed, RecordKind, SessionInfo
from server.trace import recorder as recorder_module
from server.trace.fd_facts import FdFacts, MessageFacts
from server.trace.reader import (
    TracedEvents,
    TracedLook,
    TracedMalformed,
    TracedMessage,
    TracedSession,
    TraceReader,
)
from server.trace.recorder import BATCH_TIME, INTERRUPT_TIME, MAX_EVENTS, SHORT, UNTIMED, Recorder
from server.trace.ring import TraceRing

INFO = SessionInfo("tests", "a device", "native", memory=True, interrupts=True)
IN, OUT = Direction.INBOUND, Direction.OUTBOUND
PAGE = 4096

Seen = tuple[Any, ...]
"""One thing that was recorded or read: its name, and what there is to know about it."""


def message_of(number: int, size: int = 0) -> bytes:
    return HEADER.pack(number & 0xFFFF, 9, HEADER_SIZE + size, 0, 0) + bytes(size)


@contextmanager
def recording(path: Path, limit: int | None = None) -> Iterator[tuple[Recorder, TraceRing]]:
    """A session that has begun."""
    ring = TraceRing(path, limit)
    recorder = Recorder(ring, INFO)
    recorder.start()
    try:
        yield recorder, ring
        recorder.flush()
    finally:
        ring.close()


def seen_in(path: Path) -> list[Seen]:
    """What a file has, with the contents of its accesses, those that follow each other as one."""
    seen: list[Seen] = []
    with TraceReader(path) as reader:
        for one in reader:
            if isinstance(one, TracedSession):
                seen.append(("session", replace(one.info, recording="", file=0)))
            elif isinstance(one, TracedMessage):
                data = one.header.pack() + bytes(one.payload)
                seen.append(("message", one.direction, data, one.facts))
            elif isinstance(one, TracedLook):
                changes = [(change.region, change.offset, reader.data(change)) for change in one.look.changes]
                seen.append(("areas", one.look.whole, changes))
            elif isinstance(one, TracedMalformed):
                seen.append(("malformed", one.direction, one.malformed, one.facts))
            else:
                for event in one.events:
                    if isinstance(event, Interrupt):
                        seen.append(("interrupt", event.index, event.vector))
                    else:
                        kind = "write" if event.write else "look" if event.in_place else "read"
                        seen.append((kind, event.address, reader.data(event)))
        assert reader.cut_short == 0
    return joined(seen)


def joined(seen: list[Seen]) -> list[Seen]:
    """The same where accesses of a kind that follow each other are one."""
    result: list[Seen] = []
    for one in seen:
        if result and one[0] == result[-1][0] in ("read", "write", "look"):
            _, address, data = result[-1]
            if one[1] == address + len(data):
                result[-1] = (one[0], address, data + one[2])
                continue
        result.append(one)
    return result


def contents_of(path: Path) -> int:
    """How many contents a file stores."""
    parser = Parser()
    parser.feed(path.read_bytes())
    return sum(
        isinstance(block, Packet) and block.interface == 1 and block.data[0] == RecordKind.CONTENT
        for block in parser.blocks()
    )


address = st.integers(0, 2**64 - 1 - (1 << 20))
sizes = st.integers(0, 2 * SHORT) | st.sampled_from(
    [SHORT, SHORT + 1, PAGE, MAX_CONTENT, 3 * MAX_CONTENT + 1]
)
data = st.builds(lambda size, byte: bytes([byte]) * size, sizes, st.integers(0, 255))
facts = st.builds(MessageFacts, st.just(()) | st.just((FdFacts("eventfd", 1, 2),)), st.booleans())
area_data = st.builds(
    lambda size, byte: bytes([byte]) * size, st.sampled_from([1, SHORT, SHORT + 1, PAGE]), st.integers(0, 255)
)
things = st.one_of(
    st.tuples(
        st.just("message"),
        st.sampled_from([IN, OUT]),
        st.builds(message_of, st.integers(0, 99), st.integers(0, 99)),
        facts,
    ),
    st.tuples(st.sampled_from(["read", "write"]), address, data),
    st.tuples(st.just("interrupt"), st.integers(0, 4), st.integers(0, 2**32)),
    st.tuples(
        st.just("areas"),
        st.just(True),
        st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1), area_data), max_size=4),
    ),
    st.tuples(
        st.just("malformed"),
        st.sampled_from([IN, OUT]),
        st.builds(Malformed, st.text(max_size=20), st.binary(max_size=50)),
        facts,
    ),
    st.tuples(st.just("flush")),
)


def record_look(recorder: Recorder, whole: bool, changes: list[tuple[int, int, bytes]]) -> None:
    for region, offset, data in changes:
        recorder.area_changed(region, offset, memoryview(data))
    recorder.looked_at_areas(whole=whole)


def record(recorder: Recorder, thing: Seen) -> None:
    calls: dict[str, Callable[..., object]] = {
        "message": lambda direction, data, facts: recorder.message(direction, data, facts.pack()),
        "read": recorder.read,
        "write": recorder.wrote,
        "interrupt": recorder.interrupt,
        "areas": lambda whole, changes: record_look(recorder, whole, changes),
        "malformed": lambda direction, what, facts: recorder.malformed(
            direction, what.data, what.reason, facts.pack()
        ),
        "flush": recorder.flush,
    }
    calls[thing[0]](*thing[1:])


@given(st.lists(things, max_size=30))
@example([("read", 100, b"1"), ("read", 101, b"2"), ("interrupt", 0, 0), ("write", 0, b"")])
def test_what_is_recorded_is_read_back_in_order(recorded: list[Seen]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        with recording(path) as (recorder, _):
            for thing in recorded:
                record(recorder, thing)
        expected = [("session", INFO), *(thing for thing in recorded if thing[0] != "flush")]
        assert seen_in(path) == joined(expected)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_events_come_behind_the_message_before_and_before_the_one_behind(file: Path) -> None:
    with recording(file) as (recorder, _):
        recorder.read(1, b"early")
        recorder.message(IN, message_of(1))
        recorder.read(2, b"a")
        recorder.interrupt(2, 7)
        recorder.message(OUT, message_of(2))
        recorder.wrote(3, b"b")
    kinds = [one[0] for one in seen_in(file)]
    assert kinds == ["session", "read", "message", "read", "interrupt", "message", "write"]


def test_events_have_the_time_at_which_they_happened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 10**18
    monkeypatch.setattr(recorder_module, "_now", lambda: clock)
    happened: list[int] = []
    with recording(file) as (recorder, _):
        recorder.message(IN, message_of(0))
        for pause in (0, 5_000, 90_000_000, 1_000, 400_000, 500_000, 300_000, -50_000_000, 10):
            for kind in ("interrupt", "read", "write", "long read"):
                clock += pause
                happened.append(clock)
                if kind == "interrupt":
                    recorder.interrupt(2, 1)
                elif kind == "write":
                    recorder.wrote(1, b"12")
                else:
                    recorder.read(1, bytes(2 if kind == "read" else PAGE))
    with TraceReader(file) as reader:
        batches = [one for one in reader if isinstance(one, TracedEvents)]
    told = [(one.time, event) for one in batches for event in one.events]

    assert len(told) == len(happened)
    for (time, event), at in zip(told, happened, strict=True):
        if isinstance(event, Interrupt):
            assert 0 <= at - time <= INTERRUPT_TIME
        elif event.length > SHORT:
            assert 0 <= at - time <= BATCH_TIME
    assert len(batches) < len(happened)


def test_short_accesses_alone_have_a_time_that_is_not_long_ago(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause, clock = 100_000, 10**18
    monkeypatch.setattr(recorder_module, "_now", lambda: clock)
    with recording(file) as (recorder, _):
        for number in range(1000):
            clock += pause
            if number % 2:
                recorder.read(number, b"12")
            else:
                recorder.wrote(number, b"12")
    with TraceReader(file) as reader:
        told = [(one.time, event) for one in reader if isinstance(one, TracedEvents) for event in one.events]
    at_once = UNTIMED // EVENT.size
    for number, (time, _) in enumerate(told, 1):
        assert 0 <= 10**18 + number * pause - time <= BATCH_TIME + at_once * pause
    assert len(told) == 1000


def test_events_that_follow_at_once_are_one_packet(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_now", lambda: 10**18)
    with recording(file) as (recorder, _):
        for number in range(100):
            recorder.read(number, b"a")
            recorder.interrupt(2, number)
    with TraceReader(file) as reader:
        assert [len(one.events) for one in reader if isinstance(one, TracedEvents)] == [200]


@pytest.mark.parametrize("count", [1, 5, 3 * MAX_EVENTS // 20])
def test_any_number_of_events_may_follow_a_message(file: Path, count: int) -> None:
    with recording(file) as (recorder, _):
        recorder.message(IN, message_of(0))
        for number in range(count):
            recorder.read(2 * number, b"x")
            recorder.interrupt(0, number)
    assert len(seen_in(file)) == 2 + 2 * count


def test_equal_contents_are_stored_once(file: Path) -> None:
    page, other = os.urandom(PAGE), os.urandom(PAGE)
    with recording(file) as (recorder, _):
        for number in range(20):
            recorder.read(number * PAGE, page)
            recorder.wrote(number * PAGE, page)
            recorder.message(IN, message_of(number))
        recorder.wrote(0, other)
    assert contents_of(file) == 2
    assert seen_in(file)[-1] == ("write", 0, other)


def test_contents_that_are_forgotten_are_stored_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_KNOWN", 3)
    pages = [os.urandom(PAGE) for _ in range(5)]
    with recording(file) as (recorder, _):
        for number, page in enumerate(pages * 3):
            recorder.interrupt(0, number)
            recorder.read(0, page)
    assert 5 < contents_of(file) <= 15
    assert [one[2] for one in seen_in(file) if one[0] == "read"] == pages * 3


def test_long_accesses_are_cut_where_equal_memory_gives_equal_contents(file: Path) -> None:
    memory = os.urandom(4 * MAX_CONTENT)
    with recording(file) as (recorder, _):
        recorder.read(0, memory)
        recorder.interrupt(0, 0)
        recorder.read(MAX_CONTENT - 1, memory[MAX_CONTENT - 1 :])
    assert contents_of(file) == 5
    assert seen_in(file)[1::2] == [("read", 0, memory), ("read", MAX_CONTENT - 1, memory[MAX_CONTENT - 1 :])]


class Pins:
    """What is looked at."""


def test_a_look_is_recorded_by_what_has_changed(file: Path) -> None:
    memory = bytearray(os.urandom(3 * PAGE))
    pins, ranges = Pins(), [(0x10000, 0x12000), (0x5000, 0x6000)]
    with recording(file) as (recorder, _):

        def look() -> tuple[int | None, list[tuple[int, int]]]:
            recorder.message(IN, message_of(0))
            look = recorder.looked(pins, ranges, 0, [memoryview(memory)])
            assert b"".join(look.views) == memory
            return look.version, list(look.changes)

        first, _ = look()
        assert look()[0] == first
        memory[PAGE + 7] ^= 1
        memory[2 * PAGE :] = bytes(byte ^ 0xFF for byte in memory[2 * PAGE :])
        version, changes = look()
        assert version != first
        assert changes == [(PAGE + 7, 1), (2 * PAGE, PAGE)]
    looks = [one for one in seen_in(file) if one[0] == "look"]
    assert [one[:2] for one in looks] == [
        ("look", 0x10000),
        ("look", 0x5000),
        ("look", 0x11007),
        ("look", 0x5000),
    ]
    assert looks[2][2] == memory[PAGE + 7 : PAGE + 8]


def every_kind(recorder: Recorder, number: int, pins: Pins, memory: bytearray) -> None:
    """Message ``number``, and events that say which message they are behind."""
    label = number.to_bytes(4, "little")
    recorder.message(IN, message_of(number, 4)[:-4] + label)
    recorder.read(number, label)
    recorder.wrote(number, label * (PAGE // 4))
    memory[number % PAGE] ^= 0xFF
    recorder.looked(pins, [(0, len(memory))], 0, [memoryview(memory)])
    recorder.interrupt(0, number)


def test_what_can_be_recorded_no_more_is_neither_compared_nor_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not(*_: object) -> Any:
        raise AssertionError

    with recording(Path("/dev/full")) as (recorder, ring):
        ring.flush()
        assert recorder.ended
        monkeypatch.setattr("server.trace.contents.Copies.look", must_not)
        monkeypatch.setattr("server.trace.recorder.trace.digest", must_not)
        views = [memoryview(bytes(PAGE))]
        for _ in range(2):
            recorder.read(0, bytes(PAGE))
            recorder.wrote(0, bytes(PAGE))
            assert recorder.looked(views, [(0, PAGE)], 0, views) == Look(views)
