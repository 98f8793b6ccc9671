"""VERSION: the first message of a connection, and what the two sides agree on (vfio-user, VFIO_USER_VERSION).

The rules of the handshake, as :class:`Handshake` keeps them:

* A connection starts out NEW. There, VERSION is the only command allowed; anything else means that the peer
  does not speak vfio-user, and the connection FAILED.
* A VERSION request that can be agreed on makes it READY; one that cannot (another major version, malformed
  capabilities, no page size in common) makes it FAILED.
* READY, every command is allowed except another VERSION. That is an error, and the connection goes on.
* FAILED is the end: send the error reply and close.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from errno import EINVAL, EOPNOTSUPP
from struct import Struct
from typing import ClassVar, Final

from protocol.capabilities import (
    DEFAULT_MAX_DATA_XFER_SIZE,
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_MSG_FDS,
    DEFAULT_PGSIZES,
    Capabilities,
    MigrationCapability,
    TwinSocket,
)
from protocol.commands import Command
from protocol.errors import ProtocolError
from protocol.wire import Buffer, unpack_start

MAJOR: Final = 0
MINOR: Final = 1
"""The newest version that this package speaks. QEMU proposes 0.0, libvfio-user 0.1."""

MAX_STATED_MSG_FDS: Final = 16
"""QEMU refuses replies that state more than this."""

_VERSION: Final = Struct("=HH")


@dataclass(frozen=True, slots=True)
class Version:
    """A VERSION message, request or reply. ``capabilities`` is None where it brings no version data."""

    command: ClassVar[Command] = Command.VERSION

    major: int
    minor: int
    capabilities: Capabilities | None = None

    def pack(self) -> bytes:
        """The payload: 4 bytes, and the capabilities as JSON with its NUL."""
        data = b"" if self.capabilities is None else self.capabilities.pack()
        return _VERSION.pack(self.major, self.minor) + data

    @classmethod
    def unpack(cls, payload: Buffer) -> Version:
        """Read a payload. Raises ProtocolError."""
        major, minor = unpack_start(_VERSION, payload, "VERSION")
        data = payload[_VERSION.size :]
        return cls(major, minor, Capabilities.unpack(data) if len(data) else None)


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds for a connection, with every default filled in.

    ``client_*`` is what the client can take, and so limits what the server sends; ``server_*`` the reverse.
    ``twin_socket_fd``: index among the fds of the reply of the client's end of the twin socket, or None.
    ``migration``: as stated by both sides, for peers that use the older migration; else None.
    """

    major: int
    minor: int
    client_max_msg_fds: int
    server_max_msg_fds: int
    client_max_data_xfer_size: int
    server_max_data_xfer_size: int
    max_dma_maps: int
    pgsizes: int
    write_multiple: bool
    twin_socket_fd: int | None
    migration: MigrationCapability | None


def negotiate(request: Version, ours: Capabilities) -> Version:
    """The server's reply to ``request``. Raises ProtocolError (EOPNOTSUPP) where nothing can be agreed on.

    States only capabilities that the client proposed, and of those only the ones that differ from what the
    client assumes anyway. So the reply is never longer than a request of QEMU, which reads it into the memory
    of that request.
    """
    if request.major != MAJOR:
        raise ProtocolError(EOPNOTSUPP, f"version {request.major}.{request.minor}, this is {MAJOR}.{MINOR}")
    minor = min(request.minor, MINOR)
    if request.capabilities is None:
        return Version(MAJOR, minor)
    return Version(MAJOR, minor, _answer(request.capabilities, ours))


