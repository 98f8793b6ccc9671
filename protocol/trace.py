"""What a trace holds beside the messages themselves: the payloads of its second interface.

Interface 0 (LINKTYPE_USER0) of each section has whole vfio-user messages. Interface 1 (LINKTYPE_USER1) has what
never crosses the socket, and is needed to understand and to replay it. Each of its packets begins with 4 bytes, a
:class:`RecordKind` and three zeros, and goes on with:

    SESSION   JSON: who recorded what, once at the start of a section.
    CONTENT   hash (16 bytes), length (u32), and that many bytes compressed by zlib (RFC 1950).
    EVENTS    any number of events, in the order in which they happened:
                  kind (u8), flags (u8), index (u16), length (u32), address (u64), and, by kind,
                  READ and WRITE   the bytes, or with flag STORED their hash (16 bytes) and the place of the CONTENT
                                   that has them (u64): where its block begins, from the start of the section on,
                                   or of the file where the session does not say which recording it is of
                  INTERRUPT        nothing: ``index`` is a VFIO IRQ index, ``address`` the vector

Interface 2 (LINKTYPE_USER2) has records that a reader may do without. They begin in the same way, and a reader skips
those of a kind that it does not know, as one that knows two interfaces skips all of them:

    MALFORMED   bytes that are no message, because its framing is broken: length of the reason (u16), the reason
                (UTF-8), and what of it was received, up to 64 KiB. The packet has the direction, and in its comment
                what the comment of a message has.
    AREAS       what has changed in areas of the device that the client may map: whether a look ends here, which makes
                a whole picture of it (u8), three zeros, and any number of
                    region (u16), flags (u16), length (u32), offset in the region (u64),
                    the bytes, or with flag STORED what READ and WRITE have there
                An area that was not looked at before held zeros.

All numbers are little-endian. Events come behind the message that led to them, or that was under way. READ says what
the device found in guest memory, and WRITE what it put there: what a client sees of it, and a replay has to repeat.
AREAS says what was found there, not when it was written.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, IntFlag
from hashlib import blake2b
from struct import Struct
from typing import Any, Final, TypeAlias

from protocol.wire import Buffer

HASH_SIZE: Final = 16
MAX_CONTENT: Final = 64 << 10
"""Bytes of the longest content that is stored by hash."""
MAX_INLINE: Final = 1 << 20
"""Bytes of the longest content of an event that is not stored by hash."""
EVENT: Final = Struct("<BBHIQ")
"""Kind, flags, index, length, address."""
STORED: Final = Struct(f"<{HASH_SIZE}sQ")
"""Hash, and where the content is in the file."""
AREA_CHANGE: Final = Struct("<HHIQ")
"""Region, flags, length, offset."""
MAX_MALFORMED: Final = 64 << 10
"""Bytes that are kept of what is no message."""

_LOOK = Struct("<B3x")
_REASON = Struct("<H")
_KIND = Struct("<B3x")
_CONTENT = Struct(f"<{HASH_SIZE}sI")
_MAX_JSON = 64 << 10
_FIELD_KINDS: Final[dict[str, type[bool | int | str]]] = {"bool": bool, "int": int, "str": str}


class TraceError(ValueError):
    """A trace is not what it should be; the text is one line."""


class RecordKind(IntEnum):
    """What a packet of interface 1 or 2 is."""

    SESSION = 1
    CONTENT = 2
    EVENTS = 3
    MALFORMED = 4
    AREAS = 5


class EventKind(IntEnum):
    """What happened."""

    READ = 1
    WRITE = 2
    INTERRUPT = 3


class EventFlags(IntFlag):
    """How an event is stored, and how it came about."""

    NONE = 0
    STORED = 1
    """By hash."""
    IN_PLACE = 2
    """Of a READ: the device looked at the memory in place, and may have used any part of it, or none."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Who recorded what. ``device`` is what ``--device`` takes, and empty where the device is not one of ours.

    ``memory``: whether every access of the device to guest memory is there, as an event or as a message.
    ``interrupts``: whether interrupts are. ``continued``: the start of the session is in a file before.
    ``areas``: whether what the client wrote to areas that it may map is there, as far as the device showed it.
    ``recording``: the same in all files of a ring, and in no other; ``file``: which of its files, counted from 1. So a
    session that is continued goes on from the last one of the file before. Both are empty in older traces.
    """

    recorder: str
    device: str = ""
    transport: str = ""
    memory: bool = False
    interrupts: bool = False
    continued: bool = False
    areas: bool = False
    recording: str = ""
    file: int = 0

    def pack(self) -> bytes:
        """The payload of a packet."""
        return _KIND.pack(RecordKind.SESSION) + json.dumps(asdict(self)).encode()

    def goes_on_from(self, before: SessionInfo) -> bool:
        """Whether this is the session that was recorded last, in the file before, when that was full."""
        return (
            self.continued
            and self.recording != ""
            and self.recording == before.recording
            and self.file == before.file + 1
        )

    @classmethod
    def unpack(cls, payload: Buffer) -> SessionInfo:
        """Read JSON. Raises TraceError."""
        if len(payload) > _MAX_JSON:
            raise TraceError(f"a description of the session of {len(payload)} bytes")
        try:
            value = json.loads(bytes(payload))
        except (ValueError, RecursionError) as error:
            raise TraceError("the description of the session is no JSON") from error
        if not isinstance(value, dict):
            raise TraceError("the description of the session is no JSON object")
        known: dict[str, Any] = {}
        for field in fields(cls):
            kind = _FIELD_KINDS[str(field.type)]
            one = value.get(field.name, kind())
            if type(one) is not kind:  # a bool is an int as well
                raise TraceError(
                    f"the session's {field.name} is a {type(one).__name__}, not a {kind.__name__}"
                )
            known[field.name] = one
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that events refer to by ``digest``."""

    digest: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Access:
    """The device read or wrote ``length`` bytes of guest memory at ``address``.

    ``data`` is what; where it is None, the content with ``digest`` is, whose packet should be at ``place``.
    """

    write: bool
    address: int
    length: int
    data: bytes | None
    digest: bytes = b""
    place: int = 0
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The device raised ``vector`` of a VFIO IRQ index, and the client was told."""

    index: int
    vector: int


Event: TypeAlias = Access | Interrupt


@dataclass(frozen=True, slots=True)
class AreaChange:
    """``length`` bytes at ``offset`` of a region were found to be others; ``data`` and so on are as for Access."""

    region: int
    offset: int
    length: int
    data: bytes | None
    digest: bytes = b""
    place: int = 0


@dataclass(frozen=True, slots=True)
class AreaLook:
    """What a look at mappable areas found, or a part of it; ``whole`` where the look ends with it."""

    whole: bool
    changes: tuple[AreaChange, ...]


@dataclass(frozen=True, slots=True)
class Malformed:
    """What was received of a message whose framing is broken, from where it began, and what is wrong."""

    reason: str
    data: bytes

    def pack(self) -> bytes:
        """The payload of a packet, with no more than MAX_MALFORMED bytes of data."""
        reason = self.reason.encode()[: 2**16 - 1]
        start = _KIND.pack(RecordKind.MALFORMED) + _REASON.pack(len(reason))
        return start + reason + self.data[:MAX_MALFORMED]

    @classmethod
    def unpack(cls, payload: Buffer) -> Malformed:
        """Read what :meth:`pack` has written, without its kind. Raises TraceError."""
        if len(payload) < _REASON.size:
            raise TraceError("a malformed message without a reason")
        (length,) = _REASON.unpack_from(payload)
        rest = bytes(memoryview(payload)[_REASON.size :])
        if not length <= len(rest) <= length + MAX_MALFORMED:
            raise TraceError(f"a malformed message with a reason of {length} in {len(rest)} bytes")
        return cls(rest[:length].decode(errors="replace"), rest[length:])


_CONTENT_KIND = _KIND.pack(RecordKind.CONTENT)
_EVENTS_KIND = _KIND.pack(RecordKind.EVENTS)


def digest(data: Buffer) -> bytes:
    """What a content is found by."""
    return blake2b(data, digest_size=HASH_SIZE).digest()


def pack_content(key: bytes, data: Buffer) -> bytes:
    """The payload of a packet that stores ``data``, whose digest is ``key``."""
    return b"".join((_CONTENT_KIND, _CONTENT.pack(key, len(data)), zlib.compress(data, 1)))


def pack_events(events: Buffer) -> bytes:
    """The payload of a packet with events that :data:`EVENT` and so on have packed."""
    return _EVENTS_KIND + events


def pack_look(changes: Buffer, *, whole: bool) -> bytes:
    """The payload of a packet with changes that :data:`AREA_CHANGE` and so on have packed."""
    return _KIND.pack(RecordKind.AREAS) + _LOOK.pack(whole) + changes


def may_be_skipped(payload: Buffer) -> bool:
    """Whether a packet of interface 2 is of a kind that is not known here."""
    return len(payload) >= _KIND.size and payload[0] not in RecordKind.__members__.values()


def content_digest(payload: Buffer) -> bytes | None:
    """Of a packet that stores a content, what it is found by; None for others."""
    end = _KIND.size + HASH_SIZE
    if len(payload) < end or payload[0] != RecordKind.CONTENT:
        return None
    return bytes(memoryview(payload)[_KIND.size : end])


def unpack(payload: Buffer) -> tuple[RecordKind, memoryview]:
    """What a packet of interface 1 or 2 is, and the rest of it. Raises TraceError."""
    if len(payload) < _KIND.size:
        raise TraceError("a record without a kind")
    (kind,) = _KIND.unpack_from(payload)
    if kind not in RecordKind.__members__.values():
        raise TraceError(f"a record of kind {kind}")
    return RecordKind(kind), memoryview(payload)[_KIND.size :]


def unpack_content(payload: Buffer) -> Content:
    """Read a content, and check that it is what its digest says. Raises TraceError."""
    if len(payload) < _CONTENT.size:
        raise TraceError("a stored content that is too short")
    key, length = _CONTENT.unpack_from(payload)
    if length > MAX_CONTENT:
        raise TraceError(f"a stored content of {length} bytes")
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(memoryview(payload)[_CONTENT.size :], length + 1)
    except zlib.error as error:
        raise TraceError(f"a stored content that cannot be unpacked: {error}") from error
    if len(data) != length or digest(data) != key:
        raise TraceError("a stored content that is not what its hash says")
    return Content(key, data)


def unpack_events(payload: Buffer, origin: int = 0) -> Iterator[Event]:
    """Read events one after the other; places count from ``origin`` on. Raises TraceError."""
    view = memoryview(payload)
    at = 0
    while at < len(view):
        if len(view) - at < EVENT.size:
            raise TraceError("an event that is cut off")
        kind, flags, index, length, address = EVENT.unpack_from(view, at)
        at += EVENT.size
        if kind == EventKind.INTERRUPT:
            yield Interrupt(index, address)
            continue
        if kind not in (EventKind.READ, EventKind.WRITE):
            raise TraceError(f"an event of kind {kind}")
        stored = bool(flags & EventFlags.STORED)
        size = STORED.size if stored else length
        if length > (MAX_CONTENT if stored else MAX_INLINE) or at + size > len(view):
            raise TraceError(f"an event about {length} bytes, which are not there")
        write = kind == EventKind.WRITE
        if stored:
            key, place = STORED.unpack_from(view, at)
            yield Access(write, address, length, None, key, origin + place, bool(flags & EventFlags.IN_PLACE))
        else:
            data = bytes(view[at : at + size])
            yield Access(write, address, length, data, in_place=bool(flags & EventFlags.IN_PLACE))
        at += size


def unpack_look(payload: Buffer, origin: int = 0) -> AreaLook:
    """Read what a look at mappable areas found; places count from ``origin`` on. Raises TraceError."""
    view = memoryview(payload)
    if len(view) < _LOOK.size:
        raise TraceError("a look at areas that is cut off")
    (whole,) = _LOOK.unpack_from(view)
    return AreaLook(bool(whole), tuple(_area_changes(view[_LOOK.size :], origin)))


def _area_changes(view: memoryview, origin: int) -> Iterator[AreaChange]:
    at = 0
    while at < len(view):
        if len(view) - at < AREA_CHANGE.size:
            raise TraceError("a change of an area that is cut off")
        region, flags, length, offset = AREA_CHANGE.unpack_from(view, at)
        at += AREA_CHANGE.size
        stored = bool(flags & EventFlags.STORED)
        size = STORED.size if stored else length
        if length > (MAX_CONTENT if stored else MAX_INLINE) or at + size > len(view):
            raise TraceError(f"a change of {length} bytes of an area, which are not there")
        if stored:
            key, place = STORED.unpack_from(view, at)
            yield AreaChange(region, offset, length, None, key, origin + place)
        else:
            yield AreaChange(region, offset, length, bytes(view[at : at + size]))
        at += size
