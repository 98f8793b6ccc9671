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
"""Bytes that are kept in a temporary file at a time, for what refers to them."""


class PipeReader(TraceReader):
    """Reads what comes as it comes, once. Contents of which too much came since are missing."""

    def __init__(self, path: Path, output: TextIO, *, contents: bool) -> None:
        """``-`` is standard input. The rest is as for :func:`server.trace.show.follow.open_followed`."""
        self._source = _open(path)
        self._output = output
        self._contents = contents
        self._kept: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the TraceFile closes it
        self._kept_from = self._end = 0
        super().__init__(path, [TraceFile(Path("standard input") if str(path) == "-" else path, self._kept)])

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
                self._keep(piece)
            self._end += len(piece)
            yield piece

    def _keep(self, piece: bytes) -> None:
        fd = self._kept.fileno()
        if self._end - self._kept_from > MAX_KEPT:
            os.ftruncate(fd, 0)
            self._kept_from = self._end
        at = self._end
        while piece:
            done = os.pwrite(fd, piece, at)
            piece, at = piece[done:], at + done

    def _all_contents(self) -> Iterator[tuple[bytes, int]]:
        return iter(())  # they are where the recorder says, which nobody has moved


def _open(path: Path) -> BinaryIO:
    if str(path) == "-":
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    return path.open("rb", buffering=0)
