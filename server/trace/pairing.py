"""What messages say, and which request a reply answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from protocol import ErrorReply, ProtocolError, Reply, Request, decode_reply, decode_request
from server.trace.reader import (
    Traced,
    TracedEvents,
    TracedLook,
    TracedMalformed,
    TracedMessage,
    TracedSession,
)

MAX_WAITING: Final = 4096
"""Requests that are remembered until their reply comes."""
MAX_HELD: Final = 16 << 20
"""Bytes of such requests."""


@dataclass(frozen=True, slots=True)
class DecodedMessage:
    """A message and what it says: ``value`` is None where it does not decode, and ``reason`` says why.

    ``request`` is what a reply answers, None where that is not in the trace.
    """

    message: TracedMessage
    value: Request | Reply | ErrorReply | None
    reason: str = ""
    request: DecodedMessage | None = None

    @property
    def is_reply(self) -> bool:
        """Whether it is a reply, of success or of failure."""
        return self.message.header.is_reply

    @property
    def is_error(self) -> bool:
        """Whether it is a reply of failure."""
        header = self.message.header
        return header.is_reply and header.is_error

    @property
    def is_posted(self) -> bool:
        """Whether it is a request that wants no reply."""
        header = self.message.header
        return header.is_command and header.no_reply

    @property
    def latency(self) -> int | None:
        """Of a reply, how many ns its request waited for it. Less than 0 where the clock was set meanwhile."""
        return None if self.request is None else self.message.time - self.request.message.time


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No reply to ``request`` is in the trace."""

    request: DecodedMessage


Walked: TypeAlias = TracedSession | DecodedMessage | TracedEvents | TracedLook | TracedMalformed | Unanswered
_Key: TypeAlias = tuple[bool, int, int]


def decode(message: TracedMessage, request: DecodedMessage | None = None) -> DecodedMessage:
    """What a message says."""
    header = message.header
    try:
        if header.is_reply:
            return DecodedMessage(message, decode_reply(header, message.payload), request=request)
        return DecodedMessage(message, decode_request(header, message.payload))
    except ProtocolError as error:
        return DecodedMessage(message, None, error.reason, request)


class Pairing:
    """Finds the request that a reply answers: the oldest of that id and command from the other side.

    Ids are the sender's own and may be in use more than once at a time (vfio-user, Header, *Message ID*). Each side has
    its own ids.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, DecodedMessage] = {}
        self._numbers: dict[_Key, deque[int]] = {}
        self._held = 0

    def add(self, request: DecodedMessage) -> Iterator[DecodedMessage]:
        """A request waits for its reply. Yields those that there is no room for any more."""
        message = request.message
        self._waiting[message.number] = request
        self._numbers.setdefault(_key(message, message.inbound), deque()).append(message.number)
        self._held += message.held
        while len(self._waiting) > MAX_WAITING or self._held > MAX_HELD:
            oldest = next(iter(self._waiting.values())).message
            yield self._take(_key(oldest, oldest.inbound))

    def find(self, reply: TracedMessage) -> DecodedMessage | None:
        """The request that ``reply`` answers, which waits no more."""
        key = _key(reply, not reply.inbound)
        return self._take(key) if key in self._numbers else None

    def forget(self) -> list[DecodedMessage]:
        """The requests that wait, which are forgotten: no reply will come."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        self._numbers.clear()
        self._held = 0
        return waiting

    def _take(self, key: _Key) -> DecodedMessage:
        """The oldest of a key is also the first of its queue."""
        queue = self._numbers[key]
        request = self._waiting.pop(queue.popleft())
        if not queue:
            del self._numbers[key]
        self._held -= request.message.held
        return request


def walk(traced: Iterable[Traced]) -> Iterator[Walked]:
    """What is in a trace, with its messages decoded and its replies paired.

    Memory is bounded by MAX_WAITING and MAX_HELD. Raises as ``traced`` does.
    """
    pairing = Pairing()
    for item in traced:
        if isinstance(item, TracedMessage):
            if item.header.is_reply:
                yield decode(item, pairing.find(item))
                continue
            message = decode(item)
            yield message
            if item.header.is_command and not message.is_posted:
                yield from map(Unanswered, pairing.add(message))
            continue
        if isinstance(item, TracedSession) and not item.info.continued:
            yield from map(Unanswered, pairing.forget())
        yield item
    yield from map(Unanswered, pairing.forget())


def time_of(item: Walked) -> int | None:
    """When it was recorded, in ns since 1970, for what says so."""
    if isinstance(item, DecodedMessage):
        return item.message.time
    return item.time if isinstance(item, TracedEvents | TracedLook | TracedMalformed) else None


def _key(message: TracedMessage, from_client: bool) -> _Key:
    return from_client, message.header.message_id, message.header.command
