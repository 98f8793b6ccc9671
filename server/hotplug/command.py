"""``vgpud attach`` and ``vgpud detach``: from the arguments to the exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict

import trio

from server.exit_status import fail
from server.hotplug.attach import Attachment, Wish, attach
from server.hotplug.detach import detach
from server.hotplug.errors import HotplugError
from server.hotplug.qmp import connected
from server.hotplug.server_process import ServerOptions
from server.run_async import run_async
from server.stop_signals import stop_signals

Work = Callable[[], Awaitable[str]]
"""Does what was asked for, and returns what to print."""


def run_attach(arguments: argparse.Namespace) -> int:
    """Plug in; returns the exit status."""
    server = ServerOptions(
        arguments.device,
        arguments.transport,
        arguments.control,
        arguments.trace,
        arguments.log,
        arguments.metrics,
    )
    if arguments.socket_path is not None and server != ServerOptions():
        return fail("--socket-path names a server that runs already: give its options to vgpud serve")
    wish = Wish(arguments.id, arguments.bus, arguments.socket_path, server)

    async def work() -> str:
        async with connected(arguments.qmp) as qmp:
            done = await attach(qmp, wish, _warn)
        return json.dumps(asdict(done)) if arguments.json else _sentence(done)

    return run_async(_run, work)


def run_detach(arguments: argparse.Namespace) -> int:
    """Unplug; returns the exit status."""

    async def work() -> str:
        async with connected(arguments.qmp) as qmp:
            device = await detach(qmp, arguments.id, arguments.timeout, force=arguments.force)
        return json.dumps({"id": device}) if arguments.json else f"{device}: unplugged"

    return run_async(_run, work)


def _warn(line: str) -> None:
    sys.stderr.write(f"vgpud: {line}\n")


def _sentence(done: Attachment) -> str:
    where = f"at {done.address}" if done.address else "at an address that the guest has not given yet"
    served = "" if done.server is None else f", served by process {done.server}"
    return f"{done.id}: plugged into {done.bus}, {where}{served}"


async def _run(work: Work) -> int:
    """Do the work unless a signal stops it; then it is undone."""
    with trio.open_signal_receiver(*stop_signals()) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            try:
                text = await work()
            except HotplugError as error:
                status = fail(error)
            else:
                sys.stdout.write(f"{text}\n")
                status = 0
            nursery.cancel_scope.cancel()
            return status
    return fail("interrupted")


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
