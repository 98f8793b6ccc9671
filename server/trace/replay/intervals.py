"""A session cut where its client spoke: what it sent at once, and everything up to what it sent next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from protocol.trace import Access, Event, Interrupt, SessionInfo, TraceError
from server.trace.reader import TracedEvents, TracedMessage, TracedSession, TraceReader

MAX_ITEMS = 1 << 16
"""Messages and events that are looked at together; a longer interval goes on as one in which nothing is sent."""

Item: TypeAlias = TracedMessage | Access | Interrupt


@dataclass(slots=True)
class Interval:
    """Commands of the client, and what came of them: the server's messages, the client's replies to it, events."""

    time: int
    commands: list[TracedMessage] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)


def session_numbers(reader: TraceReader, only: int | None) -> list[int]:
    """The sessions to replay, in order. Raises TraceError."""
    if only is not None:
        return [only]
    count = sum(isinstance(record, TracedSession) for record in reader)
    return list(range(1, count + 1)) or [1]


class RecordedSession:
    """One session of a trace."""

    def __init__(self, reader: TraceReader, number: int) -> None:
        """``number`` counts from 1. Raises TraceError where there is no such session, or not its beginning."""
        self.reader = reader
        self.number = number
        sessions = 0
        self.info = SessionInfo("")
        self.began = 0
        """When its first message was recorded, in ns since 1970."""
        for record in reader:
            sessions += isinstance(record, TracedSession)
            if sessions == number and isinstance(record, TracedSession):
                self.info = record.info
            elif isinstance(record, TracedMessage) and sessions >= number:
                self.began = record.time
                break
        if sessions < number:
            raise TraceError(f"{reader.path}: there are {sessions} sessions, so no session {number}")
        if self.info.continued:
            raise TraceError(
                f"{reader.path}: the beginning of this session is in a file before, so it cannot be replayed; "
                "record with a larger --trace-limit"
            )

    def intervals(self) -> Iterator[Interval]:
        """The session from its beginning. Raises TraceError at damage, after what comes before it."""
        interval: Interval | None = None
        for item, time in self._items():
            is_command = isinstance(item, TracedMessage) and item.inbound and item.header.is_command
            if interval is None:
                interval = Interval(time)
            elif len(interval.items) >= MAX_ITEMS or (is_command and interval.items):
                yield interval
                interval = Interval(time)
            if is_command and isinstance(item, TracedMessage):
                interval.commands.append(item)
            else:
                interval.items.append(item)
        if interval is not None:
            yield interval

    def _items(self) -> Iterator[tuple[TracedMessage | Event, int]]:
        sessions = 0
        for record in self.reader:
            if isinstance(record, TracedSession):
                sessions += 1
                if sessions > self.number:
                    return
            elif sessions != self.number:
                continue
            elif isinstance(record, TracedEvents):
                for event in record.events:
                    yield event, record.time
            else:
                yield record, record.time
