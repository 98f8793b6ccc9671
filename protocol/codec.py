"""Whole messages to typed values and back, by command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from errno import EINVAL, ENOSYS
from typing import ClassVar, Final, Protocol, TypeAlias, TypeVar

from protocol.commands import Command
from protocol.device_info import DeviceInfo, DeviceReset, GetInfo
from protocol.dma import (
    DmaMap,
    DmaRead,
    DmaReadReply,
    DmaUnmap,
    DmaUnmapReply,
    DmaWrite,
    DmaWriteReply,
)
from protocol.errors import ProtocolError
from protocol.feature import DeviceFeature
from protocol.header import FLAG_ERROR, FLAG_NO_REPLY, HEADER_SIZE, Header, MessageType
from protocol.irqs import GetIrqInfo, IrqInfo, SetIrqs
from protocol.migration import MigDataRead, MigDataReadReply, MigDataWrite
from protocol.region_info import GetRegionInfo, RegionInfo
from protocol.region_io import (
    RegionRead,
    RegionReadReply,
    RegionWrite,
    RegionWriteMulti,
    RegionWriteMultiReply,
    RegionWriteReply,
)
from protocol.region_io_fds import GetRegionIoFds, RegionIoFds
from protocol.version import Version
from protocol.wire import Buffer, check_empty


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The reply without payload to DMA_MAP, DEVICE_SET_IRQS, DEVICE_RESET and MIG_DATA_WRITE."""

    def pack(self) -> bytes:
        """The payload, none."""
        return b""

    @classmethod
    def unpack(cls, payload: Buffer) -> Acknowledgement:
        """Read a payload. Raises ProtocolError."""
        check_empty(payload, "this reply")
        return cls()


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The command failed with ``errno``, which may be 0 where the peer does not say why."""

    errno: int


Request: TypeAlias = (
    Version
    | DmaMap
    | DmaUnmap
    | GetInfo
    | GetRegionInfo
    | GetRegionIoFds
    | GetIrqInfo
    | SetIrqs
    | RegionRead
    | RegionWrite
    | DmaRead
    | DmaWrite
    | DeviceReset
    | RegionWriteMulti
    | DeviceFeature
    | MigDataRead
    | MigDataWrite
)
"""Every request; ``command`` of its class is what it asks for."""

Reply: TypeAlias = (
    Version
    | Acknowledgement
    | DmaUnmapReply
    | DeviceInfo
    | RegionInfo
    | RegionIoFds
    | IrqInfo
    | RegionReadReply
    | RegionWriteReply
    | DmaReadReply
    | DmaWriteReply
    | RegionWriteMultiReply
    | DeviceFeature
    | MigDataReadReply
)
"""Every reply of success."""

REQUESTS: Final[Mapping[int, type[Request]]] = {
    Command.VERSION: Version,
    Command.DMA_MAP: DmaMap,
    Command.DMA_UNMAP: DmaUnmap,
    Command.DEVICE_GET_INFO: GetInfo,
    Command.DEVICE_GET_REGION_INFO: GetRegionInfo,
    Command.DEVICE_GET_REGION_IO_FDS: GetRegionIoFds,
    Command.DEVICE_GET_IRQ_INFO: GetIrqInfo,
    Command.DEVICE_SET_IRQS: SetIrqs,
    Command.REGION_READ: RegionRead,
    Command.REGION_WRITE: RegionWrite,
    Command.DMA_READ: DmaRead,
    Command.DMA_WRITE: DmaWrite,
    Command.DEVICE_RESET: DeviceReset,
    Command.REGION_WRITE_MULTI: RegionWriteMulti,
    Command.DEVICE_FEATURE: DeviceFeature,
    Command.MIG_DATA_READ: MigDataRead,
    Command.MIG_DATA_WRITE: MigDataWrite,
}
"""The value of a request, by command."""

REPLIES: Final[Mapping[int, type[Reply]]] = {
    Command.VERSION: Version,
    Command.DMA_MAP: Acknowledgement,
    Command.DMA_UNMAP: DmaUnmapReply,
    Command.DEVICE_GET_INFO: DeviceInfo,
    Command.DEVICE_GET_REGION_INFO: RegionInfo,
    Command.DEVICE_GET_REGION_IO_FDS: RegionIoFds,
    Command.DEVICE_GET_IRQ_INFO: IrqInfo,
    Command.DEVICE_SET_IRQS: Acknowledgement,
    Command.REGION_READ: RegionReadReply,
    Command.REGION_WRITE: RegionWriteReply,
    Command.DMA_READ: DmaReadReply,
    Command.DMA_WRITE: DmaWriteReply,
    Command.DEVICE_RESET: Acknowledgement,
    Command.REGION_WRITE_MULTI: RegionWriteMultiReply,
    Command.DEVICE_FEATURE: DeviceFeature,
    Command.MIG_DATA_READ: MigDataReadReply,
    Command.MIG_DATA_WRITE: Acknowledgement,
}
"""The value of a successful reply, by command."""


class Packable(Protocol):
    """What every message value can do."""

    def pack(self) -> bytes:
        """The payload."""


class PackableRequest(Packable, Protocol):
    """A request, which knows its command."""

    command: ClassVar[Command]


def decode_request(header: Header, payload: Buffer) -> Request:
    """Read a request. Raises ProtocolError: ENOSYS for an unknown command, EINVAL for what is no request."""
    if not header.is_command:
        raise ProtocolError(EINVAL, f"flags {header.flags:#x} where a command is due")
    return _lookup(REQUESTS, header.command).unpack(payload)


def decode_reply(header: Header, payload: Buffer) -> Reply | ErrorReply:
    """Read a reply, of success or of failure. Raises ProtocolError like :func:`decode_request`."""
    if not header.is_reply:
        raise ProtocolError(EINVAL, f"flags {header.flags:#x} where a reply is due")
    kind = _lookup(REPLIES, header.command)
    if header.is_error:
        check_empty(payload, "an error reply")
        return ErrorReply(header.error)
    return kind.unpack(payload)


_Kind = TypeVar("_Kind")


def _lookup(kinds: Mapping[int, _Kind], command: int) -> _Kind:
    kind = kinds.get(command)
    if kind is None:
        raise ProtocolError(ENOSYS, f"there is no command {command}")
    return kind


def encode_request(message_id: int, request: PackableRequest, *, no_reply: bool = False) -> bytes:
    """A whole request message."""
    flags = MessageType.COMMAND | (FLAG_NO_REPLY if no_reply else 0)
    return encode(message_id, request.command, flags, request.pack())


def encode_reply(message_id: int, command: int, reply: Packable | bytes = b"") -> bytes:
    """A whole reply message of success; ``reply`` is a value, or a payload that is packed already."""
    payload = reply if isinstance(reply, bytes) else reply.pack()
    return encode(message_id, command, MessageType.REPLY, payload)


def encode_error(message_id: int, command: int, errno: int) -> bytes:
    """A whole error reply message."""
    return Header(message_id, command, HEADER_SIZE, MessageType.REPLY | FLAG_ERROR, errno).pack()


def encode(message_id: int, command: int, flags: int, payload: bytes = b"") -> bytes:
    """A whole message of any kind."""
    return Header(message_id, command, HEADER_SIZE + len(payload), flags).pack() + payload
