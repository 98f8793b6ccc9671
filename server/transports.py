"""Which transport serves, and why: ``--transport``."""

from __future__ import annotations

from dataclasses import dataclass

from devices.contract import Device
from server.native.transport import NATIVE, Transport
from server.transport_names import AUTO, LIBVFIO_USER

WHY_NATIVE = "maps memory faster than libvfio-user"
"""What ``auto`` goes by: docs/transports.md has the figures."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A transport, and what the log says about it."""

    transport: Transport
    reason: str


def choose_transport(name: str, device: Device) -> Choice:
    """The transport ``name`` of :data:`server.transport_names.CHOICES` for ``device``. Raises TransportUnavailable.

    libvfio-user is loaded where it is asked for by name, and never otherwise.
    """
    if name == LIBVFIO_USER:
        from server.libvfio_user.transport import load_transport  # noqa: PLC0415 - only who asks for it loads it

        library = load_transport()
        library.check(device)
        return Choice(library, library.description)
    return Choice(NATIVE, WHY_NATIVE if name == AUTO else "asked for")
