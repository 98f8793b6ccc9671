"""The header of every message (vfio-user, Header), and the fast way to write one."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from protocol.wire import Buffer, unpack_start

HEADER: Final = Struct("=HHIII")
"""Message ID, command, size of the whole message, flags, error."""

HEADER_SIZE: Final = HEADER.size

TYPE_MASK: Final = 0xF
"""The bits of the flags that hold the :class:`MessageType`."""

FLAG_NO_REPLY: Final = 1 << 4
"""In a command: the sender wants no reply."""

FLAG_ERROR: Final = 1 << 5
"""In a reply: the command failed, the error field holds an errno (or 0)."""


class MessageType(IntEnum):
    """What bits 0 to 3 of the flags say; other values are reserved."""

    COMMAND = 0
    REPLY = 1


_REPLY: Final = MessageType.REPLY.value
_ERROR_REPLY: Final = _REPLY | FLAG_ERROR


class Header(NamedTuple):
    """A decoded header. A named tuple, because one is made for every message.

    ``command`` is a number of :class:`protocol.commands.Command`, or one that this package does not know.
    """

    message_id: int
    command: int
    size: int = HEADER_SIZE
    flags: int = 0
    error: int = 0

    @classmethod
    def unpack(cls, data: Buffer) -> Header:
        """Read a header from the start of ``data``. Raises ProtocolError (EINVAL) on less than 16 bytes."""
        return cls._make(unpack_start(HEADER, data, "a message header"))

    def pack(self) -> bytes:
        """The 16 bytes."""
        return HEADER.pack(*self)

    @property
    def is_command(self) -> bool:
        """Whether this is a request."""
        return self.flags & TYPE_MASK == MessageType.COMMAND

    @property
    def is_reply(self) -> bool:
        """Whether this is a reply, of success or of failure."""
        return self.flags & TYPE_MASK == MessageType.REPLY

    @property
    def no_reply(self) -> bool:
        """Whether the sender of this command wants no reply."""
        return self.flags & FLAG_NO_REPLY != 0

    @property
    def is_error(self) -> bool:
        """Whether this reply says that its command failed."""
        return self.flags & FLAG_ERROR != 0


def pack_reply_header_into(buffer: bytearray | memoryview, message_id: int, command: int, size: int) -> int:
    """Write the header of a reply of ``size`` bytes, header included, to ``buffer``; return ``size``."""
    HEADER.pack_into(buffer, 0, message_id, command, size, _REPLY, 0)
    return size


def pack_error_into(buffer: bytearray | memoryview, message_id: int, command: int, error: int) -> int:
    """Write a whole error reply to the start of ``buffer``; return its size, 16."""
    HEADER.pack_into(buffer, 0, message_id, command, HEADER_SIZE, _ERROR_REPLY, error)
    return HEADER_SIZE
