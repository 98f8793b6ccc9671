"""What every command about instances may raise."""

from __future__ import annotations


class InstanceError(Exception):
    """What was asked for cannot be done; the text is one line that names the fix."""


class AlreadyRunningError(InstanceError):
    """A server of the instance runs, and has its pid file locked."""
