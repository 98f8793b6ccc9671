"""``vgpud serve``: from the command line to a running server, and its end."""

from __future__ import annotations

import argparse
import json
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import structlog
import trio

from devices.contract import Device
from devices.models import MODELS
from devices.registry import OptionError, create_device, full_description
from protocol.trace import SessionInfo
from server import log as logging
from server.control import serve_control
from server.dma.domains.registry import DOMAINS, DomainOptions, open_domain
from server.dma.errors import DmaDomainUnavailable
from server.dma.limits import pin_limits
from server.durations import WorkTimings
from server.ending import Ending
from server.engine import Engine
from server.exit_status import fail
from server.listener import serve_clients
from server.metrics.listen import MetricsUnavailable
from server.metrics.serving import MetricsServer, metrics_server
from server.native.serve import ConnectionOptions
from server.native.transport import TransportUnavailable
from server.notify import notify_ready
from server.run_async import run_async
from server.socket_path import SocketPathError, adopt_listener, listen_at
from server.trace.recording import Recording
from server.trace.ring import DEFAULT_LIMIT, TraceRing, parse_limit
from server.transports import choose_transport

Companion = Callable[[Engine, trio.CancelScope], Awaitable[None]]
"""Runs while the device is served; cancelling the scope ends the server."""


def run_serve(arguments: argparse.Namespace, companion: Companion | None = None) -> int:
    """Serve until a signal says stop; returns the exit status."""
    if arguments.print_capabilities:
        return _print_capabilities(arguments.device)
    if (mistake := _mistake(arguments)) is not None:
        return fail(mistake)
    logging.configure(arguments.log_format, arguments.log_level)
    try:
        device = create_device(MODELS, arguments.device)
        limits = pin_limits(
            arguments.max_pinned,
            arguments.dma_retain,
            locks_memory=DOMAINS[arguments.dma_domain].domain.locks_memory,
        )
        transport = choose_transport(arguments.transport, device)
        trace_limit = None if arguments.trace is None else parse_limit(arguments.trace_limit)
    except (OptionError, ValueError, TransportUnavailable) as error:
        return fail(error)
    domain = DomainOptions(arguments.vfio_group, arguments.vfio_container, arguments.dma_bits)
    try:
        with ExitStack() as stack:
            ending = stack.enter_context(Ending())
            stack.callback(device.close)
            make_domain = open_domain(arguments.dma_domain, domain, stack)
            listener = stack.enter_context(_listener(arguments))
            recording = _recording(arguments, trace_limit, transport.transport.name, stack)
            options = ConnectionOptions(limits, make_domain, transport.transport, recording)
            control = None if arguments.control is None else stack.enter_context(listen_at(arguments.control))
            engine = _EngineForOne(device) if arguments.once else Engine(device)
            engine.trace = None if recording is None else recording.ring
            engine.timings = None if control is None else WorkTimings()
            metrics = stack.enter_context(metrics_server(arguments.metrics, engine, options))
            _begin(recording)
            run_async(
                _main,
                listener,
                control,
                metrics,
                engine,
                options,
                transport.reason,
                arguments,
                companion,
                ending,
            )
    except (SocketPathError, DmaDomainUnavailable, TraceUnavailable, MetricsUnavailable) as error:
        return fail(error)
    return 0


def _mistake(arguments: argparse.Namespace) -> str | None:
    if arguments.socket_path is None and arguments.fd is None:
        return "serve needs --socket-path PATH or --fd N"
    if arguments.trace is None and arguments.trace_limit != DEFAULT_LIMIT:
        return "--trace-limit bounds what --trace records: give --trace FILE as well"
    return None


def _recording(
    arguments: argparse.Namespace, limit: int | None, transport: str, stack: ExitStack
) -> Recording | None:
    """Raises TraceUnavailable."""
    if arguments.trace is None:
        return None
    try:
        ring = TraceRing(arguments.trace, limit, begin=False)
    except OSError as error:
        raise _unavailable(arguments.trace, error) from error
    stack.callback(ring.close)
    log = structlog.get_logger()
    ring.when_failed = lambda error: log.warning(
        "trace_stopped", file=str(arguments.trace), reason=error.strerror
    )
    device = full_description(MODELS, arguments.device)
    return Recording(ring, SessionInfo("vgpud serve", device, transport, memory=True, interrupts=True))


def _begin(recording: Recording | None) -> None:
    """Lose what was recorded before, now that all that could fail has not. Raises TraceUnavailable."""
    if recording is None:
        return
    try:
        recording.ring.begin()
    except OSError as error:
        raise _unavailable(recording.ring.path, error) from error


class _EngineForOne(Engine):
    """Tells when a client has left that was attached."""

    def __init__(self, device: Device) -> None:
        super().__init__(device)
        self.client_left = trio.Event()

    def detach(self) -> None:
        super().detach()
        self.client_left.set()


class TraceUnavailable(Exception):  # noqa: N818 - what the user reads
    """The trace cannot be written; the text is one line that names the fix."""


def _unavailable(path: Path, error: OSError) -> TraceUnavailable:
    return TraceUnavailable(f"--trace {error.filename or path}: {error.strerror}")


def _listener(arguments: argparse.Namespace) -> AbstractContextManager[socket.socket]:
    if arguments.fd is not None:
        return adopt_listener(arguments.fd)
    return listen_at(arguments.socket_path)


async def _main(
    listener: socket.socket,
    control: socket.socket | None,
    metrics: MetricsServer | None,
    engine: Engine,
    options: ConnectionOptions,
    why_transport: str,
    arguments: argparse.Namespace,
    companion: Companion | None,
    ending: Ending,
) -> None:
    log = structlog.get_logger()
    async with trio.open_nursery() as nursery:
        with ending.signals() as signals:
            if control is not None:
                nursery.start_soon(serve_control, control, engine)
            if metrics is not None:
                nursery.start_soon(metrics.serve)
            nursery.start_soon(serve_clients, listener, engine, options)
            log.info(
                "listening",
                socket=None if arguments.socket_path is None else str(arguments.socket_path),
                device=engine.device.name,
                transport=options.transport.name,
                transport_reason=why_transport,
                dma_domain=arguments.dma_domain,
                max_pinned=options.limits.max_pinned,
                dma_retain=options.limits.retain,
                trace=None if arguments.trace is None else str(arguments.trace),
                metrics=None if metrics is None else metrics.names,
            )
            notify_ready()
            if companion is not None:
                nursery.start_soon(companion, engine, nursery.cancel_scope)
            if isinstance(engine, _EngineForOne):
                nursery.start_soon(_cancel_after, engine.client_left, nursery.cancel_scope)
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                nursery.cancel_scope.cancel()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _print_capabilities(device: str) -> int:
    name = device.partition(",")[0]
    model = next((model for model in MODELS if model.name == name), None)
    if model is None:
        return fail(f"unknown device {name!r}; 'vgpud devices' lists them")
    print(json.dumps({"type": model.kind, "features": list(model.features)}))  # noqa: T201 - what it is for
    return 0
