"""Records one session: its messages, and what never crosses the socket."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from devices.contract import Look
from protocol import trace
from protocol.pcapng import (
    LINKTYPE_USER0,
    LINKTYPE_USER1,
    LINKTYPE_USER2,
    Direction,
    interface,
    packet,
    section,
)
from protocol.trace import (
    AREA_CHANGE,
    EVENT,
    MAX_CONTENT,
    STORED,
    EventFlags,
    EventKind,
    Malformed,
    SessionInfo,
)
from protocol.wire import Buffer
from server.trace.contents import Copies
from server.trace.ring import TraceRing

MESSAGES = 0
RECORDS = 1
ADDITIONS = 2
"""The interfaces of each section."""
APPLICATION = "vgpud"
MAX_EVENTS = 64 << 10
"""Bytes of events that are gathered into one packet."""
BATCH_TIME = 1_000_000
"""Nanoseconds in which they are gathered: all have the time of the first, and a packet for each would be dear."""
UNTIMED = 512
"""Bytes of events between two looks at the clock, each of which takes as long as recording an event."""
INTERRUPT_TIME = 500_000
"""Nanoseconds by which an interrupt may be older than its time says."""
MAX_KNOWN = 1 << 17
"""Contents that are remembered, so that they are not stored again."""
SHORT = 512
"""Bytes up to which what was read or written stands in its event."""

_READ = EventKind.READ.value
_WRITE = EventKind.WRITE.value
_INTERRUPT = EventKind.INTERRUPT.value
_IN_PLACE = EventFlags.IN_PLACE.value
_pack_event = EVENT.pack
_now = time.time_ns
_STORED = EventFlags.STORED.value


class AreaWatch(Protocol):
    """Looks at the device's mappable areas."""

    def before(self, message: Buffer) -> None:
        """The client has sent ``message``, which is recorded and served next."""

    def forget(self) -> None:
        """Whatever is looked at next is new."""


