"""Messages written down as the specification's tables have them: offset, size, value."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from protocol import ProtocolError

Value = TypeVar("Value")


def table(*fields: tuple[int, int, int], data: bytes = b"") -> bytes:
    """Place each (offset, size, value) in host byte order; ``data`` goes behind the last field."""
    size = max(offset + width for offset, width, _ in fields)
    payload = bytearray(size)
    for offset, width, value in fields:
        payload[offset : offset + width] = value.to_bytes(width, sys.byteorder)
    return bytes(payload) + data


def field(payload: bytes, offset: int, size: int) -> int:
    """The unsigned number in ``size`` bytes at ``offset``."""
    return int.from_bytes(payload[offset : offset + size], sys.byteorder)


def header(message_id: int, command: int, size: int, flags: int = 0, error: int = 0) -> bytes:
    """The header, from the specification's table."""
    return table((0, 2, message_id), (2, 2, command), (4, 4, size), (8, 4, flags), (12, 4, error))


def attempt(unpack: Callable[[bytes], Value], payload: bytes) -> Value | ProtocolError:
    """What ``unpack`` makes of ``payload``, or how it refuses; any other exception goes through."""
    try:
        return unpack(payload)
    except ProtocolError as error:
        return error
