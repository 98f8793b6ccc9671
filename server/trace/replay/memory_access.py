"""How the server gets at the guest's memory in a replay, and how what it does there is compared."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Protocol

from protocol import Message
from protocol.trace import Access
from server.client.channel import Channel
from server.trace.reader import TracedMessage
from server.trace.replay.intervals import Interval
from server.trace.replay.report import Report
from server.trace.replay.server_connection import ServerConnection

_SHOWN = 16

Until = Callable[[Callable[[], bool], str], Awaitable[None]]
"""Wait until a condition holds; the text says what did not happen where it does not."""


class MemoryAccess(Protocol):
    """What the player leaves to whoever knows how memory is reached."""

    shares_memory: bool
    served: int
    """Requests of the server that were answered."""

    def begin(self, interval: Interval) -> None:
        """Commands are about to be sent; what they map is there."""

    async def meet(self, access: Access, until: Until) -> None:
        """An access is next in the recording."""

    async def finish(self, until: Until) -> None:
        """The interval is over."""

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """A request of the server is next in the recording."""

    async def reply(self, recorded: TracedMessage) -> None:
        """The client's reply to one is."""

    async def serve(self) -> float:
        """See to what the server asks for; returns how many seconds there is patience with what is left."""

    def lost_patience(self) -> None:
        """That time has passed, and nothing has come."""


class RecordedRequests:
    """Requests of the server that were recorded as messages, and what was answered."""

    def __init__(self, server: ServerConnection, report: Report) -> None:
        self._server = server
        self._report = report
        self.served = 0
        self._open: dict[int, tuple[Channel, Message]] = {}
        """What the server asked now, by the message id of what it asked then."""

    async def request(self, recorded: TracedMessage, until: Until) -> None:
        """The server has to ask the same. Raises what ``until`` raises."""
        await until(
            lambda: self._server.next_request() is not None, "the server did not ask for guest memory"
        )
        channel, message = self._server.take_request()
        before, after = recorded.header, message.header
        if before.command != after.command or bytes(recorded.payload) != bytes(message.payload):
            self._report.diverged("the server asks for something else of guest memory", recorded)
        # What is left to do is to answer: that takes no payload, and many may be open.
        self._open[before.message_id] = (channel, message._replace(payload=memoryview(b"")))

    async def reply(self, recorded: TracedMessage) -> None:
        """Answer as the client did. Raises ServerGone."""
        header = recorded.header
        channel, message = self._open.pop(header.message_id, (None, None))
        if channel is None or message is None:
            return
        reply = header.error or errno.EIO if header.is_error else bytes(recorded.payload)
        await self._server.answer(channel, message, reply)


def shown(data: bytes) -> str:
    """The first of some bytes."""
    text = data[:_SHOWN].hex(" ")
    return f"{text} ..." if len(data) > _SHOWN else text
