"""What the DMA core raises to the session; what it raises to devices is GuestMemoryError."""

from __future__ import annotations


class DmaError(OSError):
    """A DMA request that cannot be granted; ``errno`` is what the client gets as its error reply."""
