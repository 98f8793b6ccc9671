"""What ends a server whose attach was killed before QEMU had connected to it.

attach holds the writing end of a pipe, through which nothing is ever sent. When that end is gone, attach is: it has
done its work, and the server has a client, with which it ends; or it was killed, and there may never be one.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import structlog
import trio

from server.engine import Engine


class Lifeline:
    """The server's end of it."""

    def __init__(self, fd: int, folder: Path) -> None:
        """``folder`` is that of the sockets, which attach removes unless it was killed."""
        os.set_inheritable(fd, False)
        self._fd = fd
        self._folder = folder

    async def __call__(self, engine: Engine, server: trio.CancelScope) -> None:
        """Wait for the end of attach, and end the server where that has left it without a client."""
        await trio.lowlevel.wait_readable(self._fd)
        shutil.rmtree(self._folder, ignore_errors=True)
        if engine.session is None:
            structlog.get_logger().warning("attach_was_killed", result="no client has come")
            server.cancel()
