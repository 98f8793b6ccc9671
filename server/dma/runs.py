"""The pinned pages by guest address, as runs: pages that follow each other both there and in the DMA domain."""

from __future__ import annotations

from collections.abc import Sequence

from server.dma.sorted_map import SortedMap


class PinnedRun:
    """The pages ``[start, end)``, at ``dma_addr`` onwards, with ``count`` references each.

    ``granted`` is the access (bits of :class:`devices.contract.Prot`) that pins of these pages were found
    to be allowed; ``writable`` says whether the domain lets the device write them; ``part`` whether this was
    once part of a longer run. Between the moment that a run is claimed and the moment that it is mapped its
    count is 0.
    """

    __slots__ = ("count", "dma_addr", "end", "granted", "part", "start", "writable")

    def __init__(
        self, start: int, end: int, dma_addr: int, *, count: int, granted: int, writable: bool
    ) -> None:
        self.start = start
        self.end = end
        self.dma_addr = dma_addr
        self.count = count
        self.granted = granted
        self.writable = writable
        self.part = False

    def continues_in(self, after: PinnedRun) -> bool:
        """Whether ``after`` and this could be one run."""
        return (
            self.end == after.start
            and self.dma_addr + self.end - self.start == after.dma_addr
            and self.count == after.count
            and self.granted == after.granted
            and self.writable == after.writable
        )


class RunMap:
    """Disjoint :class:`PinnedRun` values; every operation costs O(log n) and the number of runs it touches."""

    def __init__(self) -> None:
        self._runs: SortedMap[PinnedRun] = SortedMap()
        self.starting_at = self._runs.get
        """The run that starts at exactly this address, or None; O(1)."""

    def __len__(self) -> int:
        return len(self._runs)

    def values(self) -> list[PinnedRun]:
        """All runs by address."""
        return list(self._runs.values())

    def add(self, run: PinnedRun) -> None:
        """Add a run where there is none."""
        self._runs[run.start] = run

    def discard(self, run: PinnedRun) -> None:
        """Take out a run of this map."""
        self._runs.pop(run.start)

    def overlapping(self, start: int, end: int) -> Sequence[PinnedRun]:
        """The runs with pages in ``[start, end)``, by address."""
        last = self._runs.floor(end - 1)
        if last is None or last.end <= start:
            return ()
        if last.start <= start:
            return (last,)
        found = self._runs.between(start, end)
        if found[0].start > start:
            before = self._runs.floor(start)
            if before is not None and before.end > start:
                found.insert(0, before)
        return found

    def at(self, address: int) -> PinnedRun | None:
        """The run that ``address`` is in."""
        run = self._runs.floor(address)
        return run if run is not None and run.end > address else None

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of ``[start, end)`` that no run covers."""
        gaps = []
        for run in self.overlapping(start, end):
            if start < run.start:
                gaps.append((start, run.start))
            start = run.end
        if start < end:
            gaps.append((start, end))
        return gaps

    def isolate(self, start: int, end: int) -> Sequence[PinnedRun]:
        """The runs within ``[start, end)``, after runs that reach across its borders have been cut there."""
        exact = self.starting_at(start)
        if exact is not None and exact.end == end:
            return (exact,)
        found = list(self.overlapping(start, end))
        if found and found[0].start < start:
            found[0] = self.cut(found[0], start)
        if found and found[-1].end > end:
            self.cut(found[-1], end)
        return found

    def cut(self, run: PinnedRun, address: int) -> PinnedRun:
        """Cut a run in two at ``address`` inside it; returns the second half."""
        second = PinnedRun(
            address,
            run.end,
            run.dma_addr + address - run.start,
            count=run.count,
            granted=run.granted,
            writable=run.writable,
        )
        run.end = address
        run.part = second.part = True
        self._runs[address] = second
        return second

    def join(self, start: int, end: int) -> None:
        """Make one run of those within, or touching, ``[start, end)`` that differ in nothing but place."""
        runs = self.overlapping(max(start - 1, 0), end + 1)
        last: PinnedRun | None = None
        for run in runs:
            if last is not None and last.continues_in(run):
                last.end = run.end
                self._runs.pop(run.start)
            else:
                last = run
