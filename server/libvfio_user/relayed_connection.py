"""The library gets the client's messages from us, and we its replies: for who wants to see both.

It costs three system calls more for every message than :class:`server.libvfio_user.peeking_connection`.
"""

from __future__ import annotations

from protocol import HEADER, Message
from server.fds import ReceivedFds
from server.libvfio_user.connection import LIBRARY_COMMANDS, LibraryConnection, is_for_library
from server.native.handlers import Later


class RelayedConnection(LibraryConnection):
    """Reads messages, and passes on to the library what it serves."""

    def _serve_accesses(self, count: int) -> int:  # noqa: ARG002 - none is served before the library has seen it
        return 0

    def _serve_message(self, message: Message, fds: ReceivedFds) -> Later | None:
        header, payload = message.header, message.payload
        if len(fds) or not is_for_library(header.command, header.size, header.flags, payload):
            return super()._serve_message(message, fds)
        self.command = LIBRARY_COMMANDS[header.command]
        reply = self.context.relay(HEADER.pack(*header) + bytes(payload))
        if self._refusals or self._reported:
            self._report_refusals()
        if reply:
            self._main.send(reply)
        return None
