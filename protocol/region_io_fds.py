"""DEVICE_GET_REGION_IO_FDS: parts of regions whose accesses may come through file descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.vfio import IoFdType
from protocol.wire import U32_MAX, Buffer, check_argsz, unpack_start

_FIXED: Final = Struct("=IIII")
_SUB_REGION: Final = Struct("=QQIIIIQ")


@dataclass(frozen=True, slots=True)
class GetRegionIoFds:
    """Asks about region ``index``. ``argsz`` is the most bytes of reply payload."""

    command: ClassVar[Command] = Command.DEVICE_GET_REGION_IO_FDS

    index: int
    argsz: int = _FIXED.size

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _FIXED.pack(self.argsz, 0, self.index, 0)

    @classmethod
    def unpack(cls, payload: Buffer) -> GetRegionIoFds:
        """Read a payload. Raises ProtocolError; EINVAL also where flags or count are not zero."""
        argsz, flags, index, count = unpack_start(_FIXED, payload, "DEVICE_GET_REGION_IO_FDS")
        check_argsz(argsz, _FIXED.size, "DEVICE_GET_REGION_IO_FDS")
        if flags or count:
            raise ProtocolError(EINVAL, "DEVICE_GET_REGION_IO_FDS with flags or count set")
        return cls(index, argsz)


@dataclass(frozen=True, slots=True)
class SubRegion:
    """``size`` bytes at ``offset`` of the region (0: any access size), and the fd that hears of accesses.

    ``fd_index`` counts in the file descriptors of the reply; several may share one. ``type`` is a
    :class:`protocol.vfio.IoFdType`, ``flags`` the IoEventFdFlags or IoRegionFdFlags that go with it.
    ``data`` is the datamatch of an ioeventfd, or the user_data of an ioregionfd.
    """

    offset: int
    size: int
    fd_index: int
    type: int = IoFdType.IOEVENTFD
    flags: int = 0
    data: int = 0


@dataclass(frozen=True, slots=True)
class RegionIoFds:
    """The sub-regions of region ``index``.

    ``needed`` is None, except in a reply that its sender cut because it did not fit the request's argsz: how
    many bytes the whole reply takes.
    """

    command: ClassVar[Command] = Command.DEVICE_GET_REGION_IO_FDS

    index: int
    sub_regions: tuple[SubRegion, ...] = ()
    needed: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the whole reply; where that is more than the request's argsz, send no fds with it."""
        return self.needed or _FIXED.size + len(self.sub_regions) * _SUB_REGION.size

    def pack(self, room: int = U32_MAX) -> bytes:
        """The payload for a request whose argsz is ``room``: whole where it fits, else cut to 16 bytes."""
        if self.needed is not None:
            count = (self.needed - _FIXED.size) // _SUB_REGION.size
            return _FIXED.pack(self.needed, 0, self.index, count)
        fixed = _FIXED.pack(self.size, 0, self.index, len(self.sub_regions))
        if self.size > room:
            return fixed
        return fixed + b"".join(map(_pack_sub_region, self.sub_regions))

    @classmethod
    def unpack(cls, payload: Buffer) -> RegionIoFds:
        """Read a payload. Raises ProtocolError."""
        what = "a DEVICE_GET_REGION_IO_FDS reply"
        argsz, _, index, count = unpack_start(_FIXED, payload, what)
        check_argsz(argsz, _FIXED.size, what)
        if argsz > len(payload):
            return cls(index, needed=argsz)
        if count == 0:
            return cls(index)
        # The size of an entry is not to be relied on; what is known of it comes first.
        stride, rest = divmod(argsz - _FIXED.size, count)
        if rest or stride < _SUB_REGION.size:
            raise ProtocolError(EINVAL, f"{what} of {count} sub-regions in {argsz} bytes")
        starts = range(_FIXED.size, argsz, stride)
        return cls(index, tuple(_unpack_sub_region(payload, start) for start in starts))


def _pack_sub_region(sub: SubRegion) -> bytes:
    return _SUB_REGION.pack(sub.offset, sub.size, sub.fd_index, sub.type, sub.flags, 0, sub.data)


def _unpack_sub_region(payload: Buffer, start: int) -> SubRegion:
    offset, size, fd_index, kind, flags, _, data = _SUB_REGION.unpack_from(payload, start)
    return SubRegion(offset, size, fd_index, kind, flags, data)
