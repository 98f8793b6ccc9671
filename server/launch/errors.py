"""The one exception of this package."""

from __future__ import annotations


class LaunchError(Exception):
    """A guest cannot be started; the text is one line that names the fix."""
