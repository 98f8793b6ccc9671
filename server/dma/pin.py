"""What a holder of pinned pages has in hand."""

from __future__ import annotations

import errno
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol, Self

from devices.contract import DmaSegment, GuestMemoryError, PinnedPages, Prot
from server.dma.spans import Span, merge

_HERE = str(Path(__file__).parent)


class PinOwner(Protocol):
    """What a :class:`Pin` needs of the cache that made it."""

    def release(self, pin: Pin) -> None:
        """Drop the references of ``pin``."""

    def leaked(self, pin: Pin) -> None:
        """``pin`` was dropped without having been released."""

    def translate(self, address: int) -> int:
        """The dma_addr of a pinned guest address."""

    def segments(self, parts: Sequence[Span]) -> list[DmaSegment]:
        """Where pinned memory is in the domain."""

    def views(self, pin: Pin) -> list[memoryview]:
        """The pinned memory in place."""


class Pin:
    """A pinned scatter list (:class:`devices.contract.PinnedPages`); also a context manager that releases it.

    ``spans`` are the pages in the order of the list. A Pin that is dropped while it holds pages is a leak:
    it is logged with where it was made, and released.
    """

    __slots__ = (
        "__weakref__",
        "_cache",
        "_ordered",
        "_segments",
        "_views",
        "length",
        "on_unmap",
        "origin",
        "parts",
        "prot",
        "revoked",
        "spans",
    )

    def __init__(
        self,
        cache: PinOwner,
        parts: Sequence[Span],
        spans: Sequence[Span],
        prot: Prot,
        on_unmap: Callable[[PinnedPages], None],
    ) -> None:
        self._cache = cache
        self._ordered: list[Span] | None = None
        self._segments: list[DmaSegment] | None = None
        self._views: tuple[memoryview, ...] | None = None
        self.length = sum(end - start for start, end in parts)
        self.parts = parts
        self.spans = spans
        self.prot = prot
        self.on_unmap = on_unmap
        self.origin = _caller()
        self.revoked = False

    @property
    def segments(self) -> Sequence[DmaSegment]:
        """The DMA segments in order, coalesced. Raises GuestMemoryError (EINVAL) once revoked."""
        self._check()
        if self._segments is None:
            self._segments = self._cache.segments(self.parts)
        return self._segments

    def dma_addr(self, address: int) -> int:
        """The dma_addr of a guest address in the pinned pages. Raises GuestMemoryError (EINVAL)."""
        self._check()
        if not self.overlaps(address, address + 1):
            raise GuestMemoryError(errno.EINVAL, f"guest address {address:#x} is not part of this pin")
        return self._cache.translate(address)

    def views(self) -> Sequence[memoryview]:
        """The memory in order, one piece where all pages are neighbours in the domain.

        Raises GuestMemoryError (EINVAL) once revoked.
        """
        self._check()
        if self._views is None:
            views = self._cache.views(self)
            self._views = tuple(views if self.prot & Prot.WRITE else (view.toreadonly() for view in views))
        return self._views

    def release(self) -> None:
        """Drop one reference per page. Calling it again does nothing."""
        if not self.revoked:
            self._cache.release(self)

    def revoke(self) -> None:
        """The pages are no longer this handle's: it raises an error from now on."""
        self.revoked = True
        self._views = None

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any of the pages lies in ``[start, end)``."""
        if self._ordered is None:
            self._ordered = merge(sorted(self.spans))
        index = bisect_left(self._ordered, (end, 0))
        return index > 0 and self._ordered[index - 1][1] > start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __del__(self) -> None:
        if not getattr(self, "revoked", True):
            self._cache.leaked(self)

    def _check(self) -> None:
        if self.revoked:
            raise GuestMemoryError(errno.EINVAL, "these pages are no longer pinned")


def _caller() -> str:
    """The first frame outside this package, as file:line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"
