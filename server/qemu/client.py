"""QEMU's vfio-user client: the device that a guest sees, and that talks to a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CLIENT = "vfio-user-pci"
"""What QEMU calls it."""

Option = str | int | bool | Mapping[str, object]
DeviceOptions = Mapping[str, Option]
"""A device as ``-device`` and ``device_add`` take it."""


def vfio_user_pci(socket: Path, **options: Option) -> DeviceOptions:
    """Return QEMU's vfio-user client, attached to the server that listens at ``socket``."""
    return {"driver": CLIENT, "socket": {"type": "unix", "path": str(socket)}, **options}
