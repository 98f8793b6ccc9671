"""One replay from its beginning to its end: against a server that listens, or a device in this process."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from devices.contract import Device
from server.engine import Engine
from server.first_error import first_error
from server.native.serve import ConnectionOptions, serve_connection
from server.native.transport import Transport
from server.trace.replay.comparison import Comparison
from server.trace.replay.intervals import RecordedSession
from server.trace.replay.memory import ReplayMemory
from server.trace.replay.memory_access import MemoryAccess
from server.trace.replay.message_access import MessageAccess
from server.trace.replay.player import Player, ReplayOptions, WhenDone
from server.trace.replay.report import Report
from server.trace.replay.server_areas import ServerAreas
from server.trace.replay.server_connection import ServerConnection
from server.trace.replay.shared_access import SharedAccess

SHARED = "shared"
MESSAGE = "message"
AUTO = "auto"
_WHY_NOT = {
    errno.ENOENT: "there is no such socket: start the server first",
    errno.ECONNREFUSED: "nobody listens on this socket: start the server first",
    errno.ENOTSOCK: "this is not a socket",
    errno.ENAMETOOLONG: "this is too long for the path of a socket, which has at most 107 bytes",
}


@dataclass(frozen=True, slots=True)
class Hosted:
    """A device that is served in this process."""

    engine: Engine
    transport: Transport


def host(device: Device, transport: Transport) -> Hosted:
    """Host ``device`` for replays; it stays the caller's."""
    return Hosted(Engine(device), transport)


def choose_memory(session: RecordedSession, wish: str) -> str:
    """How the server is to reach guest memory: exactly, where it is known what there was to find."""
    if wish != AUTO:
        return wish
    return MESSAGE if session.info.memory else SHARED


async def replay(
    session: RecordedSession,
    server: Path | Hosted,
    *,
    memory: str = AUTO,
    comparison: Comparison | None = None,
    options: ReplayOptions | None = None,
    when_done: WhenDone | None = None,
    when_looked: WhenDone | None = None,
    report: Report | None = None,
) -> Report:
    """Replay ``session`` to ``server``; ``report`` is what to fill in, for those who need it although this raises.

    Raises TraceError, and OSError where the server cannot be reached.
    """
    report = Report() if report is None else report
    options = options or ReplayOptions()
    guest, areas = ReplayMemory(), ServerAreas(session.reader)
    kind = MessageAccess if choose_memory(session, memory) == MESSAGE else SharedAccess
    try:
        async with _connected(server, options) as connection:
            access: MemoryAccess = kind(session.reader, guest, connection, report)
            comparison = comparison or Comparison()
            player = Player(session, connection, guest, areas, access, comparison, options, report)
            if isinstance(server, Hosted):
                player.settled = wait_all_tasks_blocked
            player.when_done = when_done or player.when_done
            player.when_looked = when_looked or player.when_looked
            await player.play()
    except* Exception as errors:
        raise first_error(errors) from None
    finally:
        guest.close()
        areas.close()
    return report


@asynccontextmanager
async def _connected(server: Path | Hosted, options: ReplayOptions) -> AsyncIterator[ServerConnection]:
    """A connection to ``server``, which ends with the block. Raises OSError, and groups of what is raised in it."""
    async with trio.open_nursery() as nursery:
        connection = ServerConnection(await _connect(server, nursery), nursery, options.timeout)
        try:
            yield connection
        finally:
            connection.close()
            nursery.cancel_scope.cancel()


async def _connect(server: Path | Hosted, nursery: trio.Nursery) -> socket.socket:
    if isinstance(server, Hosted):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        options = ConnectionOptions(transport=server.transport, client_is_here=True)
        nursery.start_soon(serve_connection, theirs, server.engine, options, structlog.get_logger())
        return ours
    try:
        stream = await trio.open_unix_socket(os.fspath(server))
    except OSError as error:
        # A path that is too long has neither an errno nor a name.
        reason = _WHY_NOT.get(error.errno or errno.ENAMETOOLONG, error.strerror)
        raise OSError(error.errno or errno.ENAMETOOLONG, reason, os.fspath(server)) from error
    return socket.socket(fileno=stream.socket.detach())
