"""The file that is recorded to, and its predecessors: a ring of bounded size.

FILE is what is written now. Where a limit is set, and a fourth of it is full, FILE becomes FILE.1, what was FILE.1
becomes FILE.2, and so on; what was FILE.3 is gone. Each file can be read by itself.

What was in the files before is lost, so that only traces are replaced, and none to which somebody is recording: FILE
is locked (flock) as long as it is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from devices.registry import size

FILES = 4
BUFFER = 256 << 10
"""Bytes that are kept back at most, until there is time to write them."""
MIN_LIMIT = 4 << 20
DEFAULT_LIMIT = "1G"
"""What the command line says where ``--trace-limit`` is not given."""
PCAPNG_MAGIC = b"\x0a\x0d\x0d\x0a"
"""How a trace begins: the type of a section header block."""
PIPE_SECONDS = 1.0
"""How long the reader of a pipe may let the device wait for what was kept back to be taken."""


def parse_limit(text: str) -> int | None:
    """What ``--trace-limit`` says: bytes of all files together, None for no limit. Raises ValueError."""
    if text == "none":
        return None
    try:
        limit = size(text)
    except ValueError as error:
        raise ValueError(f"--trace-limit {text}: write for example 256M, or none") from error
    if limit < MIN_LIMIT:
        raise ValueError(f"--trace-limit {text}: give at least {MIN_LIMIT >> 20}M, or none")
    return limit


class TraceRing:
    """Appends blocks to FILE. Not being able to write ends the recording, closes FILE, and does nothing else."""

    def __init__(self, path: Path, limit: int | None = None, *, begin: bool = True) -> None:
        """Open FILE, and :meth:`begin` unless told otherwise. ``limit``: bytes of all files together.

        What is no regular file (/dev/null, a pipe) has no limit, since it could not be renamed. Raises OSError, also
        where there is something else than a trace in a file, or somebody records to FILE; then nothing is lost.
        """
        self.path = path
        self.recording = os.urandom(8).hex()
        """What tells these files from those of other recordings."""
        self.error: OSError | None = None
        """Why nothing is recorded any more."""
        self.when_failed: Callable[[OSError], None] = _nobody
        self.files_written = 1
        self.bytes_written = 0
        """Bytes that the kernel has taken so far, also of files that are gone."""
        self.limit: int | None = None
        """Bytes of all files together."""
        self.offset = 0
        """Where the next block begins in FILE."""
        self.full = False
        """Whether it is time to :meth:`rotate`."""
        self._buffer = bytearray()
        self._share: int | None = None
        self._fd = _open(path)
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                self.limit = None if limit is None else max(limit, MIN_LIMIT)
                self._share = None if self.limit is None else self.limit // FILES
                for older in self._older:
                    _refuse_others(older)
            if begin:
                self.begin()
        except OSError:
            os.close(self._fd)
            raise

    def begin(self) -> None:
        """Empty FILE, and remove its predecessors. Raises OSError."""
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            _empty(self._fd)
            for older in self._older:
                older.unlink(missing_ok=True)

    def status(self) -> dict[str, Any]:
        """What ``vgpud status`` shows: ``stopped`` has the reason, where nothing is recorded any more."""
        return {
            "file": os.fsencode(self.path.absolute()).decode(errors="backslashreplace"),
            "bytes_written": self.bytes_written,
            "limit": self.limit,
            "stopped": None if self.error is None else self.error.strerror or str(self.error),
        }

    def append(self, block: bytes) -> int:
        """Add a block; returns where it begins in FILE."""
        at = self.offset
        if self.error is None:
            self._buffer += block
            self.offset = end = at + len(block)
            if self._share is not None and end >= self._share:
                self.full = True
            if len(self._buffer) >= BUFFER:
                self.flush()
        return at

    def flush(self) -> None:
        """Hand over to the kernel what was kept back."""
        if self.error is not None or not self._buffer:
            return
        until: float | None = None
        try:
            with memoryview(self._buffer) as rest:
                done = 0
                while done < len(rest):
                    with rest[done:] as piece:
                        try:
                            taken = os.write(self._fd, piece)
                        except BlockingIOError:
                            until = until or time.monotonic() + PIPE_SECONDS
                            self._wait(until)
                            continue
                    done += taken
                    self.bytes_written += taken
        except OSError as error:
            self._fail(error)
        self._buffer.clear()

    @property
    def _older(self) -> list[Path]:
        return [numbered(self.path, number) for number in range(1, FILES)]

    def rotate(self) -> None:
        """Begin a new FILE; the oldest of its predecessors goes."""
        self.flush()
        if self.error is not None:
            return
        try:
            for number in range(FILES - 1, 0, -1):
                older = self.path if number == 1 else numbered(self.path, number - 1)
                with suppress(FileNotFoundError):
                    older.replace(numbered(self.path, number))
            fd = _open(self.path, os.O_EXCL)
        except OSError as error:
            self._fail(error)
            return
        os.close(self._fd)
        self._fd = fd
        self.offset = 0
        self.full = False
        self.files_written += 1

    def close(self) -> None:
        """Write what was kept back, and close FILE, which is closed already where that failed."""
        self.flush()
        if self.error is None:
            os.close(self._fd)

    def _wait(self, until: float) -> None:
        """Wait for the reader of a pipe. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise TimeoutError(
                errno.ETIMEDOUT, "its reader is too slow, or has stopped reading", str(self.path)
            )

    def _fail(self, error: OSError) -> None:
        self.error = error
        self.full = False
        # Who follows the recording, or reads from the pipe, waits as long as FILE is locked, or open.
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1  # the number is another file's soon
        self.when_failed(error)


def numbered(path: Path, number: int) -> Path:
    """What ``path`` is called after so many new files."""
    return path.with_name(f"{path.name}.{number}")


def _open(path: Path, flags: int = 0) -> int:
    """What is to be written; a regular file is locked, and what is in it is left. Raises OSError."""
    regular = not path.exists() or path.is_file()
    # A pipe must not keep this waiting for its reader, neither now nor later.
    access = os.O_RDWR if regular else os.O_WRONLY | os.O_NONBLOCK
    try:
        fd = os.open(path, access | flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(
                errno.ENXIO, "nobody reads from there: start the reader first", str(path)
            ) from error
        raise
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            _lock(fd, path)
            _refuse_others(path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "somebody is recording to it: give another file", str(path)
        ) from error
    except OSError:
        return  # a file system without locks


def _refuse_others(path: Path) -> None:
    """Raises OSError where there is something that may be worth more than a trace."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            start = file.read(len(PCAPNG_MAGIC)) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except FileNotFoundError:
        return
    if start is None or start != PCAPNG_MAGIC[: len(start)]:
        what = "is there and is no trace: give another name, or remove it"
        raise FileExistsError(errno.EEXIST, what, str(path))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # whatever it is


def _empty(fd: int) -> None:
    # Traces hold what was in the guest's memory, so they are for their owner alone, also where the file was there.
    mode = os.fstat(fd).st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        os.fchmod(fd, stat.S_IMODE(mode) & stat.S_IRWXU)
    os.ftruncate(fd, 0)


def _nobody(_error: OSError) -> None:
    """Nobody wants to know."""
