"""A trace is read while it is written: here the writer goes on each time when the reader has all that is there."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import tracemalloc
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from protocol import Command, RegionRead, RegionReadReply, encode_reply, encode_request
from protocol.pcapng import packet
from protocol.trace import SessionInfo, TraceError
from server.trace import pairing, trace_files
from server.trace.pairing import walk
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing
from server.trace.show.follow import FollowingReader, followed
from server.trace.trace_files import TraceFile
from tests.fds import open_fds
from tests.server.trace.show.following import Read, Writer, follow, page
from tests.server.trace.test_recorder import IN, INFO, OUT, message_of

pytestmark = pytest.mark.usefixtures("no_fd_leaks")

CONTINUED = replace(INFO, continued=True)


@pytest.mark.parametrize("at_a_time", [1, 7, 25, 45])
def test_what_is_written_is_read_before_more_is_also_where_the_ring_turns(
    file: Path, writer: Writer, read: Read, at_a_time: int
) -> None:
    def script() -> Generator[None]:
        fds = open_fds()
        for _ in range(6):
            writer.write(at_a_time)
            yield
            assert read.ids == list(range(writer.written))
            assert open_fds() <= fds  # fewer: the collector has closed what an earlier test left
        writer.close()
        yield

    writer.write()
    follow(file, script(), read)

    assert read.sessions == [INFO]
    assert read.ids == list(range(1 + 6 * at_a_time))
    assert read.data == [page(number) for number in read.ids]


@pytest.mark.parametrize("count", [1, 21, 30, 50])
def test_it_begins_with_what_is_there_in_all_files(
    file: Path, writer: Writer, read: Read, count: int
) -> None:
    def script() -> Generator[None]:
        assert read.ids == list(range(count))
        writer.close()
        yield

    writer.write(count)
    follow(file, script(), read)

    assert (read.sessions, read.ids) == ([INFO], list(range(count)))


def test_what_came_before_a_file_that_has_nothing_yet_is_read(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        assert file.stat().st_size == 0
        assert read.ids == []
        writer.write()
        yield
        assert read.ids == list(range(writer.written))
        writer.close()
        yield

    while writer.ring.files_written == 1:
        writer.write(flush=False)
    follow(file, script(), read)

    assert (read.sessions, read.ids) == ([INFO], list(range(writer.written)))


def test_a_ring_that_turns_while_its_files_are_opened_is_opened_again(
    file: Path, writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(path: Path, info: SessionInfo) -> TraceFile | None:
        if writer.written == 30:
            writer.write(25)
        return file_before(path, info)

    def script() -> Generator[None]:
        writer.close()
        yield

    file_before = trace_files._file_before
    monkeypatch.setattr(trace_files, "_file_before", turned)
    writer.write(30)
    follow(file, script(), read)

    assert (read.sessions, read.ids) == ([INFO], list(range(55)))


def test_who_is_too_late_for_a_file_goes_on_with_the_oldest_that_is_there(
    file: Path, writer: Writer, read: Read
) -> None:
    def script() -> Generator[None]:
        writer.write(200)
        yield
        writer.close()
        yield

    writer.write()
    follow(file, script(), read)

    assert read.sessions == [INFO, CONTINUED]
    ends = next(at for at in range(len(read.ids)) if read.ids[at] != at)
    behind = read.ids[ends:]
    assert behind == list(range(behind[0], 201))
    assert read.data == [page(number) for number in read.ids]


def test_the_next_client_is_the_next_session(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        for clients in (1, 2):
            assert len(read.sessions) == clients
            writer.next_client()
            writer.write()
            yield
        writer.close()
        yield

    writer.write()
    follow(file, script(), read)

    assert (read.sessions, read.ids) == ([INFO] * 3, [0, 1, 2])


def test_what_is_written_before_the_recording_ends_is_read(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        writer.write(30)
        writer.close()
        yield

    writer.write()
    follow(file, script(), read)

    assert read.ids == list(range(31))


@pytest.mark.parametrize("size", [1, 5, 64, 1000])
def test_a_block_that_is_there_in_part_is_waited_for(
    tmp_path: Path, file: Path, read: Read, size: int
) -> None:
    with closing(Writer(tmp_path / "whole")) as writer:
        for number in range(3):
            writer.recorder.message(IN, message_of(number, 30))
        writer.recorder.flush()
    data = (tmp_path / "whole").read_bytes()

    def script(fd: int) -> Generator[None]:
        for at in range(0, len(data), size):
            os.write(fd, data[at : at + size])
            yield
        fcntl.flock(fd, fcntl.LOCK_UN)
        yield

    with file.open("wb") as target:
        fcntl.flock(target, fcntl.LOCK_EX)
        reader = follow(file, script(target.fileno()), read)

    assert (read.sessions, read.ids, reader.cut_short) == ([INFO], [0, 1, 2], 0)


def test_what_a_recorder_that_was_killed_left_is_counted(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        with file.open("ab") as end:
            end.write(message_block[:100])
        writer.close()
        yield

    message_block = packet(0, 1, message_of(7, 200), IN)
    writer.write()
    reader = follow(file, script(), read)

    assert (read.ids, reader.cut_short) == ([0], 100)


def nothing_more() -> Generator[None]:
    pytest.fail("the reader waits")
    yield


def test_a_recording_that_has_ended_is_read_as_ever(file: Path, writer: Writer, read: Read) -> None:
    writer.write(30)
    writer.close()

    reader = follow(file, nothing_more(), read)

    assert read.ids == list(range(30))
    assert not isinstance(reader, FollowingReader)  # contents that somebody has moved are found as well


def test_a_recorder_that_is_killed_at_once_leaves_nothing(file: Path, read: Read) -> None:
    def script() -> Generator[None]:
        fcntl.flock(recorder, fcntl.LOCK_UN)
        yield

    with file.open("wb") as recorder:
        fcntl.flock(recorder, fcntl.LOCK_EX)
        with closing(script()) as once, followed(file, partial(next, once)) as reader:
            read.all_of(reader)
            assert reader.empty

    assert (read.sessions, read.ids) == ([], [])


def test_a_file_is_not_locked_that_its_recorder_may_be_about_to_lock(
    file: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that finds its new file locked stops recording."""
    done: list[str] = []

    def is_recorded(_file: TraceFile) -> bool:
        done.append("asked for the lock")
        return False

    def wait() -> None:
        done.append("waited")

    monkeypatch.setattr(TraceFile, "is_recorded", property(is_recorded))
    file.touch()
    with followed(file, wait) as reader:
        read.all_of(reader)
    assert done == ["waited", "asked for the lock"]

    done.clear()
    with FollowingReader(file, [TraceFile(file, file.open("rb", buffering=0))], wait) as reader:
        read.all_of(reader)
    assert done == ["waited", "asked for the lock"]


