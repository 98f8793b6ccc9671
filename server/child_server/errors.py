"""The one exception of this package."""

from __future__ import annotations


class ServerStartError(Exception):
    """A server cannot be started; the text is one line that says why and, where there is one, the fix."""