def _answer(theirs: Capabilities, ours: Capabilities) -> Capabilities:
    max_msg_fds = min(_given(ours.max_msg_fds, DEFAULT_MAX_MSG_FDS), MAX_STATED_MSG_FDS)
    max_data_xfer_size = _given(ours.max_data_xfer_size, DEFAULT_MAX_DATA_XFER_SIZE)
    max_dma_maps = min(
        _given(ours.max_dma_maps, DEFAULT_MAX_DMA_MAPS), _given(theirs.max_dma_maps, DEFAULT_MAX_DMA_MAPS)
    )
    pgsizes = _given(ours.pgsizes, DEFAULT_PGSIZES) & _given(theirs.pgsizes, DEFAULT_PGSIZES)
    if pgsizes == 0:
        raise ProtocolError(EOPNOTSUPP, f"no page size in common with pgsizes {theirs.pgsizes}")
    twin = (
        ours.twin_socket
        and theirs.twin_socket
        and ours.twin_socket.supported
        and theirs.twin_socket.supported
    )
    return Capabilities(
        # Stated even where it is the specification's default, because QEMU assumes 8.
        max_msg_fds=None if theirs.max_msg_fds is None else max_msg_fds,
        max_data_xfer_size=_stated(theirs.max_data_xfer_size, max_data_xfer_size, DEFAULT_MAX_DATA_XFER_SIZE),
        max_dma_maps=_stated(theirs.max_dma_maps, max_dma_maps, DEFAULT_MAX_DMA_MAPS),
        pgsizes=_stated(theirs.pgsizes, pgsizes, DEFAULT_PGSIZES),
        twin_socket=TwinSocket(supported=True, fd_index=0) if twin else None,
        write_multiple=True if ours.write_multiple and theirs.write_multiple else None,
        migration=ours.migration if theirs.migration is not None else None,
    )


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _stated(proposed: int | None, value: int, default: int) -> int | None:
    return None if proposed is None or value == default else value


def agree(request: Version, reply: Version) -> Agreement:
    """What a VERSION request and its reply amount to; the same for both sides.

    Raises ProtocolError (EINVAL) where the reply breaks the rules: then a client closes the connection.
    """
    if reply.major != request.major or reply.minor > request.minor:
        raise ProtocolError(
            EINVAL, f"version {reply.major}.{reply.minor} in reply to {request.major}.{request.minor}"
        )
    client = request.capabilities or Capabilities()
    server = reply.capabilities or Capabilities()
    return Agreement(
        major=reply.major,
        minor=reply.minor,
        client_max_msg_fds=_given(client.max_msg_fds, DEFAULT_MAX_MSG_FDS),
        server_max_msg_fds=_given(server.max_msg_fds, DEFAULT_MAX_MSG_FDS),
        client_max_data_xfer_size=_given(client.max_data_xfer_size, DEFAULT_MAX_DATA_XFER_SIZE),
        server_max_data_xfer_size=_given(server.max_data_xfer_size, DEFAULT_MAX_DATA_XFER_SIZE),
        max_dma_maps=_given(server.max_dma_maps, DEFAULT_MAX_DMA_MAPS),
        pgsizes=_given(server.pgsizes, DEFAULT_PGSIZES),
        write_multiple=bool(client.write_multiple and server.write_multiple),
        twin_socket_fd=_twin_socket_fd(client.twin_socket, server.twin_socket),
        migration=server.migration if client.migration is not None else None,
    )


def _twin_socket_fd(client: TwinSocket | None, server: TwinSocket | None) -> int | None:
    if server is None or not server.supported:
        return None
    if client is None or not client.supported or server.fd_index is None:
        raise ProtocolError(EINVAL, "the reply enables a twin socket against the rules")
    return server.fd_index


class HandshakeState(Enum):
    """Where a connection stands."""

    NEW = auto()
    READY = auto()
    FAILED = auto()


_REFUSALS: Final = {
    (HandshakeState.NEW, False): "the first message must be VERSION",
    (HandshakeState.READY, True): "VERSION was negotiated already",
    (HandshakeState.FAILED, False): "the version negotiation failed",
    (HandshakeState.FAILED, True): "the version negotiation failed",
}
"""What is refused, by state and whether the command is VERSION; what is not listed is allowed."""


class Handshake:
    """The server's side of the version negotiation: which commands are allowed, and what was agreed."""

    __slots__ = ("_ours", "agreement", "state")

    def __init__(self, ours: Capabilities) -> None:
        """``ours`` is what the server offers."""
        self._ours = ours
        self.state = HandshakeState.NEW
        self.agreement: Agreement | None = None
        """What was agreed, once READY."""

    def check(self, command: int) -> None:
        """Raise ProtocolError (EINVAL) where ``command`` is not allowed now."""
        refusal = _REFUSALS.get((self.state, command == Command.VERSION))
        if refusal is None:
            return
        if self.state is HandshakeState.NEW:
            self.state = HandshakeState.FAILED
        raise ProtocolError(EINVAL, refusal)

    def receive(self, payload: Buffer) -> Version:
        """Take the payload of a VERSION request, and return the reply to send. Raises ProtocolError."""
        self.check(Command.VERSION)
        self.state = HandshakeState.FAILED
        request = Version.unpack(payload)
        reply = negotiate(request, self._ours)
        self.agreement = agree(request, reply)
        self.state = HandshakeState.READY
        return reply
