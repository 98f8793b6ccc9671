"""What a recorder records: read back in order, in files that each make sense by themselves, whatever else happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol import HEADER, HEADER_SIZE
from protocol.pcapng import Direction, Packet, Parser
from protocol.trace import MAX_CONTENT, Access, Interrupt, RecordKind, SessionInfo
from server.trace import recorder as recorder_module
from server.trace.fd_facts import FdFacts, MessageFacts
from server.trace.reader import TracedEvents, TracedMessage, TracedSession, TraceReader
from server.trace.recorder import MAX_EVENTS, SHORT, Recorder
from server.trace.ring import FILES, MIN_LIMIT, TraceRing
from tests.server.trace.test_ring import files_of

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
                seen.append(("session", one.info))
            elif isinstance(one, TracedMessage):
                data = one.header.pack() + bytes(one.payload)
                seen.append(("message", one.direction, data, one.facts))
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
things = st.one_of(
    st.tuples(
        st.just("message"),
        st.sampled_from([IN, OUT]),
        st.builds(message_of, st.integers(0, 99), st.integers(0, 99)),
        facts,
    ),
    st.tuples(st.sampled_from(["read", "write"]), address, data),
    st.tuples(st.just("interrupt"), st.integers(0, 4), st.integers(0, 2**32)),
    st.tuples(st.just("flush")),
)


def record(recorder: Recorder, thing: Seen) -> None:
    calls: dict[str, Callable[..., object]] = {
        "message": lambda direction, data, facts: recorder.message(direction, data, facts.pack()),
        "read": recorder.read,
        "write": recorder.wrote,
        "interrupt": recorder.interrupt,
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
        memory[2 * PAGE :] = bytes(PAGE)
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


def test_each_file_of_a_ring_is_self_contained_and_the_session_goes_on_in_the_next(file: Path) -> None:
    pins, memory = Pins(), bytearray(os.urandom(10 * PAGE))
    count = 0
    with recording(file, MIN_LIMIT) as (recorder, ring):
        while ring.files_written < 2 * FILES:
            every_kind(recorder, count, pins, memory)
            count += 1
    numbers: list[object] = []
    for path in files_of(file):
        assert path.stat().st_size < MIN_LIMIT // FILES + 8 * PAGE
        session, *seen = seen_in(path)
        assert session == ("session", SessionInfo("tests", "a device", "native", True, True, continued=True))
        numbers += [int.from_bytes(one[2][-4:], "little") for one in seen if one[0] == "message"]
        looks = [one for one in seen if one[0] == "look"]
        assert max(len(one[2]) for one in looks) == len(memory)
    assert numbers == list(range(count))[-len(numbers) :]
    assert len(files_of(file)) == FILES


def test_the_first_file_of_a_session_does_not_continue_another(file: Path) -> None:
    with recording(file, MIN_LIMIT) as (recorder, ring):
        while ring.files_written < 2:
            recorder.message(IN, message_of(0, 50_000))
    older, newer = files_of(file)
    assert seen_in(older)[0] == ("session", INFO)
    assert seen_in(newer)[0] != ("session", INFO)


@pytest.mark.parametrize("kind", ["read", "write", "long read", "look", "interrupt"])
def test_what_happens_without_a_message_stays_within_the_limit_too(file: Path, kind: str) -> None:
    memory = bytearray(os.urandom(64 * PAGE))
    pins, ranges = Pins(), [(0, len(memory))]
    with recording(file, MIN_LIMIT) as (recorder, ring):
        recorder.message(IN, message_of(0))
        while ring.files_written < FILES + 2:
            at = ring.bytes_written % len(memory)
            if kind == "look":
                memory[::PAGE] = os.urandom(64)
                recorder.looked(pins, ranges, 0, [memoryview(memory)])
            elif kind == "interrupt":
                recorder.interrupt(0, at)
            else:
                access = recorder.wrote if kind == "write" else recorder.read
                access(at, os.urandom(3 * MAX_CONTENT if kind == "long read" else SHORT))
    for path in files_of(file):
        assert path.stat().st_size < MIN_LIMIT // FILES + 2 * MAX_EVENTS + MAX_CONTENT
        assert seen_in(path)[0][0] == "session"


def test_messages_before_the_start_wait_for_it(file: Path) -> None:
    ring = TraceRing(file)
    first, second = Recorder(ring, INFO), Recorder(ring, INFO)
    second.message(IN, message_of(2))
    first.message(IN, message_of(1))
    first.start()
    second.flush()
    first.message(OUT, message_of(10))
    second.start()
    second.start()
    second.message(OUT, message_of(20))
    second.flush()
    ring.close()
    numbers = [one[2][0] if one[0] == "message" else one[0] for one in seen_in(file)]
    assert numbers == ["session", 1, 10, "session", 2, 20]


def test_a_session_is_as_old_as_its_first_message(file: Path) -> None:
    ring = TraceRing(file)
    recorder = Recorder(ring, INFO)
    recorder.message(IN, message_of(1))
    recorder.start()
    recorder.flush()
    ring.close()
    parser = Parser()
    parser.feed(file.read_bytes())
    session, message = (block for block in parser.blocks() if isinstance(block, Packet))
    assert session.timestamp == message.timestamp


def test_sessions_that_never_got_the_device_stay_within_the_limit(file: Path) -> None:
    ring = TraceRing(file, MIN_LIMIT)
    while ring.files_written < FILES + 1:
        recorder = Recorder(ring, INFO)
        recorder.message(IN, message_of(1, 100_000))
        recorder.start()
        recorder.flush()
        assert file.stat().st_size < MIN_LIMIT // FILES + 101_000
    ring.close()
    assert all(one == ("session", INFO) for path in files_of(file) for one in seen_in(path)[::2])


def test_a_disk_that_is_full_does_not_disturb_who_is_recorded() -> None:
    reported: list[OSError] = []
    pins, memory = Pins(), bytearray(10 * PAGE)
    with recording(Path("/dev/full"), MIN_LIMIT) as (recorder, ring):
        ring.when_failed = reported.append
        recorder.flush()
        for number in range(2000):
            every_kind(recorder, number, pins, memory)
        assert recorder.messages == 2000
    assert len(reported) == 1


CHILD = """
import os, signal, sys
from pathlib import Path
from tests.server.trace.test_recorder import *
ring = TraceRing(Path(sys.argv[1]))
recorder = Recorder(ring, INFO)
recorder.start()
for number in range(500):
    every_kind(recorder, number, Pins(), bytearray(PAGE))
