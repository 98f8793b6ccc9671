"""Reads a trace from its start to its end, in memory that does not grow with its length."""

from __future__ import annotations

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
    LINKTYPE_USER2,
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
    AreaChange,
    AreaLook,
    Event,
    Malformed,
    RecordKind,
    SessionInfo,
    TraceError,
    content_digest,
    may_be_skipped,
    unpack,
    unpack_content,
    unpack_events,
    unpack_look,
)
from server.trace.content_index import ContentIndex
from server.trace.fd_facts import MessageFacts
from server.trace.trace_files import TraceFile, close_files, open_files

CONTENT_PIECE = 2 * MAX_CONTENT
"""More than the block of a content has."""
FD_COST = 128
"""Bytes that the description of an fd counts for whoever keeps it."""


@dataclass(frozen=True, slots=True)
class TracedSession:
    """What follows is of one client, as far as to the next of these."""

    info: SessionInfo


@dataclass(frozen=True, slots=True)
class TracedMessage:
    """A message; ``number`` counts those of the trace from 1, ``time`` is in ns since 1970."""

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

    @property
    def held(self) -> int:
        """Bytes that it counts for whoever keeps it."""
        return len(self.payload) + FD_COST * len(self.facts.fds)


@dataclass(frozen=True, slots=True)
class TracedEvents:
    """What happened, in order, from ``time`` on."""

    time: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class TracedMalformed:
    """What was received of a message whose framing is broken; nothing comes behind it from the same side."""

    time: int
    direction: Direction
    malformed: Malformed
    facts: MessageFacts

    @property
    def inbound(self) -> bool:
        """Whether the client sent it."""
        return self.direction is not Direction.OUTBOUND


@dataclass(frozen=True, slots=True)
class TracedLook:
    """What a look at mappable areas found."""

    time: int
    look: AreaLook


Traced: TypeAlias = TracedSession | TracedMessage | TracedEvents | TracedMalformed | TracedLook


