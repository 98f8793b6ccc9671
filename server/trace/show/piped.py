"""A trace that is read from a pipe while it is written there; the recording ends with the pipe."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, TextIO

from server.trace.output import pause
from server.trace.reader import TraceReader
from server.trace.trace_files import PIECE, TraceFile

MAX_KEPT: Final = 1 << 30
"""Bytes that are kept in temporary files, for what refers to them. The last half of so many is always there."""


class PipeReader(TraceReader):
    """Reads what comes as it comes, once. Contents of which too much came since are missing."""

    def __init__(self, path: Path, output: TextIO, *, contents: bool) -> None:
        """``-`` is standard input. The rest is as for :func:`server.trace.show.follow.open_followed`."""
        self._source = _open(path)
        self._output = output
        self._contents = contents
        self._end = 0
        try:
            self._kept = _Kept(Path("standard input") if str(path) == "-" else path)
        except BaseException:
            self._source.close()
            raise
        super().__init__(path, [self._kept])

    def close(self) -> None:
        """Close the files."""
        super().close()
        self._source.close()

    @property
    def empty(self) -> bool:
        """Whether nothing has come."""
        return self._end == 0

    def _pieces(self, _file: TraceFile) -> Iterator[bytes]:
        while True:
            pause(self._output, self._source.fileno())
            piece = self._source.read(PIECE)
            if not piece:
                return
            if self._contents:
                self._kept.keep(piece)
            self._end += len(piece)
            yield piece

    def _all_contents(self) -> Iterator[tuple[bytes, int]]:
        return iter(())  # they are where the recorder says, which nobody has moved


class _Half:
    """A temporary file with what came from ``start`` on."""

    def __init__(self) -> None:
        self.start = self.end = 0
        self.file: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the _Kept closes it

    def begin(self, start: int) -> None:
        """Forget everything."""
        os.ftruncate(self.file.fileno(), 0)
        self.start = self.end = start

    def add(self, piece: bytes) -> None:
        while piece:
            done = os.pwrite(self.file.fileno(), piece, self.end - self.start)
            piece = piece[done:]
            self.end += done

    def read(self, at: int, count: int) -> bytes:
        """What it has from ``at`` on, if that is in it."""
        inside = self.start <= at < self.end
        return os.pread(self.file.fileno(), count, at - self.start) if inside else b""


class _Kept(TraceFile):
    """The last of what came: what is added goes to one half, and when that is full, in the place of the other."""

    def __init__(self, path: Path) -> None:
        self._older, self._newer = _Half(), _Half()
        super().__init__(path, self._newer.file)

    @property
    def size(self) -> int:
        return self._newer.end

    def keep(self, piece: bytes) -> None:
        """Add what comes next."""
        end = self._newer.end
        if end + len(piece) - self._newer.start > MAX_KEPT // 2:
            self._older, self._newer = self._newer, self._older
            self._newer.begin(end)
        self._newer.add(piece)

    def read(self, at: int, count: int = PIECE) -> bytes:
        found = self._older.read(at, count)
        return found + self._newer.read(at + len(found), count - len(found))

    def close(self) -> None:
        self._older.file.close()
        self._newer.file.close()


def _open(path: Path) -> BinaryIO:
    if str(path) == "-":
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    return path.open("rb", buffering=0)
