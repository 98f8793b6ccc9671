"""The file that a running instance keeps locked: who has the lock runs, whatever number is written there.

The lock is one of fcntl(2), because of such a lock the kernel tells who has it. It ends with the process, and with the
first fd of the file that the process closes: nothing else in a server may open it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from server.instances.errors import AlreadyRunningError, InstanceError

_FLOCK: Final = "hhqqi"
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MODE = 0o644


def holder(path: Path) -> int | None:
    """The pid of the process that has the file locked, None if there is none. Raises InstanceError."""
    try:
        fd = os.open(path, os.O_RDONLY | _OPEN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InstanceError(f"{path}: {error.strerror}; ask as the user who runs it") from error
    try:
        _check(path, fd)
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> int | None:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Have the file locked while the block lasts, with this process's pid in it.

    Raises AlreadyRunningError where another process has it, InstanceError where it cannot be had.
    """
    with _locked_fd(path) as fd:
        _write_pid(path, fd)
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The same for who serves nothing: what is in the file stays, so that there may be no room for more."""
    with _locked_fd(path):
        yield


@contextmanager
def _locked_fd(path: Path) -> Iterator[int]:
    """The file is there afterwards, too: whoever would remove it could remove that of the next one."""
    fd = _lock(path)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_pid(path: Path, fd: int) -> None:
    try:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except OSError as error:
        raise InstanceError(f"{path}: {error.strerror}") from error


def _lock(path: Path) -> int:
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, _MODE)
        except OSError as error:
            raise InstanceError(f"{path}: {error.strerror}; remove it") from error
        try:
            _check(path, fd)
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, fd):
                return fd
        except OSError as error:
            pid = _holder(fd)
            os.close(fd)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise AlreadyRunningError(
                    f"it is running already, as process {pid}; stop it first"
                ) from error
            raise InstanceError(f"{path}: {error.strerror}") from error
        except InstanceError:
            os.close(fd)
            raise
        os.close(fd)


def _is_at(path: Path, fd: int) -> bool:
    """Whether the file is there still: it may have been removed before it was locked."""
    try:
        there, ours = path.lstat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _check(path: Path, fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise InstanceError(f"{path}: not a file; remove it")
