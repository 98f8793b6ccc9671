"""What of a reply has to be as it was recorded, and what may differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from protocol import (
    Command,
    ErrorReply,
    Message,
    PciRegion,
    ProtocolError,
    RegionRead,
    RegionReadReply,
    Version,
    decode_reply,
    decode_request,
)
from protocol.trace import TraceError
from server.trace.reader import TracedMessage

_SHOWN = 32
"""Bytes of a value that a difference shows."""
_SHOWN_TEXT = 400
"""Characters of one that is no bytes: a server may have a million areas in a region."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Bits of a region that are not compared: those of ``bits``, little-endian, in ``length`` bytes at ``offset``.

    All of them where ``bits`` is None.
    """

    region: int
    offset: int
    length: int
    bits: int | None

    @classmethod
    def parse(cls, text: str) -> Mask:
        """Read ``REGION:OFFSET[:LENGTH[:BITS]]``. Raises TraceError with what to write instead."""
        parts = text.split(":")
        try:
            if not 2 <= len(parts) <= 4:
                raise ValueError
            region = parts[0].upper()
            index = PciRegion[region].value if region in PciRegion.__members__ else int(region, 0)
            offset = int(parts[1], 0)
            length = int(parts[2], 0) if len(parts) > 2 else 1
            bits = int(parts[3], 0) if len(parts) > 3 else None
            if min(index, offset, length, bits or 0) < 0:
                raise ValueError
        except ValueError:
            raise TraceError(
                f"--mask {text}: write REGION:OFFSET[:LENGTH[:BITS]], for example BAR0:8:4:0xff"
            ) from None
        return cls(index, offset, length, bits)

    def clear(self, region: int, offset: int, data: bytearray) -> None:
        """Set the masked bits of what was read from a region to 0."""
        start = max(self.offset, offset)
        end = min(self.offset + self.length, offset + len(data))
        if region != self.region or start >= end:
            return
        if self.bits is None:
            data[start - offset : end - offset] = bytes(end - start)
            return
        for place in range(start, end):
            data[place - offset] &= ~(self.bits >> 8 * (place - self.offset)) & 0xFF


class Comparison:
    """Compares replies. Of VERSION only the version counts: what else is in it, each server chooses for itself.

    The payload of an error reply says nothing, and servers differ in whether there is one.
    """

    def __init__(self, masks: Sequence[Mask] = ()) -> None:
        self._masks = masks

    def difference(self, request: TracedMessage | None, recorded: TracedMessage, now: Message) -> str | None:
        """What is different about a reply; None where it is the same as it was recorded."""
        before, after = recorded.header, now.header
        if before.command != after.command:
            return f"the reply is to command {after.command}, and was to {before.command}"
        if before.is_error or after.is_error:
            return _error_difference(before.error, after.error, before.is_error, after.is_error)
        if len(recorded.facts.fds) != len(now.fds):
            return f"{len(now.fds)} fds came with the reply, and were {len(recorded.facts.fds)}"
        old, new = bytes(recorded.payload), bytes(now.payload)
        if old == new:
            return None
        if before.command == Command.VERSION:
            return _version_difference(old, new)
        if before.command == Command.REGION_READ and self._same_read(request, recorded, now):
            return None
        return _field_difference(recorded, now)

    def _same_read(self, request: TracedMessage | None, recorded: TracedMessage, now: Message) -> bool:
        """Whether only masked bits of what was read differ."""
        if request is None:
            return False
        try:
            asked = decode_request(request.header, request.payload)
            old = decode_reply(recorded.header, recorded.payload)
            new = decode_reply(now.header, now.payload)
        except ProtocolError:
            return False
        if not (
            isinstance(asked, RegionRead)
            and isinstance(old, RegionReadReply)
            and isinstance(new, RegionReadReply)
        ):
            return False
        if (old.region, old.offset) != (new.region, new.offset):
            return False
        values = bytearray(old.data), bytearray(new.data)
        for mask in self._masks:
            for value in values:
                mask.clear(asked.region, asked.offset, value)
        return values[0] == values[1]


def _error_difference(before: int, after: int, was_error: bool, is_error: bool) -> str | None:
    if was_error and is_error and before == after:
        return None

    def said(number: int, error: bool) -> str:
        return f"{os.strerror(number)} ({number})" if error else "success"

    return f"the reply is {said(after, is_error)}, and was {said(before, was_error)}"


def _version_difference(old: bytes, new: bytes) -> str | None:
    try:
        before, after = Version.unpack(old), Version.unpack(new)
    except ProtocolError as error:
        return f"VERSION cannot be read: {error.reason}"
    if (before.major, before.minor) == (after.major, after.minor):
        return None
    return f"the version is {after.major}.{after.minor}, and was {before.major}.{before.minor}"


def _field_difference(recorded: TracedMessage, now: Message) -> str:
    """Which field differs, as far as the reply can be read."""
    try:
        old = decode_reply(recorded.header, recorded.payload)
        new = decode_reply(now.header, now.payload)
    except ProtocolError:
        old = new = ErrorReply(0)
    if type(old) is type(new):
        for field in fields(old):
            before, after = getattr(old, field.name), getattr(new, field.name)
            if before != after:
                return f"{field.name} is {_shown(after)}, and was {_shown(before)}"
    return f"the payload is {_shown(bytes(now.payload))}, and was {_shown(bytes(recorded.payload))}"


def _shown(value: object) -> str:
    if isinstance(value, bytes):
        if len(value) <= 8:
            return f"0x{value[::-1].hex() or '0'}"
        return f"{value[:_SHOWN].hex(' ')}{' ...' if len(value) > _SHOWN else ''} ({len(value)} bytes)"
    text = f"{value:#x}" if type(value) is int else str(value)
    return f"{text[:_SHOWN_TEXT]} ..." if len(text) > _SHOWN_TEXT else text
