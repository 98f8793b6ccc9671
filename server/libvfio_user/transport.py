"""libvfio-user as a transport: a context of the library for each client."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from devices.contract import Device
from protocol import PCI_NUM_IRQS, PCI_NUM_REGIONS, Capabilities, Decoder, Handshake, Version
from server.libvfio_user.connection import LibraryConnection
from server.libvfio_user.context import Context
from server.libvfio_user.library import Library, LibraryMissing, load_library
from server.libvfio_user.peeking_connection import PeekingConnection
from server.libvfio_user.peeking_socket import PeekingSocket
from server.libvfio_user.relayed_connection import RelayedConnection
from server.native.client_messages import ClientMessages
from server.native.connection import Connection
from server.native.message_socket import MessageSocket
from server.native.transport import CAPABILITIES, MAX_DMA_MAPS, MAX_FDS, TransportUnavailable
from server.session import Session
from server.transport_names import LIBVFIO_USER


class LibraryTransport:
    """Serves clients with libvfio-user."""

    name = LIBVFIO_USER

    def __init__(self, library: Library) -> None:
        self._library = library
        self.max_dma_maps = MAX_DMA_MAPS
        self.capabilities = CAPABILITIES
        self.library_regions = library.max_dma_regions(MAX_DMA_MAPS)

    @property
    def description(self) -> str:
        """Which library it is."""
        return f"{self._library.path} ({self._library.generation.name.lower()} generation)"

    def check(self, device: Device) -> None:
        """Raise TransportUnavailable where ``device`` has not the shape that the library gives all its devices."""
        shape = (len(device.regions), len(device.irqs))
        if shape != (PCI_NUM_REGIONS, PCI_NUM_IRQS):
            raise TransportUnavailable(
                f"{device.name} is no PCI device, and libvfio-user serves only these; use --transport native"
            )

    def make_socket(self, client: socket.socket) -> MessageSocket:
        """A socket that looks at messages and leaves them to the library."""
        return PeekingSocket(client, MAX_FDS)

    def connect(
        self,
        main: MessageSocket,
        decoder: Decoder,
        handshake: Handshake,
        session: Session,
        client: ClientMessages,
        stack: ExitStack,
    ) -> Connection:
        """See :class:`server.native.transport.Transport`."""
        connection: LibraryConnection
        if isinstance(main, PeekingSocket):
            connection = PeekingConnection(main, decoder, handshake, session, client)
        else:
            connection = RelayedConnection(main, decoder, handshake, session, client)
        connection.context = Context(self._library, connection, self.library_regions)
        connection.library_regions = self.library_regions
        stack.callback(connection.context.close)
        agreement = handshake.agreement
        assert agreement is not None  # noqa: S101 - a handshake that did not raise has one
        # Of the client's own JSON nothing reaches the library.
        capabilities = Capabilities(
            max_msg_fds=min(agreement.client_max_msg_fds, MAX_FDS),
            max_data_xfer_size=agreement.client_max_data_xfer_size,
        )
        connection.context.adopt(
            main.sock, Version(0, 0, capabilities), session.device.regions, session.device.irqs
        )
        return connection


def load_transport() -> LibraryTransport:
    """Load the library. Raises TransportUnavailable."""
    try:
        return LibraryTransport(load_library())
    except LibraryMissing as error:
        raise TransportUnavailable(str(error)) from error
