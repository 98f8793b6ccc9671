"""DMA_MAP, DMA_UNMAP, DMA_READ and DMA_WRITE.

Only the shape of the messages is checked here. Whether a range is aligned, wraps, or overlaps another is for
whoever keeps the map; so is the ``count`` of a DMA_READ, which is the peer's word.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.vfio import DmaMapFlags, DmaUnmapFlags
from protocol.wire import (
    U32_MAX,
    Buffer,
    bitmap_size,
    check_argsz,
    is_power_of_two,
    unpack_start,
    unpack_whole,
)

_MAP: Final = Struct("=IIQQQ")
_UNMAP: Final = Struct("=IIQQ")
_BITMAP: Final = Struct("=QQ")
_ACCESS: Final = Struct("=QQ")
_SHORT_WRITE_REPLY: Final = Struct("=QI")

_MAP_FLAGS: Final = DmaMapFlags.READ | DmaMapFlags.WRITE | DmaMapFlags.MAPPABLE


@dataclass(frozen=True, slots=True)
class DmaMap:
    """The client's memory at ``offset`` in the fd sent along becomes ``size`` DMA addresses from ``address``.

    Without a file descriptor the memory is reached with DMA_READ and DMA_WRITE messages. The reply has no
    payload.
    """

    command: ClassVar[Command] = Command.DMA_MAP

    address: int
    size: int
    flags: DmaMapFlags
    offset: int = 0

    def pack(self) -> bytes:
        """The payload, 32 bytes."""
        return _MAP.pack(_MAP.size, self.flags, self.offset, self.address, self.size)

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaMap:
        """Read a payload. Raises ProtocolError; unknown flags are EINVAL."""
        argsz, flags, offset, address, size = unpack_start(_MAP, payload, "DMA_MAP")
        check_argsz(argsz, _MAP.size, "DMA_MAP")
        if flags & ~_MAP_FLAGS.value:
            raise ProtocolError(EINVAL, f"unknown flags {flags:#x} in DMA_MAP")
        return cls(address, size, DmaMapFlags(flags), offset)


@dataclass(frozen=True, slots=True)
class BitmapRequest:
    """Asks for the dirty bitmap of what is unmapped: one bit per ``page_size`` bytes, in ``size`` bytes.

    ``size`` may be more than is needed; the bitmap in the reply has exactly ``size`` bytes.
    """

    page_size: int
    size: int


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    """Asks to let go of one DMA map, or of all of them (flag ALL; ``address`` and ``size`` are 0 then).

    ``argsz`` is the most bytes of reply payload; 0 stands for as many as it takes.
    """

    command: ClassVar[Command] = Command.DMA_UNMAP

    address: int = 0
    size: int = 0
    flags: DmaUnmapFlags = DmaUnmapFlags.NONE
    bitmap: BitmapRequest | None = None
    argsz: int = 0

    def __post_init__(self) -> None:
        """Fill in the argsz."""
        if self.argsz == 0:
            object.__setattr__(self, "argsz", min(self.reply_size, U32_MAX))

    @property
    def reply_size(self) -> int:
        """Bytes of the whole reply payload: the peer's word, so compare it with its max_data_xfer_size."""
        return _UNMAP.size + (0 if self.bitmap is None else _BITMAP.size + self.bitmap.size)

    def reply(self, bitmap: bytes = b"") -> DmaUnmapReply:
        """The reply: the fields of the request, and the bitmap, padded with zeros to the size asked for."""
        if self.bitmap is None:
            return DmaUnmapReply(self.address, self.size, self.flags, argsz=self.argsz)
        padded = bitmap.ljust(self.bitmap.size, b"\0")
        return DmaUnmapReply(
            self.address, self.size, self.flags, self.bitmap.page_size, padded, argsz=self.argsz
        )

    def pack(self) -> bytes:
        """The payload, 24 bytes, or 40 with a bitmap asked for."""
        fixed = _UNMAP.pack(self.argsz, self.flags, self.address, self.size)
        return fixed if self.bitmap is None else fixed + _BITMAP.pack(self.bitmap.page_size, self.bitmap.size)

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaUnmap:
        """Read a payload. Raises ProtocolError, also where argsz has no room for the bitmap, as in VFIO."""
        argsz, flags, address, size = unpack_start(_UNMAP, payload, "DMA_UNMAP")
        bitmap = None
        if flags == DmaUnmapFlags.GET_DIRTY_BITMAP:
            bitmap = _unpack_bitmap_request(payload, size)
        elif flags == DmaUnmapFlags.ALL:
            if address or size:
                raise ProtocolError(EINVAL, "DMA_UNMAP of everything with an address or a size")
        elif flags != 0:
            raise ProtocolError(EINVAL, f"unknown or conflicting flags {flags:#x} in DMA_UNMAP")
        check_argsz(argsz, _UNMAP.size, "DMA_UNMAP")
        unmap = cls(address, size, DmaUnmapFlags(flags), bitmap, argsz)
        check_argsz(argsz, unmap.reply_size, "DMA_UNMAP")
        return unmap


