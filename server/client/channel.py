"""Whole messages out of a socket, and into it, for one reader and any number of writers."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from protocol import Decoder, Message
from server.fds import ReceivedFds
from server.native.message_socket import MessageSocket


class Channel:
    """Owns a connected socket. One task calls :meth:`receive`; any task may send."""

    def __init__(self, sock: socket.socket, max_size: int, max_fds: int) -> None:
        """Take ``sock`` over. Messages of more than ``max_size`` bytes or ``max_fds`` fds are refused."""
        self._socket = MessageSocket(sock, max_fds)
        self._decoder = Decoder(max_size, max_fds)
        self._flushing = trio.Lock()

    async def receive(self) -> Message | None:
        """The next message, whose fds are the caller's from here on; None at the end of the stream.

        Raises ProtocolError and OSError.
        """
        while (message := self._decoder.next_message()) is None:
            count = self._socket.receive()
            if count < 0:
                await self._socket.wait_readable()
            elif count == 0:
                return None
            else:
                self._decoder.feed(bytes(self._socket.view[:count]), self._socket.take_fds())
        return message

    def queue(self, data: bytes, fds: Sequence[int] = ()) -> bool:
        """Send what the kernel takes, and keep the rest; True where :meth:`flush` is needed. Raises OSError."""
        self._socket.send(data, fds)
        return self._socket.congested

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send a whole message, and wait until the kernel has taken it. ``fds`` stay the caller's."""
        if self.queue(data, fds):
            await self.flush()

    async def flush(self) -> None:
        """Wait until the kernel has taken everything. Raises OSError."""
        async with self._flushing:
            await self._socket.flush()

    def close(self) -> None:
        """Close the socket, and every fd that came with a message which nobody took."""
        ReceivedFds(self._decoder.take_fds()).close()
        self._socket.close()
