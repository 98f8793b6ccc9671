"""What the DMA core raises to the session and at start; what it raises to devices is GuestMemoryError."""

from __future__ import annotations


class DmaError(OSError):
    """A DMA request that cannot be granted; ``errno`` is what the client gets as its error reply."""


class DmaDomainUnavailable(Exception):  # noqa: N818 - a fact about the machine
    """This kind of DMA domain cannot be had here: one line that says why, and what to do."""
