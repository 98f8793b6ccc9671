"""The cache of guest page to dma_addr: every pinned page is in the DMA domain exactly once.

Invariants, for every page: it is mapped in the domain exactly while its reference count is above 0; its
dma_addr does not change while it is mapped; it counts once in :attr:`PinCache.locked_bytes`; and its region
is in the table, since a region's pages are invalidated before it is let go. All work is done on runs of
pages.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Sequence

from devices.contract import DmaSegment, GuestMemoryError, GuestRange, Log, PinnedPages, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.domain import DmaDomain, FileRun, OutOfRuns
from server.dma.pin import Pin
from server.dma.regions import DmaRegionTable, RegionPart
from server.dma.runs import PinnedRun, RunMap
from server.dma.spans import Span, page_spans, spans_of

_WRITE = Prot.WRITE.value


class PinCache:
    """The pinned pages of one client, over ``domain``.

    ``max_pinned`` bounds :attr:`locked_bytes`; None is no limit. What is pinned belongs to the holders of the
    :class:`Pin` values; :meth:`invalidate` takes it from them.
    """

    def __init__(
        self, regions: DmaRegionTable, domain: DmaDomain, log: Log, max_pinned: int | None = None
    ) -> None:
        self._regions = regions
        self._domain = domain
        self._log = log
        self._runs = RunMap()
        self._pins: dict[int, weakref.ref[Pin]] = {}
        self._dropped: list[Pin] = []
        self.max_pinned = max_pinned
        self.locked_bytes = 0
        self.hits = 0
        self.misses = 0
        self.invalidations = 0
        self.revoked = 0

    def __len__(self) -> int:
        """How many pins there are."""
        self._collect()
        return len(self._pins)

    @property
    def runs(self) -> Sequence[PinnedRun]:
        """The runs of pinned pages by guest address, for status and tests."""
        return self._runs.values()

    def pin(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: Callable[[PinnedPages], None]) -> Pin:
        """Pin every page of ``ranges``, all or nothing.

        Raises GuestMemoryError with nothing changed. EINVAL: an empty range, no permission asked for, or a
        hole. EOVERFLOW: a range wraps. EPERM: not mapped for ``prot``. EFAULT: not shared. ENOMEM: over the
        limit, or out of what the domain has.
        """
        self._collect()
        need = prot.value
        if not need:
            raise GuestMemoryError(errno.EINVAL, "a pin without a permission")
        parts = spans_of(ranges)
        spans = page_spans(parts)
        missed = self._not_granted(spans, need)
        mapped = self._map(missed, need) if missed else 0
        self.misses += mapped // PAGE_SIZE
        self.hits += (sum(end - start for start, end in spans) - mapped) // PAGE_SIZE
        isolate = self._runs.isolate
        for start, end in spans:
            for run in isolate(start, end):
                run.count += 1
                run.granted |= need
        pin = Pin(self, parts, spans, prot, on_unmap)
        self._pins[id(pin)] = weakref.ref(pin)
        return pin

    def release(self, pin: Pin) -> None:
        """Drop the references of ``pin``; pages that nobody else holds leave the domain."""
        self._collect()
        pin.revoke()
        del self._pins[id(pin)]
        freed: list[DmaSegment] = []
        isolate = self._runs.isolate
        for start, end in pin.spans:
            parts_stay = False
            for run in isolate(start, end):
                run.count -= 1
                if run.count:
                    parts_stay |= run.part
                else:
                    self._runs.discard(run)
                    _append(freed, run.dma_addr, run.end - run.start)
            if parts_stay:
                self._runs.join(start, end)
        self._unmap(freed)

    def leaked(self, pin: Pin) -> None:
        """A holder has dropped ``pin`` without releasing it.

        This may be the garbage collector's doing, in the middle of anything: the next call sees to it.
        """
        self._dropped.append(pin)

    def invalidate(self, start: int, end: int) -> None:
        """The client takes ``[start, end)`` away: tell the holders of its pages, then revoke what they kept.

        The regions must have left the table, so that no callback can pin them again. Costs O(log n) where
        nothing is pinned there, whatever the size of the range; O(pins) otherwise.
        """
        self._collect()
        if not self._runs.overlapping(start, end):
            return
        self.invalidations += 1
        holders = [pin for ref in list(self._pins.values()) if (pin := ref()) is not None]
        for pin in holders:
            # A callback may have released pins other than its own.
            if not pin.revoked and pin.overlaps(start, end):
                self._take_away(pin)
        # What was dropped in the meantime is in nobody's list but holds its pages.
        self._collect()

    def translate(self, address: int) -> int:
        """The dma_addr of a pinned guest address. Raises GuestMemoryError (EINVAL) where it is not pinned."""
        run = self._runs.at(address)
        if run is None:
            raise GuestMemoryError(errno.EINVAL, f"guest address {address:#x} is not pinned")
        return run.dma_addr + address - run.start

    def segments(self, parts: Sequence[Span]) -> list[DmaSegment]:
        """Where pinned memory is in the domain, neighbours coalesced."""
        segments: list[DmaSegment] = []
        for start, end in parts:
            for run in self._runs.overlapping(start, end):
                low, high = max(start, run.start), min(end, run.end)
                _append(segments, run.dma_addr + low - run.start, high - low)
        return segments

    def views(self, pin: Pin) -> list[memoryview]:
        """The pinned memory through the domain, or in its file's mapping where the domain has no views."""
        views: list[memoryview] = []
        for dma_addr, length in pin.segments:
            view = self._domain.view(dma_addr, length)
            if view is None:
                return [
                    _host_view(part) for span in pin.parts for part in self._regions.parts(*span, pin.prot)
                ]
            views.append(view)
        return views

    def _not_granted(self, spans: Sequence[Span], need: int) -> list[Span]:
        """The spans that are not one run which is pinned for ``need`` already."""
        missed: list[Span] = []
        starting_at = self._runs.starting_at
        for span in spans:
            run = starting_at(span[0])
            if run is None or run.end != span[1] or run.granted & need != need:
                missed.append(span)
        return missed

    def _map(self, spans: Sequence[Span], need: int) -> int:
        """Get all pages of ``spans`` into the domain, writable where ``need`` says so; bytes newly mapped."""
        before = self.locked_bytes
        parts: Sequence[RegionPart] = ()
        try:
            parts = self._checked(spans, need)
            claimed, sources = self._claim(parts)
            if claimed:
                self._map_claimed(claimed, sources, writable=bool(need & _WRITE))
            if need & _WRITE and self.locked_bytes - before < sum(end - start for _, start, end in parts):
                self._make_writable(spans)
        except OSError as exc:
            self._unclaim(parts)
            raise GuestMemoryError(exc.errno or errno.ENOMEM, f"cannot pin: {exc.strerror}") from exc
        return self.locked_bytes - before

    def _checked(self, spans: Sequence[Span], need: int) -> list[RegionPart]:
        """The region of each part of ``spans``, once it is certain that it can be pinned."""
        parts = [part for start, end in spans for part in self._regions.parts(start, end, need)]
        for region, start, end in parts:
            if region.backing is None:
                raise GuestMemoryError(errno.EFAULT, f"the client does not share guest address {start:#x}")
            if not region.backing.sealed:
                region.backing.check_size(end + region.delta)
        return parts

    def _claim(self, parts: Sequence[RegionPart]) -> tuple[list[PinnedRun], list[FileRun]]:
        """Put runs with count 0 where there are none yet; returns them, and where their pages are."""
        claimed: list[PinnedRun] = []
        sources: list[FileRun] = []
        for region, part_start, part_end in parts:
            for start, end in self._runs.gaps(part_start, part_end):
                run = PinnedRun(start, end, 0, count=0, granted=0, writable=False)
                self._runs.add(run)
                claimed.append(run)
                if region.backing is not None:
                    sources.append(FileRun(region.backing, start + region.delta, end - start))
        return claimed, sources

    def _map_claimed(
        self, claimed: Sequence[PinnedRun], sources: Sequence[FileRun], *, writable: bool
    ) -> None:
        added = sum(source.length for source in sources)
        if self.max_pinned is not None and self.locked_bytes + added > self.max_pinned:
            raise GuestMemoryError(errno.ENOMEM, f"over the limit of {self.max_pinned} pinned bytes")
        if len(self._runs) > self._domain.max_runs:
            raise OutOfRuns(self._domain.max_runs)
        segments = iter(self._domain.map_runs(sources, writable=writable))
        self.locked_bytes += added
        dma_addr = left = 0
        for run in claimed:
            rest: PinnedRun | None = run
            while rest is not None:
                if not left:
                    dma_addr, left = next(segments)
                run, rest = rest, None
                if run.end - run.start > left:
                    rest = self._runs.cut(run, run.start + left)
                run.dma_addr = dma_addr
                run.writable = writable
                dma_addr += run.end - run.start
                left -= run.end - run.start

    def _make_writable(self, spans: Sequence[Span]) -> None:
        for start, end in spans:
            # Cut at the borders first: beyond them the region may be one that must not be written.
            for run in self._runs.isolate(start, end):
                if not run.writable:
                    self._domain.make_writable(run.dma_addr, run.end - run.start)
                    run.writable = True

    def _unclaim(self, parts: Sequence[RegionPart]) -> None:
        """Undo :meth:`_claim`, and the mapping where it got that far."""
        freed: list[DmaSegment] = []
        for _, start, end in parts:
            for run in self._runs.overlapping(start, end):
                if not run.count:
                    self._runs.discard(run)
                    if run.dma_addr:
                        _append(freed, run.dma_addr, run.end - run.start)
        self._unmap(freed)

    def _unmap(self, freed: Sequence[DmaSegment]) -> None:
        for dma_addr, length in freed:
            self._domain.unmap(dma_addr, length)
            self.locked_bytes -= length

    def _collect(self) -> None:
        """Release what was dropped."""
        while self._dropped:
            pin = self._dropped.pop()
            self._log.warning("pin_leaked", pinned_at=pin.origin, bytes=pin.length)
            self.release(pin)

    def _take_away(self, pin: Pin) -> None:
        try:
            pin.on_unmap(pin)
        except Exception as exc:
            self._log.warning("unmap_callback_failed", pinned_at=pin.origin, error=repr(exc))
        if not pin.revoked:
            self.revoked += 1
            self._log.warning("pin_revoked", pinned_at=pin.origin, bytes=pin.length)
            self.release(pin)


def _append(segments: list[DmaSegment], dma_addr: int, length: int) -> None:
    """Add a segment, as part of the last one where it follows it."""
    if segments:
        last = segments[-1]
        if last.dma_addr + last.length == dma_addr:
            segments[-1] = DmaSegment(last.dma_addr, last.length + length)
            return
    segments.append(DmaSegment(dma_addr, length))


def _host_view(part: RegionPart) -> memoryview:
    region, start, end = part
    if region.backing is None:
        raise GuestMemoryError(errno.EFAULT, f"the client does not share guest address {start:#x}")
    return region.backing.memory[region.prot][start + region.delta : end + region.delta]
