"""Where a server's log goes, and what the last line of it is when the server does not start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.hotplug.errors import HotplugError, one_line

_LAST_WORDS = 1 << 16
_PREFIX = "vgpud: "


class ServerOutput:
    """The end that a server writes to, ``write_fd``, and the one that its words are read from. Made by
    :func:`server_output`."""

    def __init__(self, read_fd: int, write_fd: int, start: int | None) -> None:
        """``start`` is where in a file the server begins to write; None for a pipe."""
        self.write_fd = write_fd
        self._read_fd = read_fd
        self._start = start

    def last_line(self) -> str:
        """The last line that the server has written, empty where there is none."""
        said = b""
        with suppress(BlockingIOError):
            said = self._read()
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        return one_line(lines[-1].removeprefix(_PREFIX)) if lines else ""

    def _read(self) -> bytes:
        if self._start is None:
            return os.read(self._read_fd, _LAST_WORDS)
        begin = max(self._start, os.fstat(self._read_fd).st_size - _LAST_WORDS)
        return os.pread(self._read_fd, _LAST_WORDS, begin)


@contextmanager
def server_output(log: Path | None) -> Iterator[ServerOutput]:
    """Append to the file ``log``, or listen as long as the block lasts; then nobody does, and the log is lost.

    Raises HotplugError where the file cannot be written.
    """
    if log is None:
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        start = None
    else:
        try:
            read_fd = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise HotplugError(f"--log {log}: {error.strerror}") from None
        write_fd = read_fd
        start = os.fstat(read_fd).st_size
    try:
        yield ServerOutput(read_fd, write_fd, start)
    finally:
        os.close(read_fd)
        if write_fd != read_fd:
            os.close(write_fd)
