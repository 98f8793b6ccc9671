"""From reads of a stream socket to whole messages.

A read is a run of bytes and the file descriptors that came with it. It may hold a part of a message, several
messages, or the end of one and the start of the next; file descriptors have no place in the bytes, so a rule
has to say which message they belong to. The kernel ends a stream read behind the segment that carried file
descriptors, but may put earlier segments without any in front of it, so:

    the file descriptors of a read belong to the last message that begins in it; where none begins, to the
    message that was in progress.

That is the last message of which the read held any byte.

Who owns what: file descriptors are plain numbers here, and nothing here closes one. Those of a message belong
to whoever took the message out; all others are still the decoder's until :meth:`Decoder.take_fds` hands them
to the owner of the connection, who closes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from errno import E2BIG, EINVAL
from typing import Final, NamedTuple

from protocol.errors import ProtocolError
from protocol.header import HEADER, HEADER_SIZE, Header
from protocol.wire import Buffer

MESSAGE_ROOM: Final = 64 * 1024
"""Bytes that a message may take beside its max_data_xfer_size bytes of data.

For headers and all that is not bulk data: the JSON of VERSION, the booleans of SET_IRQS, the writes of
REGION_WRITE_MULTI, the ranges of DMA_LOGGING_START.
"""

DEFAULT_MAX_FDS: Final = 16
"""File descriptors per message; as many as QEMU sends at most."""


def max_message_size(max_data_xfer_size: int) -> int:
    """Bytes of the largest message, header included, where ``max_data_xfer_size`` was negotiated."""
    return MESSAGE_ROOM + max_data_xfer_size


class Message(NamedTuple):
    """A whole message. ``payload`` is a view of the bytes that were fed where they held all of it."""

    header: Header
    payload: memoryview
    fds: tuple[int, ...]


class Decoder:
    """Cuts a stream into messages.

        decoder.feed(data, fds)
        for message in decoder:
            ...

    The first message that is out of bounds ends the stream: messages before it still come out, then
    ProtocolError (EINVAL: shorter than a header, or too many file descriptors; E2BIG: too long) is raised,
    now and for ever after, because the place where the next message begins is not known any more.

    Every byte is copied at most once, and only where a message came in several reads. Memory grows with the
    bytes that arrive, never with the size that a peer announces.
    """

    __slots__ = (
        "_error",
        "_messages",
        "_partial",
        "_partial_fds",
        "_stray_fds",
        "max_fds",
        "max_size",
        "refused",
    )

    def __init__(self, max_size: int, max_fds: int = DEFAULT_MAX_FDS) -> None:
        """Start at the first byte of a stream."""
        self.max_size = max_size
        """Bytes of the largest message, header included; may be changed between reads."""
        self.max_fds = max_fds
        """The most file descriptors of one message; may be changed between reads."""
        self._messages: deque[Message] = deque()
        self._partial = bytearray()
        self._partial_fds: tuple[int, ...] = ()
        self._stray_fds: list[int] = []
        self._error: ProtocolError | None = None
        self.refused: Header | None = None
        """The header whose size ended the stream, so that its sender can be told; else None."""

    @property
    def idle(self) -> bool:
        """True when nothing is held: the next read starts with a header."""
        return not self._partial and not self._messages and self._error is None

    @property
    def in_message(self) -> bool:
        """True when a message has begun and not ended; at the end of the stream, it was cut off."""
        return bool(self._partial)

    @property
    def holds_fds(self) -> bool:
        """True when file descriptors came with a message that has begun and not ended."""
        return bool(self._partial_fds)

    @property
    def rest(self) -> bytes:
        """What has come of a message that has not ended, or that ended the stream, and what came in a read with it."""
        return bytes(self._partial)

    @property
    def missing(self) -> int:
        """Bytes until more is known: to the end of the next header, or of the message in progress."""
        have = len(self._partial)
        if have < HEADER_SIZE:
            return HEADER_SIZE - have
        return Header._make(HEADER.unpack_from(self._partial)).size - have

    def feed(self, data: Buffer, fds: Sequence[int] = ()) -> None:
        """Take what one read returned.

        Messages that lie whole in ``data`` are views of it: where its memory is to be reused, be done with
        them first. Does not raise; errors come out of :meth:`next_message`, behind the messages before them.
        """
        if self._error is not None:
            self._stray_fds.extend(fds)
            return
        try:
            self._split(memoryview(data))
        except ProtocolError as error:
            self._error = error
        if fds:
            self._attach(tuple(fds), empty=len(data) == 0)

    def next_message(self) -> Message | None:
        """The next whole message, or None until more is fed. Raises ProtocolError on a broken stream."""
        if self._messages:
            return self._messages.popleft()
        if self._error is not None:
            raise self._error
        return None

    def __iter__(self) -> Iterator[Message]:
        """The whole messages held now; raises like :meth:`next_message`."""
        while (message := self.next_message()) is not None:
            yield message

    def take_fds(self) -> list[int]:
        """For closing down: drop the messages not taken out, and give away every file descriptor held."""
        held = [fd for message in self._messages for fd in message.fds]
        held += self._partial_fds
        held += self._stray_fds
        self._messages.clear()
        self._partial_fds = ()
        self._stray_fds = []
        return held

    def _split(self, view: memoryview) -> None:
        position = self._resume(view) if self._partial else 0
        end = len(view)
        while end - position >= HEADER_SIZE:
            header = Header._make(HEADER.unpack_from(view, position))
            self._check(header, view[position:])
            if end - position < header.size:
                break
            behind = position + header.size
            self._messages.append(Message(header, view[position + HEADER_SIZE : behind], ()))
            position = behind
        self._partial += view[position:]

    def _resume(self, view: memoryview) -> int:
        """Complete the message in progress as far as ``view`` goes; return how much of it that took."""
        partial = self._partial
        position = 0
        if len(partial) < HEADER_SIZE:
            position = min(HEADER_SIZE - len(partial), len(view))
            partial += view[:position]
            if len(partial) < HEADER_SIZE:
                return position
        header = Header._make(HEADER.unpack_from(partial))
        self._check(header, view[position:])
        rest = view[position : position + header.size - len(partial)]
        partial += rest
        if len(partial) == header.size:
            payload = memoryview(partial).toreadonly()[HEADER_SIZE:]
            self._messages.append(Message(header, payload, self._partial_fds))
            self._partial = bytearray()
            self._partial_fds = ()
        return position + len(rest)

    def _check(self, header: Header, behind: memoryview) -> None:
        """``behind``: what of the read is not in the message in progress yet."""
        if HEADER_SIZE <= header.size <= self.max_size:
            return
        self.refused = header
        self._partial += behind
        if header.size < HEADER_SIZE:
            raise ProtocolError(EINVAL, f"a message of {header.size} bytes is shorter than its header")
        raise ProtocolError(E2BIG, f"a message of {header.size} bytes, where {self.max_size} is the most")

    def _attach(self, fds: tuple[int, ...], *, empty: bool) -> None:
        """Give ``fds`` to the last message of which the read held any byte."""
        if self._error is not None or empty:
            self._stray_fds.extend(fds)
            self._error = self._error or ProtocolError(EINVAL, "file descriptors without a message")
        elif self._partial:
            self._partial_fds = self._join(self._partial_fds, fds)
        else:
            last = self._messages.pop()
            joined = self._join(last.fds, fds)
            if self._error is None:
                self._messages.append(last._replace(fds=joined))
            else:
                self._partial += HEADER.pack(*last.header) + last.payload

    def _join(self, present: tuple[int, ...], fds: tuple[int, ...]) -> tuple[int, ...]:
        joined = present + fds
        if len(joined) <= self.max_fds:
            return joined
        self._stray_fds.extend(joined)
        self._error = ProtocolError(EINVAL, f"{len(joined)} file descriptors with one message")
        return ()
