"""A DMA_UNMAP under way: its regions have left the table, and holders of their pages have been told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.dma.invalidation import Invalidation
from server.dma.pins import PinCache
from server.dma.regions import DmaRegion


class Unmapping:
    """Ends with :meth:`finish`: at once, or when nothing is :attr:`pending`, or when the client has waited long enough.

    Until then the client must not map anything else: what it takes away may still be in use.
    """

    __slots__ = ("_finished", "_invalidation", "_let_go", "_pins", "_removed")

    def __init__(
        self,
        pins: PinCache,
        invalidation: Invalidation,
        removed: Sequence[DmaRegion],
        let_go: Callable[[Sequence[DmaRegion]], None],
    ) -> None:
        """``let_go`` gives back what the regions hold, once nothing refers to their memory."""
        self._pins = pins
        self._invalidation = invalidation
        self._removed = removed
        self._let_go = let_go
        self._finished = False

    @property
    def pending(self) -> bool:
        """Whether a holder that asked for time has not let go yet."""
        return self._invalidation.pending

    def when_released(self, call: Callable[[], None]) -> None:
        """Have ``call`` called when the last holder has let go."""
        self._invalidation.released = call

    def finish(self) -> int:
        """Revoke what is still held, and forget the regions; returns their bytes together. May be called again."""
        if not self._finished:
            self._finished = True
            self._pins.finish(self._invalidation)
            self._let_go(self._removed)
        return sum(region.size for region in self._removed)
