"""Child processes that never outlive this one, and whose end can be awaited."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from server.guest.lines import LineLog
from server.parent_death import end_with_parent

_GRACE_SECONDS = 30.0


class Child:
    """A running process. All that it prints is in :attr:`log`. Made by :func:`started`."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None, pass_fds: Sequence[int]
    ) -> None:
        """Start ``command`` with no input. Raises OSError where it cannot be started.

        The kernel kills it when the *thread* that started it ends, so it is started from the event loop's
        thread and not by :func:`trio.lowlevel.open_process`, which uses a short-lived one.
        """
        self.log = LineLog(name)
        parent = os.getpid()
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(parent, signal.SIGKILL),  # noqa: PLW1509 - this program has no threads
        )
        assert self._process.stdout is not None  # noqa: S101 - Popen gives what was asked for
        self._output = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))
        self._process.stdout.close()
        self._pidfd = os.pidfd_open(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number after a signal, None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status."""
        while (status := self._process.poll()) is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return status

    async def read_output(self) -> None:
        """Keep :attr:`log` up to date until the process has closed its output."""
        await self.log.read_from(self._output)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; does nothing once it has ended."""
        self._process.send_signal(number)

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL after a while. Safe to call in a cancelled scope."""
        with trio.CancelScope(shield=True):
            self._process.terminate()
            with trio.move_on_after(_GRACE_SECONDS):
                await self.wait()
            self._process.kill()
            self._process.wait()
            await self._output.aclose()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


@asynccontextmanager
async def started(
    name: str, command: Sequence[str], env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> AsyncIterator[Child]:
    """Run ``command`` while the block lasts; it is gone when the block is left, however that happens.

    ``name`` is what errors call it. Raises OSError where it cannot be started.
    """
    child = Child(name, command, env, pass_fds)
    try:
        async with plain_nursery() as nursery:
            nursery.start_soon(child.read_output)
            yield child
            nursery.cancel_scope.cancel()
    finally:
        await child.stop()


@asynccontextmanager
async def plain_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery out of which a single exception comes as it is, not in a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
