"""Guest pages that the client takes away, from the moment that their holders are told until nothing uses them."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from server.dma.pin import Pin
from server.dma.scatter import ScatterList

UNMAP_SECONDS = 2.0
"""How long a client's request waits for holders that asked for time: QEMU gives a device up after 5 s."""


class Invalidation:
    """The pages ``[start, end)``: those that hold them have been told, and ``waiting`` have asked for time.

    ``released`` is called when the last of those has let go; whoever waits for that sets it.
    """

    __slots__ = ("end", "released", "start", "waiting")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.waiting: list[weakref.ref[Pin]] = []
        self.released: Callable[[], None] = _nobody_waits

    def touches(self, scatter: ScatterList) -> bool:
        """Whether any page of a list is among these."""
        if scatter.first >= self.end or scatter.end <= self.start:
            return False
        return scatter.spans()[0].clip(self.start, self.end).pages > 0

    @property
    def pending(self) -> bool:
        """Whether a holder has not let go yet."""
        while self.waiting:
            pin = self.waiting[-1]()
            if pin is not None and not pin.revoked and not pin.dropped:
                return True
            self.waiting.pop()
        return False


def _nobody_waits() -> None:
    """The request is answered as soon as it has been served."""
