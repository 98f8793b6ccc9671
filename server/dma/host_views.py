"""How the CPU sees pinned memory: through the domain where it can, else in the mappings of the client's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devices.contract import DmaSegment, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import DmaDomain
from server.dma.file_runs import file_pieces, file_views
from server.dma.pin import Pin
from server.dma.regions import DmaRegionTable


@dataclass(frozen=True, slots=True)
class Alias:
    """A scatter list that is in the domain once more, in one piece, for the CPU alone; in ``runs`` mappings."""

    segment: DmaSegment
    runs: int


class HostViews:
    """Shows the pinned memory of one client.

    Pages that other pins had mapped before are elsewhere in the domain than the rest of a list. A domain whose
    dma_addrs the CPU can use shows such a list in one piece all the same: it maps it a second time, at addresses
    that no device is ever told. :attr:`runs` is how many mappings that takes now.
    """

    def __init__(self, regions: DmaRegionTable, domain: DmaDomain) -> None:
        self.runs = 0
        self._regions = regions
        self._domain = domain
        self._aliases: dict[int, Alias] = {}

    def views(self, pin: Pin, room: int) -> Sequence[memoryview]:
        """The memory of ``pin`` in as few pieces as possible; a further piece may take up to ``room`` mappings."""
        views = [self._domain.view(*segment) for segment in pin.segments]
        shown = [view for view in views if view is not None]
        if len(shown) < len(views):
            return file_views(self._regions, pin.scatter.ranges(), pin.prot)
        if len(shown) > 1 and pin.scatter.is_whole_pages_inside and not pin.scatter.repeats:
            whole = self._whole(pin, room)
            if whole is not None:
                return [whole]
        return shown

    def drop(self, pin: Pin) -> None:
        """The pin is released."""
        alias = self._aliases.pop(id(pin), None)
        if alias is not None:
            self.runs -= alias.runs
            self._domain.unmap(*alias.segment)

    def _whole(self, pin: Pin, room: int) -> memoryview | None:
        try:
            pieces = file_pieces(self._regions, pin.scatter.parts, pin.prot.value)
            if len(pieces.runs) > room:
                return None
            segments = self._domain.map_runs(pieces.runs, writable=Prot.WRITE in pin.prot)
        except OSError:  # no room, or the client is taking the memory away
            return None
        if len(segments) > 1:  # huge pages are contiguous where their file is
            for segment in segments:
                self._domain.unmap(*segment)
            return None
        self._aliases[id(pin)] = Alias(segments[0], len(pieces.runs))
        self.runs += len(pieces.runs)
        first, _ = pin.scatter.ranges()[0]
        return self._domain.view(segments[0].dma_addr + first % PAGE_SIZE, pin.length)
