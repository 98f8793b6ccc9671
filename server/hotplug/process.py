"""Processes by pidfd: started so that they outlive this one, found by their command line, awaited, ended."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

_PROC = Path("/proc")
_STDERR = 2
PASSED = 3
"""The only descriptor that a process may have beside the standard ones."""


class DetachedProcess:
    """A process, whoever started it; closed by leaving the block, which does not end it."""

    def __init__(self, pid: int) -> None:
        """Refer to the process that has the id ``pid`` now. Raises OSError where there is none."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    @classmethod
    def spawn(
        cls, command: list[str], environment: Mapping[str, str], stderr: int, passed: int | None = None
    ) -> DetachedProcess:
        """Start ``command`` in a session of its own, with no input and no output but ``stderr``. Raises OSError.

        The descriptor ``passed`` is its :data:`PASSED`.
        """
        null = os.devnull
        files = [
            (os.POSIX_SPAWN_OPEN, 0, null, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, null, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, stderr, _STDERR),
            *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inheritable()),
            *(() if passed is None else ((os.POSIX_SPAWN_DUP2, passed, PASSED),)),
        ]
        ignored_by_python = (signal.SIGPIPE, signal.SIGXFSZ)
        return cls(
            os.posix_spawn(
                command[0],
                command,
                environment,
                file_actions=files,
                setsid=True,
                setsigmask=(),
                setsigdef=ignored_by_python,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.pidfd)

    async def ended(self, within: float) -> bool:
        """Wait until it has ended; whether it did within so many seconds, where 0 is for who does not wait."""
        with trio.move_on_after(within):
            await trio.lowlevel.wait_readable(self.pidfd)
        look = select.poll()  # a block of 0 seconds is cancelled before it waits
        look.register(self.pidfd, select.POLLIN)
        return bool(look.poll(0))

    async def end(self, grace: float) -> None:
        """End it by SIGTERM, after ``grace`` seconds by SIGKILL, and wait, also in a cancelled scope."""
        with trio.CancelScope(shield=True):
            self._send(signal.SIGTERM)
            if not await self.ended(grace):
                self._send(signal.SIGKILL)
                await trio.lowlevel.wait_readable(self.pidfd)
        self._reap()

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


def _inheritable() -> list[int]:
    """What this process's own parent left to it, and to whomever it starts."""
    descriptors = [int(path.name) for path in _PROC.joinpath("self/fd").iterdir()]
    found = []
    for descriptor in descriptors:
        with suppress(OSError):  # the one that listed them
            if descriptor > _STDERR and os.get_inheritable(descriptor):
                found.append(descriptor)
    return found


def find_process(arguments: Sequence[str]) -> DetachedProcess | None:
    """A process whose command line has ``arguments``, one after the other, among those that may be looked at."""
    wanted = [os.fsencode(argument) for argument in arguments]
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and _has(folder, wanted):
            with suppress(OSError):
                process = DetachedProcess(int(folder.name))
                if _has(folder, wanted):  # or the id was given to another one meanwhile
                    return process
                os.close(process.pidfd)
    return None


def _has(folder: Path, wanted: Sequence[bytes]) -> bool:
    try:
        words = folder.joinpath("cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words)))
