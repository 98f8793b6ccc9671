"""What every command about instances may raise."""

from __future__ import annotations


class InstanceError(Exception):
    """What was asked for cannot be done; the text is one line that names the fix."""
