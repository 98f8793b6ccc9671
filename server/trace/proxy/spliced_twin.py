"""A proxy's place in a twin socket: the server gives away one end of it, and the client gets one of the proxy's."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress

from protocol import Command, Header, ProtocolError, Version
from protocol.wire import Buffer


class SplicedTwin:
    """Two sockets in place of one. Whoever has this closes it."""

    def __init__(self, server: socket.socket, fds: Sequence[int], index: int) -> None:
        """``server`` is what came as ``fds[index]``, and belongs to this from here on. Raises OSError."""
        self.server = server
        """What the server sends its requests to."""
        try:
            self.client, self._given = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            server.close()
            raise
        self.fds = (*fds[:index], self._given.fileno(), *fds[index + 1 :])
        """The fds for the client."""

    def handed_over(self) -> None:
        """The client has its end, and is to be the only one: or it could not close it."""
        self._given.close()

    def close(self) -> None:
        """Close every end that is still here."""
        self._given.close()
        self.client.close()
        self.server.close()


def splice_twin(header: Header, payload: Buffer, fds: Sequence[int]) -> SplicedTwin | None:
    """Stand in the twin socket that a reply to VERSION brings; None where it brings none. Raises OSError.

    ``fds`` are those of the reply, and stay the caller's.
    """
    index = _twin_index(header, payload)
    if index is None or index >= len(fds):
        return None
    server = _unix_stream(fds[index])
    return None if server is None else SplicedTwin(server, fds, index)


def _twin_index(header: Header, payload: Buffer) -> int | None:
    if header.command != Command.VERSION or not header.is_reply or header.is_error:
        return None
    with suppress(ProtocolError):
        capabilities = Version.unpack(payload).capabilities
        twin = None if capabilities is None else capabilities.twin_socket
        if twin is not None and twin.supported:
            return twin.fd_index
    return None


def _unix_stream(fd: int) -> socket.socket | None:
    """A socket of a copy of ``fd``, where that is a twin socket's end."""
    copy = os.dup(fd)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.close()
        return None
    return sock
