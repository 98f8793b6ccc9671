"""``vgpud serve`` for one GPU, in a process of its own that ends when nobody is left who could use it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from server.exit_status import EXIT_FAILURE
from server.launch.gpu_files import unix_path
from server.launch.nameless_socket import NamelessSocket, nameless_socket
from server.launch.process import Process, end_with_lifeline, lifeline, start
from server.launch.signals import SignalReader
from server.socket_path import SocketPathError, listen_at

UNPLUGGABLE = "--unpluggable"
"""Tells a server that its device has to be one that QEMU survives the unplugging of."""
CLIENT_LEFT = 0
"""Exit status of a server: QEMU has ended, or let go of the GPU."""
TOLD_TO_END = 128 + signal.SIGTERM
"""The same where its client was there, which is that of a shell where SIGTERM ended a program."""

_BACKLOG = 4
_NOTIFICATION = 64
"""Bytes of a message of sd_notify(3) that are looked at."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What ``vgpud serve`` is to serve, and where to; ``device`` is the text of its --device.

    An ``unpluggable`` one is served without MSI-X, as :mod:`server.hotplug.unpluggable` explains. ``rom`` is what QEMU
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
class ServerProcess:
    """A server that has been started; QEMU has to inherit :attr:`fds`, and reaches it at :attr:`path`."""

    gpu: Gpu
    process: Process
    path: str
    fds: tuple[int, ...]
    readiness: socket.socket

    async def ready(self) -> None:
        """Wait until it serves. Raises ServerFailedError."""
        ended: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_notified, nursery.cancel_scope)
            nursery.start_soon(self._until_ended, ended, nursery.cancel_scope)
        if ended:
            raise ServerFailedError(self._last_words(ended[0]))

    async def _until_notified(self, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(self.readiness)
        self.readiness.recv(_NOTIFICATION)
        scope.cancel()

    async def _until_ended(self, ended: list[int], scope: trio.CancelScope) -> None:
        ended.append(await self.process.wait())
        scope.cancel()

    def _last_words(self, status: int) -> str:
        if self.gpu.log is not None:
            lines = self.gpu.log.read_text(errors="replace").splitlines() or ["it says nothing"]
            return f"the server of {self.gpu.name} did not start: {lines[-1].removeprefix('vgpud: ')}"
        return "" if status == EXIT_FAILURE else f"the server of {self.gpu.name} ended with status {status}"


@asynccontextmanager
async def started_server(gpu: Gpu, signals: SignalReader) -> AsyncIterator[ServerProcess]:
    """Start a server; it is gone behind the block, and so are its sockets. Raises OSError."""
    with (
        nameless_socket(socket.SOCK_STREAM) as device,
        nameless_socket(socket.SOCK_DGRAM) as readiness,
        lifeline() as (reading, writing),
        _log_file(gpu.log) as stderr,
    ):
        device.socket.listen(_BACKLOG)
        process = _started(gpu, signals, device, readiness, reading, stderr)
        device.socket.close()  # else a client would wait here for a server that is gone
        fds = (device.address_fd, writing)
        try:
            yield ServerProcess(gpu, process, device.path, fds, readiness.socket)
        finally:
            if await process.end() != 0:
                _remove_sockets(gpu)


def _started(
    gpu: Gpu,
    signals: SignalReader,
    device: NamelessSocket,
    readiness: NamelessSocket,
    reading: int,
    stderr: int | None,
) -> Process:
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
        stderr=stderr,
        new_session=True,  # a Ctrl-C is for QEMU
    )


@contextmanager
def _log_file(path: Path | None) -> Iterator[int | None]:
    if path is None:
        yield None
        return
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_sockets(gpu: Gpu) -> None:
    """A server that was killed leaves its sockets; who listens there takes the file along at the end."""
    for path in (gpu.control, unix_path(gpu.metrics)):
        if path is not None and path.is_socket():
            with suppress(SocketPathError), listen_at(path):
                pass
