"""What ``serve --trace`` adds to a connection: a socket that records, and the recorder behind it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

import trio

from protocol import HEADER, HEADER_SIZE, Decoder, Message, ProtocolError, max_message_size
from protocol.pcapng import Direction
from protocol.trace import SessionInfo
from server.native.message_socket import MessageSocket
from server.trace.fd_facts import message_facts
from server.trace.recorder import Recorder
from server.trace.ring import TraceRing

FLUSH_SECONDS = 0.5
"""What a server that is killed may have recorded in vain."""


class Recording:
    """Where sessions are recorded, and what the trace says about them."""

    def __init__(self, ring: TraceRing, info: SessionInfo) -> None:
        """``ring`` stays the caller's."""
        self._ring = ring
        self._info = info
        self._active: Recorder | None = None

    @property
    def ring(self) -> TraceRing:
        """The files that are written."""
        return self._ring

    def make_socket(self, client: socket.socket, max_fds: int, max_data: int) -> RecordingSocket:
        """Take a connected client over, for a session of its own; messages have ``max_data`` bytes of data."""
        return RecordingSocket(client, max_fds, Recorder(self._ring, self._info), max_data)

    def start(self, recorder: Recorder, *, areas: bool = False) -> None:
        """The client of ``recorder`` has the device: this is the session that is written.

        ``areas``: whether the device has some that the client may map.
        """
        self._active = recorder
        recorder.info = replace(recorder.info, areas=areas)
        recorder.start()

    def finish(self, recorder: Recorder) -> None:
        """The connection has ended. One that never had the device is written if that is in nobody's way."""
        if self._active is recorder:
            self._active = None
        if self._active is None and recorder.messages:
            recorder.start()
        recorder.flush()


async def keep_flushing(recorder: Recorder) -> None:
    """See to it that what was recorded is in the file before long."""
    while True:
        await trio.sleep(FLUSH_SECONDS)
        recorder.flush()


class RecordingSocket(MessageSocket):
    """A :class:`MessageSocket` that tells a recorder of every whole message."""

    def __init__(
        self, sock: socket.socket, max_fds: int, recorder: Recorder, max_data: int, *, twin: bool = False
    ) -> None:
        super().__init__(sock, max_fds)
        self.recorder = recorder
        self._max_data = max_data
        self._twin = twin
        self._comment = message_facts((), twin=twin)
        self._received = Decoder(max_message_size(max_data), max_fds)
        self._broken = False

    def twin(self, sock: socket.socket) -> RecordingSocket:
        """The socket for requests to the client, recorded as well."""
        return RecordingSocket(sock, 0, self.recorder, self._max_data, twin=True)

    def _read(self, buffers: list[memoryview]) -> int:
        try:
            count = super()._read(buffers)
        except ProtocolError as error:
            self._break_off(error.reason, bytes(self.view[: self.cut_off]))
            raise
        if count > 0 and not self._broken:
            self._record(self.view[:count])
        return count

    def _record(self, data: memoryview) -> None:
        received = self._received
        if not self.fds and received.idle and len(data) >= HEADER_SIZE:
            _, _, size, _, _ = HEADER.unpack_from(data)
            if size == len(data):
                self.recorder.message(Direction.INBOUND, data, self._comment)
                return
        received.feed(bytes(data), self.fds)
        try:
            for message in received:
                self.recorder.message(Direction.INBOUND, whole(message), self._said_of(message.fds))
        except ProtocolError as error:
            self._break_off(error.reason)  # and so does the connection

    def _break_off(self, reason: str, more: bytes = b"") -> None:
        """What has come and is no message; ``more`` was not fed to the decoder."""
        if self._broken:
            return
        self._broken = True
        received = self._received
        fds = [*received.take_fds(), *(self.fds if more else ())]
        self.recorder.malformed(Direction.INBOUND, received.rest + more, reason, self._said_of(fds))

    def _said_of(self, fds: Sequence[int]) -> str:
        return message_facts(fds, twin=self._twin) if fds else self._comment

    def close(self) -> None:
        """As the base class; a message that has not ended is recorded as what is none, unless it was the first."""
        if self._received.in_message and self.recorder.messages:
            self._break_off("the connection ended in the middle of a message")
        super().close()

    def send(self, data: memoryview | bytes, fds: Sequence[int] = ()) -> None:
        """As the base class. ``data`` is one whole message."""
        self.recorder.message(Direction.OUTBOUND, data, self._said_of(fds))
        super().send(data, fds)


def whole(message: Message) -> bytes:
    """The bytes of a message."""
    return HEADER.pack(*message.header) + bytes(message.payload)
