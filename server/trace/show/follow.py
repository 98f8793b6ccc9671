"""A trace that is read while it is recorded: what is there, and then what is written, until the recording ends.

A recorder locks the file that it writes, so whether it is there can be asked. When its ring turns, what comes next is
in a new file at the same path. Files are looked at again and again.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from protocol.trace import TraceError
from server.trace.output import pause
from server.trace.reader import TraceReader
from server.trace.ring import FILES, numbered
from server.trace.show.piped import PipeReader
from server.trace.trace_files import TraceFile, close_files, first_session, open_files

HEAD: Final = 1024
"""Bytes at the start of a file that tell it from what another recorder puts in its place: it has an id and times."""

Wait = Callable[[], None]


def open_followed(path: Path, output: TextIO, *, contents: bool) -> TraceReader:
    """A reader of ``path``, to iterate over once, that ends when the recording does.

    What it reads is written to ``output``: it raises BrokenPipeError where nobody reads that any more. ``contents``:
    whether it will be asked for :meth:`TraceReader.data`. Raises as TraceReader.
    """
    if str(path) == "-" or not stat.S_ISREG(path.stat().st_mode):
        return PipeReader(path, output, contents=contents)
    return followed(path, lambda: pause(output))


def followed(path: Path, wait: Wait) -> TraceReader:
    """A reader of a regular file, which calls ``wait`` when it has all that is there. Raises as that, and OSError."""
    files = _open_begun(path, wait)
    newest = files[-1]
    # Nobody records to a file that the ring has left behind either, but that has moved before it is unlocked.
    ended = not newest.size or (not newest.is_recorded and newest.is_at(path))
    return TraceReader(path, files) if ended else FollowingReader(path, files, wait)


def _open_begun(path: Path, wait: Wait) -> list[TraceFile]:
    """The files of a recording that goes on in ``path``, which says only when it has begun what came before it."""
    while True:
        files = open_files(path)
        newest = files[-1]
        try:
            there = newest.is_at(path)  # and not moved while those before it were opened
            if there and newest.size:
                return files
            if there:
                wait()
                if not newest.is_recorded and not newest.size:
                    return files
        except BaseException:
            close_files(files)
            raise
        close_files(files)


class FollowingReader(TraceReader):
    """Reads files that are recorded to, and those that take their place; it keeps open what it reads."""

    def __init__(self, path: Path, files: list[TraceFile], wait: Wait) -> None:
        super().__init__(path, files)
        self._newest_path = path
        self._wait = wait

    def _in_order(self) -> Iterator[TraceFile]:
        while True:
            file = self.files[0]
            yield file
            if len(self.files) == 1:
                self._add_newer(file)
            if len(self.files) == 1:
                return
            self.files.pop(0).close()

    def _pieces(self, file: TraceFile) -> Iterator[bytes]:
        at, head, waited, ended = 0, b"", False, False
        while not ended:
            # Asked before the rest is read, which is then all; and not of a file that may have been created just now.
            ended = (waited or file.size > 0) and (self._is_replaced(file) or not file.is_recorded)
            while piece := file.read(at):
                head = head or piece[:HEAD]
                _check(file, head)
                at += len(piece)
                yield piece
            _check(file, head)
            if not ended:
                self._wait()
                waited = True

    def _is_replaced(self, file: TraceFile) -> bool:
        """Whether the ring has turned, which is how ``file`` ends also where the file system has no locks.

        False where it has moved and the next is not there yet.
        """
        return not file.is_at(self._newest_path) and self._newest_path.exists()

    def _add_newer(self, file: TraceFile) -> None:
        """Open what the recording wrote behind ``file``, which has ended; if it goes on, the next has begun."""
        newer: list[TraceFile] = []
        try:
            for number in range(FILES):  # files only ever move to higher numbers, so none is missed
                path = numbered(self._newest_path, number) if number else self._newest_path
                if file.is_at(path):
                    break
                with suppress(FileNotFoundError):
                    if path.is_file():
                        _open_unless_there(path, newer, file)
            else:
                # It is gone: we are late, or another recorder has removed it.
                newer = _of_recording_of(file, newer)
        except BaseException:
            close_files(newer)
            raise
        for one in reversed(newer):
            one.base = self.files[-1].base + self.files[-1].size
            self.files.append(one)

    def _all_contents(self) -> Iterator[tuple[bytes, int]]:
        return iter(())  # they are where the recorder says, which nobody has moved


def _open_unless_there(path: Path, newer: list[TraceFile], file: TraceFile) -> None:
    """Open ``path`` as one more of ``newer``, unless it is one of them, or ``file``."""
    opened = path.open("rb", buffering=0)
    # Not asked before, and not of the path: when the ring turns, a file that is open already takes it.
    link = Path(f"/proc/self/fd/{opened.fileno()}")
    if any(one.is_at(link) for one in (file, *newer)):
        opened.close()
    else:
        newer.append(TraceFile(path, opened))


def _check(file: TraceFile, head: bytes) -> None:
    """Raises TraceError where what was read before this may be of another recording than ``head`` is the start of."""
    if file.read(0, len(head)) != head:
        raise TraceError(
            f"{file.path}: another recording has begun there, and the end of the one before may be missing"
        )


def _of_recording_of(file: TraceFile, others: list[TraceFile]) -> list[TraceFile]:
    """Those of ``others`` that are of the same recording as ``file``; the rest is closed."""
    info = first_session(file)
    mine: list[TraceFile] = []
    for one in others:
        its = first_session(one)
        if info is not None and its is not None and its.recording == info.recording:
            mine.append(one)
        else:
            one.close()
    return mine
