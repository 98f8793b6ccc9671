"""The pages of a client that are in the DMA domain: each once, counted, and gone when nobody needs it.

Invariants, for every page: it is mapped in the domain exactly while it is pinned, or retained under the budget; its
dma_addr does not change while it is mapped; it counts once in :attr:`MappedPages.mapped`. All work is done on runs of
pages, many at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices.contract import DmaSegment, GuestMemoryError, Log, Prot
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.domain import DmaDomain, OutOfRuns
from server.dma.file_runs import FilePieces, file_pieces
from server.dma.limits import PinLimits
from server.dma.regions import DmaRegionTable
from server.dma.retention import excess, oldest, slack, without
from server.dma.run_rows import (
    COUNT,
    DMA,
    END,
    FLAGS,
    STAMP,
    START,
    WRITERS,
    Rows,
    RunFlags,
    empty_rows,
    gaps,
    pages_of,
    rows_at,
    segments_of,
)
from server.dma.runs import RunMap
from server.dma.scatter import ScatterList
from server.dma.spans import Spans

_WRITE = Prot.WRITE.value
_WRITABLE = RunFlags.WRITABLE.value
NO_RUNS = empty_rows()


class PinnedRun(NamedTuple):
    """The guest addresses ``[start, end)``, mapped at ``dma_addr`` on, which ``pins`` pins hold: 0 if retained."""

    start: int
    end: int
    dma_addr: int
    pins: int
    writers: int


class MappedPages:
    """What one client's device has mapped of its memory, over ``domain``, within ``limits``.

    :attr:`mapped` and :attr:`retained` are pages now; :attr:`hits`, :attr:`misses` and :attr:`evicted` are pages since
    the client came. ``aliases`` is how many mappings of the domain are others' (:mod:`server.dma.host_views`).
    """

    def __init__(self, regions: DmaRegionTable, domain: DmaDomain, log: Log, limits: PinLimits) -> None:
        self._regions = regions
        self._domain = domain
        self._log = log
        self._runs = RunMap()
        self._releases = 0
        self.limits = limits
        self.aliases = 0
        self.mapped = 0
        self.retained = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0

    @property
    def runs(self) -> Sequence[PinnedRun]:
        """The runs of mapped pages by guest address, for status and tests."""
        return [
            PinnedRun(start << PAGE_SHIFT, end << PAGE_SHIFT, dma << PAGE_SHIFT, pins, writers)
            for start, end, dma, pins, writers, *_ in self._runs.rows().T.tolist()
        ]

    @property
    def locked(self) -> int:
        """Pages that count against the limit: those that are mapped, and what the domain holds beyond them."""
        return self.mapped + self._domain.held_pages

    @property
    def room(self) -> int:
        """How many more separate runs the domain can hold."""
        return self._domain.max_runs - len(self._runs) - self.aliases

    def any_in(self, start: int, end: int) -> bool:
        """Whether any of the pages ``[start, end)`` is mapped; O(log n)."""
        return self._runs.any_in(start, end)

    def lookup(self, scatter: ScatterList) -> Rows:
        """Where the pages of a list are in the domain, by guest page."""
        return self._runs.lookup(scatter.spans()[0])

    def pin(self, scatter: ScatterList, need: int) -> None:
        """Have all pages of a list in the domain, with one more pin, all or nothing. Raises GuestMemoryError."""
        if not self._adjust(scatter, need, pins=1):
            self._pin(scatter, need)

    def release(self, scatter: ScatterList, need: int) -> None:
        """One pin less for all pages of a list; what has none any more is retained, or leaves the domain."""
        if not self._adjust(scatter, need, pins=-1) and not self._remove(scatter):
            self._uncount(scatter.spans()[0], 1 if need & _WRITE else 0)

    def written_spans(self, start: int, end: int) -> Spans:
        """Of the pages ``[start, end)``, those that are pinned for writing now."""
        rows = self._runs.lookup(Spans.one(start, end))
        rows = rows[:, rows[WRITERS] > 0]
        return Spans(rows[START], rows[END])

    def trim(self) -> None:
        """Keep the budget of retained pages: the least recently used go first."""
        surplus = excess(self.retained, self._budget)
        if surplus:
            self._evict(self._runs.idle(), surplus)

    def forget_retained(self, spans: Spans) -> None:
        """Take what nobody pins of ``spans`` out of the domain."""
        if not self.retained:
            return
        gone: list[Rows] = []

        def forget(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            idle = meant & (rows[COUNT] == 0)
            gone.append(rows[:, idle])
            return rows[:, ~idle]

        self._runs.update(spans, forget)
        if gone:
            self._forgotten(np.concatenate(gone, axis=1))

    def _adjust(self, scatter: ScatterList, need: int, *, pins: int) -> bool:
        """The short way: count a pin of runs that remain pinned up or down; False where it is not that."""
        if not self._runs.any_in(scatter.first, scatter.end):
            return False
        flags = 0 if pins < 0 else need | (_WRITABLE if need & _WRITE else 0)
        writers = pins if need & _WRITE else 0
        start, end = scatter.first, scatter.end
        pages = end - start
        if len(scatter) == 1:
            done = self._runs.adjust(start, end, pins=pins, writers=writers, flags=flags)
        else:
            spans = scatter.spans()[0]
            pages = spans.pages
            done = self._runs.adjust_all(spans, pins=pins, writers=writers, flags=flags)
        if done and pins > 0:
            self.hits += pages
        return done

    def _pin(self, scatter: ScatterList, need: int) -> None:
        spans, part = scatter.spans()
        found = self._runs.lookup(spans) if self._runs.any_in(scatter.first, scatter.end) else NO_RUNS
        missing = gaps(spans, found)
        if part is not None and len(missing.start):
            # In the order of the list: it is in the order of these that a domain makes pages contiguous.
            came = part[np.searchsorted(spans.start, missing.start, "right") - 1]
            missing = missing.take(np.argsort(came, kind="stable"))
        try:
            self._check_permitted(found, need)
            pieces = file_pieces(self._regions, missing, need)
            self._make_room(missing.pages, len(pieces.runs) + self._cuts(found, spans), spans)
            new = self._map(pieces, spans, need)
            self._make_writable(found, new, need)
        except OSError as exc:
            raise GuestMemoryError(exc.errno or errno.ENOMEM, f"cannot pin: {exc.strerror}") from exc
        self._count(spans, found, new, need)

    def _cuts(self, found: Rows, spans: Spans) -> int:
        """How many runs the pin would cut: each half may become a mapping of its own when it is the last to stay."""
        return self._runs.cuts(spans) if found.shape[1] else 0

    def _check_permitted(self, found: Rows, need: int) -> None:
        """Raise GuestMemoryError where pages were pinned for less until now, and the client permits no more."""
        if not found.shape[1]:
            return
        unknown = found[:, found[FLAGS] & need != need]
        file_pieces(self._regions, Spans(unknown[START], unknown[END]), need)

    def _map(self, pieces: FilePieces, spans: Spans, need: int) -> Rows:
        """Map ``pieces``: the runs that they are now, by guest page."""
        if not pieces.runs:
            return NO_RUNS.copy()
        writable = need & _WRITE != 0
        try:
            segments = self._domain.map_runs(pieces.runs, writable=writable)
        except OSError as error:
            # The domain's own limits are known only when they are met: what is retained may be what meets them.
            idle = without(self._runs.idle(), spans)
            if error.errno != errno.ENOMEM or not idle.shape[1]:
                raise
            self._evict(idle, pages_of(idle))
            segments = self._domain.map_runs(pieces.runs, writable=writable)
        flags = pieces.flags | _WRITABLE if writable else pieces.flags
        rows = rows_at(pieces.pages, segments, flags)
        return rows if rows.shape[1] == 1 else rows[:, np.argsort(rows[START])]

    def _make_room(self, pages: int, runs: int, spans: Spans) -> None:
        """Let retained pages go where so many more need their room, but for those in ``spans``. Raises ENOMEM."""
        limit = self.limits.max_pinned
        over = 0 if limit is None else -((limit - (self.locked + pages) * PAGE_SIZE) // PAGE_SIZE)
        full = runs > self.room
        if over <= 0 and not full:
            return
        idle = without(self._runs.idle(), spans)
        idle_pages = pages_of(idle)
        if over <= idle_pages and (not full or runs <= self.room + idle.shape[1]):
            self._evict(idle, idle_pages if full else min(over + slack(self._budget), idle_pages))
        # Looked at again, because what is evicted may linger, and leave a hole that counts as a run.
        if limit is not None and (self.locked + pages) * PAGE_SIZE > limit:
            self._log.warning("pin_limit_reached", limit=limit, limited_by=self.limits.limited_by)
            raise GuestMemoryError(
                errno.ENOMEM, f"over the limit of {limit} pinned bytes ({self.limits.limited_by})"
            )
        if runs > self.room:
            limited_by = self._domain.runs_limited_by
            self._log.warning("pin_limit_reached", runs=self._domain.max_runs, limited_by=limited_by)
            raise OutOfRuns(self._domain.max_runs, limited_by)

    @property
    def _budget(self) -> int:
        """How many pages may be retained."""
        return self.limits.retain // PAGE_SIZE

    def _make_writable(self, found: Rows, new: Rows, need: int) -> None:
        """Let the device write what was mapped for reading; takes ``new`` out of the domain where that fails."""
        if not need & _WRITE or not found.shape[1]:
            return
        done: list[DmaSegment] = []
        try:
            for segment in segments_of(found[:, found[FLAGS] & _WRITABLE == 0]):
                self._domain.make_writable(*segment)
                done.append(segment)
        except OSError:
            for segment in done:
                self._domain.make_readonly(*segment)
            self._unmap(new)
            raise

    def _count(self, spans: Spans, found: Rows, new: Rows, need: int) -> None:
        """One more pin holds ``spans``: what was ``found`` mapped, and ``new``."""
        writers = 1 if need & _WRITE else 0
        flags = need | (_WRITABLE if writers else 0)
        new[COUNT] = 1
        new[WRITERS] = writers
        added = pages_of(new)
        self.mapped += added
        self.misses += added
        if not found.shape[1]:
            self._runs.insert(new)
            return
        self.hits += spans.pages - added
        self.retained -= pages_of(found[:, found[COUNT] == 0])

        def count(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            rows[COUNT, meant] += 1
            rows[WRITERS, meant] += writers
            rows[FLAGS, meant] |= flags
            rows[STAMP, meant] = 0
            return rows

        self._runs.update(spans, count, new)

    def _remove(self, scatter: ScatterList) -> bool:
        """Take out a pin of a few ranges that are runs and nobody else's; False where it is not that."""
        if scatter.few is None or not scatter.ascending or self.limits.retain:
            return False
        removed = self._runs.remove(scatter.few)
        if removed is None:
            return False
        self.mapped -= sum(pages for _, pages in removed)
        start, end = removed[0][0], removed[0][0]
        for dma, pages in removed:
            if dma != end:
                self._domain.unmap(start << PAGE_SHIFT, end - start << PAGE_SHIFT)
                start = dma
            end = dma + pages
        self._domain.unmap(start << PAGE_SHIFT, end - start << PAGE_SHIFT)
        return True

    def _uncount(self, spans: Spans, writers: int) -> None:
        """One pin less holds ``spans``."""
        self._releases += 1
        stamp, retain = self._releases, self.limits.retain > 0
        freed: list[Rows] = []

        def uncount(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            rows[COUNT, meant] -= 1
            rows[WRITERS, meant] -= writers
            idle = meant & (rows[COUNT] == 0)
            if not idle.any():
                return rows
            freed.append(rows[:, idle])
            if not retain:
                return rows[:, ~idle]
            rows[STAMP, idle] = stamp
            return rows

        self._runs.update(spans, uncount)
        for rows in freed:
            self.retained += pages_of(rows)
        if not retain and freed:
            self._forgotten(np.concatenate(freed, axis=1))

    def _evict(self, idle: Rows, pages: int) -> None:
        before = self.retained
        self.forget_retained(oldest(idle, pages))
        self.evicted += before - self.retained

    def _forgotten(self, rows: Rows) -> None:
        """Retained pages that are no longer in the map leave the domain, and the account."""
        pages = pages_of(rows)
        self.retained -= pages
        self.mapped -= pages
        self._unmap(rows)

    def _unmap(self, rows: Rows) -> None:
        for dma_addr, length in segments_of(rows[:, np.argsort(rows[DMA], kind="stable")]):
            self._domain.unmap(dma_addr, length)
