"""What goes wrong when a device is plugged in or unplugged."""

from __future__ import annotations


class HotplugError(Exception):
    """It cannot be done; the text is one line that says why and, where there is one, the fix."""
