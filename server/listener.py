"""Accepts clients and gives each a task; one of them at a time has the device."""

from __future__ import annotations

import itertools
import socket

import structlog
import trio

from server.engine import Engine
from server.native.serve import ConnectionOptions, serve_connection

MAX_CONNECTIONS = 64
"""Connections at a time, attached or still silent; more wait in the kernel's backlog."""
ACCEPT_RETRY_SECONDS = 0.1
"""Pause after accept() failed, for example because this process has no fds left."""


async def serve_clients(listener: socket.socket, engine: Engine, options: ConnectionOptions) -> None:
    """Serve client after client on ``listener`` until cancelled."""
    listener.setblocking(False)
    accepting = trio.socket.from_stdlib_socket(listener)
    limit = trio.Semaphore(MAX_CONNECTIONS)
    log = structlog.get_logger()
    async with trio.open_nursery() as nursery:
        for number in itertools.count(1):
            await limit.acquire()
            client = await _accept(accepting, log)
            nursery.start_soon(_serve, client, engine, options, number, limit)


async def _accept(
    accepting: trio.socket.SocketType, log: structlog.typing.FilteringBoundLogger
) -> socket.socket:
    while True:
        try:
            client, _ = await accepting.accept()
        except OSError as error:
            log.warning("accept_failed", reason=error.strerror)
            await trio.sleep(ACCEPT_RETRY_SECONDS)
        else:
            return socket.socket(fileno=client.detach())


async def _serve(
    client: socket.socket,
    engine: Engine,
    options: ConnectionOptions,
    number: int,
    limit: trio.Semaphore,
) -> None:
    try:
        await serve_connection(client, engine, options, structlog.get_logger().bind(client=number))
    finally:
        client.close()
        limit.release()
