"""A session cut where its client spoke: what it sent at once, and everything up to what it sent next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from protocol.trace import Access, Interrupt, SessionInfo, TraceError
from server.trace.reader import (
    Traced,
    TracedEvents,
    TracedLook,
    TracedMalformed,
    TracedMessage,
    TracedSession,
    TraceReader,
)
from server.trace.text.value_text import plural

MAX_ITEMS = 1 << 16
"""Messages and events that are looked at together; a longer interval goes on as one in which nothing is sent."""
MAX_COMMANDS = 256
"""Commands that are sent before anything is looked at."""
MAX_BYTES = 16 << 20
"""Bytes in an interval that a replay has in memory until it is over; a longer one goes on as for MAX_ITEMS."""

Record: TypeAlias = TracedMessage | TracedMalformed | TracedLook | TracedEvents
Item: TypeAlias = TracedMessage | TracedMalformed | TracedLook | Access | Interrupt


@dataclass(slots=True)
class Interval:
    """Commands of the client, and what came of them: the server's messages, the client's replies to it, events.

    What the client sent that is no message, is the first of the items, and there are no commands.
    """

    time: int
    commands: list[TracedMessage] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    size: int = 0
    bytes: int = 0

    def add(self, item: Item) -> None:
        """The client said something more, or something came of what it had said."""
        self.bytes += _held(item)
        if isinstance(item, TracedMessage) and _is_command(item):
            self.commands.append(item)
        else:
            self.items.append(item)
            self.size += 1 + (len(item.look.changes) if isinstance(item, TracedLook) else 0)

    def ends_before(self, item: Item) -> bool:
        """Whether ``item`` begins another interval."""
        if self.size >= MAX_ITEMS or self.bytes >= MAX_BYTES:
            return True
        if isinstance(item, TracedMessage) and _is_command(item):
            return bool(self.items) or len(self.commands) >= MAX_COMMANDS
        return isinstance(item, TracedMalformed) and item.inbound


def _held(item: Item) -> int:
    """Bytes that are in memory for ``item``.

    What is stored by hash is so for what the device wrote alone, which has to be compared: anything else is read when
    it is needed. A content may be in as many events as somebody likes, so it is not the file that bounds them.
    """
    if isinstance(item, Access):
        return item.length if item.write else len(item.data or b"")
    if isinstance(item, TracedMessage):
        return item.held
    if isinstance(item, TracedLook):
        return sum(len(change.data or b"") for change in item.look.changes)
    return len(item.malformed.data) if isinstance(item, TracedMalformed) else 0


def _is_command(message: TracedMessage) -> bool:
    return message.inbound and message.header.is_command


class Passage:
    """A trace that is read once, session after session."""

    def __init__(self, reader: TraceReader) -> None:
        """``reader`` stays the caller's."""
        self.reader = reader
        self.sessions = 0
        """How many have begun."""
        self._records = iter(reader)
        self._next: Traced | None = None

    def next_session(self) -> SessionInfo | None:
        """Go to where the next session begins, whatever is before; None at the end. Raises TraceError."""
        while (record := self._take()) is not None:
            if isinstance(record, TracedSession):
                self.sessions += 1
                return record.info
        return None

    def goes_on(self) -> bool:
        """Pass over what is left of the session; whether there is another. Raises TraceError."""
        for _ in self.records():
            pass
        return self._next is not None

    def records(self) -> Iterator[Record]:
        """What is in the session, up to the next. Raises TraceError."""
        while (record := self._take()) is not None:
            if isinstance(record, TracedSession):
                self._next = record
                return
            yield record

    def time(self) -> int:
        """When the next record of the session was made, in ns since 1970; 0 where there is none. Raises TraceError."""
        self._next = self._take()
        return 0 if self._next is None or isinstance(self._next, TracedSession) else self._next.time

    def _take(self) -> Traced | None:
        record, self._next = self._next, None
        return next(self._records, None) if record is None else record


class RecordedSession:
    """One session of a trace, to be gone through once."""

    def __init__(self, reader: TraceReader, number: int, passage: Passage | None = None) -> None:
        """``number`` counts from 1. ``passage``: where ``reader`` is read, if that is before the session.

        Raises TraceError where there is no such session, and without ``passage`` where its beginning is not there.
        """
        self.reader = reader
        self.number = number
        self._passage = passage or Passage(reader)
        self.info = SessionInfo("")
        while self._passage.sessions < number:
            info = self._passage.next_session()
            if info is None:
                has = plural(self._passage.sessions, "session")
                raise TraceError(f"{reader.path}: it has {has}, so no session {number}")
            self.info = info
        self.began = self._passage.time()
        """When it was recorded, in ns since 1970."""
        if passage is None:
            self.require_beginning()

    def require_beginning(self) -> None:
        """Raises TraceError where the trace does not have the beginning."""
        if self.info.continued:
            raise TraceError(
                f"{self.reader.path}: the beginning of this session is in a file before, so it cannot be replayed; "
                "put the files before it (FILE.1 and so on) beside it, or record with a larger --trace-limit"
            )

    def intervals(self) -> Iterator[Interval]:
        """The session from its beginning. Raises TraceError at damage, after what comes before it."""
        interval: Interval | None = None
        damage: TraceError | None = None
        items = self._items()
        while True:
            try:
                item, time = next(items)
            except StopIteration:
                break
            except TraceError as error:
                damage = error
                break
            if interval is None:
                interval = Interval(time)
            elif interval.ends_before(item):
                yield interval
                interval = Interval(time)
            interval.add(item)
        if interval is not None:
            yield interval
        if damage is not None:
            raise damage

    def _items(self) -> Iterator[tuple[Item, int]]:
        for record in self._passage.records():
            if isinstance(record, TracedEvents):
                for event in record.events:
                    yield event, record.time
            else:
                yield record, record.time


def recorded_sessions(reader: TraceReader) -> Iterator[RecordedSession]:
    """The sessions of a trace in order, with or without their beginning. Raises TraceError.

    Each is over where the next is asked for. There is one at least.
    """
    passage = Passage(reader)
    yield RecordedSession(reader, 1, passage)
    while passage.goes_on():
        yield RecordedSession(reader, passage.sessions + 1, passage)
