"""REGION_READ, REGION_WRITE and REGION_WRITE_MULTI, as values and as a fast path.

The fast path is for the register loop of a server: it unpacks with :data:`REGION_ACCESS` and packs whole
replies into a buffer that is reused, with no value in between. The ``count`` of a read is the peer's word:
compare it with the negotiated max_data_xfer_size and the region before anything of that size is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.header import HEADER_SIZE, MessageType
from protocol.wire import Buffer, unpack_start, unpack_whole

REGION_ACCESS: Final = Struct("=QII")
"""Offset in the region, region index, count in bytes; data follows it in write requests and read replies."""

REGION_REPLY_SIZE: Final = HEADER_SIZE + REGION_ACCESS.size
"""Bytes in front of the data of a whole read reply, and of a whole write reply."""

MULTI_DATA_SIZE: Final = 8
"""The most bytes that one write of a REGION_WRITE_MULTI can carry."""

_REPLY: Final = Struct("=HHIIIQII")
_MULTI_COUNT: Final = Struct("=Q")
_MULTI_WRITE: Final = Struct("=QII8s")
_REPLY_FLAGS: Final = MessageType.REPLY.value
_READ: Final = Command.REGION_READ.value
_WRITE: Final = Command.REGION_WRITE.value


def pack_read_reply_into(
    buffer: bytearray | memoryview, message_id: int, offset: int, region: int, data: Buffer
) -> int:
    """Write a whole REGION_READ reply to the start of ``buffer``; return its size.

    ``buffer`` must hold :data:`REGION_REPLY_SIZE` bytes more than ``data``.
    """
    count = len(data)
    size = REGION_REPLY_SIZE + count
    _REPLY.pack_into(buffer, 0, message_id, _READ, size, _REPLY_FLAGS, 0, offset, region, count)
    buffer[REGION_REPLY_SIZE:size] = data
    return size


def pack_write_reply_into(
    buffer: bytearray | memoryview, message_id: int, offset: int, region: int, count: int
) -> int:
    """Write a whole REGION_WRITE reply to the start of ``buffer``; return its size."""
    _REPLY.pack_into(buffer, 0, message_id, _WRITE, REGION_REPLY_SIZE, _REPLY_FLAGS, 0, offset, region, count)
    return REGION_REPLY_SIZE


def _unpack_with_data(payload: Buffer, what: str) -> tuple[int, int, bytes]:
    offset, region, count = unpack_start(REGION_ACCESS, payload, what)
    data = payload[REGION_ACCESS.size :]
    if len(data) != count:
        raise ProtocolError(EINVAL, f"{what} says {count} bytes of data and brings {len(data)}")
    return offset, region, bytes(data)


@dataclass(frozen=True, slots=True)
class RegionRead:
    """Request to read ``count`` bytes at ``offset`` of region ``region``."""

    command: ClassVar[Command] = Command.REGION_READ

    offset: int
    region: int
    count: int

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return REGION_ACCESS.pack(self.offset, self.region, self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionRead:
        """Read a payload. Raises ProtocolError."""
        return cls(*unpack_whole(REGION_ACCESS, payload, "REGION_READ"))


@dataclass(frozen=True, slots=True)
class RegionReadReply:
    """What was read."""

    command: ClassVar[Command] = Command.REGION_READ

    offset: int
    region: int
    data: bytes

    def pack(self) -> bytes:
        """The payload, 16 bytes and the data."""
        return REGION_ACCESS.pack(self.offset, self.region, len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionReadReply:
        """Read a payload. Raises ProtocolError."""
        return cls(*_unpack_with_data(payload, "a REGION_READ reply"))


@dataclass(frozen=True, slots=True)
class RegionWrite:
    """Request to write ``data`` at ``offset`` of region ``region``."""

    command: ClassVar[Command] = Command.REGION_WRITE

    offset: int
    region: int
    data: bytes

    def pack(self) -> bytes:
        """The payload, 16 bytes and the data."""
        return REGION_ACCESS.pack(self.offset, self.region, len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionWrite:
        """Read a payload. Raises ProtocolError."""
        return cls(*_unpack_with_data(payload, "REGION_WRITE"))


@dataclass(frozen=True, slots=True)
class RegionWriteReply:
    """``count`` bytes were written."""

    command: ClassVar[Command] = Command.REGION_WRITE

    offset: int
    region: int
    count: int

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return REGION_ACCESS.pack(self.offset, self.region, self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionWriteReply:
        """Read a payload. Raises ProtocolError."""
        return cls(*unpack_whole(REGION_ACCESS, payload, "a REGION_WRITE reply"))


@dataclass(frozen=True, slots=True)
class RegionWriteMulti:
    """Writes of at most 8 bytes each, to be done in order."""

    command: ClassVar[Command] = Command.REGION_WRITE_MULTI

    writes: tuple[RegionWrite, ...]

    def pack(self) -> bytes:
        """The payload, 8 bytes and 24 per write. Raises ValueError where a write is longer than 8 bytes."""
        parts = [_MULTI_COUNT.pack(len(self.writes))]
        for write in self.writes:
            if len(write.data) > MULTI_DATA_SIZE:
                raise ValueError(f"{len(write.data)} bytes do not fit into a write of REGION_WRITE_MULTI")
            parts.append(_MULTI_WRITE.pack(write.offset, write.region, len(write.data), write.data))
        return b"".join(parts)

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionWriteMulti:
        """Read a payload. Raises ProtocolError."""
        (count,) = unpack_start(_MULTI_COUNT, payload, "REGION_WRITE_MULTI")
        entries = memoryview(payload)[_MULTI_COUNT.size :]
        if len(entries) != count * _MULTI_WRITE.size:
            raise ProtocolError(EINVAL, f"REGION_WRITE_MULTI says {count} writes in {len(entries)} bytes")
        writes = []
        for offset, region, length, data in _MULTI_WRITE.iter_unpack(entries):
            if length > MULTI_DATA_SIZE:
                raise ProtocolError(EINVAL, f"a write of {length} bytes in REGION_WRITE_MULTI")
            writes.append(RegionWrite(offset, region, data[:length]))
        return cls(tuple(writes))


@dataclass(frozen=True, slots=True)
class RegionWriteMultiReply:
    """``count`` writes were completed."""

    command: ClassVar[Command] = Command.REGION_WRITE_MULTI

    count: int

    def pack(self) -> bytes:
        """The payload, 8 bytes."""
        return _MULTI_COUNT.pack(self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionWriteMultiReply:
        """Read a payload. Raises ProtocolError."""
        return cls(*unpack_whole(_MULTI_COUNT, payload, "a REGION_WRITE_MULTI reply"))
