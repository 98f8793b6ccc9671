"""What serves a client that has said VERSION: the project's own protocol engine, or something in its place."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from devices.contract import Device
from protocol import Capabilities, Decoder, Handshake, TwinSocket
from server.native.client_messages import ClientMessages
from server.native.connection import Connection
from server.native.handlers import MAX_DATA_XFER_SIZE
from server.native.message_socket import MessageSocket
from server.session import Session
from server.transport_names import NATIVE_NAME

MAX_FDS = 16
"""Fds in one message; QEMU accepts no more in a server's capabilities."""
MAX_DMA_MAPS = 65_535
PAGE_SIZES = 4096

CAPABILITIES = Capabilities(
    max_msg_fds=MAX_FDS,
    max_data_xfer_size=MAX_DATA_XFER_SIZE,
    max_dma_maps=MAX_DMA_MAPS,
    pgsizes=PAGE_SIZES,
    twin_socket=TwinSocket(supported=True),
    write_multiple=True,
)


class Transport(Protocol):
    """How the messages of a client are served. One object serves any number of clients."""

    @property
    def name(self) -> str:
        """What ``--transport`` calls it."""

    @property
    def capabilities(self) -> Capabilities:
        """What a server with this transport offers in VERSION."""

    @property
    def max_dma_maps(self) -> int:
        """DMA regions that a client may have."""

    def check(self, device: Device) -> None:
        """Raise TransportUnavailable where ``device`` cannot be served."""

    def make_socket(self, client: socket.socket) -> MessageSocket:
        """Take a connected client over."""

    def connect(
        self,
        main: MessageSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
        stack: ExitStack,
    ) -> Connection:
        """Begin to serve a client whose VERSION was accepted; ``stack`` ends it. Raises OSError.

        ``main`` is from :meth:`make_socket`, or a socket that hears what it receives and sends.
        """


class TransportUnavailable(Exception):  # noqa: N818 - what the user reads
    """The transport cannot be used; the text is one line that names the fix."""


@dataclass(frozen=True, slots=True)
class NativeTransport:
    """The project's own protocol engine."""

    name: str = NATIVE_NAME
    capabilities: Capabilities = CAPABILITIES
    max_dma_maps: int = MAX_DMA_MAPS

    def check(self, device: Device) -> None:
        """Serves every device."""

    def make_socket(self, client: socket.socket) -> MessageSocket:
        """A socket that reads what has come."""
        return MessageSocket(client, MAX_FDS)

    def connect(
        self,
        main: MessageSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
        stack: ExitStack,  # noqa: ARG002 - nothing to end
    ) -> Connection:
        """See :class:`Transport`."""
        return Connection(main, decoder, handshake, session, client)


NATIVE = NativeTransport()
