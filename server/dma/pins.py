"""The pins of a client's memory: who holds which pages, and how they lose them.

The cache of guest page to dma_addr itself is in :mod:`server.dma.mapped_pages`. Here are the handles: what one drops
without releasing it is noticed, and what the client takes away is told to its holders, and revoked where they keep it.
A pinned page's region is always in the table, since its pages are invalidated before a region is let go.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Sequence

from devices.contract import GuestMemoryError, GuestRange, Log, OnUnmap, Prot
from server.dma.address_space import PAGE_SIZE
from server.dma.dirty import DirtyLog
from server.dma.domain import DmaDomain
from server.dma.host_views import HostViews
from server.dma.invalidation import Invalidation
from server.dma.limits import NO_LIMITS, PinLimits
from server.dma.mapped_pages import MappedPages, PinnedRun
from server.dma.pin import Pin
from server.dma.regions import DmaRegionTable
from server.dma.run_rows import Rows
from server.dma.scatter import ScatterList
from server.dma.spans import Spans

_WRITE = Prot.WRITE.value


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
        self._log = log
        self._dirty = dirty
        self._pages = MappedPages(regions, domain, log, limits)
        self._pins: dict[int, weakref.ref[Pin]] = {}
        self._dropped: list[Pin] = []
        self._leaving: Invalidation | None = None
        self._host_views = HostViews(regions, domain)
        self.invalidations = 0
        self.revoked = 0

    def __len__(self) -> int:
        """How many pins there are."""
        self._collect()
        return len(self._pins)

    @property
    def runs(self) -> Sequence[PinnedRun]:
        """The runs of mapped pages by guest address, for status and tests."""
        return self._pages.runs

    def stats(self) -> dict[str, object]:
        """Counters: JSON values; hits, misses and evictions in pages."""
        pages = self._pages
        return {
            "pins": len(self),
            "dma_mapped_pages": pages.mapped,
            "pinned_pages": pages.mapped - pages.retained,
            "retained_pages": pages.retained,
            "retained_limit": pages.limits.retain // PAGE_SIZE,
            "locked_bytes": pages.locked * PAGE_SIZE,
            "locked_limit": pages.limits.max_pinned,
            "hits": pages.hits,
            "misses": pages.misses,
            "evicted": pages.evicted,
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
        if self._leaving is not None and self._leaving.touches(scatter):
            raise GuestMemoryError(errno.EINVAL, "the client is taking this memory away")
        self._pages.pin(scatter, prot.value)
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
        if self._leaving is not None and not self._leaving.pending:
            self._leaving.released()

    def invalidate(self, start: int, end: int, *, may_wait: bool = False) -> Invalidation:
        """The client takes the pages ``[start, end)`` away: tell their holders, and revoke what they kept.

        The regions must have left the table, so that no callback can pin them again. Where ``may_wait``, pins
        whose holders ask for time stay until :meth:`finish`, which must follow before anything is mapped
        there again. Costs O(log n) where nothing is mapped there, whatever the size of the range; else it is
        proportional to the pins.
        """
        self._collect()
        if not self._pages.any_in(start, end):
            return Invalidation(start, end)
        self.invalidations += 1
        self._leaving = invalidation = Invalidation(start, end)
        invalidation.waiting = [
            ref for ref in list(self._pins.values()) if not self._tell(ref(), start, end, may_wait=may_wait)
        ]
        if not invalidation.pending:
            self.finish(invalidation)
        return invalidation

    def finish(self, invalidation: Invalidation) -> None:
        """Revoke what has not been released; nothing refers to the pages afterwards. May be called again."""
        if self._leaving is not invalidation:
            return
        # What was dropped in the meantime is in nobody's list but holds its pages.
        self._collect()
        for ref in list(invalidation.waiting):
            pin = ref()
            if pin is not None and not pin.revoked:
                self._log.warning("unmap_timed_out", pinned_at=pin.origin, bytes=pin.length)
                self._revoke(pin)
        self._pages.forget_retained(Spans.one(invalidation.start, invalidation.end))
        self._leaving = None
        self._trim()

    def lookup(self, pin: Pin) -> Rows:
        """Where the pages of ``pin`` are in the domain, by guest page."""
        return self._pages.lookup(pin.scatter)

    def views(self, pin: Pin) -> Sequence[memoryview]:
        """The memory of ``pin`` in place."""
        views = self._host_views.views(pin, self._pages.room)
        self._pages.aliases = self._host_views.runs
        return views

    def written_spans(self, start: int, end: int) -> Spans:
        """Of the pages ``[start, end)``, those that are pinned for writing now."""
        return self._pages.written_spans(start, end)

    def _release(self, pin: Pin) -> None:
        pin.revoke()
        del self._pins[id(pin)]
        self._host_views.drop(pin)
        self._pages.aliases = self._host_views.runs
        need = pin.prot.value
        if need & _WRITE and self._dirty.active:
            self._dirty.mark_spans(pin.scatter.spans()[0])
        self._pages.release(pin.scatter, need)
        if self._leaving is not None and not self._leaving.pending:
            self._leaving.released()

    def _trim(self) -> None:
        # Of what is being taken away nothing stays, so others need not make room for it.
        if self._leaving is None:
            self._pages.trim()

    def _collect(self) -> None:
        """Release what was dropped."""
        while self._dropped:
            pin = self._dropped.pop()
            self._log.warning("pin_leaked", pinned_at=pin.origin, bytes=pin.length)
            self._release(pin)
            self._trim()

    def _tell(self, pin: Pin | None, start: int, end: int, *, may_wait: bool) -> bool:
        """Tell the holder of a pin of ``[start, end)``; False where it keeps its pages, because it asked for time."""
        # A callback may have released pins other than its own.
        if pin is None or pin.revoked or not pin.overlaps(start, end):
            return True
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
