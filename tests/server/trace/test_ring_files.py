"""What a recording does to files that are there already, and to what is no file."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from server.trace.ring import FILES, MIN_LIMIT, PIPE_SECONDS, TraceRing, numbered
from tests.server.trace.test_ring import SHARE, START, block, files_of, fill, mode_of, numbers_in, ring_at

pytestmark = pytest.mark.usefixtures("no_fd_leaks")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def test_what_is_no_trace_is_not_replaced(file: Path) -> None:
    file.write_text("somebody's")
    file.chmod(0o644)
    with pytest.raises(FileExistsError, match="no trace: give another name, or remove it"):
        TraceRing(file)
    assert file.read_text() == "somebody's"
    assert mode_of(file) == 0o644


@pytest.mark.parametrize("number", range(1, FILES))
def test_what_is_no_trace_among_the_predecessors_leaves_all_files_as_they_are(
    file: Path, number: int
) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(8), SHARE)
    numbered(file, number).write_text("somebody's")
    before = {one: one.read_bytes() for one in files_of(file)}
    with pytest.raises(FileExistsError, match=rf"trace\.{number}"):
        TraceRing(file)
    assert {one: one.read_bytes() for one in files_of(file)} == before


@pytest.mark.parametrize("data", [b"", START[:3], START[:11]])
def test_a_trace_that_has_only_just_begun_is_replaced(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    numbered(file, 1).write_bytes(data)
    with ring_at(file) as ring:
        ring.append(START)
    assert file.read_bytes() == START
    assert files_of(file) == [file]


def test_nothing_is_lost_before_the_ring_begins(file: Path) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(8), SHARE)
    before = {one: one.read_bytes() for one in files_of(file)}
    ring = TraceRing(file, MIN_LIMIT, begin=False)
    assert {one: one.read_bytes() for one in files_of(file)} == before
    ring.begin()
    ring.close()
    assert (files_of(file), file.read_bytes()) == ([file], b"")


def test_a_file_that_somebody_records_to_is_refused_until_he_has_ended(file: Path) -> None:
    with ring_at(file, MIN_LIMIT) as ring:
        fill(ring, range(5), SHARE)
        ring.append(START)
        ring.flush()
        before = {one: one.read_bytes() for one in files_of(file)}
        with pytest.raises(BlockingIOError, match="somebody is recording to it: give another file"):
            TraceRing(file)
        assert {one: one.read_bytes() for one in files_of(file)} == before
        fill(ring, range(5), SHARE)
        assert ring.error is None
    with ring_at(file):
        assert files_of(file) == [file]


def test_a_recording_that_has_failed_is_not_in_the_way_of_another(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ring_at(file) as ring:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            ring.append(START)
            ring.flush()
        with ring_at(file) as other:
            other.append(START)
            ring.append(block(1))
            ring.flush()
    assert file.read_bytes() == START


def test_two_recordings_are_told_apart(tmp_path: Path) -> None:
    with ring_at(tmp_path / "a") as a, ring_at(tmp_path / "b") as b:
        assert a.recording != b.recording


def test_a_pipe_that_nobody_reads_is_an_error_at_once(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(OSError, match="start the reader first") as caught:
        TraceRing(file)
    assert caught.value.errno == errno.ENXIO


def test_a_pipe_takes_what_its_reader_reads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.trace.ring.PIPE_SECONDS", 60.0)  # the reader may have to wait for a CPU
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    data = bytearray()

    def read() -> None:
        os.set_blocking(reader, True)
        while piece := os.read(reader, 1 << 20):
            data.extend(piece)

    thread = threading.Thread(target=read)
    with ring_at(file, MIN_LIMIT) as ring:
        thread.start()
        ring.append(START)
        for number in range(20):
            ring.append(block(number, 200_000))
    thread.join()
    os.close(reader)
    assert ring.error is None
    assert bytes(data) == START + b"".join(block(number, 200_000) for number in range(20))


@pytest.mark.parametrize("leaves", [False, True])
def test_a_reader_that_stops_reading_ends_the_recording(
    file: Path, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.trace.ring.PIPE_SECONDS", 0.01)
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    reported: list[OSError] = []
    with ring_at(file) as ring:
        ring.when_failed = reported.append
        if leaves:
            os.close(reader)
        for number in range(20):
            ring.append(block(number, 200_000))
        while not leaves and os.read(reader, 1 << 20):
            pass  # to its end, which is there although the recorder stays
    if not leaves:
        os.close(reader)
    assert [error.errno for error in reported] == [errno.EPIPE if leaves else errno.ETIMEDOUT]


def test_somebody_elses_file_in_the_place_of_the_next_ends_the_recording(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def rename(self: Path, target: Path) -> Path:
        renamed = replace(self, target)
        if self == file:
            file.write_bytes(START + block(7))
        return renamed

    monkeypatch.setattr(Path, "replace", rename)
    reported: list[OSError] = []
    with ring_at(file, MIN_LIMIT) as ring:
        ring.when_failed = reported.append
        fill(ring, range(5), SHARE)
    assert [error.errno for error in reported] == [errno.EEXIST]
    assert numbers_in(file) == [7]
    assert numbers_in(numbered(file, 1)) == [0]


def test_a_reader_that_is_too_slow_ends_the_recording(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(file)
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    clock = [0.0]

    class Poll:
        """A reader that takes another page 0.4 s later."""

        def register(self, *_: int) -> None:
            pass

        def poll(self, _timeout: float) -> list[int]:
            clock[0] += 0.4
            os.read(reader, 4096)
            return [1]

    monkeypatch.setattr("server.trace.ring.select.poll", Poll)
    monkeypatch.setattr("server.trace.ring.time.monotonic", lambda: clock[0])
    with ring_at(file) as ring:
        ring.append(block(1, 400_000))
        assert ring.error is not None
        assert ring.error.errno == errno.ETIMEDOUT
        assert clock[0] <= PIPE_SECONDS + 0.4
    os.close(reader)
