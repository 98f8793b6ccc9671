"""Whoever follows a recording keeps to its ring, whenever that turns, and until it breaks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.trace import trace_files
from server.trace.ring import numbered
from server.trace.trace_files import TraceFile
from tests.server.trace.show.following import Read, Writer, follow
from tests.server.trace.test_recorder import INFO

pytestmark = pytest.mark.usefixtures("no_fd_leaks")


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's file system has none."""

    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    without = SimpleNamespace(flock=flock, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr(trace_files, "fcntl", without)


def once(action: Callable[[], None]) -> Callable[[], None]:
    """Does it the first time only."""
    left = [action]
    return lambda: left.pop()() if left else None


def ending(writer: Writer) -> Generator[None]:
    writer.close()
    yield


def test_a_ring_that_turns_before_it_is_asked_whether_anybody_records_has_not_ended(
    file: Path, writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(file: TraceFile) -> bool:
        turn()
        return bool(is_recorded.__get__(file))

    turn = once(lambda: writer.write(25))
    is_recorded: property = vars(TraceFile)["is_recorded"]
    monkeypatch.setattr(TraceFile, "is_recorded", property(turned))
    writer.write()
    follow(file, ending(writer), read)

    assert writer.ring.files_written > 1
    assert (read.sessions, read.ids) == ([INFO], list(range(26)))


def test_a_ring_that_turns_while_newer_files_are_opened_is_read_once(
    file: Path, writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_file(path: Path) -> bool:
        there = path_is_file(path)
        if path == numbered(file, 1) and writer.written > 1:
            turn()
        return there

    def script() -> Generator[None]:
        writer.write(45)
        assert writer.ring.files_written == 3
        yield
        assert writer.ring.files_written == 4
        writer.close()
        yield

    turn = once(lambda: writer.write(20))
    path_is_file = Path.is_file
    writer.write()
    monkeypatch.setattr(Path, "is_file", is_file)
    follow(file, script(), read)

    assert (read.sessions, read.ids) == ([INFO], list(range(66)))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_ends_where_the_ring_has_turned(file: Path, writer: Writer, read: Read) -> None:
    def script() -> Generator[None]:
        for count in (45, 25, 1):
            writer.write(count)
            yield
            assert read.ids == list(range(writer.written))
        raise KeyboardInterrupt

    writer.write()
    with pytest.raises(KeyboardInterrupt):
        follow(file, script(), read)

    assert writer.ring.files_written > 3
    assert read.sessions == [INFO]


@pytest.mark.parametrize("locks", [True, False])
def test_a_file_that_has_moved_before_the_next_is_there_goes_on(
    request: pytest.FixtureRequest, file: Path, writer: Writer, read: Read, locks: bool
) -> None:
    def script() -> Generator[None]:
        file.rename(numbered(file, 1))
        yield
        numbered(file, 1).rename(file)
        writer.write(25)
        yield
        assert read.ids == list(range(26))
        raise KeyboardInterrupt

    if not locks:
        request.getfixturevalue("no_locks")
    writer.write()
    with pytest.raises(KeyboardInterrupt):
        follow(file, script(), read)


def test_it_ends_where_nothing_more_can_be_written_though_the_recorder_stays(
    file: Path, writer: Writer, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def script() -> Generator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            writer.write()
        assert writer.ring.error is not None
        yield
        pytest.fail("the reader waits")

    writer.write()
    follow(file, script(), read)

    assert read.ids == [0]


def test_it_ends_where_the_ring_cannot_turn_though_the_recorder_stays(
    file: Path, writer: Writer, read: Read
) -> None:
    def script() -> Generator[None]:
        numbered(file, 3).mkdir()
        while writer.ring.error is None:
            writer.write()
        yield
        pytest.fail("the reader waits")

    writer.write()
    follow(file, script(), read)

    assert read.ids == list(range(len(read.ids)))
    assert len(read.ids) > 40
