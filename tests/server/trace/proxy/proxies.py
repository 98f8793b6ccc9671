"""A recording proxy in the test's own process, and what it has recorded."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from protocol import HEADER_SIZE, Capabilities, Command, TwinSocket, Version, encode_reply
from protocol.pcapng import Direction
from protocol.trace import Event
from server.socket_path import listen_at
from server.trace.proxy.proxy import serve_proxy
from server.trace.reader import Traced, TracedEvents, TracedMessage, TracedSession, TraceReader
from server.trace.ring import TraceRing
from tests.server.transports.raw import RawClient, raw_client

FROM_CLIENT, FROM_SERVER = Direction.INBOUND, Direction.OUTBOUND


@dataclass(frozen=True, slots=True)
class Proxy:
    """Listens at ``path``. The trace has all messages so far, and all events when the client has left."""

    path: Path
    ring: TraceRing

    def recorded(self) -> list[Traced]:
        self.ring.flush()
        with TraceReader(self.ring.path) as reader:
            return list(reader)

    def sessions(self) -> list[TracedSession]:
        return [one for one in self.recorded() if isinstance(one, TracedSession)]

    def messages(self, command: Command | None = None) -> list[TracedMessage]:
        """All messages, or those of one command."""
        messages = [one for one in self.recorded() if isinstance(one, TracedMessage)]
        return [one for one in messages if command is None or one.header.command == command]

    def events(self) -> list[Event]:
        return [event for one in self.recorded() if isinstance(one, TracedEvents) for event in one.events]


@asynccontextmanager
async def running_proxy(
    server: Path, folder: Path, *, full: bool, once: bool = False
) -> AsyncIterator[Proxy]:
    """Stand in front of the server at ``server`` until the block ends; the trace stays in ``folder``."""
    ring = TraceRing(folder / "trace")
    proxy = Proxy(folder / "proxy", ring)
    try:
        with listen_at(proxy.path) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(serve_proxy, listener, server, ring, full=full, once=once))
                yield proxy
                nursery.cancel_scope.cancel()
    finally:
        ring.close()


@dataclass(frozen=True, slots=True)
class Pair:
    """A client and a server that a test plays by hand, with the proxy between them."""

    proxy: Proxy
    client: RawClient
    server: RawClient


@asynccontextmanager
async def proxied_pair(folder: Path, *, full: bool) -> AsyncIterator[Pair]:
    """Connect a client to a server by way of a proxy; both read exactly a header, and exactly a payload."""
    with listen_at(folder / "server") as listening:
        listening.setblocking(False)
        listener = trio.socket.from_stdlib_socket(listening)
        async with (
            running_proxy(folder / "server", folder, full=full) as proxy,
            raw_client(proxy.path) as client,
        ):
            with trio.fail_after(60):
                accepted, _ = await listener.accept()
            with accepted:
                yield Pair(proxy, client, RawClient(accepted))


async def open_twin(pair: Pair) -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    """Have the two agree on a twin socket: the client's end, and the server's."""
    servers, given = trio.socket.socketpair()
    await pair.client.command(
        Version(0, 1, Capabilities(max_msg_fds=8, twin_socket=TwinSocket(supported=True)))
    )
    request = await pair.server.message()
    twin = Capabilities(twin_socket=TwinSocket(supported=True, fd_index=0))
    reply = encode_reply(request.header.message_id, Command.VERSION, Version(0, 1, twin))
    await pair.server.send(reply, [given.fileno()])
    version = await pair.client.message()
    assert version.payload == reply[HEADER_SIZE:]
    assert not same_file(version.fds[0], given.fileno())
    given.close()
    return trio.socket.from_stdlib_socket(socket.socket(fileno=version.fds[0])), servers


def send_at_once(client: RawClient, *parts: tuple[bytes, list[int]]) -> None:
    """Send several segments, each with its fds, so that a reader finds them all in the socket."""
    with socket.socket(fileno=os.dup(client.sock.fileno())) as sock:
        for data, fds in parts:
            if fds:
                assert socket.send_fds(sock, [data], fds) == len(data)
            else:
                sock.sendall(data)


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))
