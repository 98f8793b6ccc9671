"""A running guest: boot it, wait for what it prints, have it run commands, and leave nothing behind.

::

    async with booted(qemu, machine) as guest:
        result = await guest.run("ls /dev/dri")
"""

from __future__ import annotations

import base64
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import trio

from server.guest.child import Child, plain_nursery, started
from server.guest.errors import GuestError
from server.guest.initramfs import READY
from server.guest.lines import LineLog
from server.guest.machine import Machine
from server.guest.qemu import Qemu

BOOT_SECONDS = 300.0
COMMAND_SECONDS = 120.0
_LONGEST_SCRIPT = 3000
"""Bytes of base64: a serial port has no flow control, and the guest's line buffer holds 4 KiB."""


class CommandResult(NamedTuple):
    """What a command in the guest returned: its exit status, and its output without the last newline."""

    status: int
    output: str


class Guest:
    """A guest under a QEMU of its own. Made by :func:`launched` and :func:`booted`."""

    def __init__(self, qemu: Child, port: trio.SocketStream) -> None:
        """Talk to the guest of ``qemu``, whose command port is ``port``."""
        self.qemu = qemu
        self.console = LineLog("the guest's console")
        self._answers = LineLog("the guest's command port")
        self._port = port
        self._commands_sent = 0
        self._one_command = trio.Lock()

    async def read(self, console: trio.SocketStream) -> None:
        """Take in all that the guest prints, until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.console.read_from, console)
            nursery.start_soon(self._answers.read_from, self._port)

    async def ready(self, within: float = BOOT_SECONDS) -> None:
        """Wait until the guest has booted and takes commands."""
        await self._wait(self._answers, READY, within)

    async def wait_for(
        self, wanted: str | Callable[[str], bool], within: float = BOOT_SECONDS, since: int = 0
    ) -> tuple[int, str]:
        """Wait for a line on the console that contains ``wanted``, or for which it is true.

        Returns the line's number and the line; ``since`` skips lines before that number. Raises
        :class:`GuestError` where it does not come within ``within`` seconds or before QEMU ends.
        """
        return await self._wait(self.console, wanted, within, since)

    async def run(self, script: str, within: float = COMMAND_SECONDS) -> CommandResult:
        """Run a shell script in the guest and return its status and output (standard error included).

        What it leaves running in the background must not keep its output. Raises :class:`GuestError` where it
        does not end within ``within`` seconds, ValueError where it is longer than about 2 KiB.
        """
        encoded = base64.b64encode(script.encode()).decode()
        if len(encoded) > _LONGEST_SCRIPT:
            raise ValueError("script too long for the guest's serial port: put it into the initramfs")
        async with self._one_command:
            self._commands_sent += 1
            tag = f"done-{self._commands_sent}"
            begin = len(self._answers.lines)
            with suppress(trio.BrokenResourceError):  # waiting for the answer finds out why
                await self._port.send_all(f"{tag} {encoded}\n".encode())
            end, last = await self._wait(self._answers, lambda line: f"{tag} " in line, within, begin)
        unfinished, _, status = last.rpartition(f"{tag} ")
        output = self._answers.lines[begin:end] + ([unfinished] if unfinished else [])
        return CommandResult(int(status), "\n".join(output))

    async def check(self, script: str, within: float = COMMAND_SECONDS) -> str:
        """Run a script that must succeed; return its output. Raises :class:`GuestError` where it fails."""
        status, output = await self.run(script, within)
        if status:
            lines = tuple(output.splitlines())
            raise GuestError(f"in the guest: {script!r} failed: {lines[-1] if lines else status}", lines)
        return output

    async def _wait(
        self, log: LineLog, wanted: str | Callable[[str], bool], within: float, since: int = 0
    ) -> tuple[int, str]:
        try:
            return await log.wait_for(wanted, within, since)
        except GuestError as error:
            reason = next((line for line in reversed(self.qemu.log.lines) if line.strip()), "")
            if log.ended and reason:
                raise GuestError(f"QEMU ended: {reason}", self.qemu.log.tail) from None
            raise GuestError(str(error), self.console.tail) from None


@asynccontextmanager
async def launched(qemu: Qemu, machine: Machine) -> AsyncIterator[Guest]:
    """Start ``machine`` and give its :class:`Guest` at once; QEMU is gone when the block is left."""
    console, console_of_qemu = socket.socketpair()
    commands, commands_of_qemu = socket.socketpair()
    inherited = (console_of_qemu.fileno(), commands_of_qemu.fileno())
    command = machine.command_line(qemu, *inherited)
    with console, commands, console_of_qemu, commands_of_qemu:
        async with started("QEMU", command, qemu.environment(), inherited) as child:
            console_of_qemu.close()
            commands_of_qemu.close()
            guest = Guest(child, _stream(commands))
            async with plain_nursery() as nursery:
                nursery.start_soon(guest.read, _stream(console))
                yield guest
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def booted(qemu: Qemu, machine: Machine, within: float = BOOT_SECONDS) -> AsyncIterator[Guest]:
    """Start ``machine`` and give its guest once it takes commands; QEMU is gone when the block is left.

    Raises :class:`GuestError` where the guest does not boot within ``within`` seconds.
    """
    async with launched(qemu, machine) as guest:
        await guest.ready(within)
        yield guest


def _stream(end: socket.socket) -> trio.SocketStream:
    end.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(end))
