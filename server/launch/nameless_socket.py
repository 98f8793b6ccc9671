"""UNIX sockets that others reach by a path, and that are no file: nothing is left of them, whoever is killed.

A socket is bound in a folder that only its owner may enter, its file is opened with O_PATH, and file and folder are
removed at once. Who inherits that fd reaches the socket as ``/proc/self/fd/N``, which the kernel follows to the file
that has no name any more. No other user can.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NAME = "socket"


@dataclass(frozen=True, slots=True)
class NamelessSocket:
    """A bound socket, and the fd by which others reach it."""

    socket: socket.socket
    address_fd: int

    @property
    def path(self) -> str:
        """Its address in every process that has inherited :attr:`address_fd`, and in this one."""
        return f"/proc/self/fd/{self.address_fd}"


@contextmanager
def nameless_socket(kind: socket.SocketKind) -> Iterator[NamelessSocket]:
    """Bind a socket that has no file; it is closed behind the block, and so is the way to it.

    Raises OSError where there is no folder for temporary files.
    """
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as bound:
        fd = _bound(bound)
        try:
            yield NamelessSocket(bound, fd)
        finally:
            os.close(fd)


def _bound(sock: socket.socket) -> int:
    with tempfile.TemporaryDirectory(prefix="vgpud-run-") as name:
        folder = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.bind(f"/proc/self/fd/{folder}/{_NAME}")  # however long the folder's own path is
            return os.open(_NAME, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
