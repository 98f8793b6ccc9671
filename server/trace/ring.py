"""The file that is recorded to, and its predecessors: a ring of bounded size.

FILE is what is written now. Where a limit is set, and a fourth of it is full, FILE becomes FILE.1, what was FILE.1
becomes FILE.2, and so on; what was FILE.3 is gone. Each file can be read by itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from devices.registry import size

FILES = 4
BUFFER = 256 << 10
"""Bytes that are kept back at most, until there is time to write them."""
MIN_LIMIT = 4 << 20


def parse_limit(text: str) -> int | None:
    """What ``--trace-limit`` says: bytes of all files together, None for no limit. Raises ValueError."""
    if text == "none":
        return None
    limit = size(text)
    if limit < MIN_LIMIT:
        raise ValueError(f"--trace-limit {text}: give at least {MIN_LIMIT >> 20}M, or none")
    return limit


class TraceRing:
    """Appends blocks to FILE. Not being able to write ends the recording, and nothing else."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        """Begin FILE anew, and remove its predecessors. ``limit``: bytes of all files together. Raises OSError.

        What is no regular file (/dev/null, a pipe) has no limit, since it could not be renamed.
        """
        self.path = path
        self.error: OSError | None = None
        """Why nothing is recorded any more."""
        self.when_failed: Callable[[OSError], None] = _nobody
        self.files_written = 1
        self.bytes_written = 0
        """Bytes that the kernel has taken so far, also of files that are gone."""
        self.limit: int | None = None
        """Bytes of all files together."""
        self._buffer = bytearray()
        self._flushed = 0
        self._fd = _create(path)
        self._share: int | None = None
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                self.limit = None if limit is None else max(limit, MIN_LIMIT)
                self._share = None if self.limit is None else self.limit // FILES
                for number in range(1, FILES):
                    _numbered(path, number).unlink(missing_ok=True)
        except OSError:
            os.close(self._fd)
            raise

    @property
    def full(self) -> bool:
        """Whether it is time to :meth:`rotate`."""
        return self._share is not None and self.offset >= self._share and self.error is None

    @property
    def offset(self) -> int:
        """Where the next block begins in FILE."""
        return self._flushed + len(self._buffer)

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
            if len(self._buffer) >= BUFFER:
                self.flush()
        return at

    def flush(self) -> None:
        """Hand over to the kernel what was kept back."""
        if self.error is not None or not self._buffer:
            return
        try:
            with memoryview(self._buffer) as rest:
                done = 0
                while done < len(rest):
                    taken = os.write(self._fd, rest[done:])
                    done += taken
                    self.bytes_written += taken
        except OSError as error:
            self._fail(error)
        self._flushed += len(self._buffer)
        self._buffer.clear()

    def rotate(self) -> None:
        """Begin a new FILE; the oldest of its predecessors goes."""
        self.flush()
        if self.error is not None:
            return
        try:
            for number in range(FILES - 1, 0, -1):
                older = self.path if number == 1 else _numbered(self.path, number - 1)
                with suppress(FileNotFoundError):
                    older.replace(_numbered(self.path, number))
            fd = _create(self.path)
        except OSError as error:
            self._fail(error)
            return
        os.close(self._fd)
        self._fd = fd
        self._flushed = 0
        self.files_written += 1

    def close(self) -> None:
        """Write what was kept back, and close FILE."""
        self.flush()
        os.close(self._fd)

    def _fail(self, error: OSError) -> None:
        self.error = error
        self.when_failed(error)


def _create(path: Path) -> int:
    # Traces hold what was in the guest's memory, so they are for their owner alone, also where the file was there.
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(fd, stat.S_IMODE(mode) & stat.S_IRWXU)
    except OSError:
        os.close(fd)
        raise
    return fd


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _nobody(_error: OSError) -> None:
    """Nobody wants to know."""
