"""Reads a trace from its start to its end, in memory that does not grow with its length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from protocol import HEADER_SIZE, SERVER_COMMANDS, Header
from protocol.pcapng import (
    LINKTYPE_USER0,
    LINKTYPE_USER1,
    Block,
    Direction,
    Interface,
    Packet,
    Parser,
    PcapngError,
    Section,
)
from protocol.trace import (
    MAX_CONTENT,
    Access,
    Event,
    RecordKind,
    SessionInfo,
    TraceError,
    unpack,
    unpack_content,
    unpack_events,
)
from server.trace.fd_facts import MessageFacts

PIECE = 256 << 10
"""Bytes that are read at a time."""
CONTENT_PIECE = 2 * MAX_CONTENT
"""More than the block of a content has."""


@dataclass(frozen=True, slots=True)
class TracedSession:
    """A section of the file begins: what follows is of one client."""

    info: SessionInfo


@dataclass(frozen=True, slots=True)
class TracedMessage:
    """A message; ``number`` counts those of the file from 1, ``time`` is in ns since 1970."""

    number: int
    time: int
    direction: Direction
    header: Header
    payload: memoryview
    facts: MessageFacts

    @property
    def inbound(self) -> bool:
        """Whether the client sent it."""
        return self.direction is Direction.INBOUND


@dataclass(frozen=True, slots=True)
class TracedEvents:
    """What happened, in order, from ``time`` on."""

    time: int
    events: tuple[Event, ...]


Traced: TypeAlias = TracedSession | TracedMessage | TracedEvents


class TraceReader:
    """An open trace; iterate over it, once or again.

    Raises TraceError (one line that says what is wrong, and where) for what is no trace or is damaged, after what
    comes before the damage; OSError where the file cannot be read. A file that was cut short ends with its last
    whole block, and :attr:`cut_short` is what is behind that.
    """

    def __init__(self, path: Path) -> None:
        """Open ``path``. Raises OSError."""
        self.path = path
        self.cut_short = 0
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __iter__(self) -> Iterator[Traced]:
        links: list[int] = []
        number = 0
        for block in self._blocks():
            if isinstance(block, Section):
                links = []
            elif isinstance(block, Interface):
                links.append(block.link_type)
            elif links[block.interface] == LINKTYPE_USER0:
                number += 1
                if not block.whole:
                    raise TraceError(f"{self.path}: message {number} was not recorded whole")
                yield self._message(block, number)
            elif links[block.interface] == LINKTYPE_USER1:
                record = self._record(block)
                if record is not None:
                    yield record

    def data(self, access: Access) -> bytes:
        """The bytes of an access. Raises TraceError."""
        if access.data is not None:
            return access.data
        content = self._content_at(access.place, access.digest) or self._find_content(access.digest)
        if content is None or len(content) != access.length:
            raise TraceError(
                f"{self.path}: what was at {access.address:#x}+{access.length:#x} is not in this file"
            )
        return content

    def _content_at(self, place: int, digest: bytes) -> bytes | None:
        parser = Parser.inside(place)
        with suppress(PcapngError, OverflowError, OSError):
            parser.feed(os.pread(self._file.fileno(), CONTENT_PIECE, place))
            for block in parser.blocks():
                return _content(block, digest)
        return None

    def _find_content(self, digest: bytes) -> bytes | None:
        """For files that were edited by something that keeps the packets, and not where they are."""
        for block in self._blocks():
            content = _content(block, digest)
            if content is not None:
                return content
        return None

    def _blocks(self) -> Iterator[Block]:
        parser = Parser()
        at = 0
        try:
            while piece := os.pread(self._file.fileno(), PIECE, at):
                at += len(piece)
                parser.feed(piece)
                yield from parser.blocks()
        except PcapngError as error:
            raise TraceError(f"{self.path}: {error}") from error
        self.cut_short = parser.pending

    def _message(self, packet: Packet, number: int) -> TracedMessage:
        data = packet.data
        if len(data) < HEADER_SIZE:
            raise self._damage(packet, f"message {number} has {len(data)} bytes, less than a header")
        header = Header.unpack(data)
        direction = packet.direction
        if direction is Direction.UNKNOWN:
            # The commands of a server are its own, and all others are its client's.
            from_client = (header.command in SERVER_COMMANDS) == header.is_reply
            direction = Direction.INBOUND if from_client else Direction.OUTBOUND
        payload = memoryview(data)[HEADER_SIZE:]
        return TracedMessage(
            number, packet.timestamp, direction, header, payload, MessageFacts.unpack(packet.comment)
        )

    def _record(self, packet: Packet) -> TracedSession | TracedEvents | None:
        """What a packet of the second interface is, None for a content."""
        if not packet.whole:
            raise self._damage(packet, "a record that is not whole")
        try:
            kind, payload = unpack(packet.data)
            if kind is RecordKind.SESSION:
                return TracedSession(SessionInfo.unpack(payload))
            if kind is RecordKind.EVENTS:
                return TracedEvents(packet.timestamp, tuple(unpack_events(payload)))
        except TraceError as error:
            raise self._damage(packet, str(error)) from error
        return None

    def _damage(self, packet: Packet, what: str) -> TraceError:
        return TraceError(f"{self.path}: damaged at byte {packet.offset}: {what}")


def _content(block: Block, digest: bytes) -> bytes | None:
    """The content that ``block`` stores, if it is the one with ``digest``."""
    if not isinstance(block, Packet):
        return None
    with suppress(TraceError):
        kind, payload = unpack(block.data)
        if kind is RecordKind.CONTENT and bytes(payload[: len(digest)]) == digest:
            return unpack_content(payload).data
    return None
