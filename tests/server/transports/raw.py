"""A client that sends whatever a test makes up, and reads whole messages."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from protocol import (
    HEADER_SIZE,
    Capabilities,
    Command,
    Header,
    Message,
    MessageType,
    Version,
    encode,
    encode_request,
)
from protocol.codec import PackableRequest
from server.fds import ReceivedFds

CAPABILITIES = Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20, write_multiple=True)


class RawClient:
    """A connected socket. Replies are read byte by byte exactly, so that fds are their message's."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock

    async def send(self, data: bytes | memoryview, fds: Sequence[int] = ()) -> None:
        """Send all of ``data``; the fds go with its first part, and stay the caller's."""
        rest = memoryview(data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while rest:
            rest = rest[await self.sock.sendmsg([rest], ancillary) :]
            ancillary = []

    async def command(
        self, value: PackableRequest, fds: Sequence[int] = (), *, message_id: int = 7, no_reply: bool = False
    ) -> None:
        """Send a request; do not wait."""
        await self.send(encode_request(message_id, value, no_reply=no_reply), fds)

    async def ask(self, value: PackableRequest, fds: Sequence[int] = (), *, message_id: int = 7) -> Message:
        """Send a request and read one message."""
        await self.command(value, fds, message_id=message_id)
        return await self.message()

    async def ask_raw(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """Send a request made up by hand, and read one message."""
        await self.send(encode(7, command, MessageType.COMMAND, payload), fds)
        return await self.message()

    async def refusal(self, value: PackableRequest, fds: Sequence[int] = ()) -> int:
        """The errno of the error reply to a request."""
        return error_of(await self.ask(value, fds))

    async def message(self) -> Message:
        """The next message."""
        header, fds = await self._exactly(HEADER_SIZE)
        fields = Header.unpack(header)
        payload, more = await self._exactly(fields.size - HEADER_SIZE)
        return Message(fields, memoryview(payload), tuple(fds + more))

    async def ended(self) -> bool:
        """True when the server has closed the connection, with nothing more to read."""
        try:
            return await self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    async def ends(self) -> bool:
        """True when the server closes the connection, whatever it still says before that."""
        while not await self.ended():
            pass
        return True

    async def say_version(self, capabilities: Capabilities | None = CAPABILITIES) -> Message:
        """The handshake."""
        return await self.ask(Version(0, 1, capabilities))

    async def _exactly(self, count: int) -> tuple[bytes, list[int]]:
        data = bytearray()
        fds: list[int] = []
        while len(data) < count:
            part, ancillary, _, _ = await self.sock.recvmsg(count - len(data), socket.CMSG_SPACE(16 * 4))
            for _, _, raw in ancillary:
                received = array.array("i")
                received.frombytes(raw)
                fds.extend(received)
            if not part:
                raise ConnectionResetError("the server closed the connection")
            data += part
        return bytes(data), fds


def error_of(message: Message) -> int:
    """The errno of an error reply; the test fails on any other message.

    It may have a payload, which means nothing.
    """
    assert message.header.is_reply
    assert message.header.is_error
    return message.header.error


@asynccontextmanager
async def raw_client(path: Path) -> AsyncIterator[RawClient]:
    """Connect, and say nothing."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        await sock.connect(os.fspath(path))
        yield RawClient(sock)


@asynccontextmanager
async def greeted_client(
    path: Path, capabilities: Capabilities | None = CAPABILITIES
) -> AsyncIterator[RawClient]:
    """Connect and say VERSION."""
    async with raw_client(path) as client:
        reply = await client.say_version(capabilities)
        with ReceivedFds(reply.fds):
            assert reply.header.command == Command.VERSION
            assert not reply.header.is_error
        yield client
