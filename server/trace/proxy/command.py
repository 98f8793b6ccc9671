"""``vgpud trace record``: from the command line to a running proxy, and its end."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
from contextlib import ExitStack

import structlog
import trio

from server import log as logging
from server.ending import Ending
from server.exit_status import fail
from server.notify import notify_ready
from server.run_async import run_async
from server.socket_path import SUN_PATH_MAX, SocketPathError, listen_at
from server.trace.proxy.proxy import serve_proxy
from server.trace.ring import TraceRing, parse_limit


def run_record(arguments: argparse.Namespace) -> int:
    """Record until a signal says stop; returns the exit status. Raises OSError where the trace cannot be written."""
    logging.configure(arguments.log_format)
    try:
        limit = parse_limit(arguments.trace_limit)
    except ValueError as error:
        return fail(error)
    if arguments.listen.absolute() == arguments.connect.absolute():
        return fail(
            f"{arguments.listen}: give the server's socket to --connect, and another path to --listen"
        )
    if len(os.fsencode(arguments.connect)) > SUN_PATH_MAX:
        why = f"longer than the {SUN_PATH_MAX} bytes that a UNIX socket allows"
        return fail(f"--connect {arguments.connect}: {why}; no server is there")
    try:
        with ExitStack() as stack:
            ending = stack.enter_context(Ending())
            listener = stack.enter_context(listen_at(arguments.listen))
            ring = TraceRing(arguments.file, limit)
            stack.callback(ring.close)
            _permit_many_fds()
            run_async(_main, listener, ring, arguments, ending)
    except SocketPathError as error:
        return fail(error)
    return 0


async def _main(
    listener: socket.socket, ring: TraceRing, arguments: argparse.Namespace, ending: Ending
) -> None:
    log = structlog.get_logger()
    file = str(arguments.file)
    ring.when_failed = lambda error: log.warning("trace_stopped", file=file, reason=error.strerror)
    async with trio.open_nursery() as nursery:
        with ending.signals() as signals:
            nursery.start_soon(_serve, listener, ring, arguments, nursery.cancel_scope)
            log.info(
                "listening",
                socket=str(arguments.listen),
                server=str(arguments.connect),
                trace=file,
                full=arguments.full,
            )
            notify_ready()
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                nursery.cancel_scope.cancel()


async def _serve(
    listener: socket.socket, ring: TraceRing, arguments: argparse.Namespace, end: trio.CancelScope
) -> None:
    await serve_proxy(listener, arguments.connect, ring, full=arguments.full, once=arguments.once)
    end.cancel()


def _permit_many_fds() -> None:
    """An interrupt vector takes two eventfds where they pass through here, and MSI-X has up to 2048 vectors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
