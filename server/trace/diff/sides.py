"""One of two traces that are compared: the messages ahead, of which a bounded number is held."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from protocol.trace import SessionInfo, TraceError
from server.trace.diff.meaning import SESSION, Meaning, meaning_of
from server.trace.reader import TracedMessage, TracedSession, TraceReader
from server.trace.show.lines import message_line, session_line
from server.trace.show.names import Names
from server.trace.show.pairing import DecodedMessage, decode, walk
from server.trace.show.place import Place

MAX_ITEMS: Final = 4096
"""Messages of a trace that are held at most."""
MAX_BYTES: Final = 32 << 20
"""Bytes of such messages; one more may be held."""


@dataclass(frozen=True, slots=True)
class Item:
    """A message, or the start of a session, and how to show it."""

    meaning: Meaning
    what: DecodedMessage | SessionInfo
    session: int
    names: Names
    first: int

    @property
    def message(self) -> DecodedMessage | None:
        """The message, None where a session starts."""
        return self.what if isinstance(self.what, DecodedMessage) else None

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return len(self.what.message.payload) if isinstance(self.what, DecodedMessage) else 0

    def line(self) -> str:
        """As ``vgpud trace show`` has it, without the time that a reply took."""
        if isinstance(self.what, SessionInfo):
            return session_line(self.session, self.what)
        return message_line(self.what, self.names, self.first, latency=False)


class Side:
    """Implements :class:`server.trace.diff.alignment.Window`. Damage ends the trace, and is kept in :attr:`error`."""

    def __init__(self, reader: TraceReader) -> None:
        self.reader = reader
        self.error: TraceError | None = None
        self.info = SessionInfo("")
        """The latest session that has been read."""
        self.taken = 0
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
            for item in islice(filter(_is_item, self.reader), self.taken, None):
                if isinstance(item, TracedMessage):
                    yield meaning_of(decode(item)).digest
                else:
                    yield SESSION.digest
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
        place = Place()
        try:
            for item in place.follow(walk(self.reader)):
                if isinstance(item, DecodedMessage):
                    yield Item(meaning_of(item), item, place.session, place.names, place.first)
                elif isinstance(item, TracedSession):
                    self.info = item.info
                    if _is_item(item):
                        yield Item(SESSION, item.info, place.session, place.names, place.first)
        except TraceError as error:
            self.error = error


def _is_item(item: object) -> bool:
    """Sessions that go on from a file before begin nothing."""
    return isinstance(item, TracedMessage) or (isinstance(item, TracedSession) and not item.info.continued)
