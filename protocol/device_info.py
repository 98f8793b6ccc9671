"""DEVICE_GET_INFO and DEVICE_RESET."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.vfio import DeviceFlags
from protocol.wire import Buffer, check_argsz, check_empty, unpack_start

_INFO: Final = Struct("=IIII")


@dataclass(frozen=True, slots=True)
class GetInfo:
    """Asks about the device. ``argsz`` is the most bytes of reply payload."""

    command: ClassVar[Command] = Command.DEVICE_GET_INFO

    argsz: int = _INFO.size

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _INFO.pack(self.argsz, 0, 0, 0)

    @classmethod
    def unpack(cls, payload: Buffer) -> GetInfo:
        """Read a payload. Raises ProtocolError."""
        argsz, *_ = unpack_start(_INFO, payload, "DEVICE_GET_INFO")
        check_argsz(argsz, _INFO.size, "DEVICE_GET_INFO")
        return cls(argsz)


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The device has region indexes below ``num_regions``, and interrupt indexes below ``num_irqs``."""

    command: ClassVar[Command] = Command.DEVICE_GET_INFO

    flags: DeviceFlags
    num_regions: int
    num_irqs: int

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _INFO.pack(_INFO.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def unpack(cls, payload: Buffer) -> DeviceInfo:
        """Read a payload. Raises ProtocolError."""
        argsz, flags, num_regions, num_irqs = unpack_start(_INFO, payload, "a DEVICE_GET_INFO reply")
        check_argsz(argsz, _INFO.size, "a DEVICE_GET_INFO reply")
        return cls(DeviceFlags(flags), num_regions, num_irqs)


@dataclass(frozen=True, slots=True)
class DeviceReset:
    """Asks to reset the device. Neither this nor its reply has a payload."""

    command: ClassVar[Command] = Command.DEVICE_RESET

    def pack(self) -> bytes:
        """The payload, none."""
        return b""

    @classmethod
    def unpack(cls, payload: Buffer) -> DeviceReset:
        """Read a payload. Raises ProtocolError."""
        check_empty(payload, "DEVICE_RESET")
        return cls()