class TraceReader:
    """An open trace; iterate over it, once or again.

    A file that goes on from one before (FILE.1, for FILE) is read behind it, as one trace: where the files are those
    of one recording, and none is missing in between.

    Raises TraceError (one line that says what is wrong, and where) for what is no trace or is damaged, after what
    comes before the damage; OSError where the file cannot be read. A file that was cut short ends with its last
    whole block, and :attr:`cut_short` is what is behind that.
    """

    def __init__(self, path: Path, files: list[TraceFile] | None = None) -> None:
        """Open ``path``, or standard input for ``-``; or take over its ``files``, which are open.

        Raises OSError, and TraceError where it is certainly no trace.
        """
        self.files = open_files(path) if files is None else files
        """From the oldest to the newest."""
        self.path = self.files[-1].path
        self.cut_short = 0
        self.cut_file = self.path
        """Which file was."""
        self._index = ContentIndex(self._all_contents)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        close_files(self.files)

    @property
    def empty(self) -> bool:
        """Whether nothing was recorded, so far."""
        return self.files[-1].size == 0

    def __iter__(self) -> Iterator[Traced]:
        number = 0
        latest = SessionInfo("")
        self.cut_short = 0
        for file in self._in_order():
            parser = Parser()
            for record in self._records(file, parser, number):
                if isinstance(record, TracedSession):
                    before, latest = latest, record.info
                    if latest.goes_on_from(before):
                        continue
                elif isinstance(record, TracedMessage):
                    number = record.number
                yield record
            if parser.pending:
                self.cut_short += parser.pending
                self.cut_file = file.path
                latest = SessionInfo("")  # nothing goes on from there

    def _in_order(self) -> Iterator[TraceFile]:
        """The files that are read."""
        yield from self.files

    def _pieces(self, file: TraceFile) -> Iterator[bytes]:
        """What is in one of them. Raises OSError."""
        at = 0
        while piece := file.read(at):
            at += len(piece)
            yield piece

    def data(self, access: Access | AreaChange) -> bytes:
        """The bytes of an access, or of a change. Raises TraceError."""
        if access.data is not None:
            return access.data
        content = self._content_at(access.place, access.digest) or self._moved_content(access.digest)
        if content is None or len(content) != access.length:
            start = access.offset if isinstance(access, AreaChange) else access.address
            raise TraceError(f"{self.path}: what was at {start:#x}+{access.length:#x} is not in this file")
        return content

    def _content_at(self, place: int, digest: bytes, *, big_endian: bool = False) -> bytes | None:
        """What is at ``place``, which counts from the start of the oldest file on, if it is what it should be."""
        file = next((one for one in reversed(self.files) if one.base <= place), self.files[0])
        at = place - file.base
        parser = Parser.inside(at, big_endian=big_endian)
        with suppress(PcapngError, OverflowError, OSError):
            parser.feed(file.read(at, CONTENT_PIECE))
            for block in parser.blocks():
                return _content(block, digest)
        return None

    def _moved_content(self, digest: bytes) -> bytes | None:
        found = self._index.find(digest)
        if found is None:
            return None
        return self._content_at(found >> 1, digest, big_endian=bool(found & 1))

    def _all_contents(self) -> Iterator[tuple[bytes, int]]:
        """The digest of each content, and twice its place, plus 1 where the section is big-endian."""
        for file in self.files:
            parser = Parser()
            with suppress(TraceError):  # who reads the trace is told
                for block in self._blocks(file, parser):
                    digest = content_digest(block.data) if isinstance(block, Packet) else None
                    if digest is not None:
                        yield digest, (file.base + block.offset) << 1 | parser.big_endian

    def _records(self, file: TraceFile, parser: Parser, number: int) -> Iterator[Traced]:
        """What is in a file; ``number`` messages are in those before."""
        links: list[int] = []
        section = origin = 0
        for block in self._blocks(file, parser):
            if isinstance(block, Section):
                links = []
                section, origin = file.base + block.offset, file.base
            elif isinstance(block, Interface):
                links.append(block.link_type)
            elif links[block.interface] == LINKTYPE_USER0:
                number += 1
                if not block.whole:
                    raise TraceError(f"{file.path}: message {number} was not recorded whole")
                yield self._message(file, block, number)
            elif links[block.interface] in (LINKTYPE_USER1, LINKTYPE_USER2):
                if links[block.interface] == LINKTYPE_USER2 and may_be_skipped(block.data):
                    continue
                record = self._record(file, block, origin)
                if isinstance(record, TracedSession) and record.info.recording:
                    origin = section
                if record is not None:
                    yield record

    def _blocks(self, file: TraceFile, parser: Parser) -> Iterator[Block]:
        try:
            for piece in self._pieces(file):
                parser.feed(piece)
                yield from parser.blocks()
            parser.end()
        except PcapngError as error:
            raise TraceError(f"{file.path}: {error}") from error

    def _message(self, file: TraceFile, packet: Packet, number: int) -> TracedMessage:
        data = packet.data
        if len(data) < HEADER_SIZE:
            raise self._damage(file, packet, f"message {number} has {len(data)} bytes, less than a header")
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

    def _record(self, file: TraceFile, packet: Packet, origin: int) -> Traced | None:
        """What a packet of the other interfaces is, None for a content."""
        if not packet.whole:
            raise self._damage(file, packet, "a record that is not whole")
        try:
            kind, payload = unpack(packet.data)
            if kind is RecordKind.SESSION:
                return TracedSession(SessionInfo.unpack(payload))
            if kind is RecordKind.EVENTS:
                return TracedEvents(packet.timestamp, tuple(unpack_events(payload, origin)))
            if kind is RecordKind.MALFORMED:
                facts = MessageFacts.unpack(packet.comment)
                return TracedMalformed(packet.timestamp, packet.direction, Malformed.unpack(payload), facts)
            if kind is RecordKind.AREAS:
                return TracedLook(packet.timestamp, unpack_look(payload, origin))
        except TraceError as error:
            raise self._damage(file, packet, str(error)) from error
        return None

    def _damage(self, file: TraceFile, packet: Packet, what: str) -> TraceError:
        return TraceError(f"{file.path}: damaged at byte {packet.offset}: {what}")


def _content(block: Block, digest: bytes) -> bytes | None:
    """The content that ``block`` stores, if it is the one with ``digest``."""
    if not isinstance(block, Packet):
        return None
    with suppress(TraceError):
        kind, payload = unpack(block.data)
        if kind is RecordKind.CONTENT and bytes(payload[: len(digest)]) == digest:
            return unpack_content(payload).data
    return None
