"""Waiting until a server is ready, which it says by sd_notify(3), or has ended instead.

::

    with listen_for_readiness(folder) as readiness:
        ...  # start it, with NOTIFY_SOCKET=readiness.address
        outcome = await readiness.wait(pidfd)
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

import trio

from server.child_server.errors import ServerStartError
from server.child_server.poll import readable

START_SECONDS = 60.0
"""How long a server may take to listen."""
_READY = b"READY=1"
_LONGEST = 4096
"""Bytes of a message that are looked at."""


class Outcome(Enum):
    """What has come of the start of a server."""

    READY = auto()
    ENDED = auto()
    """Also where it was ready before."""
    LATE = auto()
    """It does neither in the time that it has."""
    INTERRUPTED = auto()
    """Nobody wants it any more."""


class Readiness:
    """The socket to which a server that is started says that it is ready; ``address`` is its NOTIFY_SOCKET."""

    def __init__(self, receiver: socket.socket, address: str) -> None:
        """``receiver`` is bound, and stays the caller's."""
        self.address = address
        self._receiver = receiver

    def outcome(self, pidfd: int) -> Outcome | None:
        """What has come of it by now, None where nothing has; takes the messages that are there."""
        if readable([pidfd], 0):
            return Outcome.ENDED
        while (message := self._message()) is not None:
            if _READY in message.split(b"\n"):
                return Outcome.READY
        return None

    async def wait(self, pidfd: int, seconds: float = START_SECONDS) -> Outcome:
        """Wait for it, so many seconds at most; who comes too late, as behind a Ctrl-Z, looks once more."""
        with trio.move_on_after(seconds):
            while True:
                await _until_readable(self._receiver.fileno(), pidfd)
                if (outcome := self.outcome(pidfd)) is not None:
                    return outcome
        return self.outcome(pidfd) or Outcome.LATE

    def wait_without_loop(self, pidfd: int, stop_fd: int, seconds: float = START_SECONDS) -> Outcome:
        """The same where trio does not run; it ends also when ``stop_fd`` is readable."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if stop_fd in readable([self._receiver.fileno(), pidfd, stop_fd], left):
                return Outcome.INTERRUPTED
            if (outcome := self.outcome(pidfd)) is not None:
                return outcome
            if not left:
                return Outcome.LATE

    def _message(self) -> bytes | None:
        try:
            return self._receiver.recv(_LONGEST, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None


def why_not_ready(outcome: Outcome, last_line: str | None, seconds: float = START_SECONDS) -> str:
    """Why a server did not start, in its own words where it has any.

    ``last_line`` is that of its log, None where that cannot be read.
    """
    if outcome is Outcome.LATE:
        return f"it does not listen after {seconds:.0f} s"
    if last_line is None:
        return "it has ended; its log says why"
    return last_line or "it has ended without a word"


@contextmanager
def listen_for_readiness(folder: Path) -> Iterator[Readiness]:
    """Have such a socket in ``folder`` while the block lasts; the file is the caller's to remove.

    Raises ServerStartError where there can be none.
    """
    path = folder / "ready.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as receiver:
        try:
            receiver.bind(os.fspath(path))
        except OSError as error:
            reason = error.strerror or error
            raise ServerStartError(f"{path}: {reason}; set TMPDIR to another folder") from error
        yield Readiness(receiver, os.fspath(path))


async def _until_readable(*fds: int) -> None:
    """Wait until one of them is."""
    async with trio.open_nursery() as nursery:

        async def wait_for(fd: int) -> None:
            await trio.lowlevel.wait_readable(fd)
            nursery.cancel_scope.cancel()

        for fd in fds:
            nursery.start_soon(wait_for, fd)
