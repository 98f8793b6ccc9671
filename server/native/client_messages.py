"""Requests that the server sends to its client: DMA_READ and DMA_WRITE, for memory that was not shared."""

from __future__ import annotations

import errno

from devices.contract import Log
from devices.work import ReadMessage
from protocol import (
    HEADER_SIZE,
    DmaRead,
    DmaReadReply,
    DmaWrite,
    DmaWriteReply,
    Header,
    Message,
    ProtocolError,
)
from server.native.message_socket import MessageSocket
from server.work_queue import MessageRequest, WorkQueue

MESSAGE_ID_LIMIT = 1 << 16


class ClientMessages:
    """Sends the requests of one session's work, and matches replies by message id.

    Work runs in order, so one request is under way at a time; a client that never answers stops its own device only.
    """

    def __init__(self, channel: MessageSocket, log: Log) -> None:
        """``channel`` is the twin socket, or the client's one socket."""
        self.work = WorkQueue(self._send, log)
        self.sent = 0
        self._channel = channel
        self._next_id = 0
        self._pending: tuple[int, DmaRead | DmaWrite] | None = None

    def _send(self, request: MessageRequest) -> None:
        message_id = self._next_id
        self._next_id = (message_id + 1) % MESSAGE_ID_LIMIT
        message: DmaRead | DmaWrite
        if isinstance(request, ReadMessage):
            message = DmaRead(request.address, request.length)
        else:
            message = DmaWrite(request.address, request.data)
        payload = message.pack()
        header = Header(message_id, message.command, HEADER_SIZE + len(payload))
        self._pending = (message_id, message)
        self.sent += 1
        try:
            self._channel.send(header.pack() + payload)
        except OSError:
            self.disconnected()

    def take_reply(self, message: Message) -> None:
        """The client's reply: the work that asked can go on. Raises ProtocolError for a reply nobody asked for."""
        header = message.header
        if self._pending is None or self._pending[0] != header.message_id:
            raise ProtocolError(
                errno.EINVAL, f"a reply to message {header.message_id}, which is not under way"
            )
        request = self._pending[1]
        if header.command != request.command:
            raise ProtocolError(errno.EINVAL, f"message {header.message_id} was answered as another command")
        self._pending = None
        if header.is_error:
            self.work.fail(header.error or errno.EIO, f"the client refused {request.address:#x}")
        else:
            self._take_answer(request, message)

    def disconnected(self) -> None:
        """The channel is closed: no reply will come."""
        if self._pending is not None:
            self._pending = None
            self.work.fail(errno.ENODEV, "the client closed the socket for requests to it")

    def _take_answer(self, request: DmaRead | DmaWrite, message: Message) -> None:
        answer: DmaReadReply | DmaWriteReply
        if isinstance(request, DmaRead):
            answer = DmaReadReply.unpack(message.payload)
            complete = answer.answers(request)
        else:
            answer = DmaWriteReply.unpack(message.payload)
            complete = answer.answers(request)
        if not complete:
            self.work.fail(
                errno.EIO, f"the client answered {request.command.name} of {request.address:#x} in part"
            )
        else:
            self.work.resume(answer.data if isinstance(answer, DmaReadReply) else None)