recorder.flush()
for number in range(500, 5000):
    every_kind(recorder, number, Pins(), bytearray(PAGE))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_flushed_outlives_a_server_that_is_killed(file: Path) -> None:
    result = subprocess.run([sys.executable, "-c", CHILD, str(file)], check=False, timeout=120)
    assert result.returncode == -signal.SIGKILL
    numbers = [one[2][-4:] for one in seen_in(file) if one[0] == "message"]
    assert numbers == [number.to_bytes(4, "little") for number in range(len(numbers))]
    assert len(numbers) >= 500


def test_what_a_recorder_keeps_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            with recording(tmp_path / "trace", MIN_LIMIT) as (recorder, _):
                for number in range(count):
                    recorder.message(IN, message_of(number, 8))
                    recorder.read(number, b"8 bytes.")
                    recorder.interrupt(2, 1)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100_000) < peak(10_000) + 200_000


def test_accesses_are_what_the_types_say(file: Path) -> None:
    with recording(file) as (recorder, _):
        recorder.read(5, bytes(SHORT + 1))
    with TraceReader(file) as reader:
        (events,) = (one for one in reader if isinstance(one, TracedEvents))
    (access,) = events.events
    assert isinstance(access, Access)
    assert (access.data, access.length, access.in_place, access.write) == (None, SHORT + 1, False, False)
