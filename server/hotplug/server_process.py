"""The server of a device that was plugged in: a process that outlives attach, and ends when the guest has let it go."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from server.hotplug.errors import HotplugError
from server.hotplug.process import PASSED, Process, find_process
from server.hotplug.server_output import ServerOutput, server_output
from server.launch.process import lifeline

START_SECONDS = 30.0
END_SECONDS = 5.0
"""How long a server may take to end after SIGTERM, or after its client has left."""
_COMMAND = ("-m", "server.hotplug")
_ONE_CLIENT = ("--once", "--socket-path")
_FOLDER, _SOCKET = "vgpud-", "device.sock"
PRIVATE_SOCKET = re.compile(rf"/(?:.*/)?{_FOLDER}[a-z0-9_]{{8}}/{_SOCKET}")
"""The path of the socket of a server that attach has started."""
_READY = b"READY=1"


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


class ServerProcess:
    """A server that listens at ``path``. Made by :func:`started`."""

    def __init__(self, process: Process, path: Path) -> None:
        self.pid = process.pid
        self.path = path
        self.is_left = False

    def leave(self) -> None:
        """Let it live on: it ends when its client has left."""
        self.is_left = True


def find_server(device: str, qmp: Path, socket_path: str | None = None) -> Process | None:
    """The server that attach started for ``device`` of the QEMU that listens at ``qmp``, where it can be seen.

    ``socket_path`` tells it from one of that name that was left over.
    """
    if socket_path is not None:
        return find_process((*_ONE_CLIENT, socket_path))
    return find_process((*_COMMAND, _name(device, qmp)))


@asynccontextmanager
async def started(options: ServerOptions, device: str, qmp: Path) -> AsyncIterator[ServerProcess]:
    """Start a server for ``device`` and give it once it listens; it is ended with the block, unless it was left.

    Its socket is gone after the block either way: the one client has connected by then. Where this process is killed
    before, the server ends by itself. Raises HotplugError where it does not start, with its own words.
    """
    with ExitStack() as stack:
        reading, _ = stack.enter_context(lifeline())
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        output = stack.enter_context(server_output(options.log))
        ready = stack.enter_context(_listen_for_readiness(folder / "ready.sock"))
        path = folder / _SOCKET
        command = [sys.executable, "-P", *_COMMAND, _name(device, qmp), "--lifeline", str(PASSED)]
        command += [*_ONE_CLIENT, str(path)]
        command += [part for option in options.given().items() for part in option]
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "ready.sock")}
        process = stack.enter_context(_spawn(command, environment, output, reading))
        server = ServerProcess(process, path)
        try:
            await _until_ready(process, ready, output)
            yield server
        finally:
            if not server.is_left:
                await process.end(END_SECONDS)


def _name(device: str, qmp: Path) -> str:
    """What the command line of a server calls it, so that detach finds it, and whoever looks at processes."""
    return f"{device}@{qmp.absolute()}"


def _spawn(
    command: list[str], environment: dict[str, str], output: ServerOutput, lifeline_fd: int
) -> Process:
    try:
        return Process.spawn(command, environment, output.write_fd, lifeline_fd)
    except OSError as error:
        raise HotplugError(f"the server cannot be started: {error.strerror}") from None


@contextmanager
def _listen_for_readiness(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ready:
        try:
            ready.bind(os.fspath(path))
        except OSError as error:
            raise HotplugError(f"{path}: {error.strerror or error}; set TMPDIR to another folder") from None
        yield ready


async def _until_ready(process: Process, ready: socket.socket, output: ServerOutput) -> None:
    """Wait for the server's sd_notify(3). Raises HotplugError where it ends instead, or takes too long."""
    with trio.move_on_after(START_SECONDS):
        async with trio.open_nursery() as nursery:

            async def wait_for(descriptor: int) -> None:
                await trio.lowlevel.wait_readable(descriptor)
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_for, ready.fileno())
            nursery.start_soon(wait_for, process.pidfd)
    with suppress(BlockingIOError):
        if ready.recv(len(_READY)) == _READY:
            return
    said = output.last_line() or f"it does not listen after {START_SECONDS:.0f} s"
    raise HotplugError(f"the server cannot be started: {said}")
