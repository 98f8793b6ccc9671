"""Where a server's log goes, and what the last line of it is when the server does not start."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from server.child_server.errors import ServerStartError
from server.one_line import one_line

_LAST_WORDS = 1 << 16
_PREFIX = "vgpud: "
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
"""open(2) would wait for the reader of a pipe otherwise, and no signal would end that."""


class ServerOutput:
    """The end that a server writes to, ``write_fd``, and the one that its words are read from."""

    def __init__(self, read_fd: int | None, write_fd: int, start: int | None) -> None:
        """``start`` is where in a file the server begins to write; None for a pipe. The fds stay the caller's.

        Without ``read_fd`` nobody knows what the server says.
        """
        self.write_fd = write_fd
        self._read_fd = read_fd
        self._start = start

    def last_line(self) -> str | None:
        """The last line that the server has written, empty where there is none, None where nobody knows."""
        if self._read_fd is None:
            return None
        said = self._read(self._read_fd)
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        return one_line(lines[-1].removeprefix(_PREFIX)) if lines else ""

    def _read(self, fd: int) -> bytes:
        if self._start is not None:
            return os.pread(fd, _LAST_WORDS, max(self._start, os.fstat(fd).st_size - _LAST_WORDS))
        with suppress(BlockingIOError):
            return os.read(fd, _LAST_WORDS)
        return b""


@contextmanager
def unread_output() -> Iterator[ServerOutput]:
    """Listen as long as the block lasts; then nobody does, and the log is lost."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield ServerOutput(read_fd, write_fd, None)
    finally:
        os.close(read_fd)
        os.close(write_fd)


@contextmanager
def logged_output(log: Path) -> Iterator[ServerOutput]:
    """Append to the file ``log``. Raises ServerStartError where it cannot be written."""
    try:
        write_fd = os.open(log, _APPEND, 0o666)
    except OSError as error:
        raise ServerStartError(f"--log {log}: {_why_not_opened(log, error)}") from error
    with ExitStack() as stack:
        stack.callback(os.close, write_fd)
        os.set_blocking(write_fd, True)  # for the server: a line is not lost because its reader is slow
        read_fd = _read_end(write_fd)
        if read_fd is not None:
            stack.callback(os.close, read_fd)
        yield ServerOutput(read_fd, write_fd, os.fstat(write_fd).st_size)


def _why_not_opened(log: Path, error: OSError) -> str:
    if error.errno == errno.ENXIO and log.is_fifo():
        return "a pipe that nobody reads; start its reader first, or name a file"
    return error.strerror or str(error)


def _read_end(write_fd: int) -> int | None:
    """Nothing is read from a pipe or a terminal, nor where we may only write."""
    if not stat.S_ISREG(os.fstat(write_fd).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{write_fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
