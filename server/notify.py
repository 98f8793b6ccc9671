"""Tells a service manager that the server is ready (sd_notify(3)), when it asked to be told."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify_ready() -> None:
    """Send READY=1 to ``$NOTIFY_SOCKET``, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier,
        suppress(OSError),
    ):
        notifier.sendto(b"READY=1", address)
