"""A server that records in the test's own process, and a client that keeps what it sends and receives."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from protocol import HEADER, Capabilities, Command, Message, TwinSocket
from protocol.trace import SessionInfo
from server.fds import ReceivedFds
from server.trace.fd_facts import FdFacts, fd_facts
from server.trace.recording import Recording
from server.trace.ring import TraceRing
from tests.server.register_device import PAGE, RegisterDevice
from tests.server.running import Server, running_server, with_transport
from tests.server.trace.test_recorder import Seen, seen_in
from tests.server.transports.raw import RawClient, raw_client

INFO = SessionInfo("tests", memory=True, interrupts=True)
DOORBELL = 0x10
CAPABILITIES = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, write_multiple=True)
TWIN = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, twin_socket=TwinSocket(supported=True))
STUCK_SECONDS = 120


@dataclass
class Log:
    """What a client has sent and received."""

    sent: bytearray = field(default_factory=bytearray)
    sent_fds: list[FdFacts] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    received_fds: list[FdFacts] = field(default_factory=list)


class WatchedClient(RawClient):
    """Keeps all that it sends and receives."""

    def __init__(self, sock: trio.socket.SocketType, log: Log) -> None:
        super().__init__(sock)
        self.log = log

    async def send(self, data: bytes | memoryview, fds: Sequence[int] = ()) -> None:
        self.log.sent += data
        self.log.sent_fds += map(fd_facts, fds)
        await super().send(data, fds)

    async def message(self) -> Message:
        message = await super().message()
        self.log.received.append(message.header.pack() + bytes(message.payload))
        self.log.received_fds += map(fd_facts, message.fds)
        return message


@asynccontextmanager
async def watched_client(path: Path, log: Log) -> AsyncIterator[WatchedClient]:
    async with raw_client(path) as client:
        yield WatchedClient(client.sock, log)


@dataclass(frozen=True)
class Bed:
    """A device with a server that records; the trace is whole when :meth:`recorded` has ended."""

    device: RegisterDevice
    transport: str
    trace: Path

    @asynccontextmanager
    async def recorded(self) -> AsyncIterator[Server]:
        ring = TraceRing(self.trace)
        options = with_transport(self.transport, recording=Recording(ring, INFO))
        try:
            async with running_server(self.device, options) as server:
                yield server
                await trio.testing.wait_all_tasks_blocked()
        finally:
            ring.close()

    @property
    def seen(self) -> list[Seen]:
        return seen_in(self.trace)

    def check(self, log: Log) -> None:
        """The trace has what the client has sent and received, byte for byte, with the facts of all fds."""
        messages = [one for one in self.seen if one[0] == "message"]
        for direction, data, fds in (
            (1, bytes(log.sent), log.sent_fds),
            (2, b"".join(log.received), log.received_fds),
        ):
            some = [one for one in messages if one[1] == direction]
            assert b"".join(one[2] for one in some) == data
            assert [facts for one in some for facts in one[3].fds] == fds
        assert [one[2] for one in messages if one[1] == 2] == log.received


@contextmanager
def guest_memory(size: int = 4 * PAGE) -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, os.urandom(size), 0)
    with ReceivedFds([fd]):
        yield fd


def kinds(seen: Sequence[Seen]) -> list[str]:
    """What there is, in order; of messages the command, and "reply" where it is one."""
    names = []
    for one in seen:
        name = one[0]
        if name == "message":
            _, command, _, flags, _ = HEADER.unpack_from(one[2])
            name = Command(command).name + (" reply" if flags & 1 else "")
        names.append(name)
    return names
