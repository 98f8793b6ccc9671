"""The cache of guest page to dma_addr: every pinned page is in the DMA domain exactly once.

Invariants, for every page: it is mapped in the domain exactly while it is pinned, or retained under the budget; its
dma_addr does not change while it is mapped; it counts once in :attr:`PinCache.mapped_pages`; and its region is in the
table, since a region's pages are invalidated before it is let go. All work is done on runs of pages.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices.contract import GuestMemoryError, GuestRange, Log, OnUnmap, Prot
from server.dma.address_space import PAGE_SHIFT, PAGE_SIZE
from server.dma.dirty import DirtyLog
from server.dma.domain import DmaDomain, OutOfRuns
from server.dma.file_runs import FilePieces, file_pieces
from server.dma.host_views import HostViews
from server.dma.invalidation import Invalidation
from server.dma.limits import NO_LIMITS, PinLimits
from server.dma.pin import Pin
from server.dma.regions import DmaRegionTable
from server.dma.retention import excess, oldest, without
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


class PinCache:
    """The pinned pages of one client, over ``domain``.

    What is pinned belongs to the holders of the :class:`Pin` values; :meth:`invalidate` takes it from them.
    """

    def __init__(
        self,
        regions: DmaRegionTable,
        domain: DmaDomain,
        log: Log,
        dirty: DirtyLog,
        limits: PinLimits = NO_LIMITS,
    ) -> None:
        self._regions = regions
        self._domain = domain
        self._log = log
        self._dirty = dirty
        self._runs = RunMap()
        self._pins: dict[int, weakref.ref[Pin]] = {}
        self._dropped: list[Pin] = []
        self._leaving: Invalidation | None = None
        self._releases = 0
        self._host_views = HostViews(regions, domain)
        self.limits = limits
        self.mapped_pages = 0
        self.retained_pages = 0
        self.hits = 0
        self.misses = 0
        self.evicted = 0
        self.invalidations = 0
        self.revoked = 0

    def __len__(self) -> int:
        """How many pins there are."""
        self._collect()
        return len(self._pins)

    @property
    def runs(self) -> Sequence[PinnedRun]:
        """The runs of mapped pages by guest address, for status and tests."""
        rows = self._runs.rows()
        addresses = rows[[START, END, DMA]].T << PAGE_SHIFT
        return [
            PinnedRun(*where, *counts)
            for where, counts in zip(addresses.tolist(), rows[[COUNT, WRITERS]].T.tolist(), strict=True)
        ]

    def stats(self) -> dict[str, object]:
        """Counters: JSON values; hits, misses and evictions in pages."""
        return {
            "pins": len(self),
            "dma_mapped_pages": self.mapped_pages,
            "pinned_pages": self.mapped_pages - self.retained_pages,
            "retained_pages": self.retained_pages,
            "retained_limit": self.limits.retain // PAGE_SIZE,
            "locked_bytes": self.mapped_pages * PAGE_SIZE,
            "locked_limit": self.limits.max_pinned,
            "hits": self.hits,
            "misses": self.misses,
            "evicted": self.evicted,
            "invalidations": self.invalidations,
            "revoked": self.revoked,
        }

    def pin(self, ranges: Sequence[GuestRange], prot: Prot, on_unmap: OnUnmap) -> Pin:
        """Pin every page of ``ranges``, all or nothing.

        Raises GuestMemoryError with nothing changed. EINVAL: an empty range, no permission asked for, or a
        hole. EOVERFLOW: a range wraps. EPERM: not mapped for ``prot``. EFAULT: not shared. ENOMEM: over the
        limit, or out of what the domain has.
        """
        self._collect()
        if not prot.value:
            raise GuestMemoryError(errno.EINVAL, "a pin without a permission")
        scatter = ScatterList(ranges)
        if not self._adjust(scatter, prot.value, pins=1):
            self._pin(scatter, prot.value)
        pin = Pin(self, scatter, prot, on_unmap)
        self._pins[id(pin)] = weakref.ref(pin)
        return pin

    def release(self, pin: Pin) -> None:
        """Drop the references of ``pin``; pages that nobody else holds are retained, or leave the domain."""
        self._collect()
        self._release(pin)
        self._trim()

    def leaked(self, pin: Pin) -> None:
        """A holder has dropped ``pin`` without releasing it.

        This may be the garbage collector's doing, in the middle of anything: the next call sees to it.
        """
        self._dropped.append(pin)

    def invalidate(self, start: int, end: int, *, may_wait: bool = False) -> Invalidation:
        """The client takes the pages ``[start, end)`` away: tell their holders, and revoke what they kept.

        The regions must have left the table, so that no callback can pin them again. Where ``may_wait``, pins
        whose holders ask for time stay until :meth:`finish`, which must follow before anything is mapped
        there again. Costs O(log n) where nothing is mapped there, whatever the size of the range; else it is
        proportional to the pins.
        """
        self._collect()
        if not self._runs.any_in(start, end):
            return Invalidation(start, end)
        self.invalidations += 1
        self._leaving = invalidation = Invalidation(start, end)
        holders = [pin for ref in list(self._pins.values()) if (pin := ref()) is not None]
        invalidation.waiting = [
            pin
            for pin in holders
            # A callback may have released pins other than its own.
            if not pin.revoked and pin.overlaps(start, end) and not self._tell(pin, may_wait=may_wait)
        ]
        if not invalidation.pending:
            self.finish(invalidation)
        return invalidation

    def finish(self, invalidation: Invalidation) -> None:
        """Revoke what has not been released; nothing refers to the pages afterwards. May be called again."""
        if self._leaving is not invalidation:
            return
        self._leaving = None
        for pin in invalidation.waiting:
            if not pin.revoked:
                self._log.warning("unmap_timed_out", pinned_at=pin.origin, bytes=pin.length)
                self._revoke(pin)
        # What was dropped in the meantime is in nobody's list but holds its pages.
        self._collect()
        self._forget_retained(Spans.one(invalidation.start, invalidation.end))

    def lookup(self, pin: Pin) -> Rows:
        """Where the pages of ``pin`` are in the domain, by guest page."""
        return self._runs.lookup(pin.scatter.spans()[0])

    def views(self, pin: Pin) -> Sequence[memoryview]:
        """The memory of ``pin`` in place."""
        return self._host_views.views(pin, self._domain.max_runs - self._mappings)

    def written_spans(self, start: int, end: int) -> Spans:
        """Of the pages ``[start, end)``, those that are pinned for writing now."""
        rows = self._runs.lookup(Spans.one(start, end))
        rows = rows[:, rows[WRITERS] > 0]
        return Spans(rows[START], rows[END])

    @property
    def _mappings(self) -> int:
        """At most how many separate runs the domain holds for this cache."""
        return len(self._runs) + self._host_views.runs

    def _adjust(self, scatter: ScatterList, need: int, *, pins: int) -> bool:
        """Count a pin of one range, that is one run and remains pinned, up or down; False where it is not that."""
        if len(scatter) != 1 or self._leaving is not None:
            return False
        flags = 0 if pins < 0 else need | (_WRITABLE if need & _WRITE else 0)
        writers = pins if need & _WRITE else 0
        start, end = scatter.first, scatter.end
        if not self._runs.adjust(start, end, pins=pins, writers=writers, flags=flags):
            return False
        if pins > 0:
            self.hits += end - start
        return True

    def _pin(self, scatter: ScatterList, need: int) -> None:
        spans, part = scatter.spans()
        if self._leaving is not None and spans.clip(self._leaving.start, self._leaving.end).pages:
            raise GuestMemoryError(errno.EINVAL, "the client is taking this memory away")
        found = self._runs.lookup(spans) if self._runs.any_in(scatter.first, scatter.end) else NO_RUNS
        missing = gaps(spans, found)
        if part is not None and len(missing.start):
            # In the order of the list: it is in the order of these that a domain makes pages contiguous.
            came = part[np.searchsorted(spans.start, missing.start, "right") - 1]
            missing = missing.take(np.argsort(came, kind="stable"))
        try:
            self._check_permitted(found, need)
            new = self._map(file_pieces(self._regions, missing, need), spans, need)
            self._make_writable(found, new, need)
        except OSError as exc:
            raise GuestMemoryError(exc.errno or errno.ENOMEM, f"cannot pin: {exc.strerror}") from exc
        self._count(spans, found, new, need)

    def _check_permitted(self, found: Rows, need: int) -> None:
        """Raise GuestMemoryError where pages were pinned for less until now, and the client permits no more."""
        unknown = found[:, found[FLAGS] & need != need]
        file_pieces(self._regions, Spans(unknown[START], unknown[END]), need)

    def _map(self, pieces: FilePieces, spans: Spans, need: int) -> Rows:
        """Map ``pieces``: the runs that they are now, by guest page."""
        if not pieces.runs:
            return NO_RUNS.copy()
        self._make_room(pieces, spans)
        writable = need & _WRITE != 0
        try:
            segments = self._domain.map_runs(pieces.runs, writable=writable)
        except OSError:
            # The domain's own limits are known only when they are met: what is retained may be what meets them.
            idle = without(self._runs.idle(), spans)
            if not idle.shape[1]:
                raise
            self._evict(idle, pages_of(idle))
            segments = self._domain.map_runs(pieces.runs, writable=writable)
        flags = pieces.flags | _WRITABLE if writable else pieces.flags
        rows = rows_at(pieces.pages, segments, flags)
        return rows[:, np.argsort(rows[START])]

    def _make_room(self, pieces: FilePieces, spans: Spans) -> None:
        """Let retained pages go where ``pieces`` need their room, but for those in ``spans``. Raises ENOMEM."""
        limit = self.limits.max_pinned
        over = 0
        if limit is not None:
            over = self.mapped_pages + pieces.pages.pages - limit // PAGE_SIZE
        runs = self._mappings + len(pieces.runs)
        full = runs > self._domain.max_runs
        if over <= 0 and not full:
            return
        idle = without(self._runs.idle(), spans)
        if over > pages_of(idle):
            self._log.warning("pin_limit_reached", limit=limit, limited_by=self.limits.limited_by)
            raise GuestMemoryError(
                errno.ENOMEM, f"over the limit of {limit} pinned bytes ({self.limits.limited_by})"
            )
        if full and runs - idle.shape[1] > self._domain.max_runs:
            limited_by = self._domain.runs_limited_by
            self._log.warning("pin_limit_reached", runs=self._domain.max_runs, limited_by=limited_by)
            raise OutOfRuns(self._domain.max_runs, limited_by)
        self._evict(idle, pages_of(idle) if full else over)

    def _make_writable(self, found: Rows, new: Rows, need: int) -> None:
        """Let the device write what was mapped for reading; takes ``new`` out of the domain where that fails."""
        if not need & _WRITE:
            return
        try:
            for dma_addr, length in segments_of(found[:, found[FLAGS] & _WRITABLE == 0]):
                self._domain.make_writable(dma_addr, length)
        except OSError:
            self._unmap(new)
            raise

    def _count(self, spans: Spans, found: Rows, new: Rows, need: int) -> None:
        """One more pin holds ``spans``: what was ``found`` mapped, and ``new``."""
        writers = 1 if need & _WRITE else 0
        flags = need | (_WRITABLE if writers else 0)
        new[COUNT] = 1
        new[WRITERS] = writers
        added = pages_of(new)
        self.mapped_pages += added
        self.misses += added
        if not found.shape[1]:
            self._runs.insert(new)
            return
        self.hits += spans.pages - added
        self.retained_pages -= pages_of(found[:, found[COUNT] == 0])

        def count(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            rows[COUNT, meant] += 1
            rows[WRITERS, meant] += writers
            rows[FLAGS, meant] |= flags
            rows[STAMP, meant] = 0
            return rows

        self._runs.update(spans, count, new)

    def _release(self, pin: Pin) -> None:
        pin.revoke()
        del self._pins[id(pin)]
        self._host_views.drop(pin)
        need = pin.prot.value
        if need & _WRITE and self._dirty.active:
            self._dirty.mark_spans(pin.scatter.spans()[0])
        if not self._adjust(pin.scatter, need, pins=-1) and not self._remove(pin.scatter):
            self._uncount(pin.scatter.spans()[0], 1 if need & _WRITE else 0)
        if self._leaving is not None and not self._leaving.pending:
            self._leaving.released()

    def _remove(self, scatter: ScatterList) -> bool:
        """Take out a pin of one range that is one run and nobody else's; False where it is not that."""
        if len(scatter) != 1 or self.limits.retain:
            return False
        dma = self._runs.remove(scatter.first, scatter.end)
        if dma is None:
            return False
        self.mapped_pages -= scatter.end - scatter.first
        self._domain.unmap(dma << PAGE_SHIFT, scatter.end - scatter.first << PAGE_SHIFT)
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
            self.retained_pages += pages_of(rows)
        if not retain and freed:
            self._forgotten(np.concatenate(freed, axis=1))

    def _trim(self) -> None:
        """Keep the budget of retained pages."""
        surplus = excess(self.retained_pages, self.limits.retain // PAGE_SIZE)
        if surplus:
            self._evict(self._runs.idle(), surplus)

    def _evict(self, idle: Rows, pages: int) -> None:
        before = self.retained_pages
        self._forget_retained(oldest(idle, pages))
        self.evicted += before - self.retained_pages

    def _forget_retained(self, spans: Spans) -> None:
        """Take what nobody pins of ``spans`` out of the domain."""
        if not self.retained_pages:
            return
        gone: list[Rows] = []

        def forget(rows: Rows, meant: NDArray[np.bool_]) -> Rows:
            idle = meant & (rows[COUNT] == 0)
            gone.append(rows[:, idle])
            return rows[:, ~idle]

        self._runs.update(spans, forget)
        if gone:
            self._forgotten(np.concatenate(gone, axis=1))

    def _forgotten(self, rows: Rows) -> None:
        """Retained pages that are no longer in the map leave the domain, and the account."""
        pages = pages_of(rows)
        self.retained_pages -= pages
        self.mapped_pages -= pages
        self._unmap(rows)

    def _unmap(self, rows: Rows) -> None:
        for dma_addr, length in segments_of(rows[:, np.argsort(rows[DMA], kind="stable")]):
            self._domain.unmap(dma_addr, length)

    def _collect(self) -> None:
        """Release what was dropped."""
        while self._dropped:
            pin = self._dropped.pop()
            self._log.warning("pin_leaked", pinned_at=pin.origin, bytes=pin.length)
            self._release(pin)

    def _tell(self, pin: Pin, *, may_wait: bool) -> bool:
        """Tell a holder; False where it keeps its pages for now, because it asked for time."""
        wants_time: bool | None = False
        try:
            wants_time = pin.on_unmap(pin)
        except Exception as exc:
            self._log.warning("unmap_callback_failed", pinned_at=pin.origin, error=repr(exc))
        if pin.revoked:
            return True
        if wants_time is True and may_wait:
            return False
        self._revoke(pin)
        return True

    def _revoke(self, pin: Pin) -> None:
        self.revoked += 1
        self._log.warning("pin_revoked", pinned_at=pin.origin, bytes=pin.length)
        self._release(pin)
