"""The server of a device that was plugged in: a process that outlives attach, and ends when the guest has let it go."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from server.child_server.errors import ServerStartError
from server.child_server.lifeline import lifeline
from server.child_server.output import ServerOutput, logged_output, unread_output
from server.child_server.readiness import Outcome, Readiness, listen_for_readiness, why_not_ready
from server.hotplug.errors import HotplugError
from server.hotplug.process import PASSED, DetachedProcess, find_process

END_SECONDS = 20.0
"""How long a server may take to end after SIGTERM, or after its client has left."""
_COMMAND = ("-m", "server.hotplug")
_ONE_CLIENT = ("--once", "--socket-path")
_FOLDER, _SOCKET = "vgpud-", "device.sock"
PRIVATE_SOCKET = re.compile(rf"/(?:.*/)?{_FOLDER}[a-z0-9_]{{8}}/{_SOCKET}")
"""The path of the socket of a server that attach has started."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server is told: the options of ``vgpud serve`` of those names, and where its log goes."""

    device: str | None = None
    transport: str | None = None
    control: Path | None = None
    trace: Path | None = None
    log: Path | None = None
    metrics: str | None = None

    def given(self) -> dict[str, str]:
        """The options of ``serve`` that have a value."""
        names = ("device", "transport", "control", "trace", "metrics")
        values = {f"--{name}": getattr(self, name) for name in names}
        return {name: str(value) for name, value in values.items() if value is not None}


class DetachedServer:
    """A server that listens at ``path``. Made by :func:`started`."""

    def __init__(self, process: DetachedProcess, path: Path) -> None:
        self.pid = process.pid
        self.path = path
        self.is_left = False

    def leave(self) -> None:
        """Let it live on: it ends when its client has left."""
        self.is_left = True


def find_server(device: str, qmp: Path, socket_path: str | None = None) -> DetachedProcess | None:
    """The server that attach started for ``device`` of the QEMU that listens at ``qmp``, where it can be seen.

    ``socket_path`` tells it from one of that name that was left over.
    """
    if socket_path is not None:
        return find_process((*_ONE_CLIENT, socket_path))
    return find_process((*_COMMAND, _name(device, qmp)))


@asynccontextmanager
async def started(options: ServerOptions, device: str, qmp: Path) -> AsyncIterator[DetachedServer]:
    """Start a server for ``device`` and give it once it listens; it is ended with the block, unless it was left.

    Its socket is gone after the block either way: the one client has connected by then. Where this process is killed
    before, the server ends by itself. Raises HotplugError where it does not start, with its own words.
    """
    with ExitStack() as stack:
        reading, _ = stack.enter_context(lifeline())
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            output = stack.enter_context(
                unread_output() if options.log is None else logged_output(options.log)
            )
            readiness = stack.enter_context(listen_for_readiness(folder))
        except ServerStartError as error:
            raise HotplugError(error) from error
        path = folder / _SOCKET
        command = [sys.executable, "-P", *_COMMAND, _name(device, qmp), "--lifeline", str(PASSED)]
        command += [*_ONE_CLIENT, str(path)]
        command += [part for option in options.given().items() for part in option]
        environment = {**os.environ, "NOTIFY_SOCKET": readiness.address}
        process = stack.enter_context(_spawn(command, environment, output, reading))
        server = DetachedServer(process, path)
        try:
            await _until_ready(process, readiness, output)
            yield server
        finally:
            if not server.is_left:
                await process.end(END_SECONDS)


def _name(device: str, qmp: Path) -> str:
    """What the command line of a server calls it, so that detach finds it, and whoever looks at processes."""
    return f"{device}@{qmp.absolute()}"


def _spawn(
    command: list[str], environment: dict[str, str], output: ServerOutput, lifeline_fd: int
) -> DetachedProcess:
    try:
        return DetachedProcess.spawn(command, environment, output.write_fd, lifeline_fd)
    except OSError as error:
        raise HotplugError(f"the server cannot be started: {error.strerror}") from None


async def _until_ready(process: DetachedProcess, readiness: Readiness, output: ServerOutput) -> None:
    """Raises HotplugError where the server ends instead, or takes too long."""
    outcome = await readiness.wait(process.pidfd)
    if outcome is not Outcome.READY:
        reason = why_not_ready(outcome, output.last_line())
        raise HotplugError(f"the server cannot be started: {reason}")
