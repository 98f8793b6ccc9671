"""Accepts clients and gives each a task; one of them at a time has the device."""

from __future__ import annotations

import itertools
import socket

import structlog
import trio

from server.accepting import accept_client
from server.engine import Engine
from server.log import RepeatLimit
from server.native.serve import ConnectionOptions, serve_connection

MAX_CONNECTIONS = 64
"""Connections at a time, attached or still silent; more wait in the kernel's backlog."""


async def serve_clients(listener: socket.socket, engine: Engine, options: ConnectionOptions) -> None:
    """Serve client after client on ``listener`` until cancelled."""
    listener.setblocking(False)
    accepting = trio.socket.from_stdlib_socket(listener)
    limit = trio.Semaphore(MAX_CONNECTIONS)
    log = RepeatLimit(structlog.get_logger())
    async with trio.open_nursery() as nursery:
        for number in itertools.count(1):
            await limit.acquire()
            client = await accept_client(accepting, log)
            nursery.start_soon(_serve, client, engine, options, number, limit)


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
