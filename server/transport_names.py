"""What ``--transport`` may be; apart from the transports, which take their time to be imported."""

from __future__ import annotations

AUTO = "auto"
NATIVE_NAME = "native"
LIBVFIO_USER = "libvfio-user"
CHOICES = (AUTO, NATIVE_NAME, LIBVFIO_USER)
