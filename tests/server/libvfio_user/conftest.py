"""A server on libvfio-user; every test gives back its fds."""

from __future__ import annotations

from tests.server.transports.conftest import _no_fd_leaks, device, log

__all__ = ["_no_fd_leaks", "device", "log"]
