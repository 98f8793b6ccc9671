"""Reading fixed structures out of payloads.

All integers are in the byte order of the host, without padding (vfio-user, Protocol Specification): struct
formats start with ``=``.
"""

from __future__ import annotations

from errno import EINVAL
from struct import Struct
from typing import Any, TypeAlias

from protocol.errors import ProtocolError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What messages are unpacked from."""

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1


def unpack_whole(layout: Struct, payload: Buffer, what: str) -> tuple[Any, ...]:
    """Unpack a payload that is exactly ``layout``. Raises ProtocolError (EINVAL)."""
    if len(payload) != layout.size:
        raise ProtocolError(EINVAL, f"{what} takes {layout.size} bytes, got {len(payload)}")
    return layout.unpack(payload)


def unpack_start(layout: Struct, payload: Buffer, what: str) -> tuple[Any, ...]:
    """Unpack ``layout`` from a payload that may go on behind it. Raises ProtocolError (EINVAL)."""
    if len(payload) < layout.size:
        raise ProtocolError(EINVAL, f"{what} takes at least {layout.size} bytes, got {len(payload)}")
    return layout.unpack_from(payload)


def check_argsz(argsz: int, least: int, what: str) -> None:
    """Check that a peer's argsz is at least ``least`` bytes. Raises ProtocolError (EINVAL)."""
    if argsz < least:
        raise ProtocolError(EINVAL, f"{what}: argsz {argsz} is less than {least}")


def check_empty(payload: Buffer, what: str) -> None:
    """Check that a message without payload has none. Raises ProtocolError (EINVAL)."""
    if len(payload) != 0:
        raise ProtocolError(EINVAL, f"{what} takes no payload, got {len(payload)} bytes")


def is_power_of_two(number: int) -> bool:
    """Whether ``number`` is 1, 2, 4, ..."""
    return number > 0 and number & (number - 1) == 0


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of a dirty bitmap with one bit per page of ``length`` bytes: an array of u64 (linux/vfio.h)."""
    pages = -(-length // page_size)
    return -(-pages // 64) * 8
