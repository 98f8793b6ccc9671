"""Listening sockets: at a path, whose stale file is replaced, or as an fd that somebody else opened."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BACKLOG = 64
SUN_PATH_MAX = 107
"""Longest path of a UNIX socket in bytes (unix(7): 108 with the final NUL)."""


class SocketPathError(Exception):
    """The socket cannot be had; the text is one line that names the fix."""


@contextmanager
def listen_at(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``; the file goes away with the block, unless someone else has replaced it meanwhile."""
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise SocketPathError(
            f"{path}: longer than the {SUN_PATH_MAX} bytes that a UNIX socket allows; choose a shorter one"
        )
    _remove_stale(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            reason = error.strerror if path.parent.is_dir() else f"create the folder {path.parent} first"
            raise SocketPathError(f"{path}: cannot listen there: {reason}") from error
        created = path.lstat()
        try:
            listener.listen(BACKLOG)
            yield listener
        finally:
            _remove_own(path, created)


def _remove_own(path: Path, created: os.stat_result) -> None:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return
    if (now.st_dev, now.st_ino) == (created.st_dev, created.st_ino):
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketPathError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise SocketPathError(f"{path}: exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(os.fspath(path))
    if code == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
    elif code != errno.ENOENT:
        raise SocketPathError(f"{path}: another server is listening there; stop it or choose another path")


@contextmanager
def adopt_listener(fd: int) -> Iterator[socket.socket]:
    """Use the listening UNIX stream socket that was passed as ``fd``."""
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise SocketPathError(f"--fd {fd}: not a socket ({error.strerror})") from error
    except (ValueError, OverflowError) as error:
        raise SocketPathError(f"--fd {fd}: not the number of a file descriptor") from error
    with listener:
        if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
            raise SocketPathError(f"--fd {fd}: not a UNIX stream socket")
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise SocketPathError(f"--fd {fd}: not listening; call listen() on it before it is passed")
        os.set_inheritable(fd, False)
        yield listener
