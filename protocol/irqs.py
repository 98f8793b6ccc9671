"""DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL
from struct import Struct
from typing import ClassVar, Final

from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.vfio import IrqAction, IrqData, IrqFlags
from protocol.wire import U32_MAX, Buffer, check_argsz, unpack_start

_INFO: Final = Struct("=IIII")
_SET: Final = Struct("=IIIII")

_DATA_MASK: Final = IrqData.NONE | IrqData.BOOL | IrqData.EVENTFD
_ACTION_MASK: Final = IrqAction.MASK | IrqAction.UNMASK | IrqAction.TRIGGER


@dataclass(frozen=True, slots=True)
class GetIrqInfo:
    """Asks about interrupt index ``index``. ``argsz`` is the most bytes of reply payload."""

    command: ClassVar[Command] = Command.DEVICE_GET_IRQ_INFO

    index: int
    argsz: int = _INFO.size

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _INFO.pack(self.argsz, 0, self.index, 0)

    @classmethod
    def unpack(cls, payload: Buffer) -> GetIrqInfo:
        """Read a payload. Raises ProtocolError."""
        argsz, _, index, _ = unpack_start(_INFO, payload, "DEVICE_GET_IRQ_INFO")
        check_argsz(argsz, _INFO.size, "DEVICE_GET_IRQ_INFO")
        return cls(index, argsz)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """Interrupt index ``index`` has ``count`` vectors."""

    command: ClassVar[Command] = Command.DEVICE_GET_IRQ_INFO

    index: int
    flags: IrqFlags
    count: int

    def pack(self) -> bytes:
        """The payload, 16 bytes."""
        return _INFO.pack(_INFO.size, self.flags, self.index, self.count)

    @classmethod
    def unpack(cls, payload: Buffer) -> IrqInfo:
        """Read a payload. Raises ProtocolError."""
        argsz, flags, index, count = unpack_start(_INFO, payload, "a DEVICE_GET_IRQ_INFO reply")
        check_argsz(argsz, _INFO.size, "a DEVICE_GET_IRQ_INFO reply")
        return cls(index, IrqFlags(flags), count)


@dataclass(frozen=True, slots=True)
class SetIrqs:
    """Does something to ``count`` vectors of interrupt index ``index``, from vector ``start`` on.

    ======= ========================== ============================= ===============================
    data    TRIGGER                    MASK                          UNMASK
    ======= ========================== ============================= ===============================
    NONE    raise all of the range     mask all of the range         unmask all of the range
    BOOL    raise those that are true  mask those that are true      unmask those that are true
    EVENTFD signal it when raised      signal it when guests mask    signal it when guests unmask
    ======= ========================== ============================= ===============================

    A count of 0, with NONE, switches the whole index off. With EVENTFD the file descriptors come beside the
    payload, one per vector, or none to disconnect the range. ``bools`` holds ``count`` values with BOOL, else
    none. Whether the index has such vectors, and supports the action, is for the server to check. The reply
    has no payload.
    """

    command: ClassVar[Command] = Command.DEVICE_SET_IRQS

    index: int
    start: int
    count: int
    data: IrqData
    action: IrqAction
    bools: tuple[bool, ...] = ()

    @property
    def disables(self) -> bool:
        """Whether this switches the whole index off."""
        return self.count == 0

    @property
    def vectors(self) -> Sequence[int]:
        """The vectors that are meant: the whole range, or with BOOL those that are true.

        As long as the peer says: check the range before walking it.
        """
        if self.data is IrqData.BOOL:
            return [self.start + position for position, chosen in enumerate(self.bools) if chosen]
        return range(self.start, self.start + self.count)

    def check_fds(self, number: int) -> None:
        """Check how many file descriptors came along. Raises ProtocolError (EINVAL)."""
        allowed = (0, self.count) if self.data is IrqData.EVENTFD else (0,)
        if number not in allowed:
            raise ProtocolError(EINVAL, f"{number} file descriptors with SET_IRQS of {self.count} vectors")

    def pack(self) -> bytes:
        """The payload, 20 bytes and the bools."""
        data = bytes(self.bools)
        flags = self.data | self.action
        return _SET.pack(_SET.size + len(data), flags, self.index, self.start, self.count) + data

    @classmethod
    def unpack(cls, payload: Buffer) -> SetIrqs:
        """Read a payload. Raises ProtocolError."""
        argsz, flags, index, start, count = unpack_start(_SET, payload, "DEVICE_SET_IRQS")
        check_argsz(argsz, _SET.size, "DEVICE_SET_IRQS")
        data, action = _split_flags(flags)
        if start + count > U32_MAX:
            raise ProtocolError(EINVAL, f"DEVICE_SET_IRQS of {count} vectors from {start}")
        if count == 0 and (data is not IrqData.NONE or start != 0):
            raise ProtocolError(EINVAL, "DEVICE_SET_IRQS of no vectors")
        bools: tuple[bool, ...] = ()
        if data is IrqData.BOOL:
            if min(argsz, len(payload)) < _SET.size + count:
                raise ProtocolError(EINVAL, f"DEVICE_SET_IRQS without its {count} booleans")
            bools = tuple(map(bool, payload[_SET.size : _SET.size + count]))
        return cls(index, start, count, data, action, bools)


def _split_flags(flags: int) -> tuple[IrqData, IrqAction]:
    if flags & ~(_DATA_MASK | _ACTION_MASK):
        raise ProtocolError(EINVAL, f"unknown flags {flags:#x} in DEVICE_SET_IRQS")
    try:
        return IrqData(flags & _DATA_MASK), IrqAction(flags & _ACTION_MASK)
    except ValueError:
        raise ProtocolError(EINVAL, f"flags {flags:#x} in DEVICE_SET_IRQS exclude each other") from None
