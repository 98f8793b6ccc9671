"""Requests to a server and their replies, matched by message id; and answers to the server's own requests."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Protocol

import trio

from protocol import (
    Agreement,
    Command,
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    Message,
    MessageType,
    ProtocolError,
    decode_request,
    encode,
    encode_error,
    encode_reply,
)
from protocol.codec import PackableRequest
from protocol.header import FLAG_NO_REPLY
from server.client.channel import Channel
from server.fds import ReceivedFds

MESSAGE_IDS = 1 << 16


class RemoteError(OSError):
    """The server refused a request: ``errno`` is what its reply said, EIO where it did not say why."""

    def __init__(self, command: int, code: int) -> None:
        code = code or errno.EIO
        name = Command(command).name if command in Command.__members__.values() else f"command {command}"
        super().__init__(code, f"the server refused {name}: {os.strerror(code)}")
        self.command = command


class ClientMemory(Protocol):
    """The memory that the server reaches by message. An OSError becomes an error reply with its errno."""

    def read(self, address: int, count: int) -> bytes:
        """Exactly ``count`` bytes at DMA address ``address``."""

    def write(self, address: int, data: bytes) -> None:
        """Put ``data`` at DMA address ``address``."""


class PendingReply:
    """A request that is under way."""

    __slots__ = ("_done", "_failure", "_message")

    def __init__(self) -> None:
        self._done = trio.Event()
        self._message: Message | None = None
        self._failure: Exception | None = None

    async def wait(self) -> Message:
        """The reply, once; its fds are the caller's from here on.

        Raises RemoteError for an error reply, ConnectionError when the connection has ended, ProtocolError when
        the server has broken the protocol.
        """
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        message, self._message = self._message, None
        if message is None:
            raise RuntimeError("this reply was taken already")
        return message

    def settle(self, outcome: Message | Exception) -> None:
        """The reply came, or will not come."""
        if isinstance(outcome, Exception):
            self._failure = outcome
        else:
            self._message = outcome
        self._done.set()

    def holds_message(self) -> bool:
        """Whether the reply came, and nobody has taken it."""
        return self._message is not None

    def close(self) -> None:
        """Close the fds of a reply that nobody took."""
        if self._message is not None:
            ReceivedFds(self._message.fds).close()
            self._message = None


class Requests:
    """A connection that has said VERSION."""

    def __init__(
        self, channel: Channel, agreement: Agreement, memory: ClientMemory | None, nursery: trio.Nursery
    ) -> None:
        """``nursery`` runs what the connection needs to have sent; ``memory`` answers the server."""
        self.agreement = agreement
        self._channel = channel
        self._memory = memory
        self._nursery = nursery
        self._pending: dict[int, PendingReply] = {}
        self._unclaimed: list[PendingReply] = []
        self._next_id = 0
        self._failure: Exception | None = None

    async def submit(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> PendingReply:
        """Send a request, and do not wait for its reply: that is :meth:`PendingReply.wait`'s.

        Raises ConnectionError when the connection has ended, ProtocolError when the server broke the protocol,
        OSError (EBUSY) where every message id is under way.
        """
        message_id = self._free_id()
        pending = self._pending[message_id] = PendingReply()
        try:
            await self._send(encode(message_id, command, MessageType.COMMAND, payload), fds)
        except OSError:
            self._pending.pop(message_id, None)
            raise
        return pending

    async def request(self, value: PackableRequest, fds: Sequence[int] = ()) -> Message:
        """Send a request, and wait for the reply, whose fds are the caller's. Raises as :class:`PendingReply`."""
        pending = await self.submit(value.command, value.pack(), fds)
        return await pending.wait()

    async def post(self, value: PackableRequest, fds: Sequence[int] = ()) -> None:
        """Send a request that the server does not reply to, whatever comes of it."""
        flags = MessageType.COMMAND | FLAG_NO_REPLY
        await self._send(encode(self._free_id(), value.command, flags, value.pack()), fds)

    async def serve(self, channel: Channel) -> None:
        """Take what comes on ``channel`` until it ends; the twin socket has its own call."""
        failure: Exception = ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        try:
            while (message := await channel.receive()) is not None:
                self._take(channel, message)
        except (ProtocolError, OSError) as error:
            failure = error
        if channel is self._channel or isinstance(failure, ProtocolError):
            self._fail(failure)

    def close(self) -> None:
        """Let go of everything that nobody took; requests under way fail."""
        self._fail(ConnectionAbortedError(errno.ECONNABORTED, "the client was closed"))
        for pending in self._unclaimed:
            pending.close()

    def _free_id(self) -> int:
        if self._failure is not None:
            raise self._failure
        if len(self._pending) >= MESSAGE_IDS:
            raise OSError(errno.EBUSY, f"{MESSAGE_IDS} requests are under way")
        while self._next_id in self._pending:
            self._next_id = (self._next_id + 1) % MESSAGE_IDS
        message_id = self._next_id
        self._next_id = (message_id + 1) % MESSAGE_IDS
        return message_id

    async def _send(self, message: bytes, fds: Sequence[int]) -> None:
        await self._channel.send(message, fds)

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        while self._pending:
            _, pending = self._pending.popitem()
            pending.settle(self._failure)

    def _take(self, channel: Channel, message: Message) -> None:
        header = message.header
        if not header.is_reply:
            with ReceivedFds(message.fds) as fds:
                self._answer(channel, message, len(fds))
            return
        pending = self._pending.pop(header.message_id, None)
        if pending is None:
            ReceivedFds(message.fds).close()
            raise ProtocolError(
                errno.EINVAL, f"a reply to message {header.message_id}, which is not under way"
            )
        if header.is_error:
            ReceivedFds(message.fds).close()
            pending.settle(RemoteError(header.command, header.error))
            return
        pending.settle(message)
        if message.fds:
            self._unclaimed = [*filter(PendingReply.holds_message, self._unclaimed), pending]

    def _answer(self, channel: Channel, message: Message, fds: int) -> None:
        header = message.header
        try:
            if fds:
                raise ProtocolError(errno.EINVAL, "fds with a server's request")
            reply = self._access(message)
        except (ProtocolError, OSError) as error:
            answer = encode_error(header.message_id, header.command, error.errno or errno.EIO)
        else:
            answer = encode_reply(header.message_id, header.command, reply)
        if not header.no_reply and channel.queue(answer):
            # A reader that waited here would wait for a server that waits for this reader.
            self._nursery.start_soon(_flush, channel)

    def _access(self, message: Message) -> DmaReadReply | DmaWriteReply:
        request = decode_request(message.header, message.payload)
        if not isinstance(request, (DmaRead, DmaWrite)):
            raise ProtocolError(errno.ENOSYS, f"{request.command.name} is not for clients")
        if self._memory is None:
            raise ProtocolError(errno.EINVAL, "this client has no memory to be reached by message")
        if isinstance(request, DmaWrite):
            self._memory.write(request.address, request.data)
            return DmaWriteReply(request.address, len(request.data))
        if request.count > self.agreement.client_max_data_xfer_size:
            raise ProtocolError(errno.EINVAL, f"a DMA_READ of {request.count} bytes, over max_data_xfer_size")
        return DmaReadReply(request.address, self._memory.read(request.address, request.count))


async def _flush(channel: Channel) -> None:
    try:
        await channel.flush()
    except OSError:
        return  # the reader of this channel hears of its end, too