def _unpack_bitmap_request(payload: Buffer, size: int) -> BitmapRequest:
    data = payload[_UNMAP.size :]
    request = BitmapRequest(*unpack_start(_BITMAP, data, "the bitmap of DMA_UNMAP"))
    if not is_power_of_two(request.page_size):
        raise ProtocolError(EINVAL, f"a dirty bitmap of pages of {request.page_size} bytes")
    if request.size < bitmap_size(size, request.page_size):
        raise ProtocolError(EINVAL, f"a dirty bitmap of {request.size} bytes for {size} bytes of memory")
    return request


@dataclass(frozen=True, slots=True)
class DmaUnmapReply:
    """The fields of the request, and the dirty bitmap where that was asked for."""

    command: ClassVar[Command] = Command.DMA_UNMAP

    address: int
    size: int
    flags: DmaUnmapFlags = DmaUnmapFlags.NONE
    page_size: int = 0
    bitmap: bytes = b""
    argsz: int = _UNMAP.size

    def pack(self) -> bytes:
        """The payload, 24 bytes, or 40 and the bitmap."""
        fixed = _UNMAP.pack(self.argsz, self.flags, self.address, self.size)
        if not self.flags & DmaUnmapFlags.GET_DIRTY_BITMAP:
            return fixed
        return fixed + _BITMAP.pack(self.page_size, len(self.bitmap)) + self.bitmap

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaUnmapReply:
        """Read a payload. Raises ProtocolError."""
        argsz, flags, address, size = unpack_start(_UNMAP, payload, "a DMA_UNMAP reply")
        flags = DmaUnmapFlags(flags)
        if not flags & DmaUnmapFlags.GET_DIRTY_BITMAP:
            return cls(address, size, flags, argsz=argsz)
        rest = payload[_UNMAP.size :]
        page_size, length = unpack_start(_BITMAP, rest, "the bitmap of a DMA_UNMAP reply")
        bitmap = bytes(rest[_BITMAP.size :])
        if len(bitmap) != length:
            raise ProtocolError(EINVAL, f"a dirty bitmap of {length} bytes in {len(bitmap)}")
        return cls(address, size, flags, page_size, bitmap, argsz)


def _unpack_with_data(payload: Buffer, what: str) -> tuple[int, bytes]:
    address, count = unpack_start(_ACCESS, payload, what)
    data = payload[_ACCESS.size :]
    if len(data) != count:
        raise ProtocolError(EINVAL, f"{what} says {count} bytes of data and brings {len(data)}")
    return address, bytes(data)


@dataclass(frozen=True, slots=True)
class DmaRead:
    """The server asks for ``count`` bytes of the client's memory at DMA address ``address``."""

    command: ClassVar[Command] = Command.DMA_READ

    address: int
    count: int

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _ACCESS.pack(self.address, self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaRead:
        """Read a payload. Raises ProtocolError."""
        return cls(*unpack_whole(_ACCESS, payload, "DMA_READ"))


@dataclass(frozen=True, slots=True)
class DmaReadReply:
    """What was read.

    QEMU before 11 takes the count for 32 bits and puts the data right behind it, at byte 12 of the payload;
    the count then contains data, and does not match the length of the message.
    """

    command: ClassVar[Command] = Command.DMA_READ

    address: int
    data: bytes

    def answers(self, request: DmaRead) -> bool:
        """Whether this is all that ``request`` asked for."""
        return self.address == request.address and len(self.data) == request.count

    def pack(self) -> bytes:
        """The payload, 16 bytes and the data."""
        return _ACCESS.pack(self.address, len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaReadReply:
        """Read a payload. Raises ProtocolError."""
        return cls(*_unpack_with_data(payload, "a DMA_READ reply"))


@dataclass(frozen=True, slots=True)
class DmaWrite:
    """The server asks to write ``data`` into the client's memory at DMA address ``address``."""

    command: ClassVar[Command] = Command.DMA_WRITE

    address: int
    data: bytes

    def pack(self) -> bytes:
        """The payload, 16 bytes and the data."""
        return _ACCESS.pack(self.address, len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaWrite:
        """Read a payload. Raises ProtocolError."""
        return cls(*_unpack_with_data(payload, "DMA_WRITE"))


@dataclass(frozen=True, slots=True)
class DmaWriteReply:
    """``count`` bytes were written.

    Peers differ in the count. The specification's table gives it 4 bytes, libvfio-user sends and expects 8,
    and QEMU has been sending no payload at all. All three are read; what is written has 8. Both fields are
    None where there was no payload.
    """

    command: ClassVar[Command] = Command.DMA_WRITE

    address: int | None = None
    count: int | None = None

    def answers(self, request: DmaWrite) -> bool:
        """Whether all of ``request`` was written, as far as the reply says."""
        return self.address is None or (self.address == request.address and self.count == len(request.data))

    def pack(self) -> bytes:
        """The payload, 16 bytes, or none."""
        if self.address is None or self.count is None:
            return b""
        return _ACCESS.pack(self.address, self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> DmaWriteReply:
        """Read a payload. Raises ProtocolError."""
        if len(payload) == 0:
            return cls()
        layout = _SHORT_WRITE_REPLY if len(payload) == _SHORT_WRITE_REPLY.size else _ACCESS
        return cls(*unpack_whole(layout, payload, "a DMA_WRITE reply"))
