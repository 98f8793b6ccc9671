"""The server that a replay talks to: its replies, its requests, and the interrupts that it raises."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

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
MAX_HELD = 64 << 20
"""Bytes of messages that wait to be taken; the server's next ones stay in its socket."""
MESSAGE_COST = 1 << 10
"""Bytes that a message counts beside its payload."""
MAX_HELD_FDS = 128
"""Fds that came with such messages."""
MAX_FLOOD = 64
"""Messages that are taken from the socket before others have their turn."""
_CLOSED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class ServerGone(Exception):  # noqa: N818 - an event of the replay
    """The server closed the connection, or broke the protocol; the text says which."""


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    """An eventfd that is watched. Not just its number, which the kernel gives to the next one."""

    fd: int


class ServerConnection:
    """Everything that came from the server, until somebody takes it. The nursery's end is the owner's to see to."""

    def __init__(self, sock: socket.socket, nursery: trio.Nursery, timeout: float) -> None:
        """Take a connected ``sock`` over; ``nursery`` runs what listens. ``timeout``: seconds to send a message."""
        self.unasked: Counter[int] = Counter()
        """Replies to nothing, which are dropped, by message id."""
        self._asked: Counter[int] = Counter()
        self._replies: dict[int, deque[Message]] = {}
        self._requests: deque[tuple[Channel, Message]] = deque()
        """The server's own, and where to answer them."""
        self._held = 0
        """Bytes of replies and requests."""
        self._room = trio.lowlevel.ParkingLot()
        """Who listens and may hold no more: on the main socket, on the twin, or on both."""
        self._timeout = timeout
        self.interrupts: Counter[tuple[int, int]] = Counter()
        """How often each vector was signalled, by IRQ index and vector."""
        self.ended: str | None = None
        """Why nothing more comes."""
        self._nursery = nursery
        self._main = Channel(sock, max_message_size(MAX_DATA), DEFAULT_MAX_FDS)
        self._twin: Channel | None = None
        self._news = trio.Event()
        self._watchers: dict[tuple[int, int], _Watch] = {}
        nursery.start_soon(self._listen, self._main)

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send whole messages. Raises ServerGone."""
        await self._send(self._main, data, fds)

    async def _send(self, channel: Channel, data: bytes, fds: Sequence[int] = ()) -> None:
        try:
            with trio.fail_after(self._timeout):
                await channel.send(data, fds)
        except trio.TooSlowError:
            raise ServerGone(f"the server did not take a message within {self._timeout:g} s") from None
        except OSError as error:
            if error.errno in _CLOSED:
                raise ServerGone(f"the server closed the connection: {error.strerror}") from error
            raise ServerGone(f"a message cannot be sent: {error.strerror}") from error

    def ask(self, message_id: int) -> None:
        """What is about to be sent is answered with this id."""
        self._asked[message_id] += 1

    def awaits(self, message_id: int) -> bool:
        """Whether a reply with this id is still to come, or to be taken."""
        return self._asked[message_id] > 0 or message_id in self._replies

    def has_reply(self, message_id: int) -> bool:
        """Whether :meth:`take_reply` has something to give."""
        return message_id in self._replies

    def take_reply(self, message_id: int) -> Message:
        """The next reply with this id, which there has to be; its fds are the caller's from here on."""
        queue = self._replies[message_id]
        message = queue.popleft()
        if not queue:
            del self._replies[message_id]
        self._let_go(message)
        return message

    def untaken(self) -> Iterator[int]:
        """The message ids of replies that nobody has taken."""
        yield from self._replies

    def next_request(self) -> Message | None:
        """The server's oldest request, which stays."""
        return self._requests[0][1] if self._requests else None

    def take_request(self) -> tuple[Channel, Message]:
        """The server's oldest request, and where to answer it; there has to be one."""
        channel, message = self._requests.popleft()
        self._let_go(message)
        return channel, message

    def _let_go(self, message: Message) -> None:
        self._held -= _cost(message)
        self._room.unpark_all()

    async def answer(self, channel: Channel, request: Message, reply: Packable | bytes | int) -> None:
        """Answer a request of the server: with a reply, a packed one, or an errno. Raises ServerGone."""
        header = request.header
        if header.no_reply:
            return
        if isinstance(reply, int):
            data = encode_error(header.message_id, header.command, reply)
        else:
            data = encode_reply(header.message_id, header.command, reply)
        await self._send(channel, data)

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
        # Another one in place of the first would be for a server with two handshakes, which the protocol does not have.
        if self._twin is None and index is not None and index < len(reply.fds):
            twin = socket.fromfd(reply.fds[index], socket.AF_UNIX, socket.SOCK_STREAM)
            self._twin = Channel(twin, max_message_size(MAX_DATA), max_fds=0)
            self._nursery.start_soon(self._listen, self._twin)

    def watch(self, index: int, vector: int, eventfd: int | None) -> None:
        """Count what is signalled on ``eventfd`` as this vector; it is this object's from here on. None: no more."""
        old = self._watchers.pop((index, vector), None)
        if old is not None:
            self._collect(index, vector, old.fd)
            trio.lowlevel.notify_closing(old.fd)
            os.close(old.fd)
        if eventfd is not None:
            watch = self._watchers[index, vector] = _Watch(eventfd)
            self._nursery.start_soon(self._count, index, vector, watch)

    def watched(self, index: int) -> list[int]:
        """The vectors of an IRQ index that are watched."""
        return [vector for known, vector in self._watchers if known == index]

    def collect(self) -> None:
        """Count what has been signalled by now."""
        for (index, vector), watch in self._watchers.items():
            self._collect(index, vector, watch.fd)

    def close(self) -> None:
        """Close the connection, and everything that came and nobody took."""
        for index, vector in list(self._watchers):
            self.watch(index, vector, None)
        for queue in self._replies.values():
            for message in queue:
                ReceivedFds(message.fds).close()
        self._replies.clear()
        self._requests.clear()
        self._main.close()
        if self._twin is not None:
            self._twin.close()

    async def _listen(self, channel: Channel) -> None:
        count = 0
        try:
            while (message := await channel.receive()) is not None:
                self._keep(channel, message)
                self._news.set()
                count += 1
                if count % MAX_FLOOD == 0:
                    await trio.lowlevel.checkpoint()
                while self._held > MAX_HELD:
                    await self._room.park()
            reason = "the server closed the connection"
        except ProtocolError as error:
            reason = f"the server broke the protocol: {error.reason}"
        except OSError as error:
            reason = f"the server closed the connection: {error.strerror}"
        if channel is self._main:
            self.ended = reason
            self._news.set()

    def _keep(self, channel: Channel, message: Message) -> None:
        header = message.header
        if header.is_reply:
            if not self._asked[header.message_id]:
                ReceivedFds(message.fds).close()
                self.unasked[header.message_id] += 1
                return
            self._asked[header.message_id] -= 1
            self._replies.setdefault(header.message_id, deque()).append(message)
        else:
            ReceivedFds(message.fds).close()  # nothing that a server asks for has any
            message = message._replace(fds=())
            self._requests.append((channel, message))
        self._held += _cost(message)

    async def _count(self, index: int, vector: int, watch: _Watch) -> None:
        with suppress(trio.ClosedResourceError):
            while self._watchers.get((index, vector)) is watch:
                await trio.lowlevel.wait_readable(watch.fd)
                if self._watchers.get((index, vector)) is watch:
                    self._collect(index, vector, watch.fd)

    def _collect(self, index: int, vector: int, eventfd: int) -> None:
        try:
            self.interrupts[index, vector] += os.eventfd_read(eventfd)
        except BlockingIOError:
            return
        self._news.set()


def _cost(message: Message) -> int:
    return MESSAGE_COST + len(message.payload) + MAX_HELD // MAX_HELD_FDS * len(message.fds)
