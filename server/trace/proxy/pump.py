"""Plain forwarding: what comes from one side goes to the other as it was read, fds included, and in order."""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio

from server.fds import ReceivedFds
from server.native.message_socket import MessageSocket
from server.trace.proxy.tap import Tap

MAX_BACKLOG = 4 << 20
"""Bytes of answers that wait for a side which asks and does not read."""

_GONE = (BrokenPipeError, ConnectionResetError)


class Outlet:
    """The way to one side, for any number of tasks.

    When that side is gone, what is sent to it is lost; the reader of that side still gets what it had said before,
    and then the end.
    """

    def __init__(self, sock: MessageSocket) -> None:
        """``sock`` stays the caller's."""
        self.gone = False
        self._socket = sock
        self._flushing = trio.Lock()
        self._queued = trio.lowlevel.ParkingLot()
        self._backlog = 0

    def send(self, data: memoryview | bytes, fds: Sequence[int] = ()) -> None:
        """Send, at once where the kernel has room. ``fds`` stay the caller's. Raises OSError."""
        if self.gone:
            return
        try:
            self._socket.send(data, fds)
        except _GONE:
            self.gone = True
        if self._socket.congested:
            self._backlog += len(data)
            self._queued.unpark_all()

    async def flush(self) -> None:
        """Wait until the kernel has taken everything: who does not read is not sent more. Raises OSError."""
        if self.gone or not self._socket.congested:
            return
        async with self._flushing:
            try:
                await self._socket.flush()
            except _GONE:
                self.gone = True
            self._backlog = 0

    async def flush_excess(self) -> None:
        """Wait as :meth:`flush` where much is queued, for who sends answers to the side that it reads from.

        That side may read no answer before it has got rid of what it has to say.
        """
        if self._backlog > MAX_BACKLOG:
            await self.flush()

    async def keep_flushing(self) -> None:
        """Flush for those who do not wait for it, until cancelled. Raises OSError."""
        while True:
            await self.flush()
            await self._queued.park()


async def receive(source: MessageSocket, limit: int | None = None) -> int:
    """Wait for something to read: bytes that are in the view of ``source``, 0 at its end.

    ``limit``: bytes at most. Raises OSError, and ProtocolError where the fds that came could not be taken.
    """
    try:
        while True:
            await source.wait_readable()
            count = source.receive() if limit is None else source.take(limit)
            if count >= 0:
                return count
    except ConnectionResetError:
        return 0  # closed with something unread: closed all the same


async def pass_on_end(client: MessageSocket, server: MessageSocket) -> None:
    """Return when a client that has ended is gone; one that still listens gets what the server has to say.

    In that case this does not return: it is the server that ends the connection.
    """
    poll = select.poll()
    poll.register(client, 0)
    if not any(events & select.POLLHUP for _, events in poll.poll(0)):
        with suppress(OSError):
            server.sock.shutdown(socket.SHUT_WR)
        await trio.sleep_forever()


class Pump:
    """One direction. Nothing is changed, and nothing is waited for but that the other side takes it."""

    def __init__(self, source: MessageSocket, target: Outlet, tap: Tap) -> None:
        self._source = source
        self._target = target
        self._tap = tap

    async def run(self) -> None:
        """Pass on what comes until the source ends. Raises as :func:`receive`."""
        while count := await receive(self._source):
            self.pass_on(self._source.view[:count])
            await self._target.flush()

    def pass_on(self, data: memoryview) -> None:
        """Send what was read. The fds go with the message that they came with.

        The kernel may have put other messages in front of it, and readers that take no more than a header at a
        time would find the fds with the first of these.
        """
        with ReceivedFds(self._source.take_fds()) as fds:
            begin = self._tap.take(data, fds.numbers)
            if fds and begin:
                self._target.send(data[:begin])
                data = data[begin:]
            self._target.send(data, fds.numbers)
        self._tap.record()


async def first_to_end(**parts: Callable[[], Awaitable[None]]) -> str:
    """Run all parts until one of them returns; the others are cancelled. The name of the one."""
    ended: list[str] = []

    async def run(name: str, part: Callable[[], Awaitable[None]]) -> None:
        await part()
        ended.append(name)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for name, part in parts.items():
            nursery.start_soon(run, name, part)
    return ended[0]
