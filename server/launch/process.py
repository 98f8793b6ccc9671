"""A child process whose end can be awaited, and what the kernel does to it when others end."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

_PR_SET_PDEATHSIG = 1
_F_SETSIG = 10
_GRACE_SECONDS = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class Process:
    """A running program; :func:`started` makes it."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    async def wait(self) -> int:
        """Wait for its end; the exit status is that of a shell: 128 and the signal's number after a signal."""
        while (status := self._popen.poll()) is None:
            pidfd = os.pidfd_open(self._popen.pid)  # one for each who waits
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return _status_in_shell(status)

    def send_signal(self, number: int) -> None:
        """Send it a signal; does nothing once it has ended."""
        self._popen.send_signal(number)

    async def end(self) -> int:
        """End it, with SIGTERM, and SIGKILL where that takes too long; also in a cancelled scope."""
        with trio.CancelScope(shield=True):
            self._popen.terminate()
            with trio.move_on_after(_GRACE_SECONDS):
                await self.wait()
            self._popen.kill()
            await self.wait()
        return _status_in_shell(self._popen.wait())


def start(
    command: Sequence[str],
    prepare: Callable[[], None],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    new_session: bool = False,
) -> Process:
    """Start a program; ``prepare`` runs in the child, before it. Without ``pass_fds`` it inherits what is inheritable.

    The kernel sends what :func:`end_with_parent` asks for when the *thread* that called this ends. Raises OSError.
    """
    return Process(
        subprocess.Popen(
            command,
            env=env,
            close_fds=pass_fds is not None,
            pass_fds=pass_fds or (),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
            preexec_fn=prepare,  # noqa: PLW1509 - this program has no threads
        )
    )


def end_with_parent(parent: int) -> None:
    """In a child: get SIGTERM when the process ``parent`` ends, also if it just has (PR_SET_PDEATHSIG(2const))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def _status_in_shell(status: int) -> int:
    return 128 - status if status < 0 else status


@contextmanager
def lifeline() -> Iterator[tuple[int, int]]:
    """A pipe through which nothing is ever sent. Its writing end is for those with whom a process has to end.

    PR_SET_PDEATHSIG knows one parent; this knows as many processes as inherit an fd.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def end_with_lifeline(reading: int) -> None:
    """In a child: get SIGTERM when the last process that has the writing end is gone (fcntl(2), F_SETSIG).

    This child has that end too, until it becomes the other program: so it is told, also if the others just went.
    """
    fcntl.fcntl(reading, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reading, _F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
