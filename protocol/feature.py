"""DEVICE_FEATURE, and the data of the features that vfio-user has: migration and DMA logging.

The request and the reply have the same shape. What is in ``data`` depends on the feature and the operation:

======================  =====================================  ==============================================
feature                 request                                reply
======================  =====================================  ==============================================
MIGRATION               GET: none                              :class:`MigrationSupport`
MIG_DEVICE_STATE        GET: none                              :class:`MigrationState`
MIG_DEVICE_STATE        SET: :class:`MigrationState`           as the request
DMA_LOGGING_START       SET: :class:`DmaLoggingControl`        as the request, with the page size chosen
DMA_LOGGING_STOP        SET: none                              as the request
DMA_LOGGING_REPORT      GET: :class:`DmaLoggingReport`         the same with its bitmap
any                     PROBE: none                            as the request
======================  =====================================  ==============================================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final, NamedTuple

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.vfio import FEATURE_MASK, DeviceState, FeatureFlags, MigrationFlags
from protocol.wire import (
    U32_MAX,
    Buffer,
    bitmap_size,
    check_argsz,
    is_power_of_two,
    unpack_start,
    unpack_whole,
)

_FEATURE: Final = Struct("=II")
_MIGRATION: Final = Struct("=Q")
_STATE: Final = Struct("=Ii")
_LOGGING_CONTROL: Final = Struct("=QII")
_LOGGING_RANGE: Final = Struct("=QQ")
_LOGGING_REPORT: Final = Struct("=QQQ")

_OPERATIONS: Final = FeatureFlags.GET | FeatureFlags.SET | FeatureFlags.PROBE


@dataclass(frozen=True, slots=True)
class DeviceFeature:
    """A request about ``feature`` (a :class:`protocol.vfio.Feature`, or an unknown one), or its reply.

    ``argsz``: in a request, the most bytes of reply payload; in a reply, what the whole reply takes. 0 stands
    for the size of this message.
    """

    command: ClassVar[Command] = Command.DEVICE_FEATURE

    feature: int
    flags: FeatureFlags
    data: bytes = b""
    argsz: int = 0

    def __post_init__(self) -> None:
        """Fill in the argsz."""
        if self.argsz == 0:
            object.__setattr__(self, "argsz", _FEATURE.size + len(self.data))

    @property
    def probe(self) -> bool:
        """Whether this asks only if the operations are supported."""
        return FeatureFlags.PROBE in self.flags

    def reply(self, data: bytes | None = None) -> DeviceFeature:
        """The reply to this request: the request itself, or with other data.

        Data that does not fit the request's argsz is left out, and the argsz of the reply says what it takes.
        """
        if data is None:
            return self
        needed = min(_FEATURE.size + len(data), U32_MAX)
        return replace(self, data=data if needed <= self.argsz else b"", argsz=needed)

    def pack(self) -> bytes:
        """The payload, 8 bytes and the data."""
        return _FEATURE.pack(self.argsz, self.feature | self.flags) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> DeviceFeature:
        """Read a payload. Raises ProtocolError, also for no operation, or ones that exclude each other."""
        argsz, raw = unpack_start(_FEATURE, payload, "DEVICE_FEATURE")
        check_argsz(argsz, _FEATURE.size, "DEVICE_FEATURE")
        operations = raw & ~FEATURE_MASK
        if operations == 0 or operations & ~_OPERATIONS.value:
            raise ProtocolError(EINVAL, f"DEVICE_FEATURE with operations {operations:#x}")
        flags = FeatureFlags(operations)
        if flags == FeatureFlags.GET | FeatureFlags.SET:
            raise ProtocolError(EINVAL, "DEVICE_FEATURE with both GET and SET")
        return cls(raw & FEATURE_MASK, flags, bytes(payload[_FEATURE.size :]), argsz)


@dataclass(frozen=True, slots=True)
class MigrationSupport:
    """Which migration states the device has, beside RUNNING and ERROR."""

    flags: MigrationFlags

    def pack(self) -> bytes:
        """The feature's data, 8 bytes."""
        return _MIGRATION.pack(self.flags)

    @classmethod
    def unpack(cls, data: Buffer) -> MigrationSupport:
        """Read a feature's data. Raises ProtocolError."""
        (flags,) = unpack_whole(_MIGRATION, data, "the MIGRATION feature")
        return cls(MigrationFlags(flags))


