"""The one exception of this package."""

from __future__ import annotations


class GuestError(Exception):
    """A guest could not be provided, booted or used.

    The message is one line that says what is wrong and, where there is one, the fix. ``log`` holds the last
    lines that the guest or the program at fault printed.
    """

    def __init__(self, message: str, log: tuple[str, ...] = ()) -> None:
        """Keep ``message`` as the one line to show, and ``log`` for whoever wants to know more."""
        super().__init__(message)
        self.log = log
