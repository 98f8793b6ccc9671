"""Which messages of a trace are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from protocol import (
    Command,
    PciRegion,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteReply,
)
from protocol.trace import TraceError
from server.trace.reader import TracedSession
from server.trace.show.pairing import DecodedMessage, Unanswered, Walked, time_of

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of these commands, that access these regions, that failed, from ``since`` seconds on; None is all.

    With ``errors``, requests come right before the error reply that they got, so numbers may not be in order where
    several requests wait at a time. Of events, those behind a wanted message are wanted.
    """

    commands: frozenset[int] | None = None
    regions: frozenset[int] | None = None
    errors: bool = False
    since: float | None = None

    @classmethod
    def parse(
        cls,
        commands: Iterable[str] | None,
        regions: Iterable[str] | None,
        errors: bool = False,
        since: float | None = None,
    ) -> Selection:
        """From the text of arguments. Raises TraceError for a name that there is not."""
        return cls(
            None if commands is None else frozenset(map(_command, commands)),
            None if regions is None else frozenset(map(_region, regions)),
            errors,
            since,
        )

    def select(self, walked: Iterable[Walked]) -> Iterator[Walked]:
        """What is wanted of a trace; sessions always are. Raises as ``walked`` does."""
        first: int | None = None
        matched = self.commands is None and self.regions is None and not self.errors
        for item in walked:
            time = time_of(item)
            if first is None:
                first = time
            if isinstance(item, TracedSession):
                yield item
            elif isinstance(item, Unanswered):
                if self._matches(item.request) and self._in_time(item.request.message.time, first):
                    yield item
            else:
                matched = self._matches(item) if isinstance(item, DecodedMessage) else matched
                if matched and self._in_time(time, first):
                    yield from self._failed(item, first)
                    yield item

    def _matches(self, item: DecodedMessage) -> bool:
        if self.errors and not item.is_error:
            return False
        if self.commands is not None and item.message.header.command not in self.commands:
            return False
        return self.regions is None or not self.regions.isdisjoint(accessed_regions(item))

    def _in_time(self, time: int | None, first: int | None) -> bool:
        if self.since is None or time is None or first is None:
            return True
        return (time - first) / _NS >= self.since

    def _failed(self, item: Walked, first: int | None) -> Iterator[DecodedMessage]:
        """The request of an error reply, which has the same command and region."""
        request = item.request if self.errors and isinstance(item, DecodedMessage) else None
        if request is not None and self._in_time(request.message.time, first):
            yield request


def accessed_regions(item: DecodedMessage) -> Iterator[int]:
    """The regions that a message accesses, or that the request does which it answers."""
    value = item.value
    if isinstance(value, RegionRead | RegionReadReply | RegionWrite | RegionWriteReply):
        yield value.region
    elif isinstance(value, RegionWriteMulti):
        yield from (write.region for write in value.writes)
    elif item.request is not None:
        yield from accessed_regions(item.request)


def _command(text: str) -> int:
    try:
        return Command[text.upper()]
    except KeyError:
        names = ", ".join(command.name for command in Command)
        raise TraceError(f"there is no command {text!r}; there are: {names}") from None


def _region(text: str) -> int:
    if text.upper() in PciRegion.__members__:
        return PciRegion[text.upper()]
    if text.isascii() and text.isdecimal() and len(text) <= len(str(2**32)):
        return int(text)
    names = ", ".join(region.name for region in PciRegion)
    raise TraceError(f"there is no region {text!r}; there are: {names}, and numbers")
