"""The files of a trace, from the oldest to the newest, as what is read from."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from protocol.pcapng import Packet, Parser, PcapngError
from protocol.trace import RecordKind, SessionInfo, TraceError, unpack
from server.trace.ring import FILES, PCAPNG_MAGIC, numbered

MAX_PIPED: Final = 4 << 30
"""Bytes that are taken from a pipe, into a temporary file."""
PIECE: Final = 256 << 10
"""Bytes that are read at a time."""
COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ": "unxz",
    b"BZh": "bunzip2",
}
"""How compressed files begin, and what opens them."""


class TraceFile:
    """One file. ``base`` is where it begins, if all files of the trace are thought of as one."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.base = 0
        self._file = file

    @property
    def size(self) -> int:
        """Bytes that are in it now."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, at: int, count: int = PIECE) -> bytes:
        """Bytes from ``at`` on; less than ``count`` only at the end. Raises OSError, OverflowError."""
        return os.pread(self._file.fileno(), count, at)

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` is this file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        except FileNotFoundError:
            return False

    @property
    def is_recorded(self) -> bool:
        """Whether somebody records to it; also True where the file system has no locks, so that nobody can tell.

        Not to be asked of a file that was created just now: its recorder could not lock it at the same time.
        """
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Nothing more is read."""
        self._file.close()


def open_files(path: Path) -> list[TraceFile]:
    """Open ``path``, and what the same recording wrote before it, as far back as its first session began.

    ``-`` is standard input. Raises OSError, and TraceError for what is certainly no trace.
    """
    newest = _open(path)
    files = [newest]
    try:
        _refuse_compressed(newest)
        info = first_session(newest)
        while info is not None and info.continued and len(files) < FILES:
            older = _file_before(files[-1].path, info)
            if older is None:
                break
            files.append(older)
            info = first_session(older)
    except BaseException:
        close_files(files)
        raise
    files.reverse()
    base = 0
    for file in files:
        file.base = base
        base += file.size
    return files


def close_files(files: list[TraceFile]) -> None:
    """Close all."""
    for file in files:
        file.close()


def _open(path: Path) -> TraceFile:
    if str(path) == "-":
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:
            return _seekable(Path("standard input"), stdin)
    file = path.open("rb", buffering=0)
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return TraceFile(path, file)
    with file:
        return _seekable(path, file)


def _seekable(path: Path, file: BinaryIO) -> TraceFile:
    """A temporary file with everything that a pipe has, as a trace is read in more than one place."""
    copy = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the TraceFile closes it
    try:
        while piece := file.read(PIECE):
            copy.write(piece)
            if copy.tell() > MAX_PIPED:
                raise TraceError(
                    f"{path}: more than {MAX_PIPED >> 30} GiB from a pipe: save it as a file first"
                )
            if copy.tell() >= len(PCAPNG_MAGIC) and os.pread(copy.fileno(), 4, 0) != PCAPNG_MAGIC:
                break  # of what is no trace, no more is needed to say so
    except BaseException:
        copy.close()
        raise
    return TraceFile(path, copy)


def _refuse_compressed(file: TraceFile) -> None:
    start = file.read(0, 8)
    for magic, command in COMPRESSED.items():
        if start.startswith(magic):
            raise TraceError(f"{file.path}: is compressed: give what {command} makes of it")


def _file_before(path: Path, info: SessionInfo) -> TraceFile | None:
    """The file that the ring had in use before ``path``, if it is there: what another recording left does not count."""
    candidates = [numbered(path, 1)]
    number = path.suffix.removeprefix(".")
    if number.isdecimal() and len(number) == 1:
        candidates.append(path.with_suffix(f".{int(number) + 1}"))
    for candidate in candidates:
        with suppress(OSError):
            if not candidate.is_file():
                continue
            file = TraceFile(candidate, candidate.open("rb", buffering=0))
            before = first_session(file)
            # A file of the ring has begun with the session of its number, and may have more behind it.
            if before is not None and (before.recording, before.file + 1) == (info.recording, info.file):
                return file
            file.close()
    return None


def first_session(file: TraceFile) -> SessionInfo | None:
    """Of the recording that a file is a part of."""
    parser = Parser()
    with suppress(PcapngError, TraceError, OSError):
        parser.feed(file.read(0))
        for block in parser.blocks():
            if isinstance(block, Packet):
                kind, payload = unpack(block.data)
                info = SessionInfo.unpack(payload) if kind is RecordKind.SESSION else None
                return info if info is not None and info.recording else None
    return None
