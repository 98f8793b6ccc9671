"""``vgpud serve`` for one GPU, in a process of its own that ends when nobody is left who could use it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from server.child_server.errors import ServerStartError
from server.child_server.lifeline import end_with_lifeline, lifeline
from server.child_server.output import ServerOutput, logged_output
from server.child_server.readiness import START_SECONDS, Outcome, Readiness, why_not_ready
from server.exit_status import EXIT_FAILURE
from server.launch.gpu_files import unix_path
from server.launch.nameless_socket import NamelessSocket, nameless_socket
from server.launch.process import ChildProcess, start
from server.launch.signals import SignalReader
from server.socket_path import SocketPathError, listen_at

UNPLUGGABLE = "--unpluggable"
"""Tells a server that its device has to be one that QEMU survives the unplugging of."""
CLIENT_LEFT = 0
"""Exit status of a server: QEMU has ended, or let go of the GPU."""
TOLD_TO_END = 128 + signal.SIGTERM
"""The same where its client was there, which is that of a shell where SIGTERM ended a program."""

_BACKLOG = 4


@dataclass(frozen=True, slots=True)
class Gpu:
    """What ``vgpud serve`` is to serve, and where to; ``device`` is the text of its --device.

    An ``unpluggable`` one is served without MSI-X, as :mod:`server.qemu.unpluggable` explains. ``rom`` is what QEMU
    gives firmware to draw with.
    """

    name: str
    device: str
    transport: str
    control: Path | None = None
    trace: Path | None = None
    log: Path | None = None
    metrics: str | None = None
    unpluggable: bool = False
    rom: str | None = None

    def command(self, listener: int) -> list[str]:
        """The command that serves it on the listening socket ``listener``, until QEMU has let go of it."""
        level = "warning" if self.log is None else "info"
        options = (("--control", self.control), ("--trace", self.trace), ("--metrics", self.metrics))
        return [
            *(sys.executable, "-P", "-m", "server.launch", self.name, "--fd", str(listener)),
            *((UNPLUGGABLE,) if self.unpluggable else ()),
            *("--log-level", level, "--device", self.device, "--transport", self.transport),
            *(word for option, value in options if value is not None for word in (option, str(value))),
        ]


class ServerFailedError(Exception):
    """A server ended before it served; the text is one line, empty where the server itself has said it."""


@dataclass(frozen=True, slots=True)
class GpuServer:
    """A server that has been started; QEMU has to inherit :attr:`fds`, and reaches it at :attr:`path`."""

    gpu: Gpu
    process: ChildProcess
    path: str
    fds: tuple[int, ...]
    readiness: Readiness
    output: ServerOutput | None
    """Where its log goes; None where the user sees it."""

    async def ready(self) -> None:
        """Wait until it serves. Raises ServerFailedError."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            outcome = await self.readiness.wait(pidfd, START_SECONDS)
        finally:
            os.close(pidfd)
        if outcome is not Outcome.READY:
            raise ServerFailedError(await self._last_words(outcome))

    async def _last_words(self, outcome: Outcome) -> str:
        name = self.gpu.name
        if self.output is None and outcome is Outcome.ENDED:
            status = await self.process.wait()
            return "" if status == EXIT_FAILURE else f"the server of {name} ended with status {status}"
        last_line = "" if self.output is None else self.output.last_line()
        return f"the server of {name} did not start: {why_not_ready(outcome, last_line, START_SECONDS)}"


@asynccontextmanager
async def started_server(gpu: Gpu, signals: SignalReader) -> AsyncIterator[GpuServer]:
    """Start a server; it is gone behind the block, and so are its sockets. Raises OSError, ServerFailedError."""
    with (
        nameless_socket(socket.SOCK_STREAM) as device,
        nameless_socket(socket.SOCK_DGRAM) as readiness,
        lifeline() as (reading, writing),
        _output(gpu.log) as output,
    ):
        device.socket.listen(_BACKLOG)
        process = _started(gpu, signals, device, readiness, reading, output)
        device.socket.close()  # else a client would wait here for a server that is gone
        fds = (device.address_fd, writing)
        try:
            heard = Readiness(readiness.socket, readiness.path)
            yield GpuServer(gpu, process, device.path, fds, heard, output)
        finally:
            if await process.end() != 0:
                _remove_sockets(gpu)


def _started(
    gpu: Gpu,
    signals: SignalReader,
    device: NamelessSocket,
    readiness: NamelessSocket,
    reading: int,
    output: ServerOutput | None,
) -> ChildProcess:
    def prepare() -> None:
        signals.release_in_child()
        end_with_lifeline(reading)

    listener = device.socket.fileno()
    return start(
        gpu.command(listener),
        prepare,
        env={**os.environ, "NOTIFY_SOCKET": readiness.path},
        pass_fds=(listener, readiness.address_fd, reading),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=None if output is None else output.write_fd,
        new_session=True,  # a Ctrl-C is for QEMU
    )


@contextmanager
def _output(log: Path | None) -> Iterator[ServerOutput | None]:
    """Raises ServerFailedError."""
    try:
        with nullcontext() if log is None else logged_output(log) as output:
            yield output
    except ServerStartError as error:
        raise ServerFailedError(error) from error


def _remove_sockets(gpu: Gpu) -> None:
    """A server that was killed leaves its sockets; who listens there takes the file along at the end."""
    for path in (gpu.control, unix_path(gpu.metrics)):
        if path is not None and path.is_socket():
            with suppress(SocketPathError), listen_at(path):
                pass
