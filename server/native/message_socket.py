"""A non-blocking UNIX stream socket that carries bytes and fds, and tries not to sleep while messages are coming.

Going to sleep in the event loop and being woken costs more than the Python that serves a register access. So while
messages follow each other closely, the reader first polls the socket for a moment, and then waits for it outside of
the event loop, for a millisecond at most. Polling avoids the cost of waking up, but it takes a CPU: it halves each
time that it found nothing, stops for a while when the scheduler took the CPU away meanwhile (somebody else needs it,
perhaps the very client), and is nothing on a quiet line.
"""

from __future__ import annotations

import array
import errno
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

import trio

from protocol import ProtocolError
from server.fds import ReceivedFds

RECEIVE_SIZE = 256 * 1024
"""Bytes taken from the kernel at a time, at most."""
SPIN_NS = 60_000
"""Longest time that a reader polls."""
WORTH_SPINNING_NS = 100_000
"""A wait in poll() that was over sooner, waking up included, would have been shorter without sleeping."""
SPIN_MIN_NS = 4_000
"""Below this, polling is not worth a call."""
PREEMPTED_NS = 200_000
"""One look at the socket that takes longer was interrupted by the scheduler."""
CROWDED_NS = 20_000_000
"""How long the reader does without polling after it was interrupted."""
PATIENCE_MS = 1
"""How long the reader waits outside of the event loop; other tasks stand still as long."""
BUSY_GAP_NS = 2_000_000
"""Messages that come closer than this make the line a busy one."""

_FD_SIZE = array.array("i").itemsize
_FLAGS = socket.MSG_CMSG_CLOEXEC


class MessageSocket:
    """Owns a connected socket. One task reads; replies are written at once where the kernel has room."""

    def __init__(self, sock: socket.socket, max_fds: int) -> None:
        """Take ``sock`` over; ``max_fds`` is how many fds one message may bring."""
        sock.setblocking(False)
        self.sock = sock
        self.view = memoryview(bytearray(RECEIVE_SIZE))
        self.fds: list[int] = []
        """Fds of the last read, until somebody takes them."""
        self.cut_off = 0
        """Bytes of the read whose fds were too many."""
        self.polls = True
        """Whether :meth:`receive_soon` may wait outside of the event loop: not for a peer that is in it itself."""
        self._buffers = [self.view]
        self._ancillary_size = socket.CMSG_SPACE(max_fds * _FD_SIZE)
        self._outgoing: deque[tuple[memoryview, ReceivedFds]] = deque()
        self._busy = False
        self._spin_ns = 0
        self._crowded_until = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._flushers = trio.lowlevel.ParkingLot()

    def fileno(self) -> int:
        """The socket's fd."""
        return self.sock.fileno()

    def receive(self) -> int:
        """Read into :attr:`view`: bytes read, 0 at the end of the stream, -1 when there is nothing.

        Fds that came are in :attr:`fds`. Raises ProtocolError (too many fds), and OSError (the peer went away).
        """
        return self._read(self._buffers)

    def take(self, limit: int) -> int:
        """As :meth:`receive`, but ``limit`` bytes at most."""
        return self._read([self.view[:limit]])

    def _read(self, buffers: list[memoryview]) -> int:
        try:
            count, ancillary, flags, _ = self.sock.recvmsg_into(buffers, self._ancillary_size, _FLAGS)
        except BlockingIOError:
            return -1
        if ancillary:
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(data[: len(data) - len(data) % _FD_SIZE])
                    self.fds.extend(received)
        if flags & socket.MSG_CTRUNC:
            self.cut_off = count
            raise ProtocolError(errno.EINVAL, "more file descriptors with a message than were negotiated")
        return count

    def take_fds(self) -> list[int]:
        """The fds of the last read; whoever takes them closes them."""
        fds, self.fds = self.fds, []
        return fds

    def receive_soon(self) -> int:
        """As :meth:`receive`, but if the line is busy, wait a moment for what is about to come."""
        if not self._busy:
            return -1
        count = self._spin() if self._spin_ns >= SPIN_MIN_NS else -1
        if count < 0:
            before = time.monotonic_ns()
            if self._poll.poll(PATIENCE_MS):
                count = self.receive()
                if time.monotonic_ns() - before < WORTH_SPINNING_NS:
                    self._spin_ns = SPIN_NS
        self._busy = count >= 0
        return count

    def _spin(self) -> int:
        before = time.monotonic_ns()
        if before < self._crowded_until:
            return -1
        deadline = before + self._spin_ns
        while True:
            count = self.receive()
            if count >= 0:
                self._spin_ns = SPIN_NS
                return count
            now = time.monotonic_ns()
            if now - before > PREEMPTED_NS:
                self._crowded_until = now + CROWDED_NS
                return -1
            if now >= deadline:
                self._spin_ns //= 2
                return -1
            before = now

    async def wait_readable(self) -> None:
        """Sleep until there is something to read."""
        before = time.monotonic_ns()
        await trio.lowlevel.wait_readable(self.sock)
        if time.monotonic_ns() - before < BUSY_GAP_NS:
            self._busy = self.polls
            self._spin_ns = SPIN_NS

    def send(self, data: memoryview | bytes, fds: Sequence[int] = ()) -> None:
        """Send ``data``, at once if possible; what the kernel does not take waits for :meth:`flush`.

        ``data`` may be reused when this returns; ``fds`` stay the caller's. Raises OSError.
        """
        if not self._outgoing:
            try:
                sent = self.sock.sendmsg([data], _rights(fds)) if fds else self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == len(data):
                return
            if sent:
                fds = ()
            data = data[sent:]
        self._outgoing.append((memoryview(bytes(data)), ReceivedFds(fds).duplicates()))
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
            try:
                sent = self.sock.sendmsg([data], _rights(fds.numbers))
            except BlockingIOError:
                self._outgoing.appendleft((data, fds))
                continue
            except BaseException:
                fds.close()
                raise
            fds.close()
            if sent < len(data):
                self._outgoing.appendleft((data[sent:], fds))

    async def keep_flushing(self) -> None:
        """Flush whenever there is something to flush, for a socket whose reader sleeps. Raises OSError."""
        while True:
            if self.congested:
                await self.flush()
            else:
                await self._flushers.park()

    def close(self) -> None:
        """Close the socket, the fds that nobody took, and those that were still to be sent."""
        ReceivedFds(self.take_fds()).close()
        while self._outgoing:
            self._outgoing.popleft()[1].close()
        self.sock.close()


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
