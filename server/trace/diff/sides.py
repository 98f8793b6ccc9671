"""One of two traces that are compared: what is ahead, of which a bounded number is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from protocol.trace import Access, Event, SessionInfo, TraceError
from server.trace.diff.exchanges import in_exchanges
from server.trace.diff.meaning import SESSION, Meaning, meaning_of, meaning_of_event, meaning_of_malformed
from server.trace.pairing import DecodedMessage, Walked, walk
from server.trace.place import Place
from server.trace.reader import TracedEvents, TracedLook, TracedMalformed, TracedSession, TraceReader
from server.trace.text.lines import event_line, malformed_line, message_line, session_line
from server.trace.text.names import Names

MAX_ITEMS: Final = 4096
"""Messages and events of a trace that are held at most."""
MAX_BYTES: Final = 32 << 20
"""Bytes of such messages; one more may be held."""


@dataclass(frozen=True, slots=True)
class OneEvent:
    """What happened beside the messages, at ``time`` (ns since 1970)."""

    event: Event
    time: int
    reader: TraceReader

    def data(self) -> bytes | None:
        """What was in memory; None for what is no access, and where that is not in the file."""
        try:
            return self.reader.data(self.event) if isinstance(self.event, Access) else None
        except TraceError:
            return None


What: TypeAlias = DecodedMessage | TracedMalformed | OneEvent | SessionInfo


@dataclass(frozen=True, slots=True)
class Item:
    """A message, what is none, an event, or the start of a session, and how to show it."""

    meaning: Meaning
    what: What
    session: int
    names: Names
    first: int

    @property
    def message(self) -> DecodedMessage | None:
        """The message, None where it is something else."""
        return self.what if isinstance(self.what, DecodedMessage) else None

    @property
    def event(self) -> OneEvent | None:
        """The event, None where it is something else."""
        return self.what if isinstance(self.what, OneEvent) else None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        if isinstance(self.what, DecodedMessage):
            return len(self.what.message.payload)
        if isinstance(self.what, OneEvent) and isinstance(self.what.event, Access):
            return len(self.what.event.data or b"")
        return 0

    def line(self) -> str:
        """As ``vgpud trace show`` has it, without the time that a reply took."""
        if isinstance(self.what, SessionInfo):
            return session_line(self.session, self.what)
        if isinstance(self.what, TracedMalformed):
            return malformed_line(self.what, self.first)
        if isinstance(self.what, OneEvent):
            return event_line(self.what.event, self.what.time, self.what.reader, self.names, self.first)
        return message_line(self.what, self.names, self.first, latency=False)


class Side:
    """Implements :class:`server.trace.diff.alignment.Window`. Damage ends the trace, and is kept in :attr:`error`."""

    def __init__(self, reader: TraceReader, *, events: bool = False) -> None:
        """``events``: not only what was sent, but also guest memory and interrupts."""
        self.reader = reader
        self.error: TraceError | None = None
        self.info = SessionInfo("")
        """The latest session that has been read."""
        self.taken = 0
        self._events = events
        self._items = self._read()
        self._held: deque[Item] = deque()
        self._bytes = 0
        self._ended = False

    @property
    def broken(self) -> bool:
        """Whether damage ended it."""
        return self.error is not None

    def at(self, index: int) -> Meaning | None:
        """What is ``index`` items ahead; None behind the end, or behind what may be held."""
        while index >= len(self._held):
            if not self._fill():
                return None
        return self._held[index].meaning

    def ends_at(self, index: int) -> bool:
        """Whether there are exactly ``index`` items more."""
        return self.at(index) is None and self._ended and len(self._held) == index

    def all(self) -> Sequence[Meaning]:
        """All that may be held."""
        while self._fill():
            pass
        return [item.meaning for item in self._held]

    def take(self) -> Item:
        """The next item, which there must be."""
        item = self._held.popleft()
        self._bytes -= item.size
        self.taken += 1
        return item

    def digests(self) -> Iterator[int]:
        """The digests of all items from the next one on, read anew from the file; damage ends them."""
        try:
            for item in islice(self._sequence(), self.taken, None):
                yield item.meaning.digest
        except TraceError:
            return

    def _fill(self) -> bool:
        """Hold one item more, where there is one and room for it."""
        if self._ended or len(self._held) >= MAX_ITEMS or self._bytes >= MAX_BYTES:
            return False
        item = next(self._items, None)
        if item is None:
            self._ended = True
            return False
        self._held.append(item)
        self._bytes += item.size
        return True

    def _read(self) -> Iterator[Item]:
        try:
            for item in self._sequence():
                if isinstance(item.what, SessionInfo):
                    self.info = item.what
                yield item
        except TraceError as error:
            self.error = error

    def _sequence(self) -> Iterator[Item]:
        """What is compared, from the start of the file on. Raises TraceError."""
        place = Place()
        wanted = filter(self._is_wanted, place.follow(walk(self.reader)))
        for item in in_exchanges(wanted):
            for meaning, what in self._compared(item):
                yield Item(meaning, what, place.session, place.names, place.first)

    def _is_wanted(self, item: Walked) -> bool:
        """Sessions that go on from a file before begin nothing."""
        if isinstance(item, TracedSession):
            return not item.info.continued
        return self._events if isinstance(item, TracedEvents) else not isinstance(item, TracedLook)

    def _compared(self, item: Walked) -> Iterator[tuple[Meaning, What]]:
        if isinstance(item, DecodedMessage):
            yield meaning_of(item), item
        elif isinstance(item, TracedMalformed):
            yield meaning_of_malformed(item), item
        elif isinstance(item, TracedSession):
            yield SESSION, item.info
        elif isinstance(item, TracedEvents):
            for event in item.events:
                yield meaning_of_event(event), OneEvent(event, item.time, self.reader)
