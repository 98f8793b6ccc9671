"""What a message means, for comparing it with one of another recording.

Not what differs between any two recordings of the same thing: message ids, times, which file an fd is of.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, IntFlag
from typing import Any

from protocol import (
    DeviceFeature,
    ErrorReply,
    GetIrqInfo,
    GetRegionInfo,
    GetRegionIoFds,
    IrqInfo,
    RegionInfo,
    RegionIoFds,
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteReply,
    SetIrqs,
)
from protocol.trace import Access, Event, digest
from server.trace.pairing import DecodedMessage
from server.trace.reader import TracedMalformed
from server.trace.text.names import errno_name
from server.trace.text.value_text import SHORT, data_text, flags_text, plural

_LONGEST = 60
"""Characters of a value that are shown."""

_HEXADECIMAL = ("address", "offset")
_ACCESSES = (RegionRead, RegionReadReply, RegionWrite, RegionWriteReply)
_INDEXED = (GetRegionInfo, RegionInfo, GetRegionIoFds, RegionIoFds, GetIrqInfo, IrqInfo, SetIrqs)


@dataclass(frozen=True, slots=True)
class Meaning:
    """Two messages are the same where ``whole`` is equal; ``digest`` tells most others apart, at once.

    They are versions of one message where ``shape`` is equal: direction, command, whether it is a reply, and what of
    the device it is about.
    """

    digest: int
    whole: Hashable
    shape: Hashable

    def same(self, other: Meaning) -> bool:
        """Whether there is no difference."""
        return self.digest == other.digest and self.whole == other.whole


def meaning_of(decoded: DecodedMessage) -> Meaning:
    """What ``decoded`` means."""
    message, header = decoded.message, decoded.message.header
    said: Hashable = decoded.value
    if said is None:
        said = bytes(message.payload), header.flags, header.error
    kinds = tuple(facts.kind for facts in message.facts.fds)
    common = message.inbound, header.command, decoded.is_reply
    whole = *common, decoded.is_posted, said, kinds
    return Meaning(hash(whole), whole, (*common, _about(decoded)))


def meaning_of_malformed(item: TracedMalformed) -> Meaning:
    """What is sent that is no message; not why it is none, since a recorder's limits are its own."""
    shape = "malformed", item.inbound
    whole = *shape, item.malformed.data, tuple(facts.kind for facts in item.facts.fds)
    return Meaning(hash(whole), whole, shape)


def meaning_of_event(event: Event) -> Meaning:
    """What happened; of an access to memory, not how the recorder has stored what was there."""
    if isinstance(event, Access):
        shape: tuple[Hashable, ...] = "memory", event.write, event.address
        known = event.digest if event.data is None else digest(memoryview(event.data))
        whole: tuple[Hashable, ...] = *shape, event.length, known
    else:
        whole = shape = "interrupt", event.index, event.vector
    return Meaning(hash(whole), whole, shape)


SESSION = Meaning(hash("session"), "session", "session")
"""A session begins; who recorded it does not matter."""


def _about(decoded: DecodedMessage) -> Hashable:
    """The part of the device; of a reply, what its request was about, so that it is the same where that fails."""
    value = decoded.value if decoded.request is None else decoded.request.value
    if isinstance(value, _ACCESSES):
        return value.region, value.offset
    if isinstance(value, _INDEXED):
        return value.index
    if isinstance(value, DeviceFeature):
        return value.feature, value.flags
    return None


def differences(a: DecodedMessage, b: DecodedMessage) -> Iterator[str]:
    """Which fields differ between two messages of the same shape: ``data: 0x00 -> 0x01``."""
    if a.is_posted != b.is_posted:
        yield "posted: yes -> no" if a.is_posted else "posted: no -> yes"
    if _outcome(a) != _outcome(b):
        yield f"outcome: {_outcome(a)} -> {_outcome(b)}"
    elif a.value is None:
        yield from _differing("payload", bytes(a.message.payload), bytes(b.message.payload))
    elif not isinstance(a.value, ErrorReply):
        yield from _fields(a.value, b.value, "")
    kinds = [", ".join(facts.kind for facts in one.message.facts.fds) or "none" for one in (a, b)]
    if kinds[0] != kinds[1]:
        yield f"fds: {kinds[0]} -> {kinds[1]}"


def data_differences(a: bytes | None, b: bytes | None) -> Iterator[str]:
    """What differs between what two accesses found, or put, at the same place; None is not known."""
    if a is None or b is None:
        yield "data: not in the file"
    else:
        yield from _differing("data", a, b)


def _outcome(decoded: DecodedMessage) -> str:
    if decoded.value is None:
        return "does not decode"
    return errno_name(decoded.message.header.error) if decoded.is_error else "success"


def _fields(a: Any, b: Any, prefix: str) -> Iterator[str]:
    for field in fields(a):
        yield from _differing(prefix + field.name, getattr(a, field.name), getattr(b, field.name))


def _differing(name: str, a: Any, b: Any) -> Iterator[str]:
    if a == b:
        return
    if is_dataclass(a) and type(a) is type(b):
        yield from _fields(a, b, f"{name}.")
    elif isinstance(a, bytes) and isinstance(b, bytes):
        yield f"{name}: {_bytes(a, b)}"
    else:
        yield f"{name}: {_text(name, a)} -> {_text(name, b)}"


def _bytes(a: bytes, b: bytes) -> str:
    if len(a) != len(b) or len(a) <= SHORT:
        return f"{data_text(a)} -> {data_text(b)}"
    differ = [place for place, (one, other) in enumerate(zip(a, b, strict=True)) if one != other]
    first = differ[0]
    return f"{plural(len(differ), 'byte')} from +{first:#x} on, {a[first]:#04x} -> {b[first]:#04x}"


def _text(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, IntFlag):
        return flags_text(value)
    if isinstance(value, Enum):
        return value.name
    text = f"{value:#x}" if name in _HEXADECIMAL else str(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