@dataclass(frozen=True, slots=True)
class MigrationState:
    """The state that the device is in, or is to go to. ``data_fd`` is unused in vfio-user, and -1."""

    device_state: DeviceState
    data_fd: int = -1

    def pack(self) -> bytes:
        """The feature's data, 8 bytes."""
        return _STATE.pack(self.device_state, self.data_fd)

    @classmethod
    def unpack(cls, data: Buffer) -> MigrationState:
        """Read a feature's data. Raises ProtocolError; a state that does not exist is EINVAL."""
        state, data_fd = unpack_whole(_STATE, data, "the MIG_DEVICE_STATE feature")
        try:
            return cls(DeviceState(state), data_fd)
        except ValueError:
            raise ProtocolError(EINVAL, f"there is no migration state {state}") from None


class LoggingRange(NamedTuple):
    """``length`` bytes at DMA address ``iova``."""

    iova: int
    length: int


@dataclass(frozen=True, slots=True)
class DmaLoggingControl:
    """Asks to log DMA writes to ``ranges`` (none: to everything), by pages of ``page_size`` bytes."""

    page_size: int
    ranges: tuple[LoggingRange, ...] = ()

    def pack(self) -> bytes:
        """The feature's data, 16 bytes and 16 per range."""
        ranges = b"".join(_LOGGING_RANGE.pack(*part) for part in self.ranges)
        return _LOGGING_CONTROL.pack(self.page_size, len(self.ranges), 0) + ranges

    @classmethod
    def unpack(cls, data: Buffer) -> DmaLoggingControl:
        """Read a feature's data. Raises ProtocolError."""
        what = "the DMA_LOGGING_START feature"
        page_size, count, _ = unpack_start(_LOGGING_CONTROL, data, what)
        ranges = memoryview(data)[_LOGGING_CONTROL.size :]
        if len(ranges) != count * _LOGGING_RANGE.size:
            raise ProtocolError(EINVAL, f"{what} says {count} ranges in {len(ranges)} bytes")
        if not is_power_of_two(page_size):
            raise ProtocolError(EINVAL, f"{what} with pages of {page_size} bytes")
        return cls(page_size, tuple(LoggingRange(*part) for part in _LOGGING_RANGE.iter_unpack(ranges)))


@dataclass(frozen=True, slots=True)
class DmaLoggingReport:
    """Which pages of ``length`` bytes at ``iova`` were written: one bit per ``page_size`` bytes.

    In a request ``bitmap`` is empty. :attr:`bitmap_size` follows from the peer's word: compare it with what
    it accepts, and the range with the DMA map, before a bitmap of that size is made.
    """

    iova: int
    length: int
    page_size: int
    bitmap: bytes = b""

    @property
    def bitmap_size(self) -> int:
        """Bytes of the bitmap: an array of u64."""
        return bitmap_size(self.length, self.page_size)

    def pack(self) -> bytes:
        """The feature's data, 24 bytes and the bitmap."""
        return _LOGGING_REPORT.pack(self.iova, self.length, self.page_size) + self.bitmap

    @classmethod
    def unpack(cls, data: Buffer) -> DmaLoggingReport:
        """Read a feature's data, of a request or a reply. Raises ProtocolError."""
        what = "the DMA_LOGGING_REPORT feature"
        iova, length, page_size = unpack_start(_LOGGING_REPORT, data, what)
        report = cls(iova, length, page_size, bytes(data[_LOGGING_REPORT.size :]))
        if not is_power_of_two(report.page_size):
            raise ProtocolError(EINVAL, f"{what} with pages of {report.page_size} bytes")
        if report.bitmap and len(report.bitmap) != report.bitmap_size:
            raise ProtocolError(EINVAL, f"{what} with a bitmap of {len(report.bitmap)} bytes")
        return report
