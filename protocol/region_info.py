"""DEVICE_GET_REGION_INFO, with its chain of capabilities.

A reply that does not fit the argsz of its request is cut to the fixed part, whose argsz says how much it
takes; the client asks again. A cut reply states no capabilities: QEMU would take a capability flag without a
capability offset for an error, before it looks at argsz.
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final, NamedTuple, TypeAlias

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.vfio import RegionCapabilityId, RegionFlags
from protocol.wire import U32_MAX, Buffer, check_argsz, unpack_start

_INFO: Final = Struct("=IIIIQQ")
_CAPABILITY: Final = Struct("=HHI")
_SPARSE: Final = Struct("=II")
_AREA: Final = Struct("=QQ")
_TYPE: Final = Struct("=II")
_ALIGNMENT: Final = 8
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class GetRegionInfo:
    """Asks about region ``index``. ``argsz`` is the most bytes of reply payload."""

    command: ClassVar[Command] = Command.DEVICE_GET_REGION_INFO

    index: int
    argsz: int = _INFO.size

    def pack(self) -> bytes:
        """The payload, 32 bytes."""
        return _INFO.pack(self.argsz, 0, self.index, 0, 0, 0)

    @classmethod
    def unpack(cls, payload: Buffer) -> GetRegionInfo:
        """Read a payload. Raises ProtocolError."""
        argsz, _, index, *_ = unpack_start(_INFO, payload, "DEVICE_GET_REGION_INFO")
        check_argsz(argsz, _INFO.size, "DEVICE_GET_REGION_INFO")
        return cls(index, argsz)


class SparseArea(NamedTuple):
    """``size`` bytes at ``offset`` of a region."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class SparseMmap:
    """Only these areas of the region may be mapped (struct vfio_region_info_cap_sparse_mmap)."""

    areas: tuple[SparseArea, ...]


@dataclass(frozen=True, slots=True)
class RegionType:
    """What a device-specific region is (struct vfio_region_info_cap_type)."""

    type: int
    subtype: int


@dataclass(frozen=True, slots=True)
class MsixMappable:
    """The MSI-X table may be mapped along with the rest of its BAR."""


@dataclass(frozen=True, slots=True)
class OtherCapability:
    """A capability that this package does not know; ``data`` is all behind its header."""

    id: int
    version: int
    data: bytes = b""


RegionCapability: TypeAlias = SparseMmap | RegionType | MsixMappable | OtherCapability


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """Region ``index``: ``size`` bytes, at ``offset`` of the fd that comes along where it can be mapped.

    ``flags`` is without CAPS, which follows from ``capabilities``. ``needed`` is None, except in a reply that
    its sender cut: how many bytes the whole reply takes.
    """

    command: ClassVar[Command] = Command.DEVICE_GET_REGION_INFO

    index: int
    flags: RegionFlags
    size: int
    offset: int = 0
    capabilities: tuple[RegionCapability, ...] = ()
    needed: int | None = None

    def pack(self, room: int = U32_MAX) -> bytes:
        """The payload for a request whose argsz is ``room``: whole where it fits, else cut to 32 bytes."""
        chain = b"" if self.needed is not None else _pack_chain(self.capabilities)
        argsz = _INFO.size + len(chain) if self.needed is None else self.needed
        flags, first = self.flags, 0
        if argsz > room or not chain:
            chain = b""
        else:
            flags, first = flags | RegionFlags.CAPS, _INFO.size
        return _INFO.pack(argsz, flags, self.index, first, self.size, self.offset) + chain

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionInfo:
        """Read a payload. Raises ProtocolError."""
        what = "a DEVICE_GET_REGION_INFO reply"
        argsz, raw_flags, index, first, size, offset = unpack_start(_INFO, payload, what)
        check_argsz(argsz, _INFO.size, what)
        flags = RegionFlags(raw_flags & ~RegionFlags.CAPS.value)
        if argsz > len(payload):
            return cls(index, flags, size, offset, needed=argsz)
        capabilities: tuple[RegionCapability, ...] = ()
        if raw_flags & RegionFlags.CAPS:
            capabilities = _unpack_chain(memoryview(payload)[:argsz], first)
        return cls(index, flags, size, offset, capabilities)


def _pack_chain(capabilities: tuple[RegionCapability, ...]) -> bytes:
    """The capabilities behind each other; offsets count from the start of the region info."""
    chain = b""
    for position, capability in enumerate(capabilities, start=1):
        number, version, data = _pack_capability(capability)
        data += bytes(-len(data) % _ALIGNMENT)
        behind = _INFO.size + len(chain) + _CAPABILITY.size + len(data)
        following = behind if position < len(capabilities) else 0
        chain += _CAPABILITY.pack(number, version, following) + data
    return chain


def _pack_capability(capability: RegionCapability) -> tuple[int, int, bytes]:
    match capability:
        case SparseMmap(areas):
            data = _SPARSE.pack(len(areas), 0) + b"".join(_AREA.pack(*area) for area in areas)
            return RegionCapabilityId.SPARSE_MMAP, _VERSION, data
        case RegionType(kind, subtype):
            return RegionCapabilityId.TYPE, _VERSION, _TYPE.pack(kind, subtype)
        case MsixMappable():
            return RegionCapabilityId.MSIX_MAPPABLE, _VERSION, b""
        case OtherCapability(number, version, data):
            return number, version, data


def _unpack_chain(payload: memoryview, first: int) -> tuple[RegionCapability, ...]:
    capabilities = []
    offset, least = first, _INFO.size
    while offset != 0:
        # Offsets must rise, so that a chain cannot be a ring.
        if offset < least or offset % _ALIGNMENT or offset + _CAPABILITY.size > len(payload):
            raise ProtocolError(EINVAL, f"a region capability at offset {offset}")
        number, version, following = _CAPABILITY.unpack_from(payload, offset)
        least = offset + _CAPABILITY.size
        data = payload[least : following or len(payload)]
        capabilities.append(_unpack_capability(number, version, data))
        offset = following
    return tuple(capabilities)


def _unpack_capability(number: int, version: int, data: memoryview) -> RegionCapability:
    if version != _VERSION:
        return OtherCapability(number, version, bytes(data))
    match number:
        case RegionCapabilityId.SPARSE_MMAP:
            count, _ = unpack_start(_SPARSE, data, "a sparse mmap capability")
            areas = data[_SPARSE.size :][: count * _AREA.size]
            if len(areas) != count * _AREA.size:
                raise ProtocolError(EINVAL, f"a sparse mmap capability of {count} areas in {len(data)} bytes")
            return SparseMmap(tuple(SparseArea(*area) for area in _AREA.iter_unpack(areas)))
        case RegionCapabilityId.TYPE:
            return RegionType(*unpack_start(_TYPE, data, "a region type capability"))
        case RegionCapabilityId.MSIX_MAPPABLE:
            return MsixMappable()
        case _:
            return OtherCapability(number, version, bytes(data))
