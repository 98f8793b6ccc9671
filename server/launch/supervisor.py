"""QEMU and the servers of its GPUs: started one after the other, ended together."""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from server.exit_status import EXIT_FAILURE
from server.guest.child import plain_nursery
from server.launch.errors import LaunchError
from server.launch.gpu_devices import GpuAttachment, with_gpus
from server.launch.process import ChildProcess, start
from server.launch.qemu_options import QemuCommand
from server.launch.server_process import CLIENT_LEFT, Gpu, GpuServer, ServerFailedError, started_server
from server.launch.signals import SignalReader
from server.parent_death import end_with_parent
from server.run_async import run_async


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to run: QEMU's command line, but for the GPUs."""

    command: QemuCommand
    gpus: tuple[Gpu, ...]
    root_ports: bool = False


class Supervisor:
    """One run of a guest, from the start of its servers to the end of QEMU."""

    def __init__(self, launch: Launch, signals: SignalReader) -> None:
        """Run ``launch``; ``signals`` are those that go to QEMU instead of ending this process."""
        self._launch = launch
        self._signals = signals
        self._qemu: ChildProcess | None = None
        self._asked_to_end = 0
        """The signal that came last."""
        self._lost_server = False

    async def run(self) -> int:
        """Return the exit status: QEMU's, or 1 where a server ended first.

        Raises LaunchError, ServerFailedError, and OSError where a program cannot be started.
        """
        status = EXIT_FAILURE
        async with plain_nursery() as nursery:
            nursery.start_soon(self._pass_signals_on, nursery.cancel_scope)
            status = await self._servers_then_qemu()
            nursery.cancel_scope.cancel()
        if self._qemu is None:
            return 128 + self._asked_to_end
        return EXIT_FAILURE if self._lost_server else status

    async def _pass_signals_on(self, scope: trio.CancelScope) -> None:
        """To QEMU, but for those that the terminal sends: QEMU is in its foreground too, and gets them by itself."""
        while True:
            number, by_key = await self._signals.next()
            self._asked_to_end = number
            if self._qemu is None:
                scope.cancel()
            elif not by_key:
                self._qemu.send_signal(number)

    async def _servers_then_qemu(self) -> int:
        async with AsyncExitStack() as stack:
            starting = [started_server(gpu, self._signals) for gpu in self._launch.gpus]
            servers = [await stack.enter_async_context(server) for server in starting]
            for server in servers:
                await server.ready()
            self._qemu = self._started_qemu(servers)
            try:
                return await self._until_qemu_ends(self._qemu, servers)
            finally:
                await self._qemu.end()

    async def _until_qemu_ends(self, qemu: ChildProcess, servers: list[GpuServer]) -> int:
        async with plain_nursery() as nursery:
            for server in servers:
                nursery.start_soon(self._end_qemu_with, server, qemu)
            status = await qemu.wait()
            nursery.cancel_scope.cancel()
        return status

    async def _end_qemu_with(self, server: GpuServer, qemu: ChildProcess) -> None:
        """QEMU cannot reconnect, and aborts sooner or later without its server, unless it has let go of the GPU."""
        status = await server.process.wait()
        if status == CLIENT_LEFT:
            return
        if not self._asked_to_end:
            self._lost_server = True
            name = server.gpu.name
            sys.stderr.write(
                f"vgpud: the server of {name} ended first, with status {status}; QEMU is told to end\n"
            )
        await qemu.end()

    def _started_qemu(self, servers: list[GpuServer]) -> ChildProcess:
        command = with_gpus(
            self._launch.command,
            [GpuAttachment(server.path, server.gpu.rom) for server in servers],
            root_ports=self._launch.root_ports,
        )
        for server in servers:
            for fd in server.fds:
                os.set_inheritable(fd, True)
        parent = os.getpid()

        def prepare() -> None:
            self._signals.release_in_child()
            end_with_parent(parent)

        return start(command.words, prepare)


def supervise(launch: Launch, signals: SignalReader) -> int:
    """Run a guest to its end; returns the exit status. Raises LaunchError."""
    try:
        return run_async(Supervisor(launch, signals).run)
    except ServerFailedError as error:
        if str(error):
            raise LaunchError(error) from error
        return EXIT_FAILURE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise LaunchError(f"{where}{error.strerror}") from error
