"""Accepting clients, also when this process has nothing left to accept them with; and who they are."""

from __future__ import annotations

import socket
import struct

import trio

from devices.contract import Log

RETRY_SECONDS = 0.1
"""Pause after accept() failed, for example because this process has no fds left."""
_CREDENTIALS = struct.Struct("=iII")  # ucred (unix(7))


async def accept_client(listener: trio.socket.SocketType, log: Log, **place: str) -> socket.socket:
    """The next client. Where accepting fails it is tried again, and the log says so, with ``place``, where it is."""
    while True:
        try:
            client, _ = await listener.accept()
        except OSError as error:
            log.warning("accept_failed", **place, reason=error.strerror or str(error))
            await trio.sleep(RETRY_SECONDS)
        else:
            return socket.socket(fileno=client.detach())


async def accept_stream(listener: trio.socket.SocketType, log: Log, **place: str) -> trio.SocketStream:
    """As :func:`accept_client`, as a stream."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(await accept_client(listener, log, **place)))


def peer_pid(client: socket.socket) -> int:
    """The process that has connected, 0 where it is in another PID namespace (SO_PEERCRED, unix(7))."""
    pid: int = _CREDENTIALS.unpack(
        client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )[0]
    return pid
