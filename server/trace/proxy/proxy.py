"""A proxy between any vfio-user client and any vfio-user server, which records what they say.

Clients are served one after another, so that their sessions follow each other in the trace; the next one waits in the
listener's queue.
"""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

import structlog
import trio

from protocol import ProtocolError
from protocol.trace import SessionInfo
from server.accepting import accept_client, peer_pid
from server.first_error import first_error
from server.log import RepeatLimit
from server.native.message_socket import MessageSocket
from server.trace.proxy.full_relay import MAX_FDS, FullRelay
from server.trace.proxy.tap import MAX_PASSED_FDS, SessionRecorder
from server.trace.proxy.transparent_relay import TransparentRelay
from server.trace.recording import keep_flushing
from server.trace.ring import TraceRing

RECORDER = "vgpud trace record"
_Log = structlog.typing.FilteringBoundLogger


async def serve_proxy(
    listener: socket.socket, server: Path, ring: TraceRing, *, full: bool = False, once: bool = False
) -> None:
    """Connect each client of ``listener`` to the server that listens at ``server``, and record to ``ring``.

    Goes on until cancelled; with ``once``, until the first client has left that was attached and said something.
    ``full``: make every access to memory a message, see :mod:`server.trace.proxy.full_visibility`.
    """
    listener.setblocking(False)
    accepting = trio.socket.from_stdlib_socket(listener)
    log = structlog.get_logger()
    quiet = RepeatLimit(log)
    for number in itertools.count(1):
        with await accept_client(accepting, quiet) as client:
            spoke = await _serve_client(
                client, server, ring, log.bind(client=number, pid=peer_pid(client)), full
            )
        if once and spoke:
            return


async def _serve_client(client: socket.socket, path: Path, ring: TraceRing, log: _Log, full: bool) -> bool:
    """Serve one client to its end, however it ends; whether it said something. Raises nothing but cancellation."""
    try:
        connected = await trio.open_unix_socket(os.fspath(path))
    except OSError as error:
        log.warning("client_dropped", reason=f"no server answers at {path}: {error.strerror or error}")
        return False
    server = socket.socket(fileno=connected.socket.detach())
    recorder = SessionRecorder(ring, SessionInfo(RECORDER, memory=full, interrupts=full))
    log.info("client_attached", server=str(path))
    ended_by = "proxy"
    with server:
        try:
            ended_by = await _relay(client, server, recorder, log, full)
        except* ProtocolError as errors:
            log.warning("client_dropped", reason=first_error(errors).reason)
        except* OSError as errors:
            log.warning("client_dropped", reason=first_error(errors).strerror)
        except* Exception as errors:
            log.warning("proxy_fault", exc_info=first_error(errors))
        finally:
            recorder.flush()
            log.info("client_left", ended_by=ended_by, messages=recorder.messages)
    return recorder.messages > 0


async def _relay(
    client: socket.socket, server: socket.socket, recorder: SessionRecorder, log: _Log, full: bool
) -> str:
    """Pass on what the two say until one of them has ended, and say which."""
    max_fds = MAX_FDS if full else MAX_PASSED_FDS
    here, there = MessageSocket(client, max_fds), MessageSocket(server, max_fds)
    try:
        relay = (FullRelay if full else TransparentRelay)(here, there, recorder, RepeatLimit(log))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_flushing, recorder)
            ended_by = await relay.run()
            nursery.cancel_scope.cancel()
    finally:
        here.close()
        there.close()
    return ended_by
