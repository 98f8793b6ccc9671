"""A trace summed up, in memory that does not grow with it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol import HEADER_SIZE, Command
from protocol.trace import Access
from server.trace.pairing import DecodedMessage, Unanswered, Walked
from server.trace.reader import TracedEvents, TracedLook, TracedMalformed, TracedSession
from server.trace.show.histogram import Histogram
from server.trace.text.names import Names, command_name
from server.trace.text.value_text import plural

GAPS: Final = 5
"""How many of the longest gaps are kept."""
UNANSWERED: Final = 10
"""Numbers of requests without a reply that are kept."""
PERCENTILES: Final = (50, 90, 99)

_NS = 1_000_000_000
_US = 1000
_OTHERS = 0
_COMMANDS = frozenset(Command)
_HEADINGS = ("requests", "posted", "replies", "errors", "unanswered", "bytes")


@dataclass(slots=True)
class CommandCounts:
    """Of one command; ``replies`` are all, ``errors`` those of failure."""

    requests: int = 0
    posted: int = 0
    replies: int = 0
    errors: int = 0
    unanswered: int = 0
    bytes: int = 0
    latencies: Histogram = field(default_factory=Histogram)


class Gap(NamedTuple):
    """Nothing was said for ``length`` ns, until message ``after`` came at ``time`` (ns)."""

    length: int
    before: int
    after: int
    time: int


class Statistics:
    """Sums of what it is told, and the gaps before it in all that it has followed."""

    def __init__(self) -> None:
        self.sessions = 0
        self.messages = 0
        self.bytes = {True: 0, False: 0}
        """By direction, True is from the client."""
        self.first: int | None = None
        self.last = 0
        self.commands: dict[int, CommandCounts] = {}
        self.total = CommandCounts()
        self.gaps: list[Gap] = []
        self.unanswered: list[int] = []
        """The numbers of the first requests without a reply."""
        self.accesses: Counter[bool] = Counter()
        self.access_bytes: Counter[bool] = Counter()
        """Of guest memory, True are writes."""
        self.interrupts: Counter[int] = Counter()
        """By VFIO IRQ index."""
        self.looks = 0
        self.changes = 0
        self.change_bytes = 0
        """Of mappable areas."""
        self.malformed = 0
        self._previous: DecodedMessage | None = None
        self._latest: DecodedMessage | None = None

    def follow(self, walked: Iterable[Walked]) -> Iterator[Walked]:
        """The same items, of which some are then added. Raises as ``walked`` does."""
        for item in walked:
            if isinstance(item, DecodedMessage):
                self._previous, self._latest = self._latest, item
            elif isinstance(item, TracedSession):
                self._latest = None  # what is between two clients is no gap
            yield item

    def add(self, item: Walked) -> None:
        """Count one item of a trace."""
        if isinstance(item, DecodedMessage):
            self._message(item)
        elif isinstance(item, TracedEvents):
            self._events(item)
        elif isinstance(item, TracedSession):
            self.sessions += 1
        elif isinstance(item, TracedLook):
            self._look(item)
        elif isinstance(item, TracedMalformed):
            self.malformed += 1
        else:
            self._unanswered(item)

    def _message(self, item: DecodedMessage) -> None:
        message = item.message
        size = HEADER_SIZE + len(message.payload)
        self.messages += 1
        self.bytes[message.inbound] += size
        self.first = message.time if self.first is None else min(self.first, message.time)
        self.last = max(self.last, message.time)
        for counts in (self._counts(item), self.total):
            counts.bytes += size
            counts.requests += message.header.is_command
            counts.posted += item.is_posted
            counts.replies += item.is_reply
            counts.errors += item.is_error
            if item.latency is not None:
                counts.latencies.add(item.latency)
        self._gap(item)

    def _counts(self, item: DecodedMessage) -> CommandCounts:
        command = item.message.header.command
        return self.commands.setdefault(command if command in _COMMANDS else _OTHERS, CommandCounts())

    def _gap(self, item: DecodedMessage) -> None:
        message, previous = item.message, self._previous
        if previous is None or item is not self._latest:
            return  # of a request that is shown with its reply, what came before it is not known any more
        length = message.time - previous.message.time
        if length < 0:
            return  # the clock was set back
        gap = Gap(length, previous.message.number, message.number, message.time)
        if len(self.gaps) < GAPS:
            heapq.heappush(self.gaps, gap)
        else:
            heapq.heappushpop(self.gaps, gap)

    def _events(self, item: TracedEvents) -> None:
        for event in item.events:
            if isinstance(event, Access):
                self.accesses[event.write] += 1
                self.access_bytes[event.write] += event.length
            else:
                self.interrupts[event.index] += 1

    def _look(self, item: TracedLook) -> None:
        self.looks += item.look.whole
        self.changes += len(item.look.changes)
        self.change_bytes += sum(change.length for change in item.look.changes)

    def _unanswered(self, item: Unanswered) -> None:
        for counts in (self._counts(item.request), self.total):
            counts.unanswered += 1
        if len(self.unanswered) < UNANSWERED:
            self.unanswered.append(item.request.message.number)


def report(statistics: Statistics, began: int) -> Iterator[str]:
    """The sums in lines; ``began`` is when the trace did, in ns since 1970."""
    total = statistics.total
    duration = 0 if statistics.first is None else statistics.last - statistics.first
    yield f"sessions      {statistics.sessions}"
    yield f"messages      {statistics.messages} in {duration / _NS:.6f} s"
    yield f"bytes         {statistics.bytes[True]} from the client, {statistics.bytes[False]} from the server"
    yield f"guest memory  {_memory(statistics, 'read', False)}, {_memory(statistics, 'write', True)}"
    if statistics.looks or statistics.changes:
        yield f"mapped areas  {_areas(statistics)}"
    yield f"interrupts    {_interrupts(statistics)}"
    yield f"no reply      {_no_reply(statistics)}"
    if statistics.malformed:
        yield f"malformed     {statistics.malformed}"
    yield ""
    yield from _table(statistics, total)
    yield ""
    yield from _gaps(statistics, began)


def _memory(statistics: Statistics, what: str, write: bool) -> str:
    return f"{plural(statistics.accesses[write], what)} of {plural(statistics.access_bytes[write], 'byte')}"


def _areas(statistics: Statistics) -> str:
    changes, looks = plural(statistics.changes, "change"), plural(statistics.looks, "look")
    return f"{changes} of {plural(statistics.change_bytes, 'byte')} in {looks}"


def _interrupts(statistics: Statistics) -> str:
    counts = statistics.interrupts
    kinds = ", ".join(f"{Names.irq(index)} {counts[index]}" for index in sorted(counts))
    return f"{counts.total()} ({kinds})" if counts else "0"


def _no_reply(statistics: Statistics) -> str:
    count, numbers = statistics.total.unanswered, statistics.unanswered
    if not count:
        return "0 requests"
    listed = ", ".join(map(str, numbers)) + (", ..." if count > len(numbers) else "")
    return f"{plural(count, 'request')}: {listed}"


def _table(statistics: Statistics, total: CommandCounts) -> Iterator[str]:
    columns = "".join(f"{heading:>11}" for heading in _HEADINGS)
    latencies = "".join(f"{f'p{percent} us':>10}" for percent in PERCENTILES) + f"{'max us':>10}"
    yield f"{'command':<24}{columns}{latencies}"
    for command in sorted(statistics.commands, key=lambda number: (number == _OTHERS, number)):
        name = "other commands" if command == _OTHERS else command_name(command)
        yield _row(name, statistics.commands[command])
    yield _row("all", total)


def _row(name: str, counts: CommandCounts) -> str:
    numbers = "".join(f"{getattr(counts, heading):>11}" for heading in _HEADINGS)
    return f"{name:<24}{numbers}{_latencies(counts.latencies)}".rstrip()


def _latencies(histogram: Histogram) -> str:
    if not histogram.count:
        return ""
    times = [*map(histogram.percentile, PERCENTILES), histogram.greatest]
    return "".join(f"{time / _US:>10.1f}" for time in times)


def _gaps(statistics: Statistics, began: int) -> Iterator[str]:
    yield "longest gaps between messages"
    for gap in sorted(statistics.gaps, reverse=True):
        yield (
            f"{gap.length / _NS:>14.6f} s from message {gap.before} to {gap.after}, "
            f"which came at {(gap.time - began) / _NS:.6f} s"
        )
