"""The server that a replay talks to: its replies, its requests, and the interrupts that it raises."""

from __future__ import annotations

import os
import socket
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress

import trio

from protocol import (
    Message,
    ProtocolError,
    Version,
    agree,
    encode_error,
    encode_reply,
    max_message_size,
)
from protocol.codec import Packable
from protocol.decoder import DEFAULT_MAX_FDS
from server.client.channel import Channel
from server.fds import ReceivedFds

MAX_DATA = 16 << 20
"""Bytes of data that a message may have."""


class ServerGone(Exception):  # noqa: N818 - an event of the replay
    """The server closed the connection, or broke the protocol; the text says which."""


class ServerConnection:
    """Everything that came from the server, until somebody takes it. The nursery's end is the owner's to see to."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        """Take a connected ``sock`` over; ``nursery`` runs what listens."""
        self.replies: dict[int, Message] = {}
        self.requests: deque[tuple[Channel, Message]] = deque()
        """The server's own, and where to answer them."""
        self.interrupts: Counter[tuple[int, int]] = Counter()
        """How often each vector was signalled, by IRQ index and vector."""
        self.ended: str | None = None
        """Why nothing more comes."""
        self._nursery = nursery
        self._main = Channel(sock, max_message_size(MAX_DATA), DEFAULT_MAX_FDS)
        self._twin: Channel | None = None
        self._news = trio.Event()
        self._watchers: dict[tuple[int, int], int] = {}
        nursery.start_soon(self._listen, self._main)

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send whole messages. Raises ServerGone."""
        try:
            await self._main.send(data, fds)
        except OSError as error:
            raise ServerGone(f"the server closed the connection: {error.strerror}") from error

    async def answer(self, channel: Channel, request: Message, reply: Packable | bytes | int) -> None:
        """Answer a request of the server: with a reply, a packed one, or an errno. Raises ServerGone."""
        header = request.header
        if header.no_reply:
            return
        if isinstance(reply, int):
            data = encode_error(header.message_id, header.command, reply)
        else:
            data = encode_reply(header.message_id, header.command, reply)
        try:
            await channel.send(data)
        except OSError as error:
            raise ServerGone(f"the server closed the connection: {error.strerror}") from error

    async def wait(self, seconds: float) -> bool:
        """Wait for anything new; False where nothing came in time. Raises ServerGone."""
        if self.ended is not None:
            raise ServerGone(self.ended)
        with trio.move_on_after(seconds):
            await self._news.wait()
            self._news = trio.Event()
            return True
        return False

    def nudge(self) -> None:
        """Have :meth:`wait` return: something has changed."""
        self._news.set()

    def agreed(self, request: Version, reply: Message) -> None:
        """VERSION was answered: listen on the twin socket, if there is one. The fds stay the caller's."""
        try:
            index = agree(request, Version.unpack(reply.payload)).twin_socket_fd
        except ProtocolError:
            return  # an answer that makes no sense is for somebody else to report
        if index is not None and index < len(reply.fds):
            twin = socket.fromfd(reply.fds[index], socket.AF_UNIX, socket.SOCK_STREAM)
            self._twin = Channel(twin, max_message_size(MAX_DATA), max_fds=0)
            self._nursery.start_soon(self._listen, self._twin)

    def watch(self, index: int, vector: int, eventfd: int | None) -> None:
        """Count what is signalled on ``eventfd`` as this vector; it is this object's from here on. None: no more."""
        old = self._watchers.pop((index, vector), None)
        if old is not None:
            self._collect(index, vector, old)
            trio.lowlevel.notify_closing(old)
            os.close(old)
        if eventfd is not None:
            self._watchers[index, vector] = eventfd
            self._nursery.start_soon(self._count, index, vector, eventfd)

    def watched(self, index: int) -> list[int]:
        """The vectors of an IRQ index that are watched."""
        return [vector for known, vector in self._watchers if known == index]

    def collect(self) -> None:
        """Count what has been signalled by now."""
        for (index, vector), eventfd in self._watchers.items():
            self._collect(index, vector, eventfd)

    def close(self) -> None:
        """Close the connection, and everything that came and nobody took."""
        for index, vector in list(self._watchers):
            self.watch(index, vector, None)
        for message in (*self.replies.values(), *(message for _, message in self.requests)):
            ReceivedFds(message.fds).close()
        self.replies.clear()
        self.requests.clear()
        self._main.close()
        if self._twin is not None:
            self._twin.close()

    async def _listen(self, channel: Channel) -> None:
        try:
            while (message := await channel.receive()) is not None:
                if message.header.is_reply:
                    old = self.replies.pop(message.header.message_id, None)
                    if old is not None:
                        ReceivedFds(old.fds).close()
                    self.replies[message.header.message_id] = message
                else:
                    self.requests.append((channel, message))
                self._news.set()
            reason = "the server closed the connection"
        except ProtocolError as error:
            reason = f"the server broke the protocol: {error.reason}"
        except OSError as error:
            reason = f"the server closed the connection: {error.strerror}"
        if channel is self._main:
            self.ended = reason
            self._news.set()

    async def _count(self, index: int, vector: int, eventfd: int) -> None:
        with suppress(trio.ClosedResourceError):
            while self._watchers.get((index, vector)) == eventfd:
                await trio.lowlevel.wait_readable(eventfd)
                self._collect(index, vector, eventfd)

    def _collect(self, index: int, vector: int, eventfd: int) -> None:
        try:
            self.interrupts[index, vector] += os.eventfd_read(eventfd)
        except BlockingIOError:
            return
        self._news.set()
