"""The order in which messages are compared: each reply right behind its request.

Replies come when they are ready, in another order in each of two recordings where several requests wait at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from protocol.trace import Access, TraceError
from server.trace.pairing import DecodedMessage, Unanswered, Walked
from server.trace.reader import TracedEvents, TracedMalformed

MAX_AHEAD: Final = 512
"""Messages and events behind a request among which its reply is looked for; one that comes later stays in its place."""
MAX_BYTES: Final = 4 << 20
"""Bytes of such messages and events."""


@dataclass(slots=True)
class _Held:
    """Something that waits for its turn."""

    item: Walked
    waits: bool
    """Whether it is a request whose reply may be near."""
    reply: DecodedMessage | None = None
    weight: int = 0
    size: int = 0


class _Queue:
    """What is held, in the order in which it came."""

    def __init__(self) -> None:
        self._held: deque[_Held] = deque()
        self._requests: dict[int, _Held] = {}
        self._weight = 0
        self._size = 0

    def add(self, item: Walked) -> None:
        """One more."""
        if isinstance(item, Unanswered):
            self._settle(item.request.message.number, None)
            return
        request = item.request if isinstance(item, DecodedMessage) else None
        if isinstance(item, DecodedMessage) and request and self._settle(request.message.number, item):
            return
        waits = isinstance(item, DecodedMessage) and item.message.header.is_command and not item.is_posted
        held = _Held(item, waits, None, _weight(item), _size(item))
        if isinstance(item, DecodedMessage) and waits:
            self._requests[item.message.number] = held
        self._held.append(held)
        self._weight += held.weight
        self._size += held.size

    def ready(self) -> Iterator[Walked]:
        """What nothing has to come for any more, or not within what may be held."""
        while self._held and not (self._held[0].waits and self._has_room()):
            yield from self._take()

    def rest(self) -> Iterator[Walked]:
        """All."""
        while self._held:
            yield from self._take()

    def _has_room(self) -> bool:
        return self._weight <= MAX_AHEAD and self._size <= MAX_BYTES

    def _settle(self, number: int, reply: DecodedMessage | None) -> bool:
        """No other reply to this request will come; whether it is still held."""
        held = self._requests.pop(number, None)
        if held is None:
            return False
        held.waits = False
        held.reply = reply
        size = 0 if reply is None else _size(reply)
        held.size += size
        self._size += size
        return True

    def _take(self) -> Iterator[Walked]:
        held = self._held.popleft()
        self._weight -= held.weight
        self._size -= held.size
        yield held.item
        if held.reply is not None:
            yield held.reply
        elif held.waits and isinstance(held.item, DecodedMessage):
            self._requests.pop(held.item.message.number, None)


def in_exchanges(walked: Iterable[Walked]) -> Iterator[Walked]:
    """The same without what has no reply, each reply behind its request where that is near. Raises as ``walked`` does.

    What comes before an error of ``walked`` is there before it.
    """
    queue = _Queue()
    try:
        for item in walked:
            queue.add(item)
            yield from queue.ready()
    except TraceError:
        yield from queue.rest()
        raise
    yield from queue.rest()


def _weight(item: Walked) -> int:
    return len(item.events) if isinstance(item, TracedEvents) else 1


def _size(item: Walked) -> int:
    if isinstance(item, DecodedMessage):
        return len(item.message.payload)
    if isinstance(item, TracedMalformed):
        return len(item.malformed.data)
    if isinstance(item, TracedEvents):
        return sum(len(one.data) for one in item.events if isinstance(one, Access) and one.data is not None)
    return 0
