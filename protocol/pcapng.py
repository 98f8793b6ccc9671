"""Blocks of a pcapng file, as far as traces need them (draft-ietf-opsawg-pcapng).

What is written: little-endian sections, interface descriptions with nanosecond timestamps, enhanced packet blocks
with flags and a comment. What is read: the same in either byte order and any resolution of timestamps; other blocks
and options are skipped. A file that ends in the middle of a block is read up to the block before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, Literal, NamedTuple, TypeAlias

from protocol.wire import Buffer

LINKTYPE_USER0: Final = 147
LINKTYPE_USER1: Final = 148
LINKTYPE_USER2: Final = 149
MAX_BLOCK: Final = 17 << 20
"""Bytes of the longest block that is read: a message of 16 MiB, and what is around it."""
MAX_INTERFACES: Final = 1 << 16
"""Interfaces of a section that are read: what is kept of a file must not grow with it."""
NANOSECONDS: Final = 9
"""What if_tsresol says of the timestamps that are written: negative powers of ten."""
UNKNOWN_LENGTH: Final = (1 << 64) - 1

_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_MAJOR: Final = 1
_MICROSECONDS: Final = 6
_POWER_OF_TWO: Final = 0x80
_MAX_RESOLUTION: Final = 63
_NS_PER_SECOND: Final = 10**9
_OFFSET_SIZE: Final = 8


class BlockType(IntEnum):
    """Block types (section 11.1)."""

    INTERFACE = 0x00000001
    PACKET = 0x00000006
    SECTION = 0x0A0D0D0A


class Option(IntEnum):
    """Option codes; those from 2 on mean something else in each type of block."""

    END = 0
    COMMENT = 1
    INTERFACE_NAME = 2
    PACKET_FLAGS = 2
    SECTION_APPLICATION = 4
    INTERFACE_TIMESTAMP_RESOLUTION = 9
    INTERFACE_TIMESTAMP_OFFSET = 14


class Direction(IntEnum):
    """Bits 0 and 1 of epb_flags, as a server sees them."""

    UNKNOWN = 0
    INBOUND = 1
    """From the client."""
    OUTBOUND = 2
    """To the client."""


class PcapngError(ValueError):
    """A file is not what it should be; the text says what and where."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section begins: interfaces are counted from 0 again."""

    offset: int
    application: str = ""


