"""A child process whose end can be awaited."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence

import trio

_GRACE_SECONDS = 10.0


class ChildProcess:
    """A running program; :func:`start` makes it."""

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
) -> ChildProcess:
    """Start a program; ``prepare`` runs in the child, before it. Without ``pass_fds`` it inherits what is inheritable.

    Raises OSError.
    """
    return ChildProcess(
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


def _status_in_shell(status: int) -> int:
    return 128 - status if status < 0 else status