class Recorder:
    """One session in a trace. Messages that come before :meth:`start` wait for it.

    Implements :class:`server.trace.observed_memory.MemoryObserver`.
    """

    def __init__(self, ring: TraceRing, info: SessionInfo) -> None:
        self.messages = 0
        self.info = info
        self._ring = ring
        self._section = 0
        """Where in FILE its section begins."""
        self._early: list[bytes] | None = []
        self._events = bytearray()
        self._began = 0
        """When the first message came."""
        self._batch_began = 0
        """The time of the events that are gathered."""
        self._timed = 0
        """How many bytes of events there may be until it is time to look at the clock."""
        self._changes = bytearray()
        """What a look at mappable areas has found so far."""
        self._known: dict[bytes, int] = {}
        self._copies = Copies()
        self.areas: AreaWatch | None = None
        """Who looks at mappable areas, if somebody does."""

    @property
    def ended(self) -> bool:
        """Whether nothing is recorded any more, so that nobody need look for more."""
        return self._ring.error is not None

    def start(self) -> None:
        """Begin a section with what has come so far; of several sessions, one at a time writes."""
        if self._early is not None:
            early, self._early = self._early, None
            if self._ring.full:
                self._ring.rotate()
            self._begin(self.info, self._began or _now())
            for block in early:
                self._ring.append(block)

    def message(self, direction: Direction, data: Buffer, comment: str = "") -> None:
        """A whole message was received or sent."""
        if self.areas is not None and direction is Direction.INBOUND:
            self.areas.before(data)
        self._said(MESSAGES, direction, data, comment)

    def malformed(self, direction: Direction, data: bytes, reason: str, comment: str = "") -> None:
        """What was received of a message whose framing is broken."""
        self._said(ADDITIONS, direction, Malformed(reason, data).pack(), comment)

    def _said(self, where: int, direction: Direction, data: Buffer, comment: str) -> None:
        if self._events:
            self._pack_events()
        if self._changes:
            self.looked_at_areas(whole=False)
        self.messages += 1
        now = _now()
        self._began = self._began or now
        block = packet(where, now, data, direction, comment)
        if self._early is not None:
            self._early.append(block)
            return
        self._ring.append(block)
        if self._ring.full:
            self._continue()

    def read(self, address: int, data: bytes | memoryview) -> None:
        """The device read ``data`` from guest memory."""
        size = len(data)
        events = self._events
        if size > SHORT or not 0 < len(events) <= self._timed:
            self._access(_READ, address, data)
            return
        events += _pack_event(_READ, 0, 0, size, address)  # the short way, since there are many of these
        events += data

    def wrote(self, address: int, data: bytes | memoryview) -> None:
        """The device wrote ``data`` to guest memory."""
        size = len(data)
        events = self._events
        if size > SHORT or not 0 < len(events) <= self._timed:
            self._access(_WRITE, address, data)
            return
        events += _pack_event(_WRITE, 0, 0, size, address)  # as for read()
        events += data

    def looked(
        self, pins: object, ranges: Sequence[tuple[int, int]], offset: int, views: Sequence[memoryview]
    ) -> Look:
        """The device looks at memory in place; what has changed there is recorded."""
        if self.ended:
            return Look(views)
        self._make_room()
        news = self._copies.look(pins, ranges, offset, views)
        for address, data in news.pieces:
            if len(data) <= SHORT:
                if self._ring.full:
                    self._make_room()
                self._add(_pack_event(_READ, _IN_PLACE, 0, len(data), address))
                self._events += data
            else:
                self._store(_READ, _STORED | _IN_PLACE, address, data)
        return Look(views, news.version, news.spans)

    def interrupt(self, index: int, vector: int) -> None:
        """The client was told of an interrupt."""
        self._make_room()
        self._add(EVENT.pack(_INTERRUPT, 0, index, 0, vector), INTERRUPT_TIME)

    def area_changed(self, region: int, offset: int, data: memoryview) -> None:
        """A look at mappable areas, which :meth:`looked_at_areas` ends, found other bytes than before."""
        self._make_room()
        if len(self._changes) > MAX_EVENTS:
            self.looked_at_areas(whole=False)
        if len(data) <= SHORT:
            self._changes += AREA_CHANGE.pack(region, 0, len(data), offset)
            self._changes += data
        else:
            stored = self._stored(data)
            self._changes += AREA_CHANGE.pack(region, _STORED, len(data), offset) + stored

    def looked_at_areas(self, *, whole: bool) -> None:
        """Record what has been found; ``whole`` at the end of a look at all that is shown."""
        if self._events:
            self._pack_events()
        self._ring.append(packet(ADDITIONS, _now(), trace.pack_look(self._changes, whole=whole)))
        self._changes.clear()

    def flush(self) -> None:
        """Write what has been recorded, so that it outlives this process."""
        if self._early is None:
            if self._events:
                self._pack_events()
            if self._changes:
                self.looked_at_areas(whole=False)
            self._ring.flush()

    def _access(self, kind: int, address: int, data: bytes | memoryview) -> None:
        size = len(data)
        if self.ended:
            return
        if size <= SHORT:
            self._make_room()
            self._add(EVENT.pack(kind, 0, 0, size, address))
            self._events += data
            return
        rest = memoryview(data)
        while rest:
            # Cut on multiples of the longest content, so that equal pages are equal contents.
            take = min(len(rest), MAX_CONTENT - address % MAX_CONTENT)
            self._store(kind, _STORED, address, rest[:take])
            rest = rest[take:]
            address += take

    def _store(self, kind: int, flags: int, address: int, data: memoryview) -> None:
        self._make_room()
        stored = self._stored(data)
        self._add(EVENT.pack(kind, flags, 0, len(data), address) + stored)

    def _stored(self, data: memoryview) -> bytes:
        """What refers to ``data``, which is in the file already or is put there."""
        key = trace.digest(data)
        place = self._known.get(key)
        if place is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            content = packet(RECORDS, _now(), trace.pack_content(key, data))
            place = self._known[key] = self._ring.append(content) - self._section
        return STORED.pack(key, place)

    def _add(self, event: bytes, within: int = BATCH_TIME) -> None:
        """One more event, whose time is known to ``within`` ns."""
        now = _now()
        if self._events and (len(self._events) > MAX_EVENTS or not 0 <= now - self._batch_began <= within):
            self._pack_events()
        if not self._events:
            self._batch_began = now
        self._events += event
        self._timed = min(len(self._events) + UNTIMED, MAX_EVENTS)

    def _pack_events(self) -> None:
        self._ring.append(packet(RECORDS, self._batch_began, trace.pack_events(self._events)))
        self._events.clear()

    def _make_room(self) -> None:
        """An event, and what it refers to, are in the same file."""
        if self._ring.full:
            if self._events:
                self._pack_events()
            if self._changes:
                self.looked_at_areas(whole=False)
            self._continue()

    def _continue(self) -> None:
        """Go on in the next file of the ring, which has to make sense by itself."""
        self._ring.rotate()
        self._known.clear()
        self._copies.forget()
        if self.areas is not None:
            self.areas.forget()
        self._begin(replace(self.info, continued=True), _now())

    def _begin(self, info: SessionInfo, now: int) -> None:
        self._section = self._ring.append(section(APPLICATION))
        self._ring.append(interface(LINKTYPE_USER0, "vfio-user"))
        self._ring.append(interface(LINKTYPE_USER1, "records"))
        self._ring.append(interface(LINKTYPE_USER2, "additions"))
        info = replace(info, recording=self._ring.recording, file=self._ring.files_written)
        self._ring.append(packet(RECORDS, now, info.pack()))
