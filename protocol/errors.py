"""The one exception of the package."""

from __future__ import annotations


class ProtocolError(Exception):
    """A peer broke the protocol.

    ``errno`` is the UNIX errno that belongs into an error reply (vfio-user, Header, *Error*): EINVAL for
    malformed messages, E2BIG for messages over a limit, ENOSYS for unknown commands, EOPNOTSUPP for versions
    and capabilities that cannot be agreed on. ``reason`` says in one line what was wrong.
    """

    def __init__(self, errno: int, reason: str) -> None:
        """``reason`` is for logs; peers only see ``errno``."""
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        """The reason."""
        return self.reason
