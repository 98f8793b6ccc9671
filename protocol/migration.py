"""MIG_DATA_READ and MIG_DATA_WRITE: the device's state as a stream of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.wire import Buffer, check_argsz, unpack_start

_DATA: Final = Struct("=II")


def _unpack_with_data(payload: Buffer, what: str) -> bytes:
    argsz, size = unpack_start(_DATA, payload, what)
    check_argsz(argsz, _DATA.size, what)
    data = payload[_DATA.size :]
    if len(data) != size:
        raise ProtocolError(EINVAL, f"{what} says {size} bytes of data and brings {len(data)}")
    return bytes(data)


@dataclass(frozen=True, slots=True)
class MigDataRead:
    """Asks for the next ``size`` bytes of migration data.

    ``size`` is the peer's word: compare it with the negotiated max_data_xfer_size. ``argsz`` is said to be
    the most bytes of reply payload, but clients exist that leave the data out of it, so ``size`` is what
    counts.
    """

    command: ClassVar[Command] = Command.MIG_DATA_READ

    size: int
    argsz: int = _DATA.size

    def pack(self) -> bytes:
        """The payload, 8 bytes."""
        return _DATA.pack(self.argsz, self.size)

    @classmethod
    def unpack(cls, payload: Buffer) -> MigDataRead:
        """Read a payload. Raises ProtocolError."""
        argsz, size = unpack_start(_DATA, payload, "MIG_DATA_READ")
        check_argsz(argsz, _DATA.size, "MIG_DATA_READ")
        return cls(size, argsz)


@dataclass(frozen=True, slots=True)
class MigDataReadReply:
    """Migration data; less than was asked for means that there is no more."""

    command: ClassVar[Command] = Command.MIG_DATA_READ

    data: bytes

    def pack(self) -> bytes:
        """The payload, 8 bytes and the data."""
        return _DATA.pack(_DATA.size + len(self.data), len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> MigDataReadReply:
        """Read a payload. Raises ProtocolError."""
        return cls(_unpack_with_data(payload, "a MIG_DATA_READ reply"))


@dataclass(frozen=True, slots=True)
class MigDataWrite:
    """The next bytes of migration data. The reply has no payload."""

    command: ClassVar[Command] = Command.MIG_DATA_WRITE

    data: bytes

    def pack(self) -> bytes:
        """The payload, 8 bytes and the data."""
        return _DATA.pack(_DATA.size + len(self.data), len(self.data)) + self.data

    @classmethod
    def unpack(cls, payload: Buffer) -> MigDataWrite:
        """Read a payload. Raises ProtocolError."""
        return cls(_unpack_with_data(payload, "MIG_DATA_WRITE"))
