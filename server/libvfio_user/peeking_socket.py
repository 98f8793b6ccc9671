"""A message socket whose reader looks at messages, and leaves them for somebody else to read."""

from __future__ import annotations

import array
import fcntl
import select
import socket
import termios

import trio

from server.native.message_socket import MessageSocket

PEEK_SIZE = 4096
"""Bytes that are looked at: all of an ordinary message, or several of them."""

_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class PeekingSocket(MessageSocket):
    """:meth:`receive` fills :attr:`peeked`, and takes nothing away; :meth:`take` does."""

    def __init__(self, sock: socket.socket, max_fds: int) -> None:
        """Take ``sock`` over; ``max_fds`` is how many fds one message may bring."""
        super().__init__(sock, max_fds)
        self.peeked = memoryview(bytearray(PEEK_SIZE))
        self.fds_waiting = False
        """Whether fds came with something that has not been taken, wherever in the stream that is."""
        self._peek_buffers = [self.peeked]
        self._room = select.poll()
        self._room.register(sock, select.POLLOUT)
        self._arrivals: select.epoll | None = None
        self._ended = False

    def receive(self) -> int:
        """Look at what has come: bytes in :attr:`peeked`, 0 at the end of the stream, -1 when there is nothing."""
        try:
            count, _, flags, _ = self.sock.recvmsg_into(self._peek_buffers, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return -1
        # There was no room for fds: none was received, and the kernel says whether there are any.
        self.fds_waiting = bool(flags & socket.MSG_CTRUNC)
        return count

    def available(self) -> int:
        """Bytes that can be read now."""
        answer = array.array("i", [0])
        fcntl.ioctl(self.sock, termios.FIONREAD, answer)
        return answer[0]

    @property
    def writable(self) -> bool:
        """Whether the kernel takes a reply at once: three quarters of the socket's buffer are free then."""
        return bool(self._room.poll(0))

    async def wait_writable(self) -> None:
        """Sleep until the peer has read."""
        await trio.lowlevel.wait_writable(self.sock)

    async def wait_for_more(self, seen: int) -> bool:
        """Sleep until there are more than ``seen`` bytes. False where the stream has ended without.

        A socket with something to read is readable, so what is waited for here are arrivals.
        """
        if self._arrivals is None:
            self._arrivals = select.epoll()
            self._arrivals.register(self.sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        while True:
            for _, events in self._arrivals.poll(0):
                self._ended = self._ended or bool(events & _ENDED)
            if self.available() > seen:
                return True
            if self._ended:
                return False
            await trio.lowlevel.wait_readable(self._arrivals.fileno())

    def close(self) -> None:
        """As the base class does; and forget who is waiting."""
        if self._arrivals is not None:
            self._arrivals.close()
        super().close()
