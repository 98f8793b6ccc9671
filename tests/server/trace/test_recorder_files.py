"""What a recorder records: in files of a bounded length, from several sessions, and when the server is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.pcapng import Packet, Parser
from protocol.trace import MAX_CONTENT, Access, SessionInfo
from server.trace.reader import TracedEvents, TraceReader
from server.trace.recorder import MAX_EVENTS, SHORT, Recorder
from server.trace.ring import FILES, MIN_LIMIT, TraceRing
from tests.server.trace.test_recorder import (
    IN,
    INFO,
    OUT,
    PAGE,
    Pins,
    every_kind,
    message_of,
    recording,
    seen_in,
)
from tests.server.trace.test_ring import files_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_each_file_of_a_ring_is_self_contained_and_the_session_goes_on_in_the_next(
    file: Path, tmp_path: Path
) -> None:
    pins, memory = Pins(), bytearray(os.urandom(10 * PAGE))
    count = 0
    with recording(file, MIN_LIMIT) as (recorder, ring):
        while ring.files_written < 2 * FILES:
            every_kind(recorder, count, pins, memory)
            count += 1
    numbers: list[object] = []
    for path in files_of(file):
        assert path.stat().st_size < MIN_LIMIT // FILES + 8 * PAGE
        session, *seen = seen_in(Path(shutil.copy(path, tmp_path / "alone")))
        assert session == ("session", SessionInfo("tests", "a device", "native", True, True, continued=True))
        numbers += [int.from_bytes(one[2][-4:], "little") for one in seen if one[0] == "message"]
        looks = [one for one in seen if one[0] == "look"]
        assert max(len(one[2]) for one in looks) == len(memory)
    assert numbers == list(range(count))[-len(numbers) :]
    assert len(files_of(file)) == FILES


def test_the_first_file_of_a_session_does_not_continue_another(file: Path, tmp_path: Path) -> None:
    with recording(file, MIN_LIMIT) as (recorder, ring):
        while ring.files_written < 2:
            recorder.message(IN, message_of(0, 50_000))
    older, newer = files_of(file)
    assert seen_in(older)[0] == ("session", INFO)
    assert seen_in(Path(shutil.copy(newer, tmp_path / "alone")))[0] == (
        "session",
        replace(INFO, continued=True),
    )


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
    result = subprocess.run([sys.executable, "-c", CHILD, str(file)], check=False, timeout=600)
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