@dataclass(frozen=True, slots=True)
class Interface:
    """The next interface of the section."""

    offset: int
    link_type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet: ``timestamp`` in ns since 1970, ``offset`` where its block begins in the file.

    ``whole`` is False where the file has less of it than there was.
    """

    offset: int
    interface: int
    timestamp: int
    data: bytes
    direction: Direction = Direction.UNKNOWN
    comment: str = ""
    whole: bool = True


Block: TypeAlias = Section | Interface | Packet


class _Clock(NamedTuple):
    """What the timestamps of an interface are: if_tsresol and if_tsoffset (section 4.2)."""

    resolution: int
    offset: int = 0
    """Seconds."""

    def nanoseconds(self, ticks: int) -> int:
        if self.resolution & _POWER_OF_TWO:
            since = ticks * _NS_PER_SECOND >> (self.resolution & ~_POWER_OF_TWO)
        else:
            since = ticks * _NS_PER_SECOND // 10**self.resolution
        return since + self.offset * _NS_PER_SECOND


_U32 = Struct("<I")
_OPTION = Struct("<HH")
_PREAMBLE = Struct("<II")
_SECTION = Struct("<IHHQ")
_INTERFACE = Struct("<HHI")
_PACKET = Struct("<IIIII")
_PACKET_START = Struct("<IIIIIII")
_FLAGS = {direction: Struct("<HHI").pack(Option.PACKET_FLAGS, 4, direction) for direction in Direction}
_END = _OPTION.pack(Option.END, 0)
_DIRECTION_ALONE = {direction: flags + _END if direction else b"" for direction, flags in _FLAGS.items()}
"""The options of a packet without a comment."""
_PACKET_TYPE = int(BlockType.PACKET)
_PACKET_OVERHEAD = _PACKET_START.size + _U32.size
_OPTIONS_AT: Final[dict[int, int]] = {
    BlockType.SECTION: _PREAMBLE.size + _SECTION.size,
    BlockType.INTERFACE: _PREAMBLE.size + _INTERFACE.size,
    BlockType.PACKET: _PACKET_START.size,
}
"""Where the options of a block begin; of a packet, its data."""
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def section(application: str) -> bytes:
    """The block that begins a section of unknown length, written by ``application``."""
    body = _SECTION.pack(_BYTE_ORDER_MAGIC, _MAJOR, 0, UNKNOWN_LENGTH)
    return _block(BlockType.SECTION, body + _option(Option.SECTION_APPLICATION, application.encode()) + _END)


def interface(link_type: int, name: str) -> bytes:
    """The block that adds an interface with nanosecond timestamps to the section."""
    options = _option(Option.INTERFACE_NAME, name.encode())
    options += _option(Option.INTERFACE_TIMESTAMP_RESOLUTION, bytes([NANOSECONDS]))
    return _block(BlockType.INTERFACE, _INTERFACE.pack(link_type, 0, 0) + options + _END)


def packet(
    number: int,
    timestamp: int,
    data: Buffer,
    direction: Direction = Direction.UNKNOWN,
    comment: str = "",
) -> bytes:
    """A packet on interface ``number``; ``timestamp`` in ns since 1970."""
    size = len(data)
    options = _DIRECTION_ALONE[direction]
    if comment:
        flags = _FLAGS[direction] if direction else b""
        options = flags + _option(Option.COMMENT, comment.encode()) + _END
    padding = _PADDING[size & 3]
    total = _PACKET_OVERHEAD + size + len(padding) + len(options)
    start = _PACKET_START.pack(
        _PACKET_TYPE, total, number, timestamp >> 32, timestamp & 0xFFFFFFFF, size, size
    )
    return b"".join((start, data, padding, options, _U32.pack(total)))


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + _PADDING[len(value) & 3]


def _block(kind: int, body: bytes) -> bytes:
    total = _PREAMBLE.size + len(body) + _U32.size
    return _PREAMBLE.pack(kind, total) + body + _U32.pack(total)


class Parser:
    """From pieces of a file to its blocks: feed, and take :meth:`blocks`.

    Memory is bounded by the longest block, and longer ones are an error. Raises PcapngError for what is no pcapng
    file, or is damaged; blocks before the damage still come out.
    """

    def __init__(self, offset: int = 0) -> None:
        """Start at a section header, which is ``offset`` bytes into the file."""
        self.offset = offset
        """Where the next block begins in the file."""
        self._buffer = bytearray()
        self._order = ""
        self._clocks: list[_Clock] = []
        self._inside = False
        """Whether the interfaces are not known."""

    @classmethod
    def inside(cls, offset: int, *, big_endian: bool = False) -> Parser:
        """Start at a packet that is ``offset`` bytes into a file; its time may be wrong."""
        parser = cls(offset)
        parser._order = ">" if big_endian else "<"
        parser._inside = True
        return parser

    @property
    def big_endian(self) -> bool:
        """Whether the section is, which the latest block is of."""
        return self._order == ">"

    @property
    def pending(self) -> int:
        """Bytes of a block that has begun and not ended; at the end of the file, it was cut short."""
        return len(self._buffer)

    def feed(self, data: Buffer) -> None:
        """Take the next piece of the file."""
        self._buffer += data

    def blocks(self) -> Iterator[Block]:
        """The whole blocks held now."""
        start = 0
        try:
            while True:
                size = self._size(start)
                if size == 0 or len(self._buffer) - start < size:
                    return
                block = self._parse(memoryview(self._buffer)[start : start + size].toreadonly())
                start += size
                self.offset += size
                if block is not None:
                    yield block
        finally:
            del self._buffer[:start]

    def end(self) -> None:
        """The file ends here. Raises PcapngError where what is held is no block that was cut short.

        A block that says to be longer than it is would else take what comes behind it along.
        """
        held = self._buffer
        if len(held) < _PACKET_START.size or not self._order:
            return
        layout = Struct(self._order + "HH")
        kind, total = Struct(self._order + "II").unpack_from(held)
        if kind not in _OPTIONS_AT:
            return
        at = _OPTIONS_AT[kind]
        if kind == BlockType.PACKET:
            (captured,) = Struct(self._order + "I").unpack_from(held, at - 2 * _U32.size)
            at += captured + (-captured & 3)
        end = total - _U32.size
        ended = False
        while not ended and at < end and len(held) - at >= layout.size:
            code, size = layout.unpack_from(held, at)
            at += layout.size + size + (-size & 3)
            ended = code == Option.END
        if at > end or (ended and at < end):
            raise self._error(f"a block of {total} bytes, which is not as long as what is in it")

    def _size(self, start: int) -> int:
        """Bytes of the block at ``start``; 0 while that is not known."""
        have = len(self._buffer) - start
        if have < _PREAMBLE.size:
            return 0
        (kind,) = _U32.unpack_from(self._buffer, start)
        if kind == BlockType.SECTION:
            if have < _PREAMBLE.size + _U32.size:
                return 0
            magic = self._buffer[start + 8 : start + 12]
            orders = {_BYTE_ORDER_MAGIC.to_bytes(4, "little"): "<", _BYTE_ORDER_MAGIC.to_bytes(4, "big"): ">"}
            self._order = orders.get(bytes(magic), "")
            if not self._order:
                raise self._error("a section without a byte order")
            self._clocks = []
            self._inside = False
        elif not self._order:
            raise PcapngError("this is not a pcapng file")
        size: int = Struct(self._order + "I").unpack_from(self._buffer, start + 4)[0]
        if size % 4 or size < _PREAMBLE.size + _U32.size:
            raise self._error(f"a block of {size} bytes")
        if size > MAX_BLOCK:
            raise self._error(f"a block of {size} bytes, where {MAX_BLOCK} is the most")
        return size

    def _parse(self, block: memoryview) -> Block | None:
        order = self._order
        body = block[_PREAMBLE.size : -_U32.size]
        # Nothing may view the buffer when this is left by an error, or the buffer could not shrink.
        try:
            kind, size = Struct(order + "II").unpack_from(block)
            if Struct(order + "I").unpack_from(block, size - 4)[0] != size:
                raise self._error("a block whose two lengths differ")
            if kind == BlockType.SECTION:
                return self._section(body)
            if kind == BlockType.INTERFACE:
                return self._interface(body)
            if kind == BlockType.PACKET:
                return self._packet(body)
        finally:
            body.release()
            block.release()
        return None

    def _section(self, body: memoryview) -> Section:
        if len(body) < _SECTION.size:
            raise self._error("a section header that is too short")
        (major,) = Struct(self._order + "4xH").unpack_from(body)
        if major != _MAJOR:
            raise self._error(f"a section of version {major} of the format")
        options = self._options(body, _SECTION.size)
        return Section(self.offset, _text(options.get(Option.SECTION_APPLICATION, b"")))

    def _interface(self, body: memoryview) -> Interface:
        if len(body) < _INTERFACE.size:
            raise self._error("an interface description that is too short")
        if len(self._clocks) >= MAX_INTERFACES:
            raise self._error(f"more than {MAX_INTERFACES} interfaces")
        (link_type,) = Struct(self._order + "H").unpack_from(body)
        options = self._options(body, _INTERFACE.size)
        resolution = options.get(Option.INTERFACE_TIMESTAMP_RESOLUTION, bytes([_MICROSECONDS]))
        if len(resolution) != 1 or resolution[0] & ~_POWER_OF_TWO > _MAX_RESOLUTION:
            raise self._error("an unknown resolution of timestamps")
        offset = options.get(Option.INTERFACE_TIMESTAMP_OFFSET, bytes(_OFFSET_SIZE))
        if len(offset) != _OFFSET_SIZE:
            raise self._error(f"an offset of timestamps of {len(offset)} bytes")
        self._clocks.append(_Clock(resolution[0], int.from_bytes(offset, self._byteorder, signed=True)))
        return Interface(self.offset, link_type, _text(options.get(Option.INTERFACE_NAME, b"")))

    def _packet(self, body: memoryview) -> Packet:
        if len(body) < _PACKET.size:
            raise self._error("a packet that is too short")
        number, high, low, captured, length = Struct(self._order + "IIIII").unpack_from(body)
        if self._inside:
            clock = _Clock(NANOSECONDS)
        elif number < len(self._clocks):
            clock = self._clocks[number]
        else:
            raise self._error(f"a packet of interface {number}, which is not described")
        end = _PACKET.size + captured
        if end > len(body):
            raise self._error(f"a packet of {captured} bytes in a shorter block")
        options = self._options(body, end + (-captured & 3))
        direction = int.from_bytes(options.get(Option.PACKET_FLAGS, b""), self._byteorder) & 3
        return Packet(
            self.offset,
            number,
            clock.nanoseconds(high << 32 | low),
            bytes(body[_PACKET.size : end]),
            Direction(direction) if direction in _FLAGS else Direction.UNKNOWN,
            _text(options.get(Option.COMMENT, b"")),
            captured == length,
        )

    @property
    def _byteorder(self) -> Literal["little", "big"]:
        return "little" if self._order == "<" else "big"

    def _options(self, data: memoryview, at: int) -> dict[int, bytes]:
        """From ``at`` on, the first of each code."""
        layout = Struct(self._order + "HH")
        options: dict[int, bytes] = {}
        while len(data) - at >= layout.size:
            code, size = layout.unpack_from(data, at)
            at += layout.size
            if code == Option.END:
                break
            if at + size > len(data):
                raise self._error("an option that is longer than its block")
            options.setdefault(code, bytes(data[at : at + size]))
            at += size + (-size & 3)
        return options

    def _error(self, what: str) -> PcapngError:
        return PcapngError(f"damaged at byte {self.offset}: {what}")


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