def test_who_has_followed_a_recording_is_not_in_the_way_of_the_next(
    file: Path, writer: Writer, read: Read
) -> None:
    def script() -> Generator[None]:
        writer.close()
        yield

    writer.write()
    with followed(file, partial(next, script())) as reader:
        read.all_of(reader)
        TraceRing(file).close()


def test_without_locks_it_goes_on_until_it_is_interrupted(
    file: Path, writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def script() -> Generator[None]:
        writer.write()
        writer.close()
        yield
        yield
        raise KeyboardInterrupt

    without = SimpleNamespace(flock=no_locks, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr(trace_files, "fcntl", without)
    writer.write()
    with pytest.raises(KeyboardInterrupt):
        follow(file, script(), read)

    assert read.ids == [0, 1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_another_recording_in_its_place_is_an_error(
    file: Path, writer: Writer, read: Read, count: int
) -> None:
    def script() -> Generator[None]:
        writer.close()
        with closing(Writer(file)) as other:
            other.write(count)
            yield

    writer.write(2)
    with pytest.raises(
        TraceError, match="trace: another recording has begun there, and the end of the one before"
    ):
        follow(file, script(), read)

    assert read.ids == [0, 1]


def test_another_recording_behind_a_file_that_is_gone_is_not_what_comes_next(
    file: Path, writer: Writer, read: Read
) -> None:
    def script() -> Generator[None]:
        file.unlink()
        writer.write()
        writer.close()
        with closing(Writer(file)) as other:
            other.write(3)
            yield

    writer.write()
    follow(file, script(), read)

    assert read.ids == [0, 1]


def test_damage_is_said_after_what_comes_before_it(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        with file.open("ab") as end:
            end.write(b"\1\0\0\0\2\0\0\0" + bytes(100))
        yield

    writer.write()
    with pytest.raises(TraceError, match=r"trace: damaged at byte .*: a block of 2 bytes"):
        follow(file, script(), read)

    assert read.ids == [0]


def peak_of(path: Path, batches: int) -> int:
    """The most memory that is in use while so many batches of 100 messages, half of them requests, are followed."""

    def script() -> Generator[None]:
        for batch in range(batches):
            recorder.interrupt(2, 0)
            for number in range(batch % 100, batch % 100 + 50):
                recorder.message(IN, encode_request(number, RegionRead(0, 4, 4)))
                if number % 2:
                    reply = RegionReadReply(0, 4, bytes(4))
                    recorder.message(OUT, encode_reply(number, Command.REGION_READ, reply))
            recorder.flush()
            yield
        ring.close()
        yield

    ring = TraceRing(path)
    recorder = Recorder(ring, INFO)
    recorder.start()
    recorder.flush()
    gc.collect()
    tracemalloc.start()
    try:
        with followed(path, partial(next, script())) as reader:
            for _ in walk(reader):
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_for_following_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MAX_WAITING", 100)
    monkeypatch.setattr(TraceFile.read, "__defaults__", (1 << 12,))
    _, short, long = (peak_of(tmp_path / f"{at}", batches) for at, batches in enumerate((10, 10, 150)))
    assert long - short < 100_000  # 10,000 messages more; one that is kept takes more than 500
