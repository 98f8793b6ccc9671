"""Which messages of a trace are wanted."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

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
from server.trace.pairing import DecodedMessage, Unanswered, Walked, time_of
from server.trace.place import Place
from server.trace.reader import TracedMalformed, TracedSession
from server.trace.text.names import Names

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of these commands, that access these regions and registers, that failed; None is all.

    Of what was said in one session only, and not before ``since`` or behind ``until`` (seconds from the start of the
    trace on). Registers are patterns of :mod:`fnmatch`, of any case.

    With ``errors``, requests come right before the error reply that they got, so numbers may not be in order where
    several requests wait at a time. Of events, those behind a wanted message are wanted.
    """

    commands: frozenset[int] | None = None
    regions: frozenset[int] | None = None
    registers: tuple[str, ...] | None = None
    errors: bool = False
    since: float | None = None
    until: float | None = None
    session: int | None = None

    @classmethod
    def parse(cls, arguments: argparse.Namespace) -> Selection:
        """From the arguments of ``vgpud trace show``. Raises TraceError for a name that there is not."""
        commands, regions, registers = arguments.command, arguments.region, arguments.register
        return cls(
            None if commands is None else frozenset(map(_command, commands)),
            None if regions is None else frozenset(map(_region, regions)),
            None if registers is None else tuple(name.lower() for name in registers),
            arguments.errors,
            arguments.since,
            arguments.until,
            arguments.session,
        )

    def select(self, walked: Iterable[Walked], place: Place) -> Iterator[Walked]:
        """What is wanted of ``walked``, which ``place`` follows; the session's start always is.

        Raises as ``walked`` does; and TraceError at the end where the trace has not so many sessions, or no message
        accesses such a register.
        """
        everything = self.commands is None and not self._of_accesses and not self.errors
        matched = everything
        accessed = self.registers is None
        for item in walked:
            if isinstance(item, TracedSession):
                matched = (matched and item.info.continued) or everything
                if self.session in (None, place.session):
                    yield item
                continue
            if isinstance(item, DecodedMessage):
                matched = self._matches(item, place.names)
                accessed = accessed or self._accesses(item, place.names, None)
            if self.session in (None, place.session):
                yield from self._wanted(item, matched, place)
        if self.session is not None and self.session > place.session:
            raise TraceError(f"there is no session {self.session}; the trace has {place.session}")
        if not accessed:
            raise TraceError(
                f"no message accesses a register {' or '.join(map(repr, self.registers or ()))}; "
                "names are as they are shown: common.device_status; or patterns: common.*"
            )

    @property
    def _of_accesses(self) -> bool:
        return self.regions is not None or self.registers is not None

    def _wanted(self, item: Walked, matched: bool, place: Place) -> Iterator[Walked]:
        if isinstance(item, Unanswered):
            request = item.request
            wanted = self._matches(request, place.names) and self._in_time(request.message.time, place)
        elif isinstance(item, TracedMalformed):
            # It has neither a command nor a region, and all of it is an error.
            wanted = self.commands is None and not self._of_accesses and self._in_time(item.time, place)
        else:
            wanted = matched and self._in_time(time_of(item), place)
        if wanted:
            yield from self._failed(item, place)
            yield item

    def _matches(self, item: DecodedMessage, names: Names) -> bool:
        if self.errors and not item.is_error:
            return False
        if self.commands is not None and item.message.header.command not in self.commands:
            return False
        return not self._of_accesses or self._accesses(item, names, self.regions)

    def _accesses(self, item: DecodedMessage, names: Names, regions: Container[int] | None) -> bool:
        """Whether it accesses a wanted register, of one of ``regions``."""
        return any(
            (regions is None or region in regions)
            and (self.registers is None or self._is_register(names.register(region, offset)))
            for region, offset in accesses(item)
        )

    def _is_register(self, name: str | None) -> bool:
        return name is not None and any(fnmatchcase(name.lower(), one) for one in self.registers or ())

    def _in_time(self, time: int | None, place: Place) -> bool:
        if time is None:
            return True
        at = (time - place.first) / _NS
        return (self.since is None or at >= self.since) and (self.until is None or at <= self.until)

    def _failed(self, item: Walked, place: Place) -> Iterator[DecodedMessage]:
        """The request of an error reply, which has the same command and region."""
        request = item.request if self.errors and isinstance(item, DecodedMessage) else None
        if request is not None and self._in_time(request.message.time, place):
            yield request


def accesses(item: DecodedMessage) -> Iterator[tuple[int, int]]:
    """The regions and offsets that a message accesses, or that the request does which it answers."""
    value = item.value
    if isinstance(value, RegionRead | RegionReadReply | RegionWrite | RegionWriteReply):
        yield value.region, value.offset
    elif isinstance(value, RegionWriteMulti):
        yield from ((write.region, write.offset) for write in value.writes)
    elif item.request is not None:
        yield from accesses(item.request)


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
