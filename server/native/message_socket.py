"""A non-blocking UNIX stream socket that carries bytes and fds, and spins a little before it sleeps.

Waking a task up costs more than the Python that serves a register access, so while accesses follow each other
closely the reader polls the socket for a moment before it waits. The moment adapts: it is as long as
:data:`SPIN_NS` while polling pays, halves each time that it did not, and is nothing on a quiet line.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections import deque
from collections.abc import Sequence

import trio

RECEIVE_SIZE = 256 * 1024
"""Bytes taken from the kernel at a time, at most."""
SPIN_NS = 60_000
"""Longest time that a reader polls before it sleeps."""
SPIN_MIN_NS = 4_000
"""Below this, polling is not worth a call."""
BUSY_GAP_NS = 300_000
"""Messages that come closer than this make the line a busy one."""

_FD_SIZE = array.array("i").itemsize
_FLAGS = socket.MSG_CMSG_CLOEXEC


class TooManyFds(OSError):  # noqa: N818 - the peer's fault
    """The peer sent more fds with one message than were negotiated."""


class MessageSocket:
    """Owns a connected socket. One task reads; replies are written at once where the kernel has room."""

    def __init__(self, sock: socket.socket, max_fds: int) -> None:
        """Take ``sock`` over; ``max_fds`` is how many fds one message may bring."""
        sock.setblocking(False)
        self.sock = sock
        self.view = memoryview(bytearray(RECEIVE_SIZE))
        self.fds: list[int] = []
        """Fds of the last read, until somebody takes them."""
        self._buffers = [self.view]
        self._ancillary_size = socket.CMSG_SPACE(max_fds * _FD_SIZE)
        self._outgoing: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._spin_ns = 0
        self._flushers = trio.lowlevel.ParkingLot()

    def fileno(self) -> int:
        """The socket's fd."""
        return self.sock.fileno()

    def receive(self) -> int:
        """Read into :attr:`view`: bytes read, 0 at the end of the stream, -1 when there is nothing.

        Fds that came are in :attr:`fds`. Raises TooManyFds, and OSError (the peer went away).
        """
        try:
            count, ancillary, flags, _ = self.sock.recvmsg_into(self._buffers, self._ancillary_size, _FLAGS)
        except BlockingIOError:
            return -1
        if ancillary:
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(data[: len(data) - len(data) % _FD_SIZE])
                    self.fds.extend(received)
        if flags & socket.MSG_CTRUNC:
            raise TooManyFds("the peer sent more file descriptors with a message than it may")
        return count

    def take_fds(self) -> list[int]:
        """The fds of the last read; whoever takes them closes them."""
        fds, self.fds = self.fds, []
        return fds

    def receive_spinning(self) -> int:
        """As :meth:`receive`, but poll for a moment if the line is busy."""
        spin = self._spin_ns
        if spin < SPIN_MIN_NS:
            return -1
        deadline = time.monotonic_ns() + spin
        while True:
            count = self.receive()
            if count >= 0:
                self._spin_ns = SPIN_NS
                return count
            if time.monotonic_ns() >= deadline:
                self._spin_ns = spin // 2
                return -1

    async def wait_readable(self) -> None:
        """Sleep until there is something to read."""
        before = time.monotonic_ns()
        await trio.lowlevel.wait_readable(self.sock)
        if time.monotonic_ns() - before < BUSY_GAP_NS:
            self._spin_ns = SPIN_NS

    def send(self, data: memoryview | bytes, fds: Sequence[int] = ()) -> None:
        """Send ``data``, at once if possible; what the kernel does not take waits for :meth:`flush`.

        ``data`` may be reused when this returns; ``fds`` stay the caller's.
        """
        if not self._outgoing:
            try:
                if fds:
                    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = self.sock.sendmsg([data], ancillary)
                else:
                    sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            if sent:
                fds = ()
            data = data[sent:]
        self._outgoing.append((memoryview(bytes(data)), tuple(os.dup(fd) for fd in fds)))
        self._flushers.unpark_all()

    @property
    def congested(self) -> bool:
        """True while replies wait for the peer to read."""
        return bool(self._outgoing)

    async def flush(self) -> None:
        """Wait until everything has been handed to the kernel."""
        while self._outgoing:
            await trio.lowlevel.wait_writable(self.sock)
            data, fds = self._outgoing.popleft()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.sock.sendmsg([data], ancillary)
            except BlockingIOError:
                self._outgoing.appendleft((data, fds))
                continue
            except BaseException:
                _close_all(fds)
                raise
            _close_all(fds)
            if sent < len(data):
                self._outgoing.appendleft((data[sent:], ()))

    async def keep_flushing(self) -> None:
        """Flush whenever there is something to flush, for a socket whose reader sleeps. Raises OSError."""
        while True:
            if self.congested:
                await self.flush()
            else:
                await self._flushers.park()

    def close(self) -> None:
        """Close the socket, the fds that nobody took, and those that were still to be sent."""
        _close_all(self.take_fds())
        while self._outgoing:
            _close_all(self._outgoing.popleft()[1])
        self.sock.close()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
